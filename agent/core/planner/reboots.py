"""The frontier for what a guest's reboot does: be one, or apply what waits for a start."""

from __future__ import annotations

from dataclasses import replace

from agent.core.actions import ChangeReboot, EndVm
from agent.core.desired import VmSpec
from agent.core.edits.pending import waits_for_start
from agent.core.marks import reboot_resource, vm_resource
from agent.core.observed import VmState
from agent.core.planner.draft import Draft
from agent.core.planner.obstacles import as_it_ran, obstacle, unstartable_message
from agent.core.reasons import Reason


def plan_reboot(draft: Draft, name: str, state: VmState, *, ends: bool) -> None:
    """Plan what QEMU does when its guest reboots; it is asked again where an agent died while it asked."""
    if state.run_state is not None and state.reboot_ends is not ends:
        draft.propose(ChangeReboot(reboot_resource(name), Reason.EDITED, name, state.spec.uuid, ends))


def applies_edit(draft: Draft, wanted: VmSpec, state: VmState) -> bool:
    """Whether a reboot is to apply what waits for a start; not while that could not be started, which is told."""
    if not waits_for_start(state, wanted, draft.observed.refused):
        return False
    found = obstacle(wanted, state, draft.observed, draft.room)
    if found is None:
        return True
    resource = vm_resource(wanted.name)
    if found.known:
        message = unstartable_message(wanted.name, found)
        draft.tell(resource, "EditUnstartable", message, reason=found.reason, deviates=False)
        draft.wake_at(draft.now_s + found.again_s)
    else:
        draft.wait_for_answer(resource)
    return False


def plan_end(draft: Draft, wanted: VmSpec | None, state: VmState, end: EndVm) -> None:
    """Plan to put away what is left of a guest that is to run on; as it ran, where it could not as it is wanted.

    Not before that is known, which is soon: whoever put it away without could only wait for what is missing then.
    """
    runs_on = end.rebooted or not end.asked
    found = obstacle(wanted, state, draft.observed, draft.room) if wanted is not None and runs_on else None
    if found is not None and not found.known:
        draft.wait_for_answer(end.resource)
        return
    lacks = None if wanted is None or found is None else as_it_ran(wanted, state, draft.observed, found)
    draft.propose(replace(end, lacks=lacks))


def plan_reboot_end(draft: Draft, name: str, state: VmState, wanted: VmSpec | None = None) -> None:
    """Plan to put away what is left of a guest whose reboot ended it; it is started again at once."""
    end = EndVm(vm_resource(name), Reason.REBOOT, name, state.spec.uuid, "guest_reset", asked=True, rebooted=True)
    plan_end(draft, wanted, state, end)
