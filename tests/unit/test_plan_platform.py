"""What follows for a guest from its watchdog, and from a machine that cannot replug."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.actions import EndVm, StopVm
from agent.core.desired import Desired, VmSpec
from agent.core.device_actions import ReplugNic
from agent.core.model.host import apply
from agent.core.observed import End, Intent, NicBackend, NicState, Observed
from agent.core.planner.policy import wants_to_run
from agent.core.planning import plan
from agent.core.reasons import Reason
from tests.unit.planning_world import BRIDGE, BRIDGE_LINK, DESIRED, HOST, RUNNING, SETTLED, WEB, types

UNTOUCHED = Intent()


def fired(action: str | None, intent: Intent = UNTOUCHED) -> tuple[Desired, Observed]:
    """A guest that its watchdog stopped."""
    spec = replace(WEB, watchdog=action)
    state = replace(RUNNING, spec=spec, run_state="watchdog")
    return replace(DESIRED, vms={"web": spec}), replace(SETTLED, vms={"web": state}, intents={"web": intent})


def test_poweroff_by_the_watchdog_is_a_failure() -> None:
    desired, observed = fired("poweroff")
    decided = plan(desired, observed, 100.0)
    assert decided.actions == (EndVm("vm/web", Reason.EXITED, "web", WEB.uuid, "watchdog", False),)
    after = apply(observed, decided.actions[0], 100.0)
    assert after.ends["web"] == (End(100.0, 0.0, HOST.boot_id, "watchdog"),)
    assert wants_to_run(desired.vms["web"], Intent(), after.ends["web"], HOST.boot_id)


def test_a_guest_that_is_not_wanted_any_more_is_only_put_away() -> None:
    desired, observed = fired("poweroff", Intent(stopped=True))
    (action,) = plan(desired, observed, 100.0).actions
    assert isinstance(action, EndVm)
    assert (action.exit_reason, action.asked) == ("host", True)
    (leftover,) = plan(replace(desired, vms={}), observed, 100.0).actions
    assert isinstance(leftover, EndVm)


@pytest.mark.parametrize("action", ["pause", "reset", None])
def test_a_pause_by_the_watchdog_is_told_and_left_alone(action: str | None) -> None:
    desired, observed = fired(action)
    decided = plan(desired, observed, 100.0)
    assert decided.actions == ()
    assert types(decided) == [("vm/web", "WatchdogFired")]
    desired, observed = fired(action, Intent(generation=1))
    (stop,) = plan(desired, observed, 100.0).actions
    assert isinstance(stop, StopVm)


@pytest.mark.parametrize(("machine", "replugs"), [("q35", True), ("pc", True), ("microvm", False)])
def test_a_microvm_never_replugs(machine: str, replugs: bool) -> None:
    spec: VmSpec = replace(WEB, machine=machine)
    state = replace(RUNNING, spec=spec, nics={"lan": NicState(NicBackend.UNKNOWN)})
    observed = Observed(links={"br0": BRIDGE_LINK}, vms={"web": state}, host=HOST)
    decided = plan(Desired({"br0": BRIDGE}, {"web": spec}), observed, 100.0)
    assert [isinstance(action, ReplugNic) for action in decided.actions] == [True] * replugs
    assert types(decided) == ([] if replugs else [("tap/web/lan", "TapLost")])


def test_a_microvm_s_tap_is_maintained_as_any_other() -> None:
    spec = replace(WEB, machine="microvm")
    state = replace(RUNNING, spec=spec, nics={"lan": NicState(NicBackend.UNKNOWN)})
    decided = plan(Desired({"br0": BRIDGE}, {"web": spec}), replace(SETTLED, vms={"web": state}), 100.0)
    assert (decided.actions, types(decided)) == ((), [])


def test_a_guest_that_runs_is_not_ended_for_what_its_watchdog_would_do() -> None:
    spec = replace(WEB, watchdog="poweroff")
    observed = replace(SETTLED, vms={"web": replace(RUNNING, spec=spec)})
    assert plan(replace(DESIRED, vms={"web": spec}), observed, 100.0).actions == ()
