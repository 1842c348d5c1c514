"""The frontier for the filters: one resource for the host, and the gate that taps wait at until theirs are in place."""

from __future__ import annotations

from collections.abc import Mapping

from agent.core.desired import BridgeSpec, VmSpec
from agent.core.marks import tap_resource
from agent.core.planner.draft import Draft
from agent.core.planner.ports import Ports, port_names
from agent.core.reasons import Reason
from agent.core.routing.filters import FILTERS, ChangeFilters, Filters, FilterState
from agent.core.routing.filters_wanted import FilterWish, filter_wish, guarded_ports


def plan_filters(
    draft: Draft, bridges: Mapping[str, BridgeSpec], specs: Mapping[str, VmSpec], ports: Ports, *, complete: bool
) -> None:
    """Plan both tables, and close the gate for the taps whose elements are not there yet.

    `specs` are the guests as they are to be started. Where filters are to be had at all, no tap comes into its bridge
    before its elements are in the table, and no port by which no DHCP is to pass. Where
    they are not (no nft, a kernel that refuses), guests start without, and it is told.
    """
    filters = draft.observed.filters
    enabled = {name: spec for name, spec in specs.items() if spec.enabled}
    wish = filter_wish(bridges, enabled, draft.observed.vms, draft.observed.links, tuple(port_names(bridges, ports)))
    for (vm, nic), one in wish.nics.items():
        if one.nameless:
            message = f"the firewall cannot name the tap {one.nic.tap}; give the NIC a tap = of letters and digits"
            draft.tell(tap_resource(vm, nic), "Unfiltered", message, deviates=one.is_asked)
        if one.taken:
            message = (
                f"{one.taken[0]} is an address of {one.nic.bridge} itself, the guests' gateway; give {nic} another one"
            )
            draft.tell(tap_resource(vm, nic), "AddressTaken", message, deviates=False)
    if filters.state is None:
        _plan_unknown(draft, filters, wish)
        return
    action = _change(filters.state, wish, complete=complete)
    if action is None:
        return
    busy = FILTERS in draft.observed.in_flight
    if draft.propose(action) or busy:
        missing = wish.elements - filters.state.elements if filters.state.is_intact else wish.elements
        draft.close_gate({key for key, one in wish.nics.items() if not one.elements.isdisjoint(missing)})
        draft.close_port_gate(guarded_ports(missing))
    else:
        _tell_unfiltered(draft, wish)


def _plan_unknown(draft: Draft, filters: Filters, wish: FilterWish) -> None:
    if not wish.elements:
        return
    if filters.problem:
        draft.tell(FILTERS, "FirewallUnavailable", filters.problem, deviates=False)
        _tell_unfiltered(draft, wish)
    else:
        draft.wait_for_answer(FILTERS)
        draft.close_gate(wish.nics.keys())
        draft.close_port_gate(guarded_ports(wish.elements))


def _tell_unfiltered(draft: Draft, wish: FilterWish) -> None:
    """Guests whose filters are asked for by name are not as their units say without them."""
    for (vm, nic), one in wish.nics.items():
        if one.is_asked:
            message = (
                "it runs without its filters, because the firewall cannot be changed; the condition of filters says why"
            )
            draft.tell(tap_resource(vm, nic), "FirewallUnavailable", message)


def _change(seen: FilterState, wish: FilterWish, *, complete: bool) -> ChangeFilters | None:
    """What leads from the tables to the wish. Where units were not read yet nothing is taken away."""
    if not wish.elements:
        return ChangeFilters(FILTERS, Reason.UNWANTED, gone=True) if seen.exists and complete else None
    if not seen.is_intact:
        reason = Reason.SETTINGS if seen.exists else Reason.MISSING
        return ChangeFilters(FILTERS, reason, tuple(sorted(wish.elements)), whole=True)
    missing, surplus = wish.elements - seen.elements, seen.elements - wish.elements if complete else frozenset()
    if not missing and not surplus:
        return None
    return ChangeFilters(FILTERS, Reason.ELEMENT, tuple(sorted(missing)), tuple(sorted(surplus)))
