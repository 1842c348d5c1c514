"""Routes of the host by its bridges: what they are, and what was seen of the kernel's main table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

PROTOCOL = 119
"""Our mark on these routes (rtm_protocol); 118 is of routes to guests (`core.routing.ipv6`)."""

DEFAULT4, DEFAULT6 = "0.0.0.0/0", "::/0"
METRIC6 = 1024
"""What the kernel makes of an IPv6 route without a metric (IP6_RT_PRIO_USER, linux/ipv6_route.h)."""


class Key(NamedTuple):
    """What there is one route for: a destination, and its metric, of which the smaller one goes first."""

    to: str
    metric: int


class Route(NamedTuple):
    """A route by a gateway on a link. `via` empty: none, or several."""

    to: str
    metric: int
    via: str
    link: str

    @property
    def key(self) -> Key:
        """What there is no second route for."""
        return Key(self.to, self.metric)


@dataclass(frozen=True, slots=True)
class RoutesState:
    """What was seen: `own` by our protocol number; `foreign`, how somebody else's leads, for keys that were asked for
    and that we have no route for."""

    own: frozenset[Route] = frozenset()
    foreign: Mapping[Key, str] = field(default_factory=dict)


def lead_text(via: str, link: str) -> str:
    """How a route leads, for people, and to compare one that is not ours with one that is to be."""
    return f"leads {f'via {via} ' if via else ''}by {link}"


def route_text(to: str, metric: int, via: str = "") -> str:
    """A route as `ip route` writes it."""
    destination = "default" if to in {DEFAULT4, DEFAULT6} else to
    shown = metric and not (":" in to and metric == METRIC6)
    return f"{destination}{f' via {via}' if via else ''}{f' metric {metric}' if shown else ''}"
