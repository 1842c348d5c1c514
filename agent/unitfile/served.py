"""The values of a bridge's `dhcp` and `dns`, and what they must have in common with its addresses.

As in `agent.unitfile.values`: a function takes what the TOML holds, returns the canonical value, or raises
BadValueError.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping

from agent.core.routing.ipv6 import NDP_PROXY
from agent.unitfile.machines import Mistake
from agent.unitfile.values import BadValueError, parse_address, quoted, shown

MIN_LEASE_S = 120
"""dnsmasq's least (dnsmasq(8), --dhcp-range)."""
MAX_LEASE_S = 365 * 86400
_LEASE = re.compile(r"([0-9]{1,9})([smhd])", re.ASCII)
_LEASE_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_BRIDGE = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
MAX_DOMAIN = 200
"""With a guest's name before it, it fits into the 253 characters of a name (RFC 1035)."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


def parse_lease(value: object) -> int:
    """How long an address is given away, in seconds."""
    found = _LEASE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise BadValueError(f'must be a duration such as "12h" or "3d", not {shown(value)}')
    seconds = int(found[1]) * _LEASE_S[found[2]]
    if not MIN_LEASE_S <= seconds <= MAX_LEASE_S:
        raise BadValueError(f'must be "2m" to "365d", not {shown(value)}')
    return seconds


def parse_range(value: object) -> tuple[str, str]:
    """The first and the last address of a range, in canonical form."""
    wrong = f'must be the first and the last IPv4 address, ["192.168.0.100", "192.168.0.150"], not {shown(value)}'
    if not isinstance(value, list) or len(value) != 2:
        raise BadValueError(wrong)
    addresses = [_parse_ip(one) for one in value]
    if any(one is None or one.version != 4 for one in addresses):
        raise BadValueError(wrong)
    return str(addresses[0]), str(addresses[1])


def parse_upstream(value: object) -> str:
    """The address of a DNS server."""
    address = _parse_ip(value)
    if address is None or address.is_unspecified or address.is_multicast:
        raise BadValueError(f'must be the address of a DNS server such as "9.9.9.9", not {shown(value)}')
    return str(address)


def parse_domain(value: object) -> str:
    """A domain, without a dot at its end."""
    wrong = f'must be a domain such as "lan" or "home.arpa", not {shown(value)}'
    if not isinstance(value, str) or not value or len(value) > MAX_DOMAIN:
        raise BadValueError(wrong)
    if not all(_LABEL.fullmatch(label) for label in value.split(".")):
        meant = value.strip(".").lower()
        hint = f"did you mean {quoted(meant)}?" if all(_LABEL.fullmatch(one) for one in meant.split(".")) else ""
        raise BadValueError(wrong, hint)
    return value


def dns_table(value: object) -> object:
    """`true` is a table without keys, `false` is none."""
    if isinstance(value, bool):
        return {} if value else None
    if not isinstance(value, dict):
        raise BadValueError(f"must be true, false or a table, not {shown(value)}")
    return value


def served_mistakes(name: str, table: Mapping[str, object]) -> Iterator[Mistake]:
    """What does not fit between a bridge's `dhcp` or `dns` and its addresses, also in a table with other mistakes."""
    dhcp, dns = table.get("dhcp"), table.get("dns", False)
    own = _own(table)
    for key, value in (("dhcp", dhcp), ("dns", dns), ("ipv6", table.get("ipv6"))):
        if value not in (None, False) and not _BRIDGE.fullmatch(name):
            yield (key,), f"{key} needs a bridge whose name has letters, digits, -, _ and . only", ""
    if isinstance(dhcp, dict) and (own or not _has_addresses(table)):
        yield from _dhcp_mistakes(dhcp, [one for one in own if isinstance(one, ipaddress.IPv4Interface)])
    if dns is True or isinstance(dns, dict):
        if not own and not _has_addresses(table) and table.get("ipv6") != NDP_PROXY:
            yield ("dns",), "dns needs an address of the host on this bridge", _ADDRESSES_HINT
        upstream = dns.get("upstream") if isinstance(dns, dict) else None
        for place, server in enumerate(upstream if isinstance(upstream, list) else ()):
            if _parse_ip(server) in {one.ip for one in own}:
                problem = "upstream names the bridge's own address: questions would go round in circles"
                yield ("dns", "upstream", place), problem, ""


_ADDRESSES_HINT = 'add addresses = ["192.168.0.1/24"]'


def _dhcp_mistakes(dhcp: Mapping[str, object], own: list[ipaddress.IPv4Interface]) -> Iterator[Mistake]:
    try:
        first, last = (ipaddress.IPv4Address(one) for one in parse_range(dhcp.get("range")))
    except BadValueError:
        return  # told where it stands
    where = ("dhcp", "range")
    if not own:
        yield ("dhcp",), "dhcp needs an IPv4 address of the host on this bridge", _ADDRESSES_HINT
        return
    if first > last:
        yield where, f"range is reversed: {first} is after {last}", f'range = ["{last}", "{first}"]'
        return
    network = next((one.network for one in own if first in one.network), None)
    if network is None:
        networks = ", ".join(str(one.network) for one in own)
        yield (*where, 0), f"range begins with {first}, outside of the bridge's addresses ({networks})", ""
        return
    if last not in network:
        yield (*where, 1), f"range ends with {last}, outside of {network}, where it begins", ""
        return
    if network.prefixlen < 31:
        for place, (address, what) in enumerate(((first, "network"), (last, "broadcast"))):
            if address == (network.network_address, network.broadcast_address)[place]:
                yield (*where, place), f"range holds the {what} address {address}", ""
    for one in own:
        if first <= one.ip <= last:
            yield where, f"range holds the bridge's own address {one.ip}", ""


def _own(table: Mapping[str, object]) -> list[_Interface]:
    """The bridge's addresses that are right by themselves."""
    found: list[_Interface] = []
    addresses = table.get("addresses")
    for one in addresses if isinstance(addresses, list) else ():
        try:
            found.append(ipaddress.ip_interface(parse_address(one)))
        except BadValueError:
            continue
    return found


def _has_addresses(table: Mapping[str, object]) -> bool:
    return table.get("addresses", []) != []


def _parse_ip(value: object) -> _Address | None:
    if not isinstance(value, str) or "%" in value:
        return None
    try:
        return ipaddress.ip_address(value)
    except ValueError:
        return None
