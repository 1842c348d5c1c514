"""The host is down: who is stopped when, and that nobody starts."""

from __future__ import annotations

from dataclasses import replace

from agent.core.actions import EndVm, StopVm
from agent.core.attempts import after_failure
from agent.core.desired import Desired
from agent.core.errors import TransientError
from agent.core.observed import Observed, VmState
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


def in_a_row(count: int, timeout_s: float = 60.0) -> dict[str, VmState]:
    """Guests of which each goes after the one before it."""
    specs = [
        replace(DB, name=f"g{n}", uuid=f"u{n}", stop_timeout_s=timeout_s, after=(f"vm:g{n - 1}",) if n else ())
        for n in range(count)
    ]
    return {spec.name: replace(DB_RUNS, spec=spec, pid=5000 + n) for n, spec in enumerate(specs)}


def timeouts(vms: dict[str, VmState], by_s: float, now_s: float) -> dict[str, float]:
    observed = Observed(vms=vms, host=replace(DOWN, down_by_s=by_s))
    return {a.vm: a.timeout_s for a in plan(Desired(), observed, now_s).actions if isinstance(a, StopVm)}


def test_within_a_large_budget_each_has_its_own_time() -> None:
    assert timeouts(in_a_row(3), 300.0, 0.0) == {"g2": 60.0}


def test_in_a_budget_that_does_not_do_for_all_each_has_its_share() -> None:
    assert timeouts(in_a_row(3), 30.0, 0.0) == {"g2": 10.0}
    assert timeouts(in_a_row(2), 30.0, 4.0) == {"g1": 13.0}
    assert timeouts(in_a_row(1), 30.0, 9.0) == {"g0": 21.0}


def test_what_those_after_it_cannot_use_is_the_guests_own() -> None:
    vms = in_a_row(3, 5.0)
    vms["g2"] = replace(vms["g2"], spec=replace(vms["g2"].spec, stop_timeout_s=60.0))
    assert timeouts(vms, 30.0, 0.0) == {"g2": 20.0}


def test_once_the_budget_is_over_nobody_waits_and_nobody_has_time() -> None:
    assert timeouts(in_a_row(3), 30.0, 30.0) == dict.fromkeys(("g0", "g1", "g2"), 0.0)
    assert plan(Desired(), Observed(vms=in_a_row(2), host=replace(DOWN, down_by_s=30.0)), 1.0).wake_at_s == 30.0


def test_a_thousand_in_a_row_and_a_circle_have_their_shares_too() -> None:
    assert timeouts(in_a_row(1200), 60.0, 0.0) == {"g1199": 60.0 / 1200}
    web = replace(RUNNING, spec=replace(WEB, after=("vm:db",)))
    db = replace(DB_RUNS, spec=AFTER_WEB)
    assert set(timeouts({"web": web, "db": db}, 30.0, 0.0)) == {"web", "db"}


def test_a_stop_that_failed_is_not_tried_again_because_less_time_is_left() -> None:
    observed = Observed(vms=in_a_row(1), host=replace(DOWN, down_by_s=30.0))
    (stop,) = plan(Desired(), observed, 0.0).actions
    attempt = after_failure(
        stop, TransientError("no room", reason="RunDirectoryUnusable", retry_after_s=5.0), None, 0.0
    )
    failed = replace(observed, attempts={"stop-vm vm/g0": attempt})
    assert plan(Desired(), failed, 4.0).actions == ()
    assert len(plan(Desired(), failed, 5.0).actions) == 1
