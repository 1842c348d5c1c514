"""Newer looks at guests for as long as somebody watches them: `vmhost top` wants a second's, the pollers make ten's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from typing import Protocol

from agent.core.errors import ObservationError
from agent.core.measures import GuestMeasure
from agent.core.tell.looking import Counted, looks_at
from agent.core.tell.looks import GuestLook
from agent.core.tell.status import StatusInputs
from agent.runtime.clock import now_s

MIN_AGE_S = 0.5
"""Looks are not made more often than that, whatever is asked for: each is a question to every QEMU."""

PATIENCE_S = 0.5
"""One QEMU that hangs keeps nobody waiting: the others are shown, and it as it was, until its look is stale."""


class Looks(Protocol):
    """What guests are measured by (`agent.runtime.measures`)."""

    @property
    def latest(self) -> Mapping[str, GuestMeasure]:
        """The last good look at each guest, by name."""

    async def refresh(self, names: Collection[str]) -> None:
        """Look at these guests now; returns when that is over. A look that is under way counts."""


class Watching:
    """Answers what `vmhost top` asks. `statistics` reads the counters of all links."""

    def __init__(self, looks: Looks, statistics: Callable[[], Awaitable[Mapping[str, Counted]]]) -> None:
        self._looks = looks
        self._statistics = statistics
        self._refreshing: set[asyncio.Task[None]] = set()
        self._traffic: Mapping[str, Counted] = {}
        self._traffic_at_s = 0.0

    async def measures(self, inputs: Callable[[], StatusInputs], max_age_s: float) -> str:
        """A look at each guest, not older than `max_age_s` (and `MIN_AGE_S`) where its QEMU answers in time; as JSON.

        `inputs` gives what status is made of, as of now.
        """
        wanted_s = max(max_age_s, MIN_AGE_S)
        alive = [name for name, state in inputs().observed.vms.items() if state.alive]
        await asyncio.gather(self._refresh(alive, wanted_s), self._read_traffic(wanted_s))
        found = looks_at(inputs(), self._looks.latest, self._traffic, self._traffic_at_s)
        return await asyncio.to_thread(_as_json, found)

    async def _refresh(self, alive: list[str], max_age_s: float) -> None:
        latest, old_s = self._looks.latest, now_s() - max_age_s
        names = {name for name in alive if name not in latest or latest[name].at_s < old_s}
        if not names:
            return
        # Not cancelled when patience ends: others may wait for the same looks, and each has its deadline.
        task = asyncio.create_task(self._looks.refresh(names), name="looks for whoever watches")
        self._refreshing.add(task)
        task.add_done_callback(self._refreshing.discard)
        done, _ = await asyncio.wait({task}, timeout=PATIENCE_S)
        for one in done:
            one.result()

    async def _read_traffic(self, max_age_s: float) -> None:
        if now_s() - self._traffic_at_s < max_age_s:
            return
        with suppress(ObservationError):  # the counters stand still then, and so does their time: no false rate
            self._traffic = await self._statistics()
            self._traffic_at_s = now_s()


def _as_json(looks: list[GuestLook]) -> str:
    """Guest by guest: json.dumps() lets no other thread go on, and all at once would hold up the loop."""
    return f'{{"guests": [{", ".join(json.dumps(look.as_json()) for look in looks)}]}}'
