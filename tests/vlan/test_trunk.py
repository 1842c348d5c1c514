"""Four networks over one cable, as the second seed has them: who gets which frame, and how, byte for byte."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from functools import partial

import pytest

from agent.core.device_actions import ArmTap
from agent.core.vlan_actions import ChangeVlans
from tests.frames import arp
from tests.netns import ip, ip_output
from tests.vlan.world import ARRIVES_S, Far, World, frame, made_world, tagged, vm

pytestmark = [pytest.mark.kernel("8021q", "bridge-vlan"), pytest.mark.usefixtures("cable")]

BRIDGE = '[bridge.br0]\nports = ["eth1"]\n'
HOST = '[bridge.br0.vlan.20]\naddresses = ["192.0.2.1/24"]\n'
FIREWALL = vm("firewall", ("lan", 'trunk = [10, 20, "30-31"]\nnative = 1'), ("wan", "vlan = 40"))
GUESTS = vm("dmz", ("lan", "vlan = 10")) + vm("tv", ("lan", "vlan = 20")) + vm("nas", ("lan", ""))
ALL = vm("probe", ("lan", 'trunk = "all"'))
UNITS = BRIDGE + HOST + FIREWALL + GUESTS


async def four_networks(world: World, units: str = UNITS) -> None:
    await world.edit(units)
    world.ends["cable"] = Far("far")
    if "br0.20" in ip_output("-br link"):
        world.ends["host"] = Far("br0.20")


async def test_a_frame_reaches_exactly_those_that_carry_its_vlan_each_in_its_own_way() -> None:
    async with made_world() as world:
        await four_networks(world)
        assert world.tags("cable", 10) == {"firewall.lan": 10, "dmz.lan": None}
        assert world.tags("cable", 20) == {"firewall.lan": 20, "tv.lan": None, "host": None}
        assert world.tags("cable", 31) == {"firewall.lan": 31}
        assert world.tags("cable", 40) == {"firewall.wan": None}
        assert world.tags("cable") == {"firewall.lan": None, "nas.lan": None}
        assert world.tags("cable", 50) == {}
        assert world.tags("firewall.lan", 10) == {"cable": 10, "dmz.lan": None}
        assert world.tags("firewall.lan", 20) == {"cable": 20, "tv.lan": None, "host": None}
        assert world.tags("firewall.lan") == {"cable": None, "nas.lan": None}
        assert world.tags("firewall.lan", 40) == {}, "no VLAN of its trunk"
        assert world.tags("firewall.wan") == {"cable": 40}
        assert world.tags("dmz.lan") == {"cable": 10, "firewall.lan": 10}
        assert world.tags("tv.lan") == {"cable": 20, "firewall.lan": 20, "host": None}
        assert world.tags("nas.lan") == {"cable": None, "firewall.lan": None}
        assert world.tags("host") == {"cable": 20, "firewall.lan": 20, "tv.lan": None}


async def test_an_access_port_takes_no_tag_of_another_network() -> None:
    async with made_world() as world:
        await four_networks(world)
        assert world.tags("dmz.lan", 20) == world.tags("nas.lan", 10) == world.tags("tv.lan", 1) == {}


async def test_a_trunk_of_all_gets_every_tag_and_its_cable_carries_them() -> None:
    async with made_world() as world:
        await four_networks(world, BRIDGE + ALL + GUESTS)
        assert world.tags("cable", 3000) == {"probe.lan": 3000}
        assert world.tags("probe.lan", 4094) == {"cable": 4094}
        assert world.tags("cable") == {"probe.lan": 1, "nas.lan": None}
        assert world.tags("probe.lan") == {}, "without native, what has no tag goes nowhere"


async def test_a_vlan_that_is_taken_from_one_leaves_all_others_uncut() -> None:
    async with made_world() as world:
        await four_networks(world)
        stop = asyncio.Event()
        lost: list[str] = []

        async def talk() -> None:
            while not stop.is_set():
                for sender, tag, expected in (("cable", 10, "dmz.lan"), ("firewall.lan", 20, "tv.lan")):
                    if expected not in world.reach(sender, tag):
                        lost.append(f"{sender} {tag}")
                await asyncio.sleep(0)

        talking = asyncio.create_task(talk())
        await world.edit(UNITS.replace('[10, 20, "30-31"]', '[20, "30-31"]'))
        stop.set()
        await talking
        assert lost == []
        assert [type(one) for one in world.done if type(one) is ChangeVlans] == [ChangeVlans]
        assert world.tags("cable", 10) == {"dmz.lan": None}
        assert world.tags("cable", 20) == {"firewall.lan": 20, "tv.lan": None, "host": None}
        assert not any(isinstance(one, ArmTap) for one in world.done)


async def test_a_vlan_link_of_somebody_on_the_cable_is_told_with_what_it_takes() -> None:
    async with made_world() as world:
        await four_networks(world)
        ip("link add link eth1 name eth1.10 type vlan id 10", "link set eth1.10 up")
        await world.settle()
        assert ("port/eth1", "VlanLinkOnPort") in world.conditions()
        assert world.tags("cable", 10) == {}, "this is what it does"
        ip("link del eth1.10")
        await world.settle()
        assert world.conditions() == set()
        assert world.tags("cable", 10) == {"firewall.lan": 10, "dmz.lan": None}


async def test_who_is_held_to_its_addresses_is_so_within_its_tags() -> None:
    mac, ours, other = "02:00:00:00:00:aa", "192.0.2.7", "192.0.2.8"
    held = vm("router", ("lan", f'trunk = [10, 20]\nmac = "{mac}"\naddress = "{ours}"'))
    async with made_world() as world:
        await four_networks(world, BRIDGE + held)
        router, far = world.ends["router.lan"], world.ends["cable"]
        for tag, source, sender, passes in (
            (10, mac, ours, True),
            (20, mac, ours, True),
            (10, mac, other, False),
            (10, "02:00:00:00:00:bb", ours, False),
            (30, mac, ours, False),
            (None, mac, ours, False),
        ):
            question = arp(source, source, sender, "192.0.2.1")
            assert isinstance(far, Far)
            seen = heard_after(far, partial(router.send, tagged(question, tag)))
            assert (tagged(question, tag) in seen) is passes, (tag, source, sender)


def heard_after(far: Far, send: Callable[[], None]) -> list[bytes]:
    """What comes to an end once something was sent."""
    while select.select([far], [], [], 0)[0]:
        far.read()
    send()
    found: list[bytes] = []
    while select.select([far], [], [], ARRIVES_S)[0]:
        found.append(far.read())
    return found


def test_a_frame_has_its_tag() -> None:
    assert frame("x", 5)[12:16] == b"\x81\x00\x00\x05"
