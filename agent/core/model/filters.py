"""What an action on the filters makes of the model host, and what must be in place before a tap is let in."""

from __future__ import annotations

from dataclasses import replace

from agent.core.desired import NicSpec
from agent.core.observed import Observed
from agent.core.preconditions import require
from agent.core.routing.filters import FILTERING, ChangeFilters, FilterState
from agent.core.routing.filters_wanted import own_elements
from agent.core.routing.ruleset import after_change


def with_filters(observed: Observed, action: ChangeFilters) -> Observed:
    """The world after a change of the filters."""
    seen = observed.filters.state
    require(seen is not None, "the tables are known before they are changed")
    seen = seen or FilterState()
    if not (action.whole or action.gone):
        require(seen.is_intact, "elements are changed in tables that are ours")
        require(seen.elements.issuperset(action.remove), "what is removed is there")
        require(not seen.elements.difference(action.remove).intersection(action.add), "what is added is not there yet")
    after = FilterState(*after_change(FILTERING, seen, action.elements))
    return replace(observed, filters=replace(observed.filters, state=after))


def require_filters(observed: Observed, vm: str, nic: NicSpec) -> None:
    """No frame of a NIC passes before its filters are in place, where there are any to be had."""
    state = observed.filters.state
    if state is not None:
        require(own_elements(vm, nic) <= state.elements, f"{nic.tap} is let in behind its filters")
