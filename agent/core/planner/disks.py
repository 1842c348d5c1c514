"""The frontier for the disks of guests: before a launch, and beneath a guest that runs."""

from __future__ import annotations

from agent.core.desired import DiskSpec, VmSpec
from agent.core.device_actions import CreateDisk, GrowDisk, PlugDisk, UnplugDisk
from agent.core.edits.plugged import is_plugged, lacks_medium
from agent.core.marks import disk_resource
from agent.core.observed import DiskState, VmState
from agent.core.planner.draft import Draft
from agent.core.planner.obstacles import LOOK_AGAIN_S, may_create
from agent.core.planner.tuning import plan_medium
from agent.core.reasons import Reason


def plan_disk_before_launch(draft: Draft, spec: VmSpec, disk: DiskSpec) -> bool:
    """Whether a disk's file is there, and large enough; what it lacks is planned or told."""
    resource = disk_resource(spec.name, disk.id)
    if not _plan_file(draft, resource, spec.name, disk) or _is_elsewhere(draft, resource, spec.name, disk):
        return False
    state = draft.observed.disks.get(disk.path)
    if state is not None and _tell_size(draft, resource, disk, state):
        draft.propose(GrowDisk(resource, Reason.SETTINGS, spec.name, disk))
        return False
    return resource not in draft.observed.in_flight


def plan_running_disks(draft: Draft, name: str, state: VmState) -> None:
    """Plug what a running guest lacks, grow what is too small, and take away what is leaving."""
    for disk in state.spec.disks:
        if is_plugged(state, disk) and lacks_medium(state, disk):
            if _plan_file(draft, disk_resource(name, disk.id), name, disk):
                plan_medium(draft, name, disk)
        elif is_plugged(state, disk):
            _plan_size(draft, name, state, disk)
        else:
            _plan_plug(draft, name, disk)
    for disk in state.leaving_disks:
        resource = disk_resource(name, disk.id)
        if not is_plugged(state, disk) or asks_to_let_go(draft, resource, state, disk.id):
            draft.propose(UnplugDisk(resource, Reason.UNWANTED, name, disk))


def _plan_plug(draft: Draft, name: str, disk: DiskSpec) -> None:
    resource = disk_resource(name, disk.id)
    if _plan_file(draft, resource, name, disk) and not _is_elsewhere(draft, resource, name, disk):
        draft.propose(PlugDisk(resource, Reason.MISSING, name, disk))


def _is_elsewhere(draft: Draft, resource: str, vm: str, disk: DiskSpec) -> bool:
    """Whether another guest has a disk's file, which QEMU refuses to open twice; it may be asked to let go already."""
    for holder, one in draft.plugged_disks.get(disk.path, ()):
        if holder != vm and not (one.read_only and disk.read_only):
            message = f"waits for {holder} to let go of {disk.path}, which is its disk {one.id}, or to stop"
            draft.tell(resource, "Waiting", message, reason="DiskInUse")
            return True
    return False


def asks_to_let_go(draft: Draft, resource: str, state: VmState, device: str) -> bool:
    """Tell that a guest is to let go of a device, in its own time; whether it can be asked now."""
    running = state.run_state == "running"
    why_not = "" if running else f"; it cannot while it is {state.run_state or 'silent'}"
    draft.tell(resource, "Detaching", f"{state.spec.name} is asked to let go of {device}{why_not}")
    return running


def _plan_file(draft: Draft, resource: str, vm: str, disk: DiskSpec) -> bool:
    """Whether a disk's file is there; one that never existed is created, one that did is only waited for."""
    if not disk.path:
        return True
    state = draft.observed.disks.get(disk.path)
    if state is None:
        draft.wait_for_answer(resource)
        return False
    if state.exists:
        return True
    if resource in draft.observed.in_flight:
        draft.tell_deviating(resource)  # it is just being made: known before it is looked at
        return False
    draft.wake_at(draft.now_s + LOOK_AGAIN_S)
    if may_create(disk, state):
        draft.propose(CreateDisk(resource, Reason.MISSING, vm, disk))
        return False
    if state.known:
        why = "is gone; it is waited for, a blank one is never put in its place"
    elif not state.folder_exists:
        why = ": its folder does not exist; make it, or mount what belongs there"
    elif disk.media == "cdrom":
        why = "does not exist; it is waited for, without path = there is none"
    else:
        why = "does not exist, and without size = it is not created"
    draft.tell(resource, "DiskMissing", disk.path + ("" if why.startswith(":") else " ") + why)
    return False


def _plan_size(draft: Draft, name: str, state: VmState, disk: DiskSpec) -> None:
    """Grow the disk of a guest that runs, which sees its new size at once."""
    seen = draft.observed.disks.get(disk.path)
    if seen is None or not seen.exists or seen.size_bytes == disk.size_bytes:
        return
    resource = disk_resource(name, disk.id)
    if _tell_size(draft, resource, disk, seen) and state.run_state is not None:
        draft.propose(GrowDisk(resource, Reason.SETTINGS, name, disk, running=True))


def _tell_size(draft: Draft, resource: str, disk: DiskSpec, state: DiskState) -> bool:
    """Whether a disk is smaller than its unit says; one that is larger is told, and stays so."""
    if disk.size_bytes is None or state.size_bytes is None or disk.read_only:
        return False
    if disk.size_bytes < state.size_bytes:
        message = f"{disk.path} has {state.size_bytes} bytes, more than size = says; a disk is never shrunk"
        draft.tell(resource, "DiskLarger", message)
    return disk.size_bytes > state.size_bytes
