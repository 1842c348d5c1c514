"""Looks at what has no events of its own: the files of disks and those to boot from, and the host's memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import structlog

from agent.core.desired import Desired, DiskSpec, VmSpec
from agent.core.edits.plugged import has_file
from agent.core.errors import ObservationError
from agent.core.observed import DiskState, HostMemory, VmState
from agent.core.planner.draft import Plan
from agent.core.planner.obstacles import new_boot_files, new_disks
from agent.core.planner.room import need_bytes
from agent.host.disks import DiskLook, is_file, look_at_disk
from agent.host.host_memory import look_at_memory
from agent.host.processes import kvm_usable
from agent.runtime.clock import now_s
from agent.runtime.keeper import Keeper

log = structlog.get_logger("vmhost.observe")

MEMORY_OLD_S = 2.0

Edits = Sequence[tuple[VmSpec, VmState]]
"""Guests that do not run as their units say, with how they run (`agent.core.planner.obstacles.edited`)."""


class DiskLooks:
    """Looks at disks in threads, because a file system may hang; one not seen yet is unknown, and rings once seen."""

    def __init__(self, keeper: Keeper, ring: Callable[[str], None]) -> None:
        self._keeper = keeper
        self._group: asyncio.TaskGroup | None = None
        self._ring = ring
        self._seen: dict[str, DiskLook] = {}
        self._looking: set[str] = set()
        self._overtaken: set[str] = set()
        self._space: dict[str, int | None] = {}
        self._awaited: frozenset[str] = frozenset()
        self._edits: Mapping[str, str] = {}

    def look_in(self, group: asyncio.TaskGroup) -> None:
        """Look in tasks of this group from now on."""
        self._group = group

    def look(self, disks: Iterable[DiskSpec]) -> None:
        """Begin to look at disks, unless a look at them is under way."""
        formats = {disk.path: disk.format for disk in disks if disk.path not in self._looking}
        if formats and self._group is not None:
            self._looking |= formats.keys()
            self._group.create_task(self._look(formats), name="disks")

    def look_for_space(self, disks: Iterable[DiskSpec]) -> None:
        """Look at what the file systems of these disks have left, and forget it of all others: it is old at once."""
        awaited = {disk.path: disk for disk in disks}
        self._awaited = frozenset(awaited)
        self._space = {path: free for path, free in self._space.items() if path in awaited}
        self.look(awaited.values())

    def look_for_edits(self, edits: Edits) -> None:
        """Look at the disks that edited guests are to be started with; of one that is new there an old look is none."""
        disks = [disk for spec, state in edits for disk in new_disks(spec, state)]
        for path in {disk.path for disk in disks} - self._edits.keys():
            self._seen.pop(path, None)
        self._edits = {disk.path: disk.format for disk in disks}
        self.look(disks)

    async def look_at_edits(self) -> None:
        """Look at the disks of edited guests, and return when they were seen."""
        if self._edits:
            await self._look(self._edits)

    async def _look(self, formats: Mapping[str, str]) -> None:
        seen = await asyncio.to_thread(lambda: {path: look_at_disk(path, form) for path, form in formats.items()})
        seen = {path: found for path, found in seen.items() if path not in self._overtaken}
        self._looking -= formats.keys()
        self._overtaken -= formats.keys()
        changed = any(self._seen.get(path) != found for path, found in seen.items())
        self._seen.update(seen)
        self._space.update({path: seen[path].free_bytes for path in self._awaited & seen.keys()})
        existing = frozenset(path for path, found in seen.items() if found.exists)
        if not existing <= self._keeper.memory.known_disks:
            await self._keeper.update(lambda memory: replace(memory, known_disks=memory.known_disks | existing))
        if changed:
            self._ring("disk")

    def states(self, known: frozenset[str]) -> Mapping[str, DiskState]:
        """What was seen of each disk that was looked at."""
        return {
            path: DiskState(seen.exists, seen.folder_exists, path in known, seen.size_bytes, self._space.get(path))
            for path, seen in self._seen.items()
        }

    async def look_now(self, disk: DiskSpec) -> None:
        """Look at a disk that was just changed, so that the next plan sees it as it is."""
        self._overtaken |= {disk.path} & self._looking
        self._seen[disk.path] = await asyncio.to_thread(look_at_disk, disk.path, disk.format)


class FileLooks:
    """Looks whether the files are there that edited guests are to boot from; in threads too, and rings once seen."""

    def __init__(self, ring: Callable[[str], None]) -> None:
        self._group: asyncio.TaskGroup | None = None
        self._ring = ring
        self._paths: frozenset[str] = frozenset()
        self._looking = False
        self.seen: Mapping[str, bool] = {}

    def look_in(self, group: asyncio.TaskGroup) -> None:
        """Look in tasks of this group from now on."""
        self._group = group

    def look_for_edits(self, edits: Edits) -> None:
        """Begin to look, unless a look is under way; what is asked for no longer is forgotten."""
        paths = boot_files(edits)
        if paths != self._paths:
            self._paths = paths
            self.seen = {path: there for path, there in self.seen.items() if path in paths}
        if paths and not self._looking and self._group is not None:
            self._looking = True
            self._group.create_task(self.look_at_edits(), name="boot files")

    async def look_at_edits(self) -> None:
        """Look, and return when all were seen that were asked for by then."""
        paths = self._paths
        found = await asyncio.to_thread(lambda: {path: is_file(path) for path in paths})
        self._looking = False
        seen = {**self.seen, **found}
        before, self.seen = self.seen, {path: there for path, there in seen.items() if path in self._paths}
        if before != self.seen or paths != self._paths:
            self._ring("file")


class MemoryLooks:
    """Looks at the host's memory, while guests wait to be started, or run and are edited to need more."""

    def __init__(self) -> None:
        self._kvm = kvm_usable()
        self._seen: HostMemory | None = None
        self._at_s = 0.0

    def look(self, desired: Desired, running: Mapping[str, VmState], edits: Edits = ()) -> HostMemory | None:
        """What the host has left; None if nobody asks, or the kernel does not say: then nothing is refused for it.

        A look some time ago does as well, because what guests take of what they were promised changes nothing; not when
        one of them is gone, which gave back what it had.
        """
        if all(name in running or not spec.enabled for name, spec in desired.vms.items()) and not any(
            need_bytes(spec, kvm=self._kvm) > need_bytes(state.spec, kvm=self._kvm) for spec, state in edits
        ):
            return None
        pids = {state.pid for state in running.values() if state.pid is not None and state.alive}
        if self._seen is None or now_s() > self._at_s + MEMORY_OLD_S or not self._seen.resident_bytes.keys() <= pids:
            self._at_s = now_s()
            try:
                self._seen = look_at_memory(pids, kvm=self._kvm)
            except ObservationError as error:
                log.warning("the host's memory is not known; no guest is refused for it", why=str(error))
                self._seen = None
        return self._seen


def short_of_memory(last: Plan) -> frozenset[str]:
    """The guests that there was no memory for in a plan, also those that run on because of that."""
    return frozenset(c.resource.removeprefix("vm/") for c in last.conditions if c.reason == "MemoryShort")


def boot_files(edits: Edits) -> frozenset[str]:
    """The files that edited guests are to boot from, and do not run with."""
    return frozenset(path for spec, state in edits for _, path in new_boot_files(spec, state))


def unplugged_disks(wanted: Mapping[str, VmSpec], running: Mapping[str, VmState]) -> list[DiskSpec]:
    """The disks that a launch of a wanted guest depends on, and the disks and media that a running guest lacks."""
    specs = [spec for name, spec in wanted.items() if spec.enabled and name not in running]
    lacking = [disk for state in running.values() for disk in state.spec.disks if not has_file(state, disk)]
    return [disk for disk in (*(disk for spec in specs for disk in spec.disks), *lacking) if disk.path]


def full_disks(running: Mapping[str, VmState]) -> list[DiskSpec]:
    """The disks that guests could not write to, and wait for."""
    paused = [state.spec for state in running.values() if state.run_state == "io-error"]
    return [disk for spec in paused for disk in spec.disks if not disk.read_only]


def sized_disks(desired: Desired) -> list[DiskSpec]:
    """The disks whose size their unit names: they may have to grow, or be told to be too large."""
    return [disk for spec in desired.vms.values() for disk in spec.disks if disk.size_bytes is not None]
