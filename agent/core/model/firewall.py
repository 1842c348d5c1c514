"""What actions on the firewall and on forwarding make of the model host."""

from __future__ import annotations

import itertools
from dataclasses import replace

from agent.core.observed import Observed
from agent.core.preconditions import require
from agent.core.routing.firewall import NAT, SETS, FirewallState, ForwardingState, Opening, Routing
from agent.core.routing.firewall_actions import ChangeFirewall, ChangeForwarding, EndConnections
from agent.core.routing.firewall_wanted import ended_element, name_of
from agent.core.routing.ruleset import after_change


def with_routing(observed: Observed, action: ChangeFirewall | ChangeForwarding | EndConnections) -> Observed:
    """The world after an action."""
    routing = observed.routing
    match action:
        case ChangeFirewall():
            return replace(observed, routing=replace(routing, firewall=_changed(routing, action)))
        case EndConnections(ended=ended):
            seen = _known(routing)
            require(seen.elements.issuperset(ended), "the connections of these forwards are to be ended")
            present = frozenset(map(ended_element, seen.elements))
            require(not present.intersection(ended), "no forward that is there loses its connections")
            left = replace(seen, elements=seen.elements.difference(ended))
            return replace(observed, routing=replace(routing, firewall=left))
        case ChangeForwarding():
            return replace(observed, routing=_forwarding(routing, action))


def _known(routing: Routing) -> FirewallState:
    require(routing.firewall is not None, "the table is known before it is changed")
    return routing.firewall or FirewallState()


def _changed(routing: Routing, action: ChangeFirewall) -> FirewallState:
    seen = _known(routing)
    if action.gone:
        require(not seen.ended, "no connections are left to be ended")
        require(not any(_is_open(routing, name_of(one.key)) for one in seen.of("opened4")), "nothing is open any more")
    elif not action.whole:
        require(seen.is_intact, "elements are changed in a table that is ours")
        require(seen.elements.issuperset(action.remove), "what is removed is there")
        left = seen.elements.difference(action.remove)
        require(not left.intersection(action.add), "what is added is not there yet")
    after = FirewallState(*after_change(NAT, seen, action.elements))
    require(len({(one.set, one.key) for one in after.elements}) == len(after.elements), "a key leads to one place")
    for shape in SETS:
        if shape.interval:
            pairs = itertools.combinations([one.key.split(" . ") for one in after.of(shape.name)], 2)
            require(not any(_overlap(*pair) for pair in pairs), f"nft refuses elements of {shape.name} that overlap")
    return after


def _overlap(one: list[str], other: list[str]) -> bool:
    """Whether two keys of a set of intervals have something in common; networks of it never have."""
    return all(_meet(a, b) for a, b in zip(one, other, strict=True))


def _meet(one: str, other: str) -> bool:
    (first, _, last), (low, _, high) = one.partition("-"), other.partition("-")
    if not first.isdecimal() or not low.isdecimal():
        return one == other
    return int(first) <= int(high or low) and int(low) <= int(last or first)


def _is_open(routing: Routing, link: str) -> bool:
    state = routing.forwarding
    is_on = state is not None and not state.all4 and state.links4.get(link, False)
    return is_on and Opening(4, link) in routing.opened


def _forwarding(routing: Routing, action: ChangeForwarding) -> Routing:
    state = routing.forwarding
    require(state is not None, "forwarding is known before it is changed")
    state = state or ForwardingState()
    seen = _known(routing)
    for name, value in action.settings:
        version, _, link, key = name.replace("ipv", "", 1).split("/")
        guarded = any(one.key == f'"{link}"' for one in seen.of(f"opened{version}"))
        ours = Opening(int(version), link) in routing.opened
        if key == "accept_ra":
            state = replace(state, accept_ra={**state.accept_ra, link: int(value)})
        elif link == "all":
            require(ours or seen.of("opened6"), "what is not for a guest is dropped first")
            require(ours or 1 not in state.accept_ra.values(), "no link loses its router advertisements")
            state = replace(state, all6=value == "1")
        else:
            require(
                value == "0" or guarded or (state.all4 and version == "4"), f"{link} is guarded before it is opened"
            )
            require(value == "1" or ours, f"only what we opened is closed, {link} is not")
            if version == "4":
                state = replace(state, links4={**state.links4, link: value == "1"})
            else:
                state = replace(state, links6={**(state.links6 or {}), link: value == "1"})
    return replace(routing, forwarding=state, opened=(routing.opened | action.opens) - action.closes)
