"""Isolated ports of a bridge, by the links adapter, against the real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator

import pytest

from agent.core.actions import LinkChange
from agent.core.desired import BridgeSpec
from agent.host.netlink import Links
from tests.contract.watching import watched
from tests.internet import Box
from tests.netns import ip, network_namespace

SPEC = BridgeSpec("br0", "02:00:00:00:00:01", addresses=("192.0.2.1/24",))
SOON_S = 30.0


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    with network_namespace():
        yield


async def until_free(links: Links, rung: asyncio.Event, port: str) -> None:
    """Wait until the cache has a port that is not isolated."""
    async with asyncio.timeout(SOON_S):
        while links.snapshot[port].isolated:
            await rung.wait()
            rung.clear()


async def until_reached(box: Box, host: str) -> None:
    """Ping until there is an answer: what waits for a neighbour that was just found silent goes down with it."""
    async with asyncio.timeout(SOON_S):
        while not await asyncio.to_thread(box.ask, "pings", host, 2.0):
            continue


def let_loose(port: str) -> None:
    """End a port's isolation, as an operator does: only its bridge tells of it."""
    subprocess.run(["bridge", "link", "set", "dev", port, "isolated", "off"], check=True, timeout=20)


async def test_isolated_ports_reach_others_but_not_each_other_and_a_foreign_change_rings() -> None:
    async with watched(Links()) as (links, rung):
        await links.create_bridge(SPEC)
        bridge = links.snapshot["br0"].ifindex
        with contextlib.ExitStack() as opened:
            one, two, free = (opened.enter_context(Box(f"b{n}", addresses=(f"192.0.2.1{n}/24",))) for n in range(3))
            links.catch_up()
            for name in ("b0", "b1", "b2"):
                isolated = None if name == "b2" else True
                change = LinkChange(master=bridge, isolated=isolated, up=True, alias="x")
                await links.change(name, links.snapshot[name].ifindex, "", change)
                assert links.snapshot[name].isolated is (name != "b2")
                assert links.snapshot[name].master == bridge
            assert not one.ask("pings", "192.0.2.11", 0.2)
            await until_reached(one, "192.0.2.12")
            await until_reached(two, "192.0.2.1")
            await until_reached(free, "192.0.2.10")
            let_loose("b0")
            await until_free(links, rung, "b0")
            await until_reached(one, "192.0.2.11")
            for wanted in (False, True):
                await links.change("b1", links.snapshot["b1"].ifindex, "x", LinkChange(isolated=wanted))
                assert links.snapshot["b1"].isolated is wanted
            ip("link set b1 nomaster")
            await until_free(links, rung, "b1")
