"""Which of its disks and media a running guest really has, as far as is known."""

from __future__ import annotations

from agent.core.desired import DiskSpec
from agent.core.edits.tuning import medium_key
from agent.core.observed import VmState
from agent.core.qemu.argv import disk_node, drive_node


def is_plugged(state: VmState, disk: DiskSpec) -> bool:
    """Whether a running guest has a disk, as far as is known."""
    return state.devices is None or disk_node(disk.id) in state.devices


def lacks_medium(state: VmState, disk: DiskSpec) -> bool:
    """Whether a drive of a running guest has another medium than it is to have, or was left half changed."""
    key = medium_key(disk.id)
    if key not in state.tuned or disk.id not in state.media:
        return False
    node = drive_node(disk)
    return state.media[disk.id] != node or state.tuned[key] != node


def has_file(state: VmState, disk: DiskSpec) -> bool:
    """Whether a running guest has a disk with its file in it; one of no file has it."""
    return is_plugged(state, disk) and not lacks_medium(state, disk)
