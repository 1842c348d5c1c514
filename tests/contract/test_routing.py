"""Forwarding, tracked connections and holders of ports, against the real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.core.errors import PermanentError, TransientError
from agent.core.routing.firewall import NAT
from agent.core.routing.ruleset import Element, ElementChange
from agent.host.connections import Strays, end_forwarded, end_strays
from agent.host.listeners import find_holders
from agent.host.nft import change_tables
from agent.host.sysctls import change_sysctls, look_at_forwarding, watch_forwarding
from tests.internet import Box
from tests.netns import ip, network_namespace


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    with network_namespace():
        yield


def test_forwarding_is_read_and_set_by_link() -> None:
    ip("link add d0 type bridge", "link add d1.5 type bridge", "link set d0 up", "link set d1.5 up")
    seen = look_at_forwarding(["d0", "d1.5", "gone"])
    assert (seen.all4, seen.all6) == (False, False)
    assert seen.links4 == {"d0": False, "d1.5": False}
    change_sysctls([("ipv4/conf/d1.5/forwarding", "1"), ("ipv6/conf/d0/accept_ra", "2")])
    seen = look_at_forwarding(["d0", "d1.5"])
    assert seen.links4 == {"d0": False, "d1.5": True}
    assert seen.accept_ra["d0"] == 2
    assert not seen.all4
    with pytest.raises(TransientError, match="its link went"):
        change_sysctls([("ipv4/conf/gone/forwarding", "1")])
    with pytest.raises(PermanentError, match="Invalid argument"):
        change_sysctls([("ipv4/conf/d0/forwarding", "x")])


def test_a_kernel_without_forwarding_of_ipv6_by_link_is_known_as_such() -> None:
    ip("link add d0 type bridge", "link set d0 up")
    assert look_at_forwarding(["d0"], by_link6=False).links6 is None


async def test_a_change_of_forwarding_is_heard() -> None:
    ip("link add d0 type bridge", "link set d0 up")
    changed = asyncio.Event()
    watching = asyncio.create_task(watch_forwarding(changed.set))
    await asyncio.sleep(0)
    for name in ("ipv4/ip_forward", "ipv4/conf/d0/forwarding", "ipv6/conf/all/forwarding"):
        changed.clear()
        change_sysctls([(name, "1" if name != "ipv4/conf/d0/forwarding" else "0")])
        await asyncio.wait_for(changed.wait(), 30)
    watching.cancel()


@pytest.fixture
def boxes() -> Iterator[tuple[Box, Box]]:
    """A client and a server, with this host between them."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Box("c0", addresses=("10.1.0.9/24",), gateways=("10.1.0.1",)))
        server = stack.enter_context(Box("s0", addresses=("10.2.0.9/24",), gateways=("10.2.0.1",)))
        ip("addr add 10.1.0.1/24 dev c0", "addr add 10.2.0.1/24 dev s0")
        change_sysctls([("ipv4/ip_forward", "1")])
        yield client, server


def test_only_the_connections_of_a_forward_are_ended(boxes: tuple[Box, Box]) -> None:
    client, server = boxes
    forwards = [Element("ports4", f"tcp . {port}", "10.2.0.9 . 80") for port in (80, 81)]
    forwards.append(Element("ranges4", "udp . 5000-5009", "10.2.0.9"))
    change_tables(NAT, ElementChange(tuple(forwards), whole=True))
    server.serve(80, "server")
    for port in (5000, 5001):
        server.serve(port, "server", "udp")
    assert client.ask("open_stream", "10.1.0.1", 80) == "server 10.1.0.9"
    assert client.ask("open_stream", "10.1.0.1", 81) == "server 10.1.0.9"
    assert client.hear("10.1.0.1", 5000, "udp") == "server 10.1.0.9"
    assert (
        end_forwarded(
            [Element("ended4", "tcp . 79 . 79 . 10.2.0.9 . 80"), Element("ended4", "tcp . 80 . 80 . 10.2.0.8 . 80")]
        )
        == 0
    )
    assert end_forwarded([Element("ended4", "tcp . 80 . 80 . 10.2.0.9 . 80")]) == 1
    assert client.ask("stream_lives", 81)
    assert end_forwarded([Element("ended4", "udp . 5000 . 5009 . 10.2.0.9 . 5000")]) == 1
    assert end_forwarded([Element("ended6", "tcp . 80 . 80 . fd00::1 . 80")]) == 0


def test_what_began_without_rules_follows_them_then(boxes: tuple[Box, Box]) -> None:
    client, server = boxes
    change_tables(NAT, ElementChange(whole=True))  # connections are tracked, and led nowhere
    server.serve(53, "server", "udp")
    assert client.hear("10.1.0.1", 53, "udp", 0.2) is None
    published = Element("ports4", "udp . 53", "10.2.0.9 . 53")
    change_tables(NAT, ElementChange((published,)))
    local = frozenset({"10.1.0.1", "10.2.0.1"})
    assert end_strays(Strays((Element("ports4", "udp . 54", "10.2.0.9 . 53"),), (), local)) == 0
    assert client.hear("10.1.0.1", 53, "udp", 0.2) is None
    assert end_strays(Strays((published,), (), local)) == 1
    assert client.hear("10.1.0.1", 53, "udp") == "server 10.1.0.9"
    assert server.hear("10.1.0.77", 9, "udp", 0.1) is None
    assert end_strays(Strays((), ("10.2.0.0/24",), local)) == 1
    assert end_strays(Strays((), ("10.2.0.0/24",), local)) == 0


def test_holders_of_ports_are_named() -> None:
    with contextlib.ExitStack() as held:
        for family, kind, address in (
            (socket.AF_INET, socket.SOCK_STREAM, ("0.0.0.0", 80)),
            (socket.AF_INET6, socket.SOCK_STREAM, ("::1", 81)),
            (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 5005)),
            (socket.AF_INET6, socket.SOCK_DGRAM, ("::", 5006)),
        ):
            one = held.enter_context(socket.socket(family, kind))
            one.bind(address)
            if kind == socket.SOCK_STREAM:
                one.listen()
        me = f"{Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()})"
        asked = (
            "80/tcp",
            "[::]:80/tcp",
            "192.0.2.1:80/tcp",
            "81/tcp",
            "5000-5005/udp",
            "5006/udp",
            "0.0.0.0:5006/udp",
            "80/udp",
        )
        taken = {text for text, holder in find_holders(asked).items() if holder == me}
        assert taken == {"80/tcp", "192.0.2.1:80/tcp", "5006/udp", "0.0.0.0:5006/udp"}
        assert set(find_holders(asked).values()) == {me, ""}
