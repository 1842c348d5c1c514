"""Edits and damage while VLANs are in use: each changes only what differs, and nothing leaks on the way."""

from __future__ import annotations

import pytest

from agent.core.actions import ChangeLink, CreateBridge, EnslavePort
from agent.core.device_actions import ArmTap
from agent.core.vlan_actions import ChangeVlans, CreateVlan
from tests.netns import ip, ip_output
from tests.vlan.carried import UNTAGGED, bridge_vlan, carried
from tests.vlan.world import Far, World, made_world, vm

pytestmark = [pytest.mark.kernel("8021q", "bridge-vlan"), pytest.mark.usefixtures("cable")]

BRIDGE = '[bridge.br0]\nports = ["eth1"]\n'
UNITS = BRIDGE + vm("fw", ("lan", "trunk = [10, 20]")) + vm("tv", ("lan", "vlan = 20")) + vm("nas", ("lan", ""))


def changed(world: World) -> set[str]:
    """The ports that were changed since the last edit."""
    return {port.link for one in world.done if isinstance(one, ChangeVlans) for port in one.ports}


def bridge_says(words: str) -> bool:
    return words in ip_output("-d link show br0")


async def test_ports_and_the_bridge_itself_carry_what_is_derived() -> None:
    async with made_world() as world:
        await world.edit(UNITS + '[bridge.br0.vlan.30]\naddresses = ["192.0.2.1/24"]\n')
        assert carried() == {
            "br0": [(1, UNTAGGED), (30, ())],
            "eth1": [(1, UNTAGGED), (10, ()), (20, ()), (30, ())],
            "fw-lan": [(10, ()), (20, ())],
            "tv-lan": [(20, UNTAGGED)],
            "nas-lan": [(1, UNTAGGED)],
        }
        assert bridge_says("vlan_filtering 1")
        assert bridge_says("vlan_default_pvid 0 ")
        assert "192.0.2.1/24" in ip_output("addr show br0.30")
        assert changed(world) == set(), "all came as they should be"


async def test_an_edit_touches_only_the_ports_that_differ() -> None:
    async with made_world() as world:
        await world.edit(UNITS)
        await world.edit(UNITS.replace("[10, 20]", "[10, 20, 40]"))
        assert changed(world) == {"fw-lan", "eth1"}
        await world.edit(UNITS.replace("[10, 20]", "[10]"))
        assert changed(world) == {"fw-lan", "eth1"}
        await world.edit(UNITS.replace("[10, 20]", "[10]").replace("vlan = 20", "vlan = 10"))
        assert changed(world) == {"tv-lan", "eth1"}
        assert carried()["tv-lan"] == [(10, UNTAGGED)]
        assert carried()["eth1"] == [(1, UNTAGGED), (10, ())]
        kinds = {type(one) for one in world.done}
        assert kinds.isdisjoint({ArmTap, EnslavePort, CreateBridge, ChangeLink})


async def test_a_bridge_in_use_begins_and_ends_to_heed_vlans() -> None:
    plain = BRIDGE + vm("fw", ("lan", "")) + vm("tv", ("lan", "")) + vm("nas", ("lan", ""))
    async with made_world() as world:
        await world.edit(plain)
        world.ends["cable"] = Far("far")
        assert bridge_says("vlan_filtering 0")
        assert set(world.tags("cable")) == {"fw.lan", "tv.lan", "nas.lan"}
        await world.edit(UNITS)
        assert world.tags("cable") == {"nas.lan": None}
        assert world.tags("cable", 20) == {"fw.lan": 20, "tv.lan": None}
        await world.edit(plain)
        assert bridge_says("vlan_filtering 0")
        assert bridge_says("vlan_default_pvid 1 ")
        assert set(world.tags("cable")) == {"fw.lan", "tv.lan", "nas.lan"}
        assert set(map(str, carried())) == {"br0", "eth1", "fw-lan", "tv-lan", "nas-lan"}
        assert all(vlans == [(1, UNTAGGED)] for vlans in carried().values())


@pytest.mark.parametrize(
    "damage",
    [
        ["link set br0 type bridge vlan_default_pvid 1"],
        ["link set br0 type bridge vlan_filtering 0"],
        ["link set br0 type bridge vlan_protocol 802.1ad"],
        ["link set tv-lan nomaster"],
        ["link set eth1 nomaster"],
        ["link del br0"],
        ["link set tv-lan nomaster", "link set br0 type bridge vlan_default_pvid 1", "link set tv-lan master br0"],
    ],
)
async def test_damage_is_healed(damage: list[str]) -> None:
    async with made_world() as world:
        await world.edit(UNITS)
        before = carried()
        ip(*damage)
        await world.settle()
        assert world.done
        assert carried() == before
        assert bridge_says("vlan_filtering 1")
        assert bridge_says("vlan_default_pvid 0 ")
        assert bridge_says("vlan_protocol 802.1Q")


@pytest.mark.parametrize(
    "words", ["del dev tv-lan vid 20", "add dev tv-lan vid 30", "add dev eth1 vid 99", "del dev br0 vid 1 self"]
)
async def test_vlans_that_somebody_changes_by_hand_are_put_right(words: str) -> None:
    async with made_world() as world:
        await world.edit(UNITS)
        before = carried()
        bridge_vlan(words)
        assert carried() != before
        await world.settle()
        assert carried() == before
        assert len(changed(world)) == 1


async def test_ports_of_others_keep_what_they_carry() -> None:
    async with made_world() as world:
        await world.edit(BRIDGE + vm("nas", ("lan", "")))
        ip("link add theirs type veth peer name theirs-far", "link set theirs master br0 up")
        bridge_vlan("add dev theirs vid 77")
        theirs = carried()["theirs"]
        assert theirs == [(1, UNTAGGED), (77, ())]
        await world.edit(UNITS)
        assert carried()["theirs"] == theirs


async def test_an_adopted_bridge_is_set_right() -> None:
    ip("link add name br0 type bridge vlan_filtering 1 vlan_protocol 802.1ad vlan_default_pvid 5", "link set br0 up")
    ip("link set eth1 master br0 up")
    async with made_world() as world:
        await world.edit(UNITS.replace("[bridge.br0]\n", "[bridge.br0]\nadopt = true\n"))
        assert bridge_says("vlan_protocol 802.1Q")
        assert bridge_says("vlan_default_pvid 0 ")
        world.ends["cable"] = Far("far")
        assert world.tags("cable", 20) == {"fw.lan": 20, "tv.lan": None}
        assert world.tags("cable") == {"nas.lan": None}


async def test_a_vlan_link_on_a_free_card_is_made_and_may_be_a_port() -> None:
    units = '[vlan.v20]\nlink = "eth1"\nid = 20\n[bridge.br0]\nports = ["v20"]\n' + vm("tv", ("lan", ""))
    async with made_world() as world:
        await world.edit(units)
        assert any(isinstance(one, CreateVlan) for one in world.done)
        world.ends["cable"] = Far("far")
        assert world.tags("cable", 20) == {"tv.lan": None}
        assert world.tags("cable") == {}
        assert world.tags("tv.lan") == {"cable": 20}
        await world.edit(units.replace("id = 20", "id = 21"))
        assert world.tags("cable", 21) == {"tv.lan": None}
        assert world.tags("cable", 20) == {}
        ip("link del v20")
        await world.settle()
        assert world.tags("cable", 21) == {"tv.lan": None}
        await world.edit("[bridge.br0]\n")
        assert "v20" not in ip_output("-br link")


async def test_the_other_layout_is_refused_with_its_remedy() -> None:
    async with made_world() as world:
        await world.edit(UNITS + '[vlan.v30]\nlink = "eth1"\nid = 30\n')
        assert ("vlan/v30", "VlanLinkOnPort") in world.conditions()
        assert "v30" not in ip_output("-br link")
