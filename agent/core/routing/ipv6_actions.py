"""The action on what the kernel has for IPv6 modes of bridges."""

from __future__ import annotations

from dataclasses import dataclass

from agent.core.reasons import Disruption, Reason
from agent.core.routing.ipv6 import Place


@dataclass(frozen=True, slots=True)
class ChangeIpv6:
    """Set parameters in this order (names below `net`), then add routes and proxy neighbours, then remove others.

    `remember` are parameters with what they are before: written down before anything is done, and given back
    (`restore`) once nobody wants them otherwise. `forget`: what need not be given back, because its link went.
    """

    resource: str
    reason: Reason
    settings: tuple[tuple[str, int], ...] = ()
    add_routes: tuple[Place, ...] = ()
    add_proxies: tuple[Place, ...] = ()
    remove_routes: tuple[Place, ...] = ()
    remove_proxies: tuple[Place, ...] = ()
    remember: tuple[tuple[str, int], ...] = ()
    restore: tuple[tuple[str, int], ...] = ()
    forget: tuple[str, ...] = ()
    disruption: Disruption = Disruption.NONE
