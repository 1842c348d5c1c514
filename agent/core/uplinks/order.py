"""The requests that bring what a port carries to its bridge, and those that put everything back as it was.

A move is a list with a fixed beginning: whatever of it was done, `put_back` compares what is there with what was, and
asks for the difference only. So it may be broken off and begun again at any point.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent.core.routing.routes import PROTOCOL
from agent.core.uplinks import attributes as a
from agent.core.uplinks.carried import LinkPicture, carried_addresses, carried_routes, gateways_of, on_link

RTM_NEWLINK, RTM_NEWADDR, RTM_DELADDR, RTM_NEWROUTE, RTM_DELROUTE, RTM_NEWNEIGH, RTM_DELNEIGH = (
    16,
    20,
    21,
    24,
    25,
    28,
    29,
)
REPLACE, EXCL, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800
IFLA_ADDRESS, IFLA_MTU, IFLA_MASTER, IFF_UP = 1, 4, 10, 1
RTN_UNICAST = 1
_LINK = struct.Struct("=BxHiII")

GONE = frozenset({errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENOENT})
THERE = frozenset({errno.EEXIST})


@dataclass(frozen=True, slots=True)
class Request:
    """A request of rtnetlink; `fine` are refusals that say that it is so already."""

    kind: int
    flags: int
    body: bytes
    fine: frozenset[int] = frozenset()


def set_link(
    ifindex: int, *, mac: bytes = b"", master: int | None = None, mtu: int | None = None, up: bool = False
) -> Request:
    """Set fields of a link."""
    found = [(IFLA_ADDRESS, mac)] if mac else []
    found += [(IFLA_MTU, struct.pack("=I", mtu))] if mtu is not None else []
    found += [(IFLA_MASTER, struct.pack("=I", master))] if master is not None else []
    return Request(RTM_NEWLINK, 0, a.join(_LINK.pack(0, 0, ifindex, IFF_UP if up else 0, IFF_UP if up else 0), found))


def begin(port: LinkPicture, bridge: LinkPicture, mtu: int | None) -> list[Request]:
    """What comes first in a move, and alone may well be refused: the bridge's MAC, and the port into the bridge."""
    requests = [set_link(bridge.ifindex, mac=port.mac)] if bridge.mac != port.mac else []
    if port.master != bridge.ifindex:
        requests.append(set_link(port.ifindex, master=bridge.ifindex, mtu=mtu, up=True))
    return requests


def carry(source: LinkPicture, port: LinkPicture, bridge: LinkPicture) -> list[Request]:
    """What a move does then: all that `source` holds leaves the port, and is set on the bridge, in one go.

    `source` is the port itself, or what it carried before this boot of the host. Setting the bridge's MAC once more has
    the kernel announce its addresses, where `arp_notify` and `ndisc_notify` are set (net/ipv4/devinet.c,
    NETDEV_CHANGEADDR); it forgets all neighbours of the link at that, so those follow.
    """
    wanted = on_link(source, bridge.ifindex, bridge.name)
    requests = [*_unset(port)]
    present = {_identity(one) for one in bridge.addresses}  # what the bridge had before keeps the flags that it has
    requests += _set_addresses([one for one in carried_addresses(wanted) if _identity(one) not in present])
    requests += [_new_route(one) for one in carried_routes(wanted)]
    requests.append(set_link(bridge.ifindex, mac=source.mac))
    return requests + [_new_neighbour(one) for one in wanted.neighbours]


def _unset(link: LinkPicture) -> Iterator[Request]:
    for one in reversed(carried_routes(link)):
        yield Request(RTM_DELROUTE, 0, one, GONE)
    for one in link.neighbours:
        yield Request(RTM_DELNEIGH, 0, one, GONE)
    for one in reversed(carried_addresses(link)):
        yield Request(RTM_DELADDR, 0, one, GONE)


def _set_addresses(addresses: Sequence[bytes]) -> Iterator[Request]:
    """In the kernel's order: it puts a new IPv4 address last, and a new IPv6 one first.

    What was valid is so at once again: an IPv6 address comes without duplicate address detection, and gets the flags
    that it had afterwards.
    """
    for one in addresses:
        if one[0] == a.AF_INET:
            yield Request(RTM_NEWADDR, CREATE | EXCL, one, THERE)
    for one in reversed([one for one in addresses if one[0] == a.AF_INET6]):
        flags = a.address_flags(one)
        yield Request(RTM_NEWADDR, CREATE | EXCL, a.with_address_flags(one, flags | a.IFA_F_NODAD), THERE)
        if not flags & a.IFA_F_NODAD:
            yield Request(RTM_NEWADDR, CREATE | REPLACE, one)


def _new_route(body: bytes) -> Request:
    return Request(RTM_NEWROUTE, CREATE | APPEND, body, THERE)


def _new_neighbour(body: bytes) -> Request:
    return Request(RTM_NEWNEIGH, CREATE | REPLACE, body)


def put_back(was: LinkPicture, bridge_was: LinkPicture, port: LinkPicture, bridge: LinkPicture | None) -> list[Request]:
    """What is still to be done until port and bridge are as they were; empty once they are.

    `was` and `bridge_was` before the move, `port` and `bridge` now, None if there is no bridge any more. Of the bridge
    only what came with the move is taken away. To be asked again afterwards: with addresses, routes of the kernel come.
    """
    requests: list[Request] = []
    if bridge is not None and bridge.ifindex == bridge_was.ifindex:
        requests += _take_from_bridge(was, bridge_was, bridge)
    if port.master != was.master or port.mtu != was.mtu:
        master = None if port.master == was.master else was.master
        requests.append(set_link(port.ifindex, master=master, mtu=was.mtu if port.mtu != was.mtu else None))
    if was.up and not port.up:
        requests.append(set_link(port.ifindex, up=True))
    if bridge is not None and bridge.ifindex == bridge_was.ifindex and bridge.mac != bridge_was.mac:
        requests.append(set_link(bridge.ifindex, mac=bridge_was.mac))
    return requests + _fill_port(was, port)


def _take_from_bridge(was: LinkPicture, bridge_was: LinkPicture, bridge: LinkPicture) -> Iterator[Request]:
    moved = on_link(was, bridge.ifindex, bridge.name)
    routes, neighbours = {*carried_routes(moved)} - {*bridge_was.routes}, {*moved.neighbours} - {*bridge_was.neighbours}
    identities = {_identity(one) for one in carried_addresses(moved)} - {_identity(one) for one in bridge_was.addresses}
    for one in reversed(bridge.routes):
        if one in routes or _is_units_way(one, bridge_was):
            yield Request(RTM_DELROUTE, 0, one, GONE)
    for one in bridge.neighbours:
        if one in neighbours:
            yield Request(RTM_DELNEIGH, 0, one, GONE)
    for one in reversed(bridge.addresses):
        if _identity(one) in identities:
            yield Request(RTM_DELADDR, 0, one, GONE)


def _is_units_way(route: bytes, bridge_was: LinkPicture) -> bool:
    """Whether our `gateway` or `routes` came since: a smaller metric would lead past the port to where nobody is."""
    return route[5] == PROTOCOL and bool(gateways_of(route)) and route not in bridge_was.routes


def _identity(body: bytes) -> tuple[int, int, bytes | None, bytes | None]:
    """What makes two addresses of a link the same one: not their flags, which change in two steps."""
    return body[0], body[1], a.find(body, a.ADDRESS, a.IFA_ADDRESS), a.find(body, a.ADDRESS, a.IFA_LOCAL)


def _comes_by_itself(route: bytes) -> bool:
    """Whether the kernel sets a route in its own time: those to an address itself and its broadcasts (RTN_LOCAL …).

    For IPv6 it does so a moment later (net/ipv6/addrconf.c: addrconf_dad_work), and one of ours would be a second one.
    """
    return route[5] == a.RTPROT_KERNEL and route[7] != RTN_UNICAST


def _fill_port(was: LinkPicture, port: LinkPicture) -> list[Request]:
    requests: list[Request] = []
    wanted = carried_addresses(was)
    for family in (a.AF_INET, a.AF_INET6):
        present = [one for one in carried_addresses(port) if one[0] == family]
        missing = [one for one in wanted if one[0] == family]
        if present != missing:
            requests += [Request(RTM_DELADDR, 0, one, GONE) for one in reversed(present)]
            requests += _set_addresses(missing)
    if requests:  # what the kernel itself adds with them is looked at before anything else is judged
        return requests + [_new_route(one) for one in carried_routes(was)]
    surplus = [one for one in port.routes if one not in was.routes and not _comes_by_itself(one)]
    requests += [Request(RTM_DELROUTE, 0, one, GONE) for one in reversed(surplus)]
    lacking = [one for one in was.routes if one not in port.routes and not _comes_by_itself(one)]
    requests += [_new_route(one) for one in sorted(lacking, key=lambda one: one[5] != a.RTPROT_KERNEL)]
    requests += [Request(RTM_DELNEIGH, 0, one, GONE) for one in port.neighbours if one not in was.neighbours]
    return requests + [_new_neighbour(one) for one in was.neighbours if one not in port.neighbours]
