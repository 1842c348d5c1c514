"""What a guest may try to get past its filters: tags, and 802.1's own groups; the tables alone, in the real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from agent.core.desired import BridgeSpec, NicSpec, VmSpec
from agent.core.routing.filters import FILTERING
from agent.core.routing.filters_wanted import filter_wish
from agent.core.routing.ruleset import ElementChange, RulesetState
from agent.host.netlink import Links
from agent.host.nft import change_tables, look_at_tables
from agent.host.sysctls import change_sysctls
from tests.frames import UDP, arp, checksum, dhcp, ipv4, mac, neighbour, router, udp
from tests.integration.waiting import wait_for
from tests.internet import Box
from tests.lies import BRIDGE_MAC, DB, DB6, HOST, HOST6, LOCAL, MAC, OTHER, WEB, WEB6
from tests.netns import ip, ip_output, network_namespace

STRANGER = "192.168.0.77"
VLAN, SERVICE_VLAN = 0x8100, 0x88A8
BRIDGE = BridgeSpec("br-a", BRIDGE_MAC, addresses=(f"{HOST}/24", f"{HOST6}/64"))
TAGS = [(VLAN,), (SERVICE_VLAN,), (VLAN, VLAN), (SERVICE_VLAN, VLAN)]
GROUPS = [f"01:80:c2:00:00:{last:02x}" for last in (0, 2, 3, 0x0D, 0x0E)]


@dataclass(slots=True)
class World:
    """Two guests' boxes on one bridge, and what the host hears on a port."""

    web: Box
    db: Box
    host: socket.socket

    def send(self, *frames: bytes) -> None:
        """Have web send frames, and one at the end that passes: what came before it has come by then."""
        self.web.ask(
            "send_frames", [one.hex() for one in (*frames, to(ipv4(MAC, WEB, HOST, UDP, udp(9, 999, b"end"))))]
        )

    def heard(self) -> list[tuple[bytes, str]]:
        """What the host heard until the end, with its source."""
        found: list[tuple[bytes, str]] = []
        while True:
            text, (source, _) = self.host.recvfrom(99)
            if text == b"end":
                return found
            found.append((text, source))

    def db_says(self, command: str) -> str:
        words = ["nsenter", "-t", str(self.db.pid), "-n", *command.split()]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout


def filter_guests(*, isolated: bool = False) -> None:
    """Make the tables anew, for web and db."""
    specs = {
        name: VmSpec(name, name, 0, nics=(NicSpec("lan", "br-a", address, f"{name}-lan", 0, address=own),))
        for name, address, own in (("web", MAC, (WEB, WEB6)), ("db", OTHER, (DB, DB6)))
    }
    specs = {name: replace(one, nics=(replace(one.nics[0], isolated=isolated),)) for name, one in specs.items()}
    wish = filter_wish({"br-a": BRIDGE}, specs, {}, {})
    change_tables(FILTERING, ElementChange(add=tuple(wish.elements), whole=True))
    assert look_at_tables(FILTERING) == RulesetState(FILTERING.skeleton, wish.elements)


async def make_bridge() -> None:
    async with Links() as links:
        await links.create_bridge(BRIDGE)


@pytest.fixture
def world() -> Iterator[World]:
    with network_namespace(), contextlib.ExitStack() as opened:
        asyncio.run(make_bridge())
        web, db = (opened.enter_context(Box(f"{name}-lan")) for name in ("web", "db"))
        for box, address, one, six in ((web, MAC, WEB, WEB6), (db, OTHER, DB, DB6)):
            commands = [
                f"link set eth0 address {address}",
                f"addr add {one}/24 dev eth0",
                f"addr add {six}/64 dev eth0",
            ]
            box.ask("ip", [*commands[:2], f"{commands[2]} nodad"])
        filter_guests()
        ip("link set web-lan master br-a", "link set db-lan master br-a")
        host = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        host.bind(("0.0.0.0", 999))
        host.settimeout(30)
        yield World(web, db, host)


def tagged(frame: bytes, tags: tuple[int, ...]) -> bytes:
    """A frame with tags for no VLAN, which receivers take off."""
    return frame[:12] + b"".join(struct.pack("!HH", one, 0) for one in tags) + frame[12:]


def to(frame: bytes, target: str = BRIDGE_MAC) -> bytes:
    return mac(target) + frame[6:]


@pytest.mark.parametrize("tags", TAGS)
def test_a_tag_hides_no_lie(world: World, tags: tuple[int, ...]) -> None:
    lies = (
        arp(MAC, MAC, STRANGER, DB),
        arp(MAC, MAC, STRANGER, HOST),
        router(MAC, LOCAL),
        neighbour(MAC, LOCAL, 136, HOST6),
        to(ipv4(MAC, STRANGER, HOST, UDP, udp(9, 999, b"lie"))),
    )
    world.send(*(tagged(one, tags) for one in lies))
    assert world.heard() == []
    assert STRANGER not in world.db_says("ip neigh") + ip_output("neigh")
    assert "default" not in world.db_says("ip -6 route")


@pytest.mark.parametrize("group", GROUPS)
def test_what_is_sent_past_the_bridge_brings_nothing_and_teaches_nothing(world: World, group: str) -> None:
    world.db.ask("send_frames", [to(ipv4(OTHER, DB, HOST, UDP, udp(9, 999, b"db"))).hex()])
    assert world.host.recvfrom(99)[0] == b"db"
    lie = ipv4(OTHER, STRANGER, HOST, UDP, udp(9, 999, b"lie"))
    world.send(to(lie, group), to(router(OTHER, LOCAL), group))
    assert world.heard() == []
    assert "web-lan" not in ip_output("-6 route show default")
    words = ["bridge", "fdb", "get", OTHER, "br", "br-a"]
    found = subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout
    assert "db-lan" in found


def test_dhcp_is_asked_for_oneself(world: World) -> None:
    """dnsmasq goes by what is within: a lease is given to, and taken from, whose MAC is there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((HOST, 67))
        server.settimeout(30)
        own, lie = (to(ipv4(MAC, WEB, HOST, UDP, udp(68, 67, dhcp(one)))) for one in (MAC, OTHER))
        world.send(lie, *pieces(lie), own)
        assert server.recv(999) == dhcp(MAC)


def pieces(frame: bytes) -> tuple[bytes, bytes]:
    """An IPv4 frame in two, of which the first has no more than UDP's header."""
    header, body = frame[14:34], frame[34:]
    return piece(frame[:14], header, body[:8], 0x2000), piece(frame[:14], header, body[8:], 1)


def piece(ethernet: bytes, header: bytes, body: bytes, place: int) -> bytes:
    head = header[:2] + struct.pack("!HHH", 20 + len(body), 7, place) + header[8:10] + bytes(2) + header[12:]
    return ethernet + head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def test_isolated_guests_do_not_reach_each_other_by_the_host(world: World) -> None:
    """As a guest does that gives the host what is for its neighbour; with `ndp-proxy` all do."""
    subprocess.run(["bridge", "link", "set", "dev", "web-lan", "isolated", "on"], check=True, timeout=20)
    subprocess.run(["bridge", "link", "set", "dev", "db-lan", "isolated", "on"], check=True, timeout=20)
    ip("addr add fe80::1/64 dev br-a nodad")  # with its own one the kernel waits to be sure that it is the only one
    change_sysctls([("ipv4/conf/br-a/forwarding", "1"), ("ipv6/conf/all/forwarding", "1")])
    for box, other, other6 in ((world.web, DB, DB6), (world.db, WEB, WEB6)):
        box.ask("ip", [f"route add {other}/32 via {HOST}", f"route add {other6}/128 via {HOST6}"])
    world.db.serve(80, "db")
    assert world.web.hear(DB, 80) == f"db {WEB}"
    wait_for(lambda: world.web.hear(DB6, 80, timeout_s=0.5) == f"db {WEB6}")
    filter_guests(isolated=True)
    assert world.web.hear(DB, 80, timeout_s=0.2) is None
    assert world.web.hear(DB6, 80, timeout_s=0.2) is None
