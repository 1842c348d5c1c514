"""The host is down: who is stopped when, and that nobody starts."""

from __future__ import annotations

from dataclasses import replace

from agent.core.actions import EndVm, StopVm
from agent.core.desired import Desired
from agent.core.observed import Observed
from agent.core.planning import plan
from tests.unit.planning_world import BRIDGE, DB, DB_RUNS, DESIRED, HOST, RUNNING, SETTLED, WEB, types

DOWN = replace(HOST, down=True)
AFTER_WEB = replace(DB, after=("vm:web",))
BOTH = replace(SETTLED, host=DOWN, vms={"web": RUNNING, "db": replace(DB_RUNS, spec=AFTER_WEB)})
WANTED = Desired({"br0": BRIDGE}, {"web": WEB, "db": AFTER_WEB})


def stopped(observed: Observed, desired: Desired = WANTED) -> list[str]:
    return [action.vm for action in plan(desired, observed, 100.0).actions if isinstance(action, StopVm | EndVm)]


def test_the_last_goes_first() -> None:
    assert stopped(BOTH) == ["db"]
    assert ("vm/web", "Waiting") in types(plan(WANTED, BOTH, 100.0))
    assert stopped(replace(BOTH, vms={"web": RUNNING})) == ["web"]


def test_one_that_has_ended_holds_nobody_up_and_is_put_away() -> None:
    ended = replace(BOTH.vms["db"], alive=False, run_state=None)
    assert sorted(stopped(replace(BOTH, vms={**BOTH.vms, "db": ended}))) == ["db", "web"]
    off = replace(BOTH.vms["db"], run_state="shutdown")
    assert sorted(stopped(replace(BOTH, vms={**BOTH.vms, "db": off}))) == ["db", "web"]


def test_no_end_is_answered_and_nobody_starts() -> None:
    (action,) = plan(DESIRED, replace(SETTLED, host=DOWN, vms={"web": replace(RUNNING, alive=False)}), 100.0).actions
    assert isinstance(action, EndVm)
    assert action.asked
    nothing = plan(WANTED, replace(BOTH, vms={}), 100.0)
    assert nothing.actions == ()
    assert nothing.deviating == frozenset()
    assert {kind for _, kind in types(nothing)} == {"HostDown"}


def test_a_circle_is_stopped_all_the_same() -> None:
    web = replace(RUNNING, spec=replace(WEB, after=("vm:db",)))
    assert sorted(stopped(replace(BOTH, vms={**BOTH.vms, "web": web}))) == ["db", "web"]


def test_a_guest_without_a_unit_is_stopped_without_an_approval() -> None:
    many = {f"v{n}": replace(DB_RUNS, spec=replace(DB, name=f"v{n}", uuid=f"u{n}")) for n in range(9)}
    assert len(stopped(replace(BOTH, vms=many), Desired())) == 9


def test_each_has_its_own_time() -> None:
    slow = replace(RUNNING, spec=replace(WEB, stop_timeout_s=7.0))
    (action,) = [a for a in plan(WANTED, replace(BOTH, vms={"web": slow}), 1.0).actions if isinstance(a, StopVm)]
    assert (action.timeout_s, action.unit_asked, action.reason) == (7.0, False, "host-down")
