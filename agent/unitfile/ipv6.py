"""What must hold between a bridge's `ipv6`, its `uplink` and its other keys."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping

from agent.core.routing.firewall import is_plain_name
from agent.core.routing.ipv6 import NAT66, NDP_PROXY, ROUTED
from agent.unitfile.machines import Mistake
from agent.unitfile.values import BadValueError, parse_address, parse_link_name, quoted

_ULA = ipaddress.ip_network("fc00::/7")
RA_PREFIX = 64
"""Guests make their addresses of prefixes of this length only (RFC 4862), and dnsmasq advertises no others."""


def ipv6_mistakes(name: str, table: Mapping[str, object]) -> Iterator[Mistake]:
    """What does not fit, also in a table with other mistakes."""
    mode, uplink = table.get("ipv6"), table.get("uplink")
    if mode not in (ROUTED, NDP_PROXY, NAT66):
        if "uplink" in table and "ipv6" not in table:
            yield ("uplink",), "uplink is the link that leads out over IPv6, and needs ipv6", 'add ipv6 = "ndp-proxy"'
        return
    if not is_plain_name(name):
        problem = f"ipv6 needs a bridge whose name is letters, digits, and . _ @ = + # ~ - within, not {quoted(name)}"
        yield ("ipv6",), problem, ""
    yield from _address_mistakes(str(mode), table)
    if isinstance(uplink, str) and _is_link(uplink):
        ports = table.get("ports")
        if uplink == name:
            yield ("uplink",), f"uplink names the bridge {quoted(name)} itself", ""
        elif isinstance(ports, list) and uplink in ports:
            yield ("uplink",), f"uplink {quoted(uplink)} is a port of this bridge: guests are on that link already", ""


def _is_link(name: str) -> bool:
    try:
        return bool(parse_link_name(name))
    except BadValueError:
        return False


def _address_mistakes(mode: str, table: Mapping[str, object]) -> Iterator[Mistake]:
    own = dict(_own(table))
    if mode == NDP_PROXY:
        for place, one in own.items():
            problem = f"{one} is a prefix of this bridge's own: with ndp-proxy guests' addresses are of the uplink's"
            yield ("addresses", place), problem, 'take it out, or ipv6 = "routed"'
        return
    if any(one.network.prefixlen == RA_PREFIX and (mode == ROUTED or one in _ULA) for one in own.values()):
        return
    if mode == ROUTED:
        problem = 'ipv6 = "routed" needs a prefix of the bridge\'s own in addresses, of length 64'
        yield (
            ("ipv6",),
            problem,
            'add addresses = ["2001:db8:1::1/64"], or ipv6 = "ndp-proxy" where the provider routes none',
        )
    else:
        problem = 'ipv6 = "nat66" needs a unique local prefix in addresses, of length 64'
        yield ("ipv6",), problem, 'add addresses = ["fd00:a::1/64"]'


def _own(table: Mapping[str, object]) -> Iterator[tuple[int, ipaddress.IPv6Interface]]:
    """The bridge's IPv6 addresses that are right by themselves, by their place."""
    addresses = table.get("addresses")
    for place, one in enumerate(addresses if isinstance(addresses, list) else ()):
        try:
            found = ipaddress.ip_interface(parse_address(one))
        except BadValueError:
            continue
        if isinstance(found, ipaddress.IPv6Interface) and not found.is_link_local:
            yield place, found
