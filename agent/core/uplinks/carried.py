"""What a port carries: of all that the kernel says of a link, what would be lost with it, and what cannot be moved."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from agent.core.netlink import KIND_MASK, split
from agent.core.uplinks import attributes as a

RT_TABLE_MAIN = 254
LEASED = "LeasedAddress"
"""The reason of a refusal: somebody renews what the port carries."""
_LINK_LOCAL = ipaddress.ip_network("fe80::/64")


@dataclass(frozen=True, slots=True)
class LinkPicture:
    """A link at one moment, its tables as bytes (`attributes.bare_…`), in the kernel's order; `master` 0 for none."""

    ifindex: int
    name: str
    mac: bytes
    master: int
    up: bool
    mtu: int
    carrier: bool
    addresses: tuple[bytes, ...] = ()
    routes: tuple[bytes, ...] = ()
    neighbours: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a port is not moved: a CamelCase reason, and a line that says what to do."""

    reason: str
    message: str


def on_link(picture: LinkPicture, ifindex: int, name: str) -> LinkPicture:
    """The same tables, of another link: what it is to hold."""
    return LinkPicture(
        ifindex,
        name,
        picture.mac,
        picture.master,
        picture.up,
        picture.mtu,
        picture.carrier,
        tuple(a.address_on(one, ifindex, picture.name, name) for one in picture.addresses),
        tuple(a.route_on(one, picture.ifindex, ifindex) for one in picture.routes),
        tuple(a.neighbour_on(one, ifindex) for one in picture.neighbours),
    )


def carried_addresses(picture: LinkPicture) -> tuple[bytes, ...]:
    """The addresses that are somebody's choice: all but the kernel's own link-local ones."""
    return tuple(one for one in picture.addresses if not _is_kernels(one, picture.mac))


def _is_kernels(body: bytes, mac: bytes) -> bool:
    local = a.find(body, a.ADDRESS, a.IFA_ADDRESS)
    if body[0] != a.AF_INET6 or local is None or ipaddress.IPv6Address(local) not in _LINK_LOCAL:
        return False
    proto = a.find(body, a.ADDRESS, a.IFA_PROTO)
    derived = bytes([mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]]) if len(mac) == 6 else b""
    return proto == bytes([a.IFAPROT_KERNEL_LL]) or local[8:] == derived


def carried_routes(picture: LinkPicture) -> tuple[bytes, ...]:
    """The routes that do not come by themselves with an address, those without gateway first: others stand on them."""
    chosen = [one for one in picture.routes if one[5] != a.RTPROT_KERNEL]
    return tuple(sorted(chosen, key=lambda one: bool(gateways_of(one))))


def gateways_of(body: bytes) -> list[str]:
    """The gateways of a route, of all its legs."""
    found = _gateways(split(body, a.ROUTE.size))
    for _, _, _, rest in a.next_hops(a.find(body, a.ROUTE, a.RTA_MULTIPATH) or b""):
        found += _gateways(split(rest))
    return found


def _gateways(attributes: a.Attributes) -> list[str]:
    plain = [value for kind, value in attributes if kind & KIND_MASK == a.RTA_GATEWAY]
    plain += [value[2:] for kind, value in attributes if kind & KIND_MASK == a.RTA_VIA]  # struct rtvia: family first
    return [str(ipaddress.ip_address(value)) for value in plain if len(value) in {4, 16}]


def gateways(picture: LinkPicture) -> tuple[str, ...]:
    """The gateways that are reached over this link, each once."""
    found: list[str] = []
    for body in carried_routes(picture):
        if a.find(body, a.ROUTE, a.RTA_MULTIPATH) is None:
            found += gateways_of(body)
        for _, _, ifindex, rest in a.next_hops(a.find(body, a.ROUTE, a.RTA_MULTIPATH) or b""):
            found += _gateways(split(rest)) if ifindex == picture.ifindex else []
    return tuple(dict.fromkeys(found))


def address_text(body: bytes) -> str:
    """An address for people: `192.0.2.5/24`."""
    value = a.find(body, a.ADDRESS, a.IFA_LOCAL) or a.find(body, a.ADDRESS, a.IFA_ADDRESS) or b""
    return f"{ipaddress.ip_address(value)}/{body[1]}"


def route_text(body: bytes) -> str:
    """A route for people: `default via 192.0.2.1`, with its table where that is not the main one."""
    length, table = body[1], struct.unpack("=I", a.find(body, a.ROUTE, a.RTA_TABLE) or struct.pack("=I", body[4]))[0]
    value = a.find(body, a.ROUTE, a.RTA_DST)
    target = "default" if value is None or not length else f"{ipaddress.ip_address(value)}/{length}"
    if value is None and length == 0 and body[0] == a.AF_INET6:
        target = "default (IPv6)"
    via = "".join(f" via {one}" for one in gateways_of(body))
    return f"{target}{via}" + ("" if table == RT_TABLE_MAIN else f" table {table}")


def carried_texts(picture: LinkPicture) -> tuple[str, ...]:
    """All that a link carries, for people; empty for a bare one."""
    addresses = [address_text(one) for one in carried_addresses(picture)]
    return (*addresses, *(route_text(one) for one in carried_routes(picture)))


def lifetime_texts(picture: LinkPicture) -> tuple[str, ...]:
    """The addresses and routes that end by themselves unless somebody renews them."""
    found = []
    for one in carried_addresses(picture):
        times = a.find(one, a.ADDRESS, a.IFA_CACHEINFO)
        if times is not None and struct.unpack_from("=I", times, 4)[0] != a.FOREVER:
            found.append(address_text(one))
    ending = (one for one in picture.routes if one[5] == a.RTPROT_RA or a.find(one, a.ROUTE, a.RTA_EXPIRES) is not None)
    return (*found, *map(route_text, ending))


def refused(picture: LinkPicture, clients: tuple[str, ...], bridge: str) -> Refused | None:
    """Why what a port carries cannot be moved; `clients` are those that lease it its addresses."""
    port, leased = picture.name, lifetime_texts(picture)
    if clients or leased:
        who = " and ".join(clients) or "a DHCP client or a router's advertisements"
        what = f" ({', '.join(leased)})" if leased else ""
        todo = f"have it serve {bridge} instead of {port}, or give {port} static addresses"
        return Refused(LEASED, f"{port} has its addresses from {who}{what}, which would go on there: {todo}")
    if not picture.up or not picture.carrier:
        why = "is down" if not picture.up else "has no carrier"
        return Refused("PortDown", f"{port} {why}, so nothing could be proved after a move; it is moved once it is up")
    if any(a.find(one, a.ROUTE, a.RTA_NH_ID) is not None for one in picture.routes):
        message = (
            f"routes over {port} use nexthop objects (ip nexthop), which stay with {port}; make plain routes of them"
        )
        return Refused("NextHopObjects", message)
    return None
