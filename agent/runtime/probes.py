"""Looks once a second at what guests wait for, as long as one of them waits; what changes rings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from agent.core.observed import Reach
from agent.core.references import PATH, place, split_endpoint
from agent.host.reach import accepts, exists
from agent.runtime.clock import now_s

PROBE_EVERY_S = 1.0


class Probes:
    """One task for each reference that the last plan asked for; what nobody asks for any more is forgotten."""

    def __init__(self, ring: Callable[[str], None]) -> None:
        self._ring = ring
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._seen: dict[str, Reach] = {}

    def probe_in(self, group: asyncio.TaskGroup) -> None:
        """Look in tasks of this group from now on."""
        self._group = group

    def look(self, asked: frozenset[str]) -> Mapping[str, Reach]:
        """Look at these references from now on, and at no others; what is known of each."""
        for reference in self._tasks.keys() - asked:
            self._tasks.pop(reference).cancel()
            del self._seen[reference]
        if self._group is not None:
            for reference in asked - self._tasks.keys():
                self._seen[reference] = Reach(None, now_s())
                self._tasks[reference] = self._group.create_task(self._watch(reference), name=f"probe {reference}")
        return dict(self._seen)

    async def _watch(self, reference: str) -> None:
        while True:
            ok, why = await self._ask(reference)
            before = self._seen[reference]
            since_s = before.since_s if ok is (before.ok or False) else now_s()
            self._seen[reference] = Reach(ok, since_s, why)
            if (ok, why) != (before.ok, before.why):
                self._ring("probe")
            await asyncio.sleep(PROBE_EVERY_S)

    @staticmethod
    async def _ask(reference: str) -> tuple[bool, str]:
        if reference.startswith(PATH):
            return await exists(place(reference))
        return await accepts(*split_endpoint(reference))
