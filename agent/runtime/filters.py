"""Follows and changes the tables that filter guests, and adds up what they dropped."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from agent.core.desired import VmSpec
from agent.core.errors import ObservationError
from agent.core.routing.filters import FILTERING, ChangeFilters, Filters, FilterState
from agent.core.routing.filters_ingress import Dropped
from agent.core.routing.ruleset import Element
from agent.host.nft import NftMissingError, read_counts
from agent.runtime.clock import now_s
from agent.runtime.tables import Tables
from agent.runtime.threads import run_to_end

Key = tuple[str, str, str]
"""Guest, NIC and reason."""


class FilterLooks:
    """What is known of the filters."""

    def __init__(self, ring: Callable[[str], None]) -> None:
        self._tables = Tables(FILTERING, FilterState, lambda: ring("filters"))
        self._last: Mapping[Element, int] = {}
        self._dropped: Counter[Key] = Counter()
        self.counted_s: float | None = None
        """When what was dropped was last counted, or there was nothing to count; None before."""

    def look_in(self, group: asyncio.TaskGroup) -> None:
        """Look, and hear of changes, in tasks of this group from now on."""
        self._tables.look_in(group)

    def look(self) -> Filters:
        """What is known now."""
        return Filters(self._tables.state, self._tables.problem)

    def look_again(self) -> None:
        """Look at the tables again, soon, whether or not anything was heard of them."""
        self._tables.look_soon()

    async def change(self, action: ChangeFilters) -> None:
        """Do a transaction. Raises an ActionError."""
        await self._tables.change(action.elements)

    async def count(self, specs: Mapping[str, VmSpec]) -> Mapping[Key, int]:
        """What was dropped of each NIC, and why, since this agent began; 0 where nothing was.

        Tables that are made anew count from 0, elements too: what they counted before stays added. What could not be
        read stands still.
        """
        if self._tables.state is not None and self._tables.state.exists:
            try:
                now = await run_to_end(read_counts, FILTERING)
                self.counted_s = now_s()
            except (ObservationError, NftMissingError):
                now = self._last
            owners = _owners(specs.items())
            for element, packets in now.items():
                owner = owners.get((element.set.startswith("routed_"), element.key))
                if owner is not None:
                    before = self._last.get(element, 0)
                    self._dropped[*owner, _reason(element)] += packets - before if packets >= before else packets
            self._last = now
        elif self._tables.state is not None:
            self.counted_s = now_s()
        nics = {(name, nic.id) for name, spec in specs.items() for nic in spec.nics}
        for key in [key for key in self._dropped if key[:2] not in nics]:
            del self._dropped[key]
        return dict(self._dropped)


def _reason(element: Element) -> str:
    return Dropped.DENY.value if element.set.startswith("routed_") else element.set


def _owners(specs: Iterable[tuple[str, VmSpec]]) -> Mapping[tuple[bool, str], tuple[str, str]]:
    """Whose an element is: by a tap in the one table, by bridge and address in the other (True)."""
    found: dict[tuple[bool, str], tuple[str, str]] = {}
    for name, spec in specs:
        for nic in spec.nics:
            found[False, f'"{nic.tap}"'] = name, nic.id
            found.update({(True, f'"{nic.bridge}" . {one}'): (name, nic.id) for one in nic.address})
    return found
