"""What a guest waits for, and exactly what is told and asked meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.actions import LaunchVm, ReleaseVm
from agent.core.desired import Desired
from agent.core.observed import Hold, Intent, Observed, Reach
from agent.core.planner.draft import Plan
from agent.core.planning import plan
from agent.core.tell.forecast import forecast
from tests.unit.planning_world import DB, DB_RUNS, HOST, said, types

PORT = "tcp:10.0.0.5:5432"
READY_DB = replace(DB, ready=PORT, ready_timeout_s=30.0)
AFTER_DB = replace(DB, name="app", uuid="uuid-app", uid=1_900_000_002, after=("vm:db",))
WANTED = Desired(vms={"db": READY_DB, "app": AFTER_DB})
DB_IS_UP = Observed(vms={"db": DB_RUNS}, host=HOST)
"""The database was launched before its unit had a readiness: what the unit says now counts."""
REFUSED = Reach(False, 100.0, "connection refused")


def launched(decided: Plan) -> list[str]:
    return [action.spec.name for action in decided.actions if isinstance(action, LaunchVm)]


def seeing(reach: Reach | None, reference: str = PORT) -> Observed:
    return replace(DB_IS_UP, reachable={} if reach is None else {reference: reach})


def test_what_was_not_looked_at_is_asked_for_at_once() -> None:
    decided = plan(WANTED, seeing(None), 100.0)
    assert (launched(decided), decided.asked, decided.awaited) == ([], frozenset({PORT}), frozenset({"vm/app"}))
    assert decided.wake_at_s == 100.0


def test_while_the_first_look_lasts_nothing_is_settled_and_nobody_hurries() -> None:
    decided = plan(WANTED, seeing(Reach(None, 100.0)), 100.5)
    assert (decided.asked, decided.awaited, decided.wake_at_s) == (frozenset({PORT}), frozenset({"vm/app"}), 130.0)


def test_a_guest_that_is_not_ready_is_waited_for_with_its_reason() -> None:
    decided = plan(WANTED, seeing(REFUSED), 112.0)
    silence = "10.0.0.5:5432 takes no connections (connection refused, for 12 s)"
    assert said(decided) == [("vm/app", "Waiting", "NotReady", f"waits for vm db to be ready: {silence}")]
    assert (launched(decided), decided.awaited, decided.wake_at_s) == ([], frozenset(), 130.0)


def test_one_that_is_late_is_told_once_and_waited_for_on() -> None:
    other = replace(AFTER_DB, name="other", uuid="uuid-other")
    desired = Desired(vms={**WANTED.vms, "other": other})
    decided = plan(desired, seeing(REFUSED), 130.0)
    assert types(decided) == [("vm/app", "Waiting"), ("vm/db", "NotReady"), ("vm/other", "Waiting")]
    late = "it runs and is not ready after 30 s: 10.0.0.5:5432 takes no connections (connection refused, for 30 s)"
    assert said(decided)[1][3] == f"{late}; those that go after it wait on"
    assert launched(decided) == []


def test_once_it_is_ready_whoever_waits_starts_and_nothing_is_asked_any_more() -> None:
    decided = plan(WANTED, seeing(Reach(True, 113.0)), 113.0)
    assert (launched(decided), said(decided), decided.asked) == (["app"], [], frozenset({PORT}))
    running = replace(DB_RUNS, spec=AFTER_DB, pid=4713)
    settled = replace(DB_IS_UP, vms={"db": replace(DB_RUNS, spec=READY_DB), "app": running})
    assert plan(WANTED, settled, 114.0) == Plan()


def test_a_guest_that_does_not_run_is_not_asked() -> None:
    for db in (None, replace(DB_RUNS, run_state="paused"), replace(DB_RUNS, alive=False, run_state=None)):
        vms = {} if db is None else {"db": db}
        decided = plan(WANTED, replace(seeing(Reach(True, 1.0)), vms=vms), 100.0)
        assert ("vm/app", "Waiting", "Waiting", "waits for vm db to run") in said(decided)
        assert decided.asked == frozenset()


def test_paths_and_ports_are_waited_for_each_by_name() -> None:
    app = replace(AFTER_DB, after=("path:/srv/disk", "tcp:[fd00::1]:53"))
    reachable = {"path:/srv/disk": Reach(False, 90.0), "tcp:[fd00::1]:53": Reach(False, 95.0, "no route to host")}
    decided = plan(Desired(vms={"app": app}), Observed(host=HOST, reachable=reachable), 100.0)
    port = "waits for [fd00::1]:53 to take connections (no route to host, for 5 s)"
    assert said(decided) == [
        ("vm/app", "Waiting", "PathMissing", "waits for /srv/disk to exist (for 10 s)"),
        ("vm/app", "Waiting", "Unreachable", port),
    ]
    assert decided.asked == set(app.after)
    there = {reference: Reach(True, 100.0) for reference in app.after}
    assert launched(plan(Desired(vms={"app": app}), Observed(host=HOST, reachable=there), 100.0)) == ["app"]


def test_who_is_not_to_run_asks_for_nothing() -> None:
    app = replace(AFTER_DB, after=("tcp:10.0.0.1:53",), enabled=False)
    assert plan(Desired(vms={"app": app}), Observed(host=HOST), 100.0).asked == frozenset()


def test_a_forecast_takes_a_guest_that_was_started_for_ready() -> None:
    steps = forecast(WANTED, Observed(host=HOST), 100.0).steps
    assert [type(step.action) for step in steps] == [LaunchVm, ReleaseVm, LaunchVm, ReleaseVm]


@pytest.mark.parametrize(
    ("intent", "enabled", "why"),
    [
        (Intent(), True, ""),
        (Intent(), False, ", which its unit disables (enabled = false)"),
        (Intent(stopped=True), True, ", which its operator stopped (`vmhost start db`)"),
        (Intent(paused=True), True, ", which its operator paused (`vmhost resume db`)"),
        (Intent(hold=Hold(0, "2026-01-01")), True, ", which is held (`vmhost release db`)"),
    ],
)
def test_why_a_guest_will_not_run_by_itself_is_told_to_those_that_wait(intent: Intent, enabled: bool, why: str) -> None:
    observed = Observed(host=HOST, intents={"db": intent})
    desired = Desired(vms={"db": replace(DB, enabled=enabled), "app": AFTER_DB})
    assert ("vm/app", "Waiting", "Waiting", f"waits for vm db to run{why}") in said(plan(desired, observed, 1.0))
