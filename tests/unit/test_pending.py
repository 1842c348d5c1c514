"""What waits for a start: what of it a reboot applies, what a unit wants applied at once, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.actions import ChangeReboot, EndVm, LaunchVm, StopVm
from agent.core.desired import Apply, Desired, NicSpec, Restart, VmSpec
from agent.core.edits.digest import PendingChange
from agent.core.edits.live import Edit
from agent.core.edits.pending import outage, pending_json, pending_of, told_mtus, waits_for_start
from agent.core.model.host import apply
from agent.core.observed import End, Hold, HostState, Intent, Observed, VmState
from agent.core.planner.draft import Plan
from agent.core.planning import plan
from agent.core.qemu.argv import devices_at_launch
from agent.core.reasons import Disruption, Reason
from tests.unit.planning_world import DESIRED, NIC, RUNNING, SETTLED, with_vm

WEB = VmSpec("web", "uuid-web", 1_900_000_000, "web.toml")
BIGGER = replace(WEB, memory_mib=1024)
RUNS = VmState(WEB, True, 4711, run_state="running", devices=devices_at_launch(WEB))
ARMED = replace(RUNS, reboot_ends=True)
HOST = HostState(boot_id="now")
AT_ONCE = replace(BIGGER, apply=Apply.RESTART)
TOLD = replace(RUNS, spec=replace(WEB, apply=Apply.RESTART))
ON_LAN = replace(WEB, apply=Apply.RESTART, nics=(NIC,))
ARM = ChangeReboot("vm/web/reboot", Reason.EDITED, "web", "uuid-web", ends=True)
DISARM = replace(ARM, ends=False)


def decided(wanted: VmSpec, state: VmState, intent: Intent | None = None) -> Plan:
    intents = {} if intent is None else {"web": intent}
    return plan(Desired(vms={"web": wanted}), Observed(vms={"web": state}, host=HOST, intents=intents), 100.0)


@pytest.mark.parametrize(
    ("wanted", "state", "action"),
    [
        (WEB, RUNS, None),
        (BIGGER, RUNS, ARM),
        (BIGGER, ARMED, None),
        (BIGGER, replace(RUNS, reboot_ends=None), ARM),
        (WEB, ARMED, DISARM),
        (WEB, replace(RUNS, reboot_ends=None), DISARM),
        (BIGGER, replace(RUNS, run_state=None), None),
        (replace(WEB, cpus=2, memory_mib=1024), ARMED, None),
    ],
    ids=["nothing waits", "arm", "armed", "unsure", "reverted", "unsure, reverted", "silent", "more waits"],
)
def test_a_reboot_ends_qemu_exactly_while_something_waits(
    wanted: VmSpec, state: VmState, action: ChangeReboot | None
) -> None:
    assert decided(wanted, state).actions == (() if action is None else (action,))


def test_what_is_live_does_not_arm_a_reboot() -> None:
    (edit,) = decided(replace(WEB, description="x"), RUNS).actions
    assert edit.resource == "vm/web"
    assert not waits_for_start(RUNS, replace(WEB, description="x"), {})


def test_what_its_operator_holds_reboots_as_ever_and_what_its_reboot_had_ended_is_started_once_released() -> None:
    held = Intent(hold=Hold(0, "2026-01-01T00:00:00+00:00"))
    assert decided(BIGGER, ARMED, held).actions == (DISARM,)
    assert decided(BIGGER, RUNS, held).actions == ()
    ended = replace(ARMED, run_state="shutdown", rebooted=True)
    assert decided(BIGGER, ended, held).actions == ()
    (end,) = decided(BIGGER, ended).actions
    assert isinstance(end, EndVm)
    assert end.rebooted


def test_a_guest_whose_unit_has_mistakes_reboots_as_ever() -> None:
    desired = Desired(unresolved_files=frozenset({"web.toml"}))
    assert plan(desired, Observed(vms={"web": ARMED}, host=HOST), 100.0).actions == (DISARM,)


@pytest.mark.parametrize("restart", Restart)
def test_a_reboot_is_no_end_whatever_the_policy(restart: Restart) -> None:
    ends = {"web": tuple(End(99.0 + n / 10, 1.0, "now", "crash") for n in range(5))}
    wanted = replace(BIGGER, restart=restart)
    world = Observed(vms={"web": replace(ARMED, run_state="shutdown", rebooted=True)}, host=HOST, ends=ends)
    (end,) = plan(Desired(vms={"web": wanted}), world, 100.0).actions
    assert end == EndVm("vm/web", Reason.REBOOT, "web", "uuid-web", "guest_reset", asked=True, rebooted=True)
    world = apply(world, end, 100.0)
    assert world.ends == {}
    (launch,) = plan(Desired(vms={"web": wanted}), world, 100.0).actions
    assert isinstance(launch, LaunchVm)
    assert launch.spec == wanted


def test_a_poweroff_is_an_end_with_something_waiting_too() -> None:
    (end,) = decided(BIGGER, replace(ARMED, run_state="shutdown")).actions
    assert isinstance(end, EndVm)
    assert (end.exit_reason, end.asked, end.rebooted) == ("guest_shutdown", False, False)


def test_one_that_rebooted_while_it_was_being_stopped_stays_stopped() -> None:
    state = replace(ARMED, run_state="shutdown", rebooted=True, stopping=True)
    (end,) = decided(BIGGER, state).actions
    assert isinstance(end, EndVm)
    assert (end.rebooted, end.asked) == (False, True)


@pytest.mark.parametrize(
    ("wanted", "state", "restarts"),
    [
        (AT_ONCE, TOLD, True),
        (AT_ONCE, RUNS, False),
        (BIGGER, RUNS, False),
        (replace(WEB, apply=Apply.RESTART), TOLD, False),
        (ON_LAN, replace(TOLD, spec=ON_LAN, told_mtus={"lan": 1400}), False),
        (AT_ONCE, replace(TOLD, run_state="paused"), False),
        (AT_ONCE, replace(TOLD, run_state=None), False),
    ],
    ids=["at once", "takes over first what is live", "asks", "nothing waits", "an MTU", "paused", "silent"],
)
def test_apply_restart_stops_what_runs_to_start_it_anew(wanted: VmSpec, state: VmState, restarts: bool) -> None:
    stops = [action for action in decided(wanted, state).actions if isinstance(action, StopVm)]
    stop = StopVm("vm/web", Reason.EDITED, "web", "uuid-web", 60.0, unit_asked=True)
    assert stops == ([stop] if restarts else [])


def test_a_mass_edit_asks_before_it_restarts_all_and_each_runs_on_until_then() -> None:
    wanted = {f"g{n}": replace(AT_ONCE, name=f"g{n}", uuid=f"u{n}") for n in range(4)}
    states = {
        name: replace(RUNS, spec=replace(spec, memory_mib=512, apply=Apply.RESTART)) for name, spec in wanted.items()
    }
    found = plan(Desired(vms=wanted), Observed(vms=states, host=HOST), 100.0)
    assert {type(action) for action in found.actions} == {ChangeReboot}
    assert found.approval is not None
    assert found.approval.guests == ("g0", "g1", "g2", "g3")
    assert {(c.resource, c.type, c.reason) for c in found.conditions} == {
        (f"vm/{name}", "Held", "ApprovalNeeded") for name in wanted
    }
    approved = Observed(vms=states, host=HOST, approved=frozenset(found.approval.keys))
    assert {type(action) for action in plan(Desired(vms=wanted), approved, 100.0).actions} == {StopVm}


def test_a_guest_knows_the_mtu_that_it_was_started_with() -> None:
    smaller = replace(WEB, nics=(replace(NIC, mtu=1400),))
    before = replace(WEB, nics=(NIC,))
    told = told_mtus(before, smaller, {})
    assert told == {"lan": 1500}
    assert told_mtus(smaller, before, told) == {}, "taken back"
    assert told_mtus(smaller, replace(WEB, nics=()), told) == {}, "gone"
    e1000 = NicSpec("lan", "br0", "m", "web-lan", 0, model="e1000e")
    assert told_mtus(replace(WEB, nics=(e1000,)), replace(WEB, nics=(replace(e1000, mtu=1400),)), {}) == {}
    state = replace(RUNS, spec=smaller, told_mtus=told)
    assert pending_of(state, smaller) == (PendingChange("nic.lan.mtu", "1500", "1400"),)
    assert waits_for_start(state, smaller, {})


def test_an_mtu_is_live_for_the_tap_and_pending_for_the_guest() -> None:
    wanted = replace(RUNNING.spec, nics=(replace(NIC, mtu=1400),))
    desired = replace(DESIRED, vms={"web": wanted})
    (edit,) = plan(desired, SETTLED, 100.0).actions
    after = apply(SETTLED, edit, 100.0)
    assert after.vms["web"].told_mtus == {"lan": 1500}
    assert {type(action).__name__ for action in plan(desired, after, 100.0).actions} == {"ChangeLink", "ChangeReboot"}
    assert waits_for_start(with_vm(spec=wanted, told_mtus={"lan": 1500}).vms["web"], wanted, {})
    assert Edit(wanted) == edit.edit  # type: ignore[union-attr]


def test_what_waits_as_json() -> None:
    changes = [PendingChange("memory", "512M", "1G"), PendingChange("uuid", "a", "b")]
    found = pending_json(changes, 90.0)
    assert [(one["key"], one["effect"]) for one in found] == [("memory", "restart"), ("uuid", "replace")]
    assert found[0]["outage"] == "restart: down until it has stopped (at most 90 s) and booted again"
    assert outage(0.5).startswith("restart: down until it has stopped (at most 0.5 s)")


def test_what_arming_costs() -> None:
    assert ARM.disruption is Disruption.NONE
