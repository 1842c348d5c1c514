"""Looks at what the guests' services are limited to: nothing rings when somebody changes that."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from agent.core.errors import ActionError, ObservationError
from agent.core.limits import next_in_turn
from agent.host.control_groups import look_at_controllers
from agent.runtime.guest import Guest
from agent.runtime.guests import Guests
from agent.runtime.starts import Starts

log = structlog.get_logger("vmhost.limits")

LOOKED_AT_ONCE = 100
"""A look costs some milliseconds of this process and of the service manager: a thousand guests take turns."""

PATIENCE_S = 2.0
"""How long somebody who asks waits for a look; the service manager may hang."""


class LimitLooks:
    """Looks at guests that were taken over, and at some of the others each time, in turn."""

    def __init__(self, guests: Guests, starts: Starts) -> None:
        self._guests = guests
        self._starts = starts
        self._group: asyncio.TaskGroup | None = None
        self._looking: asyncio.Task[None] | None = None
        self._latest = ""

    def look_in(self, group: asyncio.TaskGroup) -> None:
        """Look in tasks of this group from now on."""
        self._group = group

    def look(self) -> None:
        """Begin to look, unless a look is under way."""
        if self._group is not None and self._starts.as_services and (self._looking is None or self._looking.done()):
            self._looking = self._group.create_task(self._look(), name="limits")

    async def look_now(self) -> None:
        """Return after a look that began after this call, or when it takes too long."""
        await self._over()
        self.look()
        await self._over()

    async def _over(self) -> None:
        if self._looking is not None and not self._looking.done():
            await asyncio.wait([self._looking], timeout=PATIENCE_S)

    async def _look(self) -> None:
        silent = ""
        for guest in self._due():
            try:
                limits = None if silent else await self._starts.limits(guest.record)
            except ActionError as error:
                silent, limits = str(error), None
                log.warning("what guests' services are limited to is not known", why=silent)
            if guest.alive and (not silent or guest.limits_awaited):
                guest.note_limits(limits)

    def _due(self) -> Sequence[Guest]:
        """Whoever was never looked at, and as many of the others as it may be, beginning after the latest one."""
        services = {guest.name: guest for guest in self._guests if guest.alive and guest.record.unit}
        awaited = [guest for guest in services.values() if guest.limits_awaited]
        others = sorted(name for name, guest in services.items() if not guest.limits_awaited)
        turn = next_in_turn(others, self._latest, LOOKED_AT_ONCE)
        self._latest = turn[-1] if turn else ""
        return [*awaited, *(services[name] for name in turn)]


def controllers_here() -> frozenset[str] | None:
    """The controllers of this host's control groups, None if that is not to be known."""
    try:
        return look_at_controllers()
    except ObservationError as error:
        log.warning("what this host's control groups can do is not known", why=str(error))
        return None
