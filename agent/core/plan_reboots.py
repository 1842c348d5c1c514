"""The frontier for what a guest's reboot does: be one, or apply what waits for a start."""

from __future__ import annotations

from agent.core.actions import ChangeReboot, EndVm
from agent.core.draft import Draft
from agent.core.marks import reboot_resource, vm_resource
from agent.core.observed import VmState
from agent.core.reasons import Reason


def plan_reboot(draft: Draft, name: str, state: VmState, *, ends: bool) -> None:
    """Plan what QEMU does when its guest reboots; it is asked again where an agent died while it asked."""
    if state.run_state is not None and state.reboot_ends is not ends:
        draft.propose(ChangeReboot(reboot_resource(name), Reason.EDITED, name, state.spec.uuid, ends))


def plan_reboot_end(draft: Draft, name: str, state: VmState) -> None:
    """Plan to put away what is left of a guest whose reboot ended it; it is started again at once."""
    end = EndVm(vm_resource(name), Reason.REBOOT, name, state.spec.uuid, "guest_reset", asked=True, rebooted=True)
    draft.propose(end)
