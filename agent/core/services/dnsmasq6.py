"""What dnsmasq(8) says of IPv6 on a bridge: router advertisements, and DHCPv6 for the addresses that NICs have.

Guests make addresses of the bridge's prefixes themselves (SLAAC), and those that ask are given their static one too.
With `ndp-proxy` there is no prefix to make one of: a guest is given its address alone, and its default route. dnsmasq
advertises nothing on a link where it knows of no prefix, so the bridge has one that guests are told nothing of (neither
on-link nor for addresses), and the addresses lie in networks that share its link.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from agent.core.desired import BridgeSpec
from agent.core.routing.ipv6 import NDP_PROXY
from agent.core.routing.ipv6_wanted import networks6

PREFIX = 64
LEASE_S = 43200


def leased6(bridge: BridgeSpec, addresses: Iterable[str]) -> tuple[str, ...]:
    """Those of a NIC's addresses that DHCPv6 gives it there."""
    if not bridge.ipv6:
        return ()
    six = [one for one in addresses if ":" in one and not ipaddress.IPv6Address(one).is_link_local]
    if bridge.ipv6 == NDP_PROXY:
        return tuple(six)
    return tuple(one for one in six if any(ipaddress.IPv6Address(one) in network for network in _advertised(bridge)))


def serves_dhcp6(bridge: BridgeSpec, addresses: Iterable[str]) -> bool:
    """Whether its DHCPv6 server serves, which needs a file for leases; with `ndp-proxy` also without a guest."""
    return bridge.ipv6 == NDP_PROXY or bool(leased6(bridge, addresses))


def ra_lines(bridge: BridgeSpec, addresses: Iterable[str]) -> Iterator[str]:
    """The lines of a bridge's configuration; `addresses` are those of all NICs on it."""
    if not bridge.ipv6:
        return
    lease_s = bridge.dhcp.lease_s if bridge.dhcp is not None else LEASE_S
    given = {_network_of(one) for one in leased6(bridge, addresses)}
    yield "enable-ra"
    for network in _advertised(bridge):
        first = network.network_address
        if bridge.ipv6 == NDP_PROXY:
            yield f"dhcp-range={first},static,off-link,{PREFIX},{lease_s}"
        elif network in given:
            yield f"dhcp-range={first},static,slaac,{PREFIX},{lease_s}"
        else:
            yield f"dhcp-range={first},ra-only,{PREFIX},{lease_s}"
    for network in sorted(given.difference(_advertised(bridge))):
        yield f"dhcp-range={network.network_address},static,off-link,{PREFIX},{lease_s}"
        yield f"shared-network={bridge.name},{network.network_address}"


def _advertised(bridge: BridgeSpec) -> tuple[ipaddress.IPv6Network, ...]:
    return tuple(network for network in networks6(bridge) if network.prefixlen == PREFIX)


def _network_of(address: str) -> ipaddress.IPv6Network:
    return ipaddress.IPv6Network(f"{address}/{PREFIX}", strict=False)
