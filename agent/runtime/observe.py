"""Looks at what has no events of its own: the files of disks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from agent.core.desired import Desired
from agent.core.observed import DiskState
from agent.host.disks import disk_state
from agent.runtime.keeper import Keeper


class DiskLooks:
    """Looks at disks in threads, because a file system may hang; one not seen yet is unknown, and rings once seen."""

    def __init__(self, keeper: Keeper, ring: Callable[[str], None]) -> None:
        self._keeper = keeper
        self._group: asyncio.TaskGroup | None = None
        self._ring = ring
        self._seen: dict[str, tuple[bool, bool]] = {}
        self._looking: set[str] = set()

    def look_in(self, group: asyncio.TaskGroup) -> None:
        """Look in tasks of this group from now on."""
        self._group = group

    def look(self, paths: Iterable[str]) -> None:
        """Begin to look at disks, unless a look at them is under way."""
        fresh = frozenset(paths) - self._looking
        if fresh and self._group is not None:
            self._looking |= fresh
            self._group.create_task(self._look(fresh), name="disks")

    async def _look(self, paths: frozenset[str]) -> None:
        seen = await asyncio.to_thread(lambda: {path: disk_state(path) for path in paths})
        self._looking -= paths
        changed = any(self._seen.get(path) != state for path, state in seen.items())
        self._seen.update(seen)
        existing = frozenset(path for path, (exists, _) in seen.items() if exists)
        if not existing <= self._keeper.memory.known_disks:
            await self._keeper.update(lambda memory: replace(memory, known_disks=memory.known_disks | existing))
        if changed:
            self._ring("disk")

    def states(self, known: frozenset[str]) -> Mapping[str, DiskState]:
        """What was seen of each disk that was looked at."""
        return {path: DiskState(*seen, known=path in known) for path, seen in self._seen.items()}

    def forget(self, path: str) -> None:
        """Take what was seen of a disk for outdated."""
        self._seen.pop(path, None)


def unstarted_disks(desired: Desired, running: Iterable[str]) -> frozenset[str]:
    """The disks of guests that are wanted and not launched: the only ones that anything depends on."""
    launched = frozenset(running)
    return frozenset(
        disk.path for name, spec in desired.vms.items() if spec.enabled and name not in launched for disk in spec.disks
    )
