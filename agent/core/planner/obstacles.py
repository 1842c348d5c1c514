"""What an edited guest, which runs on as it was, needs for its next start and would not find.

Nobody who edits a unit asks for an outage without end. So while there is an obstacle nothing that is ours to decide
ends the running guest for its edit, and one that ends by itself is started as it ran (`planner.fallback`). Only what
the edit asks for counts: what the guest runs with already says nothing against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from agent.core.desired import DiskSpec, VmSpec
from agent.core.edits.digest import digest
from agent.core.edits.plugged import has_file, is_plugged
from agent.core.observed import DiskState, Observed, Refusal, VmState
from agent.core.planner.fallback import REFUSED_TIMES, refusal_of
from agent.core.planner.room import Room

LOOK_AGAIN_S = 1.0
"""When to look again for a file that is missing: nothing rings when a file system is mounted."""

MEMORY_AGAIN_S = 5.0
"""When to look again for memory: nothing rings when another program gives some back."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What is in the way of a start, by the condition that would wait for it. Not `known`: it is just looked for."""

    reason: str
    message: str
    known: bool = True

    @property
    def again_s(self) -> float:
        """After how long to look again."""
        return MEMORY_AGAIN_S if self.reason == "MemoryShort" else LOOK_AGAIN_S


def obstacle(wanted: VmSpec, state: VmState, observed: Observed, room: Room) -> Obstacle | None:
    """Why a guest that runs, or just ended, could not be started as it is wanted; None if nothing speaks against it.

    One that is not known yet only where none is known.
    """
    found = [*_disks(wanted, state, observed.disks), *_boot_files(wanted, state, observed.files)]
    if (shortage := room.shortage_instead(wanted, state)) is not None:
        found.append(Obstacle("MemoryShort", shortage))
    return min(found, key=lambda one: not one.known, default=None)


def edited(wanted: Mapping[str, VmSpec], running: Mapping[str, VmState]) -> list[tuple[VmSpec, VmState]]:
    """The guests that do not run as their units say, with that; of all others nothing is looked at."""
    pairs = [(spec, state) for name, state in running.items() if (spec := wanted.get(name)) is not None]
    return [(spec, state) for spec, state in pairs if spec is not state.spec and spec != state.spec]


def new_disks(wanted: VmSpec, state: VmState) -> Iterator[DiskSpec]:
    """The disks with a file that a guest does not run with."""
    present = {disk.path for disk in state.spec.disks if has_file(state, disk)}
    return (disk for disk in wanted.disks if disk.path and disk.path not in present)


def new_boot_files(wanted: VmSpec, state: VmState) -> Iterator[tuple[str, str]]:
    """The key and the path of each file to boot from that a guest does not run with."""
    pairs = (("kernel", wanted.kernel, state.spec.kernel), ("initrd", wanted.initrd, state.spec.initrd))
    return ((key, path) for key, path, present in pairs if path and path != present)


def may_create(disk: DiskSpec, seen: DiskState) -> bool:
    """Whether a file that is not there is made: one that never was, whose folder is there and whose size is known."""
    return not seen.known and seen.folder_exists and disk.media != "cdrom" and disk.size_bytes is not None


def _disks(wanted: VmSpec, state: VmState, seen: Mapping[str, DiskState]) -> Iterator[Obstacle]:
    for disk in new_disks(wanted, state):
        found = seen.get(disk.path)
        if found is None:
            yield _unknown(disk.path)
        elif not found.exists and not may_create(disk, found):
            why = "" if found.folder_exists else ", nor is its folder"
            if found.folder_exists and not found.known and disk.media != "cdrom":
                why = ", and without size = it is not created"
            yield Obstacle("DiskMissing", f"{disk.path} is not there{why}")


def _boot_files(wanted: VmSpec, state: VmState, seen: Mapping[str, bool]) -> Iterator[Obstacle]:
    for key, path in new_boot_files(wanted, state):
        if path not in seen:
            yield _unknown(path)
        elif not seen[path]:
            yield Obstacle("FileMissing", f"{key} = {path} is no file that is there")


def _unknown(path: str) -> Obstacle:
    return Obstacle("Unknown", f"it is not known yet whether {path} is there", known=False)


def as_it_ran(wanted: VmSpec, state: VmState, observed: Observed, found: Obstacle) -> Refusal | None:
    """What has a guest that just ended started as it ran; None if that is not wanted, or is so anyway."""
    if not wanted.fallback or wanted.uuid != state.spec.uuid or refusal_of(wanted, observed.refused) is not None:
        return None
    disks = tuple(
        disk if has_file(state, disk) else replace(disk, path="")
        for disk in state.spec.disks
        if is_plugged(state, disk)
    )
    former = replace(state.spec, disks=disks)
    return Refusal(digest(wanted), found.message, former, times=REFUSED_TIMES, missing=True)


def unstartable_message(name: str, found: Obstacle) -> str:
    """What is in an edit's way, what is not done for that, and what to do."""
    return (
        f"as its unit says now it could not be started: {found.message}; it runs on as it is, and neither its reboot "
        f"nor a restart applies its edit until that is mended, or the unit. `vmhost stop {name}` and `start` do anyway"
    )


def refused_message(name: str, found: Obstacle) -> str:
    """Why a guest is not restarted, and what to do."""
    if not found.known:
        return f"{found.message}, and {name} would need it to start again; try again, or mend its unit"
    return (
        f"{name} could not be started again as its unit says: {found.message}; mend that or its unit, or "
        f"`vmhost stop {name}` and `vmhost start {name}` all the same"
    )
