"""The whole host in one line."""

from __future__ import annotations

from dataclasses import dataclass

from agent.core.conditions import Condition
from agent.core.desired import BridgeSpec, Desired, VmSpec
from agent.core.errors import UnitError
from agent.core.observed import Observed, VmState
from agent.core.tell.status import AgentFacts, StatusInputs
from agent.core.tell.status_line import status_line

WEB, DB = VmSpec("web", "u-web", 1900000000), VmSpec("db", "u-db", 1900000001)
BRIDGES = {"br-lan": BridgeSpec("br-lan", "02:00:00:00:00:02")}


@dataclass(frozen=True)
class File:
    path: str
    state: str
    errors: tuple[UnitError, ...] = ()


def facts(*, settled: bool) -> AgentFacts:
    return AgentFacts(version="0.1.0", pid=7, started="2026-01-01T00:00:00Z", settled=settled)


def test_a_host_that_is_as_its_units_say() -> None:
    observed = Observed(vms={"web": VmState(WEB, alive=True), "db": VmState(DB, alive=True)})
    inputs = StatusInputs(facts(settled=True), desired=Desired(BRIDGES, {"web": WEB, "db": DB}), observed=observed)
    assert status_line(inputs) == "2 of 2 guests running, 1 bridge; settled"


def test_what_stands_in_the_way_is_counted_and_a_guest_that_is_no_longer_wanted_as_well() -> None:
    inputs = StatusInputs(
        facts(settled=False),
        files=[File("/u/web.toml", "held"), File("/u/db.toml", "valid")],
        desired=Desired({}, {"db": DB}),
        observed=Observed(vms={"web": VmState(WEB, alive=False)}),
        conditions=[(Condition("vm/web", "CrashLoop", "CrashLoop", "again and again"), "")] * 2,
    )
    expected = "0 of 2 guests running, 0 bridges; 1 unit file with mistakes (vmhost check); "
    assert status_line(inputs) == expected + "2 conditions (vmhost status); at work"


def test_an_empty_host() -> None:
    assert status_line(StatusInputs(facts(settled=True))) == "0 of 0 guests running, 0 bridges; settled"
