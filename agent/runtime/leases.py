"""Follows the lease files of DHCP servers: read when the kernel says that one was written, and at each full look."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from agent.core.errors import ObservationError
from agent.core.services.leases import Lease, parse_leases, unexpired
from agent.host.file_events import FileEvents

log = structlog.get_logger("vmhost.leases")

SETTLE_S = 0.01
"""A lease file is written in several steps: what follows at once is read with the first."""


class Leases:
    """The leases of each bridge that has a lease file."""

    def __init__(self, folder: Path, ring: Callable[[str], None]) -> None:
        self._folder = folder
        self._ring = ring
        self._events: FileEvents | None = None
        self._due: set[str] = set()
        self._group: asyncio.TaskGroup | None = None
        self._leases: dict[str, tuple[Lease, ...]] = {}
        self._reads = itertools.count()
        self._taken: dict[str, int] = {}
        """Of each file, which reading was the last that told something."""

    def follow_in(self, group: asyncio.TaskGroup) -> None:
        """Follow the files from now on, in tasks of this group."""
        self._group = group
        self.look()

    def look(self) -> None:
        """Read all files again; also those of a folder that is another one by now, or gone."""
        names: set[str] = set()
        try:
            self._watch()
            names = {path.name for path in self._folder.iterdir()}
        except (OSError, ObservationError) as error:
            log.warning("leases are looked at every 30 s only", why=str(error))
        for name in names.union(self._leases):
            self._changed(name)

    def _watch(self) -> None:
        """Make the folder if it is missing, and hear of what happens in it. Raises OSError or ObservationError.

        Anew each time: of a folder that is another one by now nothing would ever be heard, and it costs microseconds.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self.close()
        self._events = FileEvents(self._folder, self._changed)

    def close(self) -> None:
        """Follow them no longer."""
        if self._events is not None:
            self._events.close()
        self._events = None

    def states(self) -> Mapping[str, tuple[Lease, ...]]:
        """The leases that are known, by bridge."""
        return self._leases

    def _changed(self, name: str) -> None:
        if self._group is not None and name not in self._due:
            self._due.add(name)
            self._group.create_task(self._read(name), name=f"leases {name}")

    async def _read(self, name: str) -> None:
        await asyncio.sleep(SETTLE_S)
        self._due.discard(name)
        number = next(self._reads)
        text = await asyncio.to_thread(_text, self._folder / name)
        if self._taken.get(name, -1) > number:
            return  # its thread was held up: a later reading was quicker, and knows more
        self._taken[name] = number
        leases = dict(self._leases)
        leases.pop(name, None)
        if text is not None:
            leases[name] = unexpired(parse_leases(text), time.time())
        if leases != self._leases:
            self._leases = leases
            self._ring("leases")


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
