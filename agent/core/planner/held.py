"""Guests that their operator holds: nothing is done to them, their taps and their disks, and that is told.

Only what is no deed is done: an end that is over is written down, and a guest that a unit calls by another name gets
it. That its reboot would end it, so that an edit is applied, is taken back: nobody would start it again. A QEMU that
holds what is left of a guest (after a panic) is left for its operator to look at.
"""

from __future__ import annotations

from collections.abc import Mapping

from agent.core.actions import EndVm
from agent.core.desired import Desired
from agent.core.marks import vm_resource
from agent.core.observed import Hold, Intent, Observed
from agent.core.planner.draft import Draft
from agent.core.planner.reboots import plan_end, plan_reboot
from agent.core.reasons import Reason


def held_guests(desired: Desired, observed: Observed) -> Mapping[str, Hold]:
    """Who is held, by their present names: a guest that is to be renamed is held under its new name already."""
    holds = {name: intent.hold for name, intent in observed.intents.items() if intent.hold is not None}
    if not holds:
        return {}
    new_names = {spec.uuid: name for name, spec in desired.vms.items()}
    found = {name: hold for name, hold in holds.items() if name not in observed.vms}
    for name, state in observed.vms.items():
        hold = holds.get(new_names.get(state.spec.uuid, name))
        if hold is not None:
            found[name] = hold
    return found


def tell_held(draft: Draft, name: str, hold: Hold) -> None:
    """Say who holds a guest, since when, why, and what ends that."""
    why = f" ({hold.reason})" if hold.reason else ""
    message = f"uid {hold.uid} holds it since {hold.since}{why}: the agent leaves it, its taps and its disks alone"
    resource = vm_resource(name)
    draft.tell(resource, "Held", f"{message}; `vmhost release {name}` ends that", reason="Operator", deviates=False)


def plan_held(draft: Draft, name: str) -> None:
    """Write down how a held guest ended, once its process is gone; its reboot is one of the same QEMU meanwhile."""
    state = draft.observed.vms.get(name)
    if state is None:
        return
    if state.alive:
        if not state.rebooted:
            plan_reboot(draft, name, state, ends=False)
        return
    intent = draft.observed.intents.get(name, Intent())
    asked = state.stopping or intent.stopped or state.generation < intent.generation
    reason = "host" if asked else state.exit_reason or "crash"
    end = EndVm(vm_resource(name), Reason.EXITED, name, state.spec.uuid, reason, asked)
    plan_end(draft, draft.wanted.get(name), state, end)
