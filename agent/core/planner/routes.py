"""The frontier for routes by bridges: the missing ones are added before others go, and nobody else's is touched.

One of somebody else that leads the same way will do.
"""

from __future__ import annotations

from collections.abc import Mapping

from agent.core.desired import BridgeSpec
from agent.core.marks import bridge_resource, is_own_bridge
from agent.core.observed import LinkState
from agent.core.planner.draft import Draft
from agent.core.reasons import Reason
from agent.core.routing.routes import Key, Route, RoutesState, lead_text, route_text
from agent.core.routing.routes_wanted import ChangeRoutes, routes_resource, wanted_routes


def plan_routes(draft: Draft, bridges: Mapping[str, BridgeSpec], *, complete: bool) -> None:
    """Plan the routes of these bridges; without a `complete` view of the units nothing is removed."""
    state = draft.observed.routes
    asking = [bridge for bridge in bridges.values() if bridge.gateway or bridge.routes]
    if state is None:
        for bridge in asking:
            draft.wait_for_answer(routes_resource(bridge.name))
        return
    if not asking and not state.own:
        return
    given: dict[Key, str] = {}
    wanted = {name: _given(draft, bridge, given) for name, bridge in sorted(bridges.items())}
    for name in sorted({*wanted, *(route.link for route in state.own)}):
        _plan_routes_of(draft, name, wanted.get(name, ()), given, state, complete=complete)


def _given(draft: Draft, bridge: BridgeSpec, given: dict[Key, str]) -> tuple[Route, ...]:
    """The routes that a bridge gets of those it asks for: one that two ask for is of the first by name."""
    found = []
    for route in wanted_routes(bridge):
        holder = given.setdefault(route.key, bridge.name)
        if holder == bridge.name:
            found.append(route)
            continue
        text = route_text(route.to, route.metric)
        message = f"a route {text} is asked for by {holder} too, and leads there; give one of them another metric"
        draft.tell(routes_resource(bridge.name), "Conflict", message)
    return tuple(found)


def _plan_routes_of(
    draft: Draft,
    bridge: str,
    wanted: tuple[Route, ...],
    given: Mapping[Key, str],
    state: RoutesState,
    *,
    complete: bool,
) -> None:
    resource, link = routes_resource(bridge), draft.observed.links.get(bridge)
    if link is None:
        if wanted:
            draft.tell_deviating(resource)
        return
    own = {route.key: route for route in state.own}
    others = {route for route in wanted if route.key not in own and _leads_there(route, state)}
    missing = [route for route in wanted if route not in state.own and route not in others]
    foreign = [route for route in missing if route.key in state.foreign and route.key not in own]
    for route in foreign:
        what = state.foreign[route.key]
        if _comes_with_a_move(draft, what):
            continue
        message = (
            f"a route {route_text(route.to, route.metric)} that is not ours {what}: it stays, and ours is not added; "
            f"delete it (ip route del {route_text(route.to, route.metric)}) or give ours another metric"
        )
        draft.tell(resource, "Conflict", message)
    if missing:
        draft.tell_deviating(resource)
    if _is_changing(draft, bridge):
        return  # its addresses come before what is reached by them, and with the bridge its routes go
    ready = is_own_bridge(link) and link.up
    coming = [route for route in missing if route not in foreign] if ready else []
    surplus = [route for route in state.own if route.link == bridge and route.key not in given]
    lacking = {key.to for key in given if key not in own} - {route.to for route in (*coming, *others)}
    over = [route for route in surplus if route.to not in lacking]  # the other way there comes first
    action = ChangeRoutes(
        resource,
        Reason.MISSING if coming else Reason.UNWANTED,
        bridge,
        link.ifindex,
        tuple(route for route in coming if route.key not in own),
        tuple(route for route in coming if route.key in own),
        tuple(sorted(over)) if complete else (),
        _addresses(link),
    )
    if action.add or action.swap or action.remove:
        draft.propose(action)


def _leads_there(route: Route, state: RoutesState) -> bool:
    """Whether somebody else's does what ours would: it came with its port's addresses, or the host's boot set it."""
    return state.foreign.get(route.key) == lead_text(route.via, route.link)


def _comes_with_a_move(draft: Draft, what: str) -> bool:
    """Whether somebody else's leads by a port that is still to be moved: it is told there what keeps it, and whoever
    deleted the route instead would cut the host off."""
    return any(uplink.carried and what.endswith(f" by {port}") for port, uplink in draft.observed.uplinks.items())


def _addresses(link: LinkState) -> tuple[str, ...]:
    return tuple(sorted(one.address for one in link.addresses))


def _is_changing(draft: Draft, bridge: str) -> bool:
    """Whether something is being done, or to be done, to the bridge itself."""
    return bridge_resource(bridge) in draft.observed.in_flight or draft.is_planned(bridge_resource(bridge))
