"""The frontier for guests whose processors stand still, or are to: pause, resume, and a disk that was full."""

from __future__ import annotations

from agent.core.actions import PauseVm, ReleaseVm, ResumeVm
from agent.core.marks import vm_resource
from agent.core.observed import Intent, VmState
from agent.core.planner.draft import Draft
from agent.core.planner.obstacles import LOOK_AGAIN_S
from agent.core.reasons import Reason

RESUME_FREE_BYTES = 64 << 20
"""What the file system of each disk must have free before a guest goes on that was paused when there was nothing left:
well above nothing, or it would be paused again at its next few writes."""

RESUME_AGAIN_S = 10.0
"""A guest that is paused again soon after (a quota tells of room that it does not give) is left so for this long."""

RESUMABLE = frozenset({"running", "paused", "io-error", "watchdog", "debug"})
"""Run states in which `cont` lets a guest go on, or changes nothing (QEMU, RunState)."""

STILL = frozenset({"paused", "prelaunch", "io-error", "watchdog", "debug"})
"""Run states in which no processor of a guest runs, and one could again: what `wait paused` takes."""


def plan_run_state(draft: Draft, name: str, state: VmState, intent: Intent) -> bool:
    """Bring a guest that answers to run or to stand still, as it is wanted; whether there was anything to do or tell.

    A resume that was asked for lets it go on from whatever paused it; afterwards it is no longer asked for.
    """
    resource = vm_resource(name)
    if state.run_state == "prelaunch" and not intent.paused:
        draft.propose(ReleaseVm(resource, Reason.WANTED, name))
    elif state.resume_generation < intent.resume_generation and state.run_state in RESUMABLE:
        draft.propose(ResumeVm(resource, Reason.RESUME, name, intent.resume_generation))
    elif state.run_state == "io-error":
        _plan_resume_with_space(draft, name, state, intent)
    elif state.run_state == "watchdog":
        message = (
            f"its watchdog fired and paused it; look at it, then `vmhost restart {name}` or `vmhost resume {name}`"
        )
        draft.tell(resource, "WatchdogFired", message)
    elif intent.paused and state.run_state == "running":
        draft.propose(PauseVm(resource, Reason.PAUSE, name))
    elif intent.paused and state.run_state in STILL:
        where = "before its first instruction" if state.run_state == "prelaunch" else "as its operator asked"
        message = f"paused {where}; `vmhost resume {name}` lets it go on"
        draft.tell(resource, "Paused", message, reason="Asked", deviates=False)
    elif state.run_state == "paused":
        message = f"somebody paused the guest over its monitor; `vmhost resume {name}` lets it run again"
        draft.tell(resource, "Paused", message)
    else:
        return False
    return True


def _plan_resume_with_space(draft: Draft, name: str, state: VmState, intent: Intent) -> None:
    """QEMU pauses a guest whose write found no space and does that write again when told to go on (qemu(1), werror)."""
    resource, room_mib = vm_resource(name), RESUME_FREE_BYTES >> 20
    written = [disk.path for disk in state.spec.disks if not disk.read_only]
    message = f"paused: no space was left for a write to {' or '.join(written) or 'a disk'}"
    if intent.paused:
        draft.tell(
            resource, "PausedOnIoError", f"{message}, and as its operator asked; `vmhost resume {name}` tries it"
        )
        return
    draft.tell(resource, "PausedOnIoError", f"{message}; it goes on by itself once there are {room_mib} MiB free")
    draft.wake_at(draft.now_s + LOOK_AGAIN_S)
    states = [draft.observed.disks.get(path) for path in written]
    has_room = all(disk is not None and (disk.free_bytes or 0) >= RESUME_FREE_BYTES for disk in states)
    just_resumed = state.resumed_s is not None and draft.now_s < state.resumed_s + RESUME_AGAIN_S
    if written and has_room and not just_resumed:
        draft.propose(ResumeVm(resource, Reason.SPACE, name))
