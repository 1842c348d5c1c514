"""What bridges have learnt, and the kernel's own question to a neighbour, in a real kernel."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.desired import NicSpec
from agent.core.errors import ObservationError
from agent.core.services.leases import Lease
from agent.host.netlink import Links
from agent.host.netlink.neighbours import Neighbours, learnt_macs
from agent.runtime.canary import Canary, Reach
from tests.netns import ip, ip_output, network_namespace, network_namespace_of

MAC = "02:00:00:00:00:07"
NEIGHBOURS = Neighbours()
HERE, THERE, THERE6 = "10.78.0.1/24", "10.78.0.7", "fd00:78::7"


@pytest.fixture
def peer() -> Iterator[int]:
    """A bridge, and behind its one port `v0` somebody in a namespace of their own; their pid."""
    with network_namespace():
        somebody = subprocess.Popen(["unshare", "--net", "sleep", "1000"])
        try:
            while os.readlink(f"/proc/{somebody.pid}/ns/net") == os.readlink("/proc/thread-self/ns/net"):
                os.sched_yield()
            Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")  # link-local ones are there at once
            ip(
                "link add br0 type bridge mcast_snooping 0",
                f"address add {HERE} dev br0",
                "address add fd00:78::1/64 dev br0 nodad",
                f"link add v0 type veth peer name v1 address {MAC} netns {somebody.pid}",
                "link set v0 master br0 up",
                "link set br0 up",
            )
            with network_namespace_of(somebody.pid):
                ip(f"address add {THERE}/24 dev v1", f"address add {THERE6}/64 dev v1 nodad", "link set v1 up")
            yield somebody.pid
        finally:
            os.kill(somebody.pid, signal.SIGKILL)
            somebody.wait()


def bridge() -> int:
    return socket.if_nametoindex("br0")


@pytest.mark.usefixtures("peer")
@pytest.mark.parametrize("address", [THERE, THERE6])
async def test_a_neighbour_answers_again_and_again_and_is_learnt(address: str) -> None:
    took = []
    for _ in range(6):  # by turns one that nobody knows yet, one that has just answered
        seconds = await NEIGHBOURS.ask(bridge(), address, MAC, 30.0)
        assert seconds is not None
        took.append(seconds)
    assert min(took) >= 0.0
    assert max(min(took[::2]), min(took[1::2])) < 0.5  # who asks may be held up in between now and then
    assert MAC in ip_output(f"neigh show {address}")
    assert (await learnt_macs())[MAC] == {socket.if_nametoindex("v0")}


async def test_no_answer_is_none_in_time_and_whoever_comes_back_answers(peer: int) -> None:
    with network_namespace_of(peer):
        ip("link set v1 down")
    assert await NEIGHBOURS.ask(bridge(), THERE, MAC, 0.4) is None
    assert await NEIGHBOURS.ask(bridge(), THERE, MAC, 0.4) is None
    with network_namespace_of(peer):
        ip("link set v1 up")
    async with asyncio.timeout(30):  # the bridge hears of the carrier later; the kernel gives up after three questions
        while await NEIGHBOURS.ask(bridge(), THERE, MAC, 30.0) is None:
            continue


@pytest.mark.usefixtures("peer")
async def test_what_somebody_has_set_stays() -> None:
    ip(f"neigh add {THERE} lladdr 02:00:00:00:00:09 dev br0 nud permanent")
    with pytest.raises(ObservationError, match="it was set by hand"):
        await NEIGHBOURS.ask(bridge(), THERE, MAC, 0.4)
    assert "PERMANENT" in ip_output(f"neigh show {THERE}")
    ip("link del br0")
    with pytest.raises(ObservationError):
        await NEIGHBOURS.ask(4711, THERE, MAC, 0.4)


@pytest.mark.usefixtures("peer")
async def test_many_are_asked_at_once_and_one_only_once() -> None:
    ghosts = [f"10.78.0.{number}" for number in range(100, 120)]
    waits_s = {**dict.fromkeys(ghosts, 0.5), THERE: 30.0}  # whoever is there may be slow on a busy host
    asked = [asyncio.ensure_future(NEIGHBOURS.ask(bridge(), one, MAC, wait_s)) for one, wait_s in waits_s.items()]
    await asyncio.sleep(0)
    with pytest.raises(ObservationError, match="it is being asked already"):
        await NEIGHBOURS.ask(bridge(), THERE, MAC, 0.5)
    *nobody, somebody = await asyncio.gather(*asked)
    assert nobody == [None] * len(ghosts)
    assert somebody is not None


def bridge_command(words: str) -> None:
    subprocess.run(["bridge", *words.split()], check=True, timeout=20)


def nic(tap: str) -> NicSpec:
    return NicSpec("lan", "br0", MAC, tap, 0, address=(THERE,))


@pytest.mark.usefixtures("peer")
async def test_a_mac_is_learnt_at_its_own_port_or_at_another_or_not_at_all() -> None:
    ip("link add v2 type veth peer name v3", "link set v2 master br0 up")
    async with Links() as links:
        canary = Canary(links, dict)
        assert canary.learnt(nic("v0")) is None, "nobody has looked"
        assert list(canary.askable(nic("v0"))) == [(bridge(), THERE)]
        assert await NEIGHBOURS.ask(bridge(), THERE, MAC, 30.0) is not None
        await canary.look()
        assert canary.learnt(nic("v0")) is True
        assert canary.learnt(nic("v2")) is False, "it is behind another port"
        assert canary.learnt(nic("v9")) is None, "there is no such tap"

        bridge_command("link set dev v0 learning off")
        bridge_command(f"fdb del {MAC} dev v0 master")
        async with asyncio.timeout(30):  # its kernel speaks unasked at first: it reports groups and looks for routers
            while canary.learnt(nic("v0")) is not None:
                await asyncio.sleep(0.2)
                await canary.look()
        assert await NEIGHBOURS.ask(bridge(), THERE, MAC, 30.0) is not None
        await canary.look()
        assert canary.learnt(nic("v0")) is False, "it has just answered"


@pytest.mark.usefixtures("peer")
async def test_a_nic_is_asked_where_the_host_has_an_address_and_at_what_was_leased() -> None:
    leases = {"br0": (Lease("02:00:00:00:00:08", "10.78.0.8"), Lease(MAC, THERE))}
    async with Links() as links:
        canary = Canary(links, lambda: leases)
        plain = NicSpec("lan", "br0", MAC, "v0", 0)
        assert list(canary.askable(plain)) == [(bridge(), THERE)]
        both = replace(plain, address=("192.0.2.9", "10.78.0.9", THERE6))
        assert list(canary.askable(both)) == [(bridge(), "10.78.0.9"), (bridge(), THERE6)]
        assert list(canary.askable(replace(both, link="down"))) == []
        assert list(canary.askable(replace(both, bridge="br1"))) == []
        reach, rounds, before, answered = Reach(NEIGHBOURS), 0, 0, 0
        async with asyncio.timeout(60):
            while answered < before + 2:  # on a busy host an answer may be read too late
                await reach.ask(plain, [(bridge(), THERE), (bridge(), THERE6)])
                measure = reach.measure(plain, None)
                assert measure.seconds is not None
                rounds, before, answered = rounds + 1, answered, sum(measure.seconds.counts)
                assert answered + measure.unanswered == 2 * rounds
