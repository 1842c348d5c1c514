"""The frontier for what a running guest is told while it runs: cables, limits, balloon, CPUs, media."""

from __future__ import annotations

from agent.core.desired import DiskSpec
from agent.core.edits.tuning import untold, wants_tuning
from agent.core.marks import cpus_resource, disk_resource, vm_resource
from agent.core.observed import VmState
from agent.core.planner.draft import Draft
from agent.core.reasons import Disruption, Reason
from agent.core.tuning_actions import ChangeMedium, PlugCpus, TuneVm


def plan_tuning(draft: Draft, name: str, state: VmState) -> bool:
    """Plan what QEMU is still to be told of a guest; whether it knows all of it, so that the guest may run."""
    if state.devices is None and wants_tuning(state.spec):
        draft.wait_for_answer(vm_resource(name))
        return False
    settings = untold(state)
    if settings:
        cut = any(key.startswith("link/") and value == "down" for key, value in settings)
        disruption = Disruption.LINK if cut else Disruption.NONE
        draft.propose(TuneVm(vm_resource(name), Reason.WANTED, name, state.spec.uuid, settings, disruption))
    return not settings


def plan_cpus(draft: Draft, name: str, state: VmState) -> None:
    """Plug the CPUs that a running guest lacks; it is never asked to let go of one."""
    if state.cpus is not None and state.cpus < state.spec.cpus:
        draft.propose(PlugCpus(cpus_resource(name), Reason.MISSING, name, state.spec.cpus))


def plan_medium(draft: Draft, name: str, disk: DiskSpec) -> None:
    """Plan that a drive gets its medium, whose file is there."""
    draft.propose(ChangeMedium(disk_resource(name, disk.id), Reason.SETTINGS, name, disk))
