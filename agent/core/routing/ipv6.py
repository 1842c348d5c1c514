"""What a bridge's `ipv6` may be, and what was seen of the kernel's part in it: routes, proxy neighbours, parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

ROUTED, NDP_PROXY, NAT66 = "routed", "ndp-proxy", "nat66"

PROTOCOL = 118
"""Our mark on routes (rtm_protocol) and on proxy neighbours (NDA_PROTOCOL, Linux 5.3), as on addresses."""

GATEWAY = "fe80::1/64"
"""The host's address on a bridge with `ndp-proxy`, the same everywhere: guests that are set up by hand name it."""

IPV6 = "ipv6"
"""The resource: it is one for the whole host."""


class Place(NamedTuple):
    """An IPv6 address and a link: a route to it by that link, or a neighbour that the host answers for there."""

    address: str
    link: str


@dataclass(frozen=True, slots=True)
class Ipv6State:
    """What was seen, of the main table and of all proxy neighbours.

    `routes` and `proxies` are ours, by `PROTOCOL`. `foreign_routes`: where somebody else's route to one address alone
    leads, by address; looked at for addresses that we have no route to. `uplink` is the link by which the internet is
    reached, empty for none, `gateway` the next hop there. `settings` are parameters below /proc/sys/net, `before` those
    that an agent changed in this boot of the host, and what they were. `forwards_since_s`: when a link was seen to
    forward again that had been seen not to.
    """

    routes: frozenset[Place] = frozenset()
    proxies: frozenset[Place] = frozenset()
    foreign_routes: Mapping[str, str] = field(default_factory=dict)
    foreign_proxies: frozenset[Place] = frozenset()
    uplink: str = ""
    gateway: str = ""
    settings: Mapping[str, int] = field(default_factory=dict)
    before: Mapping[str, int] = field(default_factory=dict)
    forwards_since_s: Mapping[str, float] = field(default_factory=dict)


def conf(link: str, key: str) -> str:
    """The name of a link's parameter below /proc/sys/net (ip-sysctl.rst)."""
    return f"ipv6/conf/{link}/{key}"


def proxy_delay(link: str) -> str:
    """The name of the parameter that makes answers for others late: up to 0.8 s where it is not 0 (ip-sysctl.rst)."""
    return f"ipv6/neigh/{link}/proxy_delay"


def link_of(name: str) -> str:
    """The link whose parameter this is."""
    return name.split("/")[2]


def derived_ula(*parts: str) -> str:
    """A stable address in a unique local prefix of its own (RFC 4193), from what identifies its owner."""
    digest = hashlib.sha256("\0".join(("ula", *parts)).encode()).hexdigest()
    return f"fd{digest[:2]}:{_group(digest[2:6])}:{_group(digest[6:10])}::1/64"


def _group(digits: str) -> str:
    return f"{int(digits, 16) or 1:x}"
