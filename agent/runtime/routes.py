"""Looks at the routes by bridges, and changes them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

import structlog

from agent.core.desired import Desired
from agent.core.errors import ObservationError
from agent.core.observed import LinkState
from agent.core.routing.routes import Key, RoutesState
from agent.core.routing.routes_wanted import ChangeRoutes, keys_of
from agent.host.netlink import MainTable
from agent.host.netlink.main_table import watch_main_table
from agent.runtime.threads import run_to_end

log = structlog.get_logger("vmhost.routes")


class RouteLooks:
    """What is known of routes: looked at again when one of them, or any link, was heard to change."""

    def __init__(self, ring: Callable[[str], None]) -> None:
        self._ring = ring
        self._table = MainTable()
        self._closing = contextlib.ExitStack()
        self._state: RoutesState | None = None
        self._keys: frozenset[Key] = frozenset()
        self._links: Mapping[str, LinkState] | None = None
        self._told = ""

    def look_in(self, group: asyncio.TaskGroup) -> None:
        """Hear of changes in a task of this group from now on. Raises ObservationError."""
        self._closing.enter_context(self._table)
        group.create_task(self._hear(), name="routes")

    def close(self) -> None:
        """Close the socket."""
        self._closing.close()

    def look(self, desired: Desired, links: Mapping[str, LinkState]) -> RoutesState | None:
        """What is there now; from memory as long as nothing that it depends on was heard to change. None: unknown."""
        keys = keys_of({**desired.retained, **desired.bridges}.values())
        known = self._state
        is_fresh = links is self._links or (self._links is not None and not keys)
        if known is not None and is_fresh and keys == self._keys:
            return known  # what is ours and unwanted is heard of when it comes
        try:
            self._state = self._table.look(keys, {link.ifindex: name for name, link in links.items()})
            self._keys, self._links, self._told = keys, links, ""
        except ObservationError as error:
            if str(error) != self._told:
                self._told = str(error)
                log.warning("routes are not known", why=self._told)
            self._state, self._links = None, None
        return self._state

    def look_again(self) -> None:
        """Look anew at the next pass."""
        self._links = None

    async def change(self, action: ChangeRoutes) -> None:
        """Do an action, and look at what became of it at the next pass. Raises an ActionError."""
        try:
            await run_to_end(_change, action)
        finally:
            self.look_again()

    async def _hear(self) -> None:
        try:
            await watch_main_table(lambda to: any(key.to == to for key in self._keys), self._heard)
        except ObservationError as error:
            log.warning("changes of routes are found every half minute only", why=str(error))

    def _heard(self) -> None:
        self._links = None
        self._ring("routes")


def _change(action: ChangeRoutes) -> None:
    with MainTable() as table:
        table.change(action)
