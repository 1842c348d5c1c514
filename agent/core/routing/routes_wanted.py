"""The routes that units ask for, and the action that brings them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.core.desired import BridgeSpec
from agent.core.reasons import Disruption, Reason
from agent.core.routing.routes import DEFAULT4, DEFAULT6, METRIC6, Key, Route


@dataclass(frozen=True, slots=True)
class ChangeRoutes:
    """Add routes, put others in the place of own ones of the same key, then remove.

    None is removed while one to the same destination was refused. `beside` are the addresses of the bridge by then:
    with others the kernel may take what it refused.
    """

    resource: str
    reason: Reason
    link: str
    ifindex: int
    add: tuple[Route, ...] = ()
    swap: tuple[Route, ...] = ()
    remove: tuple[Route, ...] = ()
    beside: tuple[str, ...] = ()
    disruption: Disruption = Disruption.NONE


def routes_resource(bridge: str) -> str:
    """The resource name of the routes by a bridge."""
    return f"bridge/{bridge}/routes"


def wanted_routes(spec: BridgeSpec) -> tuple[Route, ...]:
    """The routes that a bridge's unit asks for, as the kernel will have them."""
    defaults = ((DEFAULT6 if ":" in gateway else DEFAULT4, gateway, 0) for gateway in spec.gateway)
    return tuple(
        Route(to, metric or (METRIC6 if ":" in to else 0), via, spec.name)
        for to, via, metric in (*defaults, *spec.routes)
    )


def keys_of(bridges: Iterable[BridgeSpec]) -> frozenset[Key]:
    """All destinations and metrics that bridges ask for."""
    return frozenset(route.key for bridge in bridges for route in wanted_routes(bridge))
