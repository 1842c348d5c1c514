"""The frontier for guests: launch, release, stop, reset, and what follows an end."""

from __future__ import annotations

from dataclasses import replace

from agent.core.actions import EndVm, LaunchVm, RenameVm, ResetVm, StopVm
from agent.core.desired import VmSpec
from agent.core.device_actions import TakeOver
from agent.core.edits.digest import changed_keys, digest
from agent.core.edits.live import lacks_places, live_edit, untouched_by
from agent.core.edits.pending import asks_to_restart
from agent.core.marks import vm_resource
from agent.core.observed import Intent, VmState
from agent.core.planner.after import tell_what_is_missing
from agent.core.planner.disks import plan_disk_before_launch, plan_running_disks
from agent.core.planner.draft import Draft
from agent.core.planner.fallback import fell_back_message, refusal_of, start_of
from agent.core.planner.limits import plan_limits
from agent.core.planner.obstacles import MEMORY_AGAIN_S
from agent.core.planner.pauses import plan_run_state
from agent.core.planner.policy import in_crash_loop, next_start_s, wants_to_run
from agent.core.planner.reboots import applies_edit, plan_end, plan_reboot, plan_reboot_end
from agent.core.planner.taps import plan_running_taps, plan_taps_before_launch
from agent.core.planner.tuning import plan_cpus, plan_tuning
from agent.core.reasons import Reason

UNRESPONSIVE_S = 5.0
"""A monitor that is silent for longer than this is a condition; a loaded host is slow now and then."""

UNSUPPORTED = (
    "extra-args go to QEMU unchecked: that the guest starts, that its devices keep their places, and that repairs and "
    "upgrades leave it working is not promised any more"
)

NO_INTENT = Intent()
"""What an operator who said nothing wants."""

REMAINS = {"shutdown": "guest_shutdown", "guest-panicked": "panic", "internal-error": "crash"}
"""Run states in which QEMU only holds what is left of a guest, and the exit reason that each means (QEMU, RunState)."""


def exit_reason_of_remains(state: VmState) -> str | None:
    """The exit reason of a guest that has ended while its QEMU is still there, None for one that has not.

    QEMU has one run state for every guest that its watchdog stopped; what was asked for tells whether that is an end.
    """
    if state.run_state == "watchdog" and state.spec.watchdog == "poweroff":
        return "watchdog"
    return REMAINS.get(state.run_state or "")


def plan_vm(draft: Draft, spec: VmSpec, held: str = "") -> None:
    """Plan what makes a guest as its unit, its operator and its restart policy say.

    `held`: why it is not restarted, although its unit asks for that.
    """
    observed = draft.observed
    state = observed.vms.get(spec.name)
    intent = observed.intents.get(spec.name, NO_INTENT)
    _tell_unsupported(draft, spec if state is None else state.spec)
    if state is None:
        if _should_run(draft, spec, intent):
            _plan_launch(draft, spec, intent)
    elif state.stopping:
        plan_leftover(draft, spec.name, state)
    elif state.rebooted:
        plan_reboot_end(draft, spec.name, state, spec)
    elif not state.alive:
        asked = not _should_run(draft, spec, intent) or _is_outdated(state, intent)
        _plan_end(draft, spec.name, state, state.exit_reason or "crash", asked=asked, wanted=spec)
    elif (remains := exit_reason_of_remains(state)) is not None:
        asked = intent.stopped or _is_outdated(state, intent)
        _plan_end(draft, spec.name, state, remains, asked=asked, wanted=spec)
    elif not spec.enabled or intent.stopped:
        plan_stop(draft, spec.name, state, Reason.UNWANTED, spec.stop_timeout_s, unit_asked=not intent.stopped)
    elif _is_outdated(state, intent):
        plan_stop(draft, spec.name, state, Reason.RESTART, spec.stop_timeout_s, unit_asked=False)
    elif not held and asks_to_restart(state, spec, observed, draft.room):
        draft.room.take(spec, state.spec)
        plan_stop(draft, spec.name, state, Reason.EDITED, spec.stop_timeout_s, unit_asked=True)
    else:
        if held:
            draft.tell(vm_resource(spec.name), "Held", held, reason="ApprovalNeeded", deviates=False)
        _plan_running(draft, spec.name, _plan_edit(draft, spec, state), intent)
        plan_limits(draft, spec, state)
        _tell_fallback(draft, spec, state.spec)
        plan_reboot(draft, spec.name, state, ends=applies_edit(draft, spec, state))


def _plan_edit(draft: Draft, spec: VmSpec, state: VmState) -> VmState:
    """Plan that a running guest takes over what it can of its unit; the rest is pending until its next start.

    Returns the guest without what that is about to change: it is neither plugged nor unplugged meanwhile.
    """
    if state.spec is spec:  # nearly always, for a thousand guests in each pass
        return state
    edit = live_edit(state, spec)
    if edit is not None:
        keys = changed_keys(state.spec, edit.spec)
        resource = vm_resource(spec.name)
        takes_over = draft.propose(TakeOver(resource, Reason.WANTED, spec.name, state.spec.uuid, edit, keys))
        if takes_over or resource in draft.observed.in_flight:
            # A tap that is to be let in just now waits for the filters and VLANs that its NIC is about to have.
            draft.close_gate((spec.name, nic.id) for nic in edit.spec.nics if nic not in state.spec.nics)
    elif state.run_state is not None and lacks_places(state, spec):
        draft.wait_for_answer(vm_resource(spec.name))
    return state if edit is None else untouched_by(edit, state)


def _tell_fallback(draft: Draft, wanted: VmSpec, runs: VmSpec | None = None) -> None:
    """Tell of a guest that runs, or is started, as it last ran; not once it runs as its unit says."""
    refusal = refusal_of(wanted, draft.observed.refused) if draft.observed.refused else None
    if refusal is not None and (runs is None or digest(runs) != refusal.digest):
        message = fell_back_message(wanted.name, refusal)
        draft.tell(vm_resource(wanted.name), "FellBack", message, deviates=False)


def _tell_unsupported(draft: Draft, spec: VmSpec) -> None:
    if spec.extra_args:
        draft.tell(vm_resource(spec.name), "Unsupported", UNSUPPORTED, deviates=False)


def _should_run(draft: Draft, spec: VmSpec, intent: Intent) -> bool:
    observed = draft.observed
    return wants_to_run(spec, intent, observed.ends.get(spec.name, ()), observed.host.boot_id)


def _is_outdated(state: VmState, intent: Intent) -> bool:
    return state.generation < intent.generation


def _plan_end(
    draft: Draft, name: str, state: VmState, exit_reason: str, *, asked: bool, wanted: VmSpec | None = None
) -> None:
    reason = "host" if asked else exit_reason
    plan_end(draft, wanted, state, EndVm(vm_resource(name), Reason.EXITED, name, state.spec.uuid, reason, asked))


def plan_stop(draft: Draft, name: str, state: VmState, reason: Reason, timeout_s: float, *, unit_asked: bool) -> None:
    """Plan a graceful stop; its taps are kept healthy until it is over, a stop may need the network."""
    draft.propose(StopVm(vm_resource(name), reason, name, state.spec.uuid, timeout_s, unit_asked))
    plan_running_taps(draft, name, state)


def plan_leftover(draft: Draft, name: str, state: VmState) -> None:
    """Plan the end of a guest that is not wanted any more; one that has ended already is only put away."""
    if state.rebooted and not state.stopping:
        plan_reboot_end(draft, name, state)
    elif not state.alive or exit_reason_of_remains(state) is not None:
        _plan_end(draft, name, state, "host", asked=True)
    else:
        intent = draft.observed.intents.get(name, Intent())
        unit_asked = not (state.stopping or intent.stopped)
        plan_stop(draft, name, state, Reason.UNWANTED, state.spec.stop_timeout_s, unit_asked=unit_asked)


def plan_rename(draft: Draft, name: str, state: VmState, new_name: str) -> None:
    """Plan to carry a running guest over to its unit's new name."""
    draft.propose(RenameVm(vm_resource(name), Reason.RENAMED, name, state.spec.uuid, new_name))


def plan_kept(draft: Draft, name: str, state: VmState) -> None:
    """Keep a guest running that is deliberately left as it is: its links are healed, a hold of QEMU's is released."""
    if state.alive:
        _tell_unsupported(draft, state.spec)
        intent = draft.observed.intents.get(name, NO_INTENT)
        answered = replace(intent, generation=state.generation, reset_generation=state.reset_generation)
        _plan_running(draft, name, state, answered)
        plan_reboot(draft, name, state, ends=False)


def _plan_running(draft: Draft, name: str, state: VmState, intent: Intent) -> None:
    resource = vm_resource(name)
    if state.run_state is None:
        if state.unanswered_s >= UNRESPONSIVE_S:
            message = (
                f"QEMU (pid {state.pid}) has not answered for {state.unanswered_s:.0f} s; left alone until it does"
            )
            draft.tell(resource, "Unresponsive", message)
        else:
            draft.wait_for_answer(resource)
            draft.wake_at(draft.now_s + UNRESPONSIVE_S - state.unanswered_s)
    elif not plan_tuning(draft, name, state) and state.run_state == "prelaunch":
        draft.tell_deviating(resource)  # it is not let go before its limits count
    elif not plan_run_state(draft, name, state, intent) and state.reset_generation < intent.reset_generation:
        draft.propose(ResetVm(resource, Reason.RESET, name, intent.reset_generation))
    plan_running_taps(draft, name, state)
    plan_running_disks(draft, name, state)
    plan_cpus(draft, name, state)


def _plan_launch(draft: Draft, wanted: VmSpec, intent: Intent) -> None:
    """Plan what brings a guest up, as far as it can be done now; each thing that it waits for is told."""
    start = start_of(wanted, draft.observed.refused)
    spec = start.spec
    _tell_fallback(draft, wanted)
    resource = vm_resource(spec.name)
    draft.tell_deviating(resource)
    if resource in draft.observed.in_flight or not _may_start_now(draft, spec):
        return
    ready = tell_what_is_missing(draft, spec) and plan_taps_before_launch(draft, spec)
    disks = [plan_disk_before_launch(draft, spec, disk) for disk in spec.disks]
    if ready and all(disks) and _has_memory(draft, spec) and _has_start_slot(draft):
        launch = LaunchVm(
            resource,
            Reason.WANTED,
            spec,
            intent.generation,
            intent.reset_generation,
            instead_of=start.instead_of,
            resume_generation=intent.resume_generation,
        )
        if draft.propose(launch):
            draft.room.take(spec)


def _may_start_now(draft: Draft, spec: VmSpec) -> bool:
    host, resource = draft.observed.host, vm_resource(spec.name)
    if host.qemu is None:
        draft.tell(resource, "QemuMissing", host.qemu_problem)
        return False
    ends = draft.observed.ends.get(spec.name, ())
    if in_crash_loop(ends, host.boot_id, draft.now_s):
        reason, count = ends[-1].reason, len(ends)
        draft.tell(resource, "CrashLoop", f"ended {count} times, last by {reason}; see its qemu.log", reason=reason)
    at_s = next_start_s(spec.name, ends, host.boot_id)
    if at_s <= draft.now_s:
        return True
    draft.tell(resource, "Backoff", f"next start in {at_s - draft.now_s:.0f} s after {ends[-1].reason}")
    draft.wake_at(at_s)
    return False


def _has_memory(draft: Draft, spec: VmSpec) -> bool:
    shortage = draft.room.shortage(spec)
    if shortage is None:
        return True
    draft.tell(vm_resource(spec.name), "MemoryShort", shortage)
    draft.wake_at(draft.now_s + MEMORY_AGAIN_S)
    return False


def _has_start_slot(draft: Draft) -> bool:
    under_way = sum(key.startswith("launch-vm ") for key in draft.observed.in_flight.values())
    return under_way + draft.count(LaunchVm) < draft.observed.host.start_slots
