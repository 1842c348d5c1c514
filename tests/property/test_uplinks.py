"""Moves of uplinks against a small model of the kernel's tables: broken off before any request, all is put back.

The same requests are broken off on a real kernel in tests/integration/test_uplinks_broken_off.py; here port and bridge
carry whatever hypothesis thinks of.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agent.core.netlink import split
from agent.core.uplinks import attributes as a
from agent.core.uplinks import order
from agent.core.uplinks.carried import LinkPicture
from agent.core.uplinks.order import Request, begin, carry, put_back

PORT, BRIDGE = 2, 5
NAMES = {PORT: "eth0", BRIDGE: "br0"}
NOPREFIXROUTE = 0x200


def address(text: str, ifindex: int, flags: int) -> bytes:
    one = ipaddress.ip_interface(text)
    family = a.AF_INET if one.version == 4 else a.AF_INET6
    body = a.ADDRESS.pack(family, one.network.prefixlen, flags & 0xFF, 0, ifindex)
    return a.join(body, [(a.IFA_ADDRESS, one.ip.packed), (a.IFA_FLAGS, struct.pack("=I", flags))])


def route(target: str, ifindex: int, protocol: int, gateway: str = "", table: int = 254) -> bytes:
    net = ipaddress.ip_network(target)
    family = a.AF_INET if net.version == 4 else a.AF_INET6
    body = a.ROUTE.pack(family, net.prefixlen, 0, 0, table, protocol, 0, order.RTN_UNICAST, 0)
    via = [(a.RTA_GATEWAY, ipaddress.ip_address(gateway).packed)] if gateway else []
    return a.join(body, [(a.RTA_DST, net.network_address.packed), *via, (a.RTA_OIF, struct.pack("=i", ifindex))])


def prefix_route(body: bytes) -> bytes | None:
    """The route that the kernel makes of an address."""
    if a.address_flags(body) & NOPREFIXROUTE:
        return None
    value, ifindex = a.find(body, a.ADDRESS, a.IFA_ADDRESS) or b"", a.ADDRESS.unpack_from(body)[4]
    network = ipaddress.ip_interface(f"{ipaddress.ip_address(value)}/{body[1]}").network
    return route(str(network), ifindex, a.RTPROT_KERNEL)


@dataclass
class Kernel:
    """Two links, as rtnetlink changes them."""

    links: dict[int, LinkPicture] = field(default_factory=dict)

    def send(self, requests: Sequence[Request], count: int | None = None) -> None:
        for one in requests[:count]:
            self._carry_out(one)

    def _carry_out(self, one: Request) -> None:
        if one.kind == order.RTM_NEWLINK:
            self._set_link(one.body)
        elif one.kind in {order.RTM_NEWADDR, order.RTM_DELADDR}:
            self._set_address(one)
        else:
            self._set_row(one)

    def _set_row(self, one: Request) -> None:
        if one.kind in {order.RTM_NEWROUTE, order.RTM_DELROUTE}:
            ifindex = struct.unpack("=i", a.find(one.body, a.ROUTE, a.RTA_OIF) or b"")[0]
            table, name = self.links[ifindex].routes, "routes"
            new = one.kind == order.RTM_NEWROUTE
        else:
            ifindex = a.NEIGHBOUR.unpack_from(one.body)[1]
            table, name = self.links[ifindex].neighbours, "neighbours"
            new = one.kind == order.RTM_NEWNEIGH
        rest = tuple(row for row in table if row != one.body)
        rows = tuple(sorted((*rest, one.body))) if new else rest
        self.links[ifindex] = replace(self.links[ifindex], **{name: rows})  # type: ignore[arg-type]

    def _set_link(self, body: bytes) -> None:
        _, _, ifindex, flags, _ = struct.unpack_from("=BxHiII", body)
        about, link = dict(split(body, 16)), self.links[ifindex]
        if order.IFLA_ADDRESS in about:
            link = replace(link, mac=about[order.IFLA_ADDRESS])
        if order.IFLA_MASTER in about:
            link = replace(link, master=struct.unpack("=I", about[order.IFLA_MASTER])[0])
        if order.IFLA_MTU in about:
            link = replace(link, mtu=struct.unpack("=I", about[order.IFLA_MTU])[0])
        self.links[ifindex] = replace(link, up=link.up or bool(flags & 1))

    def _set_address(self, one: Request) -> None:
        ifindex = a.ADDRESS.unpack_from(one.body)[4]
        link, same = self.links[ifindex], order._identity(one.body)
        there = [row for row in link.addresses if order._identity(row) == same]
        made = prefix_route(one.body)
        if one.kind == order.RTM_DELADDR:
            left = tuple(row for row in link.addresses if row not in there)
            kept = {prefix_route(row) for row in left}
            routes = tuple(row for row in link.routes if row != made or row in kept)
            self.links[ifindex] = replace(link, addresses=left, routes=routes)
            return
        if there and one.flags & order.EXCL:
            return
        families = [[row for row in link.addresses if row[0] == f and row not in there] for f in (2, 10)]
        rows = families[one.body[0] == a.AF_INET6]
        if there:  # replaced where it is
            every = tuple(one.body if row in there else row for row in link.addresses)
        else:
            rows.insert(0 if one.body[0] == a.AF_INET6 else len(rows), one.body)
            every = (*families[0], *families[1])
        routes = link.routes if made is None or made in link.routes else tuple(sorted((*link.routes, made)))
        self.links[ifindex] = replace(link, addresses=every, routes=routes)

    def back(self, was: LinkPicture, bridge_was: LinkPicture, count: int | None = None) -> int:
        """Put back as `host.netlink.moving` does, up to so many requests; how many there were."""
        done = 0
        for _ in range(6):
            requests = put_back(was, bridge_was, self.links[PORT], self.links[BRIDGE])
            left = None if count is None else count - done
            self.send(requests, left)
            done += len(requests) if left is None else min(left, len(requests))
            if not requests or done == count:
                break
        return done


HOSTS4, HOSTS6 = (
    ["192.0.2.5/24", "192.0.2.6/24", "198.51.100.7/25"],
    ["2001:db8::5/64", "2001:db8::6/64", "fe80::77/64"],
)
FLAGS = st.sampled_from([0x80, 0x80 | NOPREFIXROUTE, 0x80 | a.IFA_F_NODAD])
TARGETS = st.sampled_from(
    [("0.0.0.0/0", "192.0.2.1"), ("10.0.0.0/8", ""), ("::/0", "2001:db8::1"), ("10.9.0.0/16", "192.0.2.1")]
)


@st.composite
def links(draw: st.DrawFn, ifindex: int, hosts: Sequence[str], mac: str, master: int = 0) -> LinkPicture:
    kernel = Kernel({ifindex: LinkPicture(ifindex, NAMES[ifindex], bytes.fromhex(mac), master, True, 1500, True)})
    chosen = [address(one, ifindex, draw(FLAGS)) for one in draw(st.lists(st.sampled_from(hosts), unique=True))]
    kernel.send([Request(order.RTM_NEWADDR, order.CREATE | order.EXCL, one) for one in chosen])
    for target, gateway in draw(st.lists(TARGETS, unique=True)):
        one = route(target, ifindex, draw(st.sampled_from([3, 4, 16])), gateway, draw(st.sampled_from([254, 100])))
        kernel.send([Request(order.RTM_NEWROUTE, 0, one)])
    for number in draw(st.sets(st.integers(1, 3))):
        head = a.NEIGHBOUR.pack(a.AF_INET, ifindex, a.NUD_PERMANENT, 0, 1)
        kernel.send([Request(order.RTM_NEWNEIGH, 0, a.join(head, [(a.NDA_DST, bytes([192, 0, 2, number]))]))])
    return kernel.links[ifindex]


PORTS = links(PORT, [*HOSTS4, *HOSTS6], "020000000002")
BRIDGES = links(BRIDGE, ["10.77.0.1/24", "192.0.2.6/24", "2001:db8::6/64", "fd00::1/64"], "020000000010")


@settings(deadline=None)
@given(PORTS, BRIDGES, st.data())
def test_whatever_is_broken_off_all_is_put_back(port: LinkPicture, bridge: LinkPicture, data: st.DataObject) -> None:
    kernel = Kernel({PORT: port, BRIDGE: bridge})
    requests = [*begin(port, bridge, 1400), *carry(port, port, bridge)]
    kernel.send(requests, data.draw(st.integers(0, len(requests)), "requests of the move"))
    middle = dict(kernel.links)
    count = kernel.back(port, bridge)
    kernel.links = middle
    kernel.back(port, bridge, data.draw(st.integers(0, count), "requests of the put back"))
    kernel.back(port, bridge)
    assert kernel.links[PORT] == port
    assert kernel.back(port, bridge) == 0
    left = kernel.links[BRIDGE]
    assert (left.mac, left.addresses, left.neighbours) == (bridge.mac, bridge.addresses, bridge.neighbours)
    assert {*left.routes} == {*bridge.routes}


@settings(deadline=None)
@given(PORTS, BRIDGES)
def test_a_whole_move_leaves_the_port_bare_and_the_bridge_with_all(port: LinkPicture, bridge: LinkPicture) -> None:
    both = {order._identity(one) for one in port.addresses} & {order._identity(one) for one in bridge.addresses}
    assume(not both)  # an address that the bridge has already keeps the bridge's flags
    kernel = Kernel({PORT: port, BRIDGE: bridge})
    kernel.send([*begin(port, bridge, None), *carry(port, port, bridge)])
    assert kernel.links[PORT].addresses == ()
    assert kernel.links[PORT].routes == ()
    assert kernel.links[PORT].neighbours == ()
    assert kernel.links[PORT].master == BRIDGE
    assert kernel.links[BRIDGE].mac == port.mac
    there = {order._identity(one) for one in kernel.links[BRIDGE].addresses}
    assert there >= {order._identity(one) for one in (*port.addresses, *bridge.addresses)}
    wanted = {a.route_on(one, PORT, BRIDGE) for one in port.routes}
    assert {*kernel.links[BRIDGE].routes} >= wanted | {*bridge.routes}
