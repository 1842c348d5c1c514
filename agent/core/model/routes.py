"""What an action on routes makes of the model host."""

from __future__ import annotations

from dataclasses import replace

from agent.core.observed import Observed
from agent.core.preconditions import require
from agent.core.routing.routes import RoutesState
from agent.core.routing.routes_wanted import ChangeRoutes


def with_routes(observed: Observed, action: ChangeRoutes) -> Observed:
    """The world after an action."""
    state, link = observed.routes, observed.links.get(action.link)
    require(state is not None, "routes are known before they are changed")
    require(link is not None and link.ifindex == action.ifindex, f"{action.link} is the link that was seen")
    state = state or RoutesState()
    own = {route.key: route for route in state.own}
    if action.add or action.swap:
        require(link is not None and link.up, f"{action.link} is up before anything is led there")
    for route in action.add:
        require(route.key not in own, "no route is added beside one of ours")
        require(route.key not in state.foreign, "no foreign route is taken over")
        own[route.key] = route
    for route in action.swap:
        require(route.key not in state.foreign, "only what is ours is replaced")  # it may have gone with its bridge
        own[route.key] = route
    for route in action.remove:
        require(own.get(route.key) == route, "only what is ours is removed")
        del own[route.key]
    return replace(observed, routes=replace(state, own=frozenset(own.values())))


def without_routes(observed: Observed, link: str) -> Observed:
    """The world once a link is gone, and with it the routes by it."""
    if observed.routes is None:
        return observed
    own = frozenset(route for route in observed.routes.own if route.link != link)
    return replace(observed, routes=replace(observed.routes, own=own))
