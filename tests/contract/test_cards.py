"""What the kernel tells of a card's other names, its own MAC and its place on the bus, as links' cache has it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.core.observed import LinkState
from agent.host.netlink import Links
from agent.host.netlink.bus import place_of
from tests.netns import ip, network_namespace


@pytest.fixture
def own_network() -> Iterator[None]:
    with network_namespace():
        yield


async def seen(name: str) -> LinkState:
    async with Links() as links:
        return links.snapshot[name]


@pytest.mark.usefixtures("own_network")
async def test_other_names_are_heard_of_and_forgotten() -> None:
    ip("link add card0 up type veth peer name far0")
    async with Links() as links:
        ip("link property add dev card0 altname the-card-of-the-lan altname wan")
        links.catch_up()
        assert links.snapshot["card0"].altnames == ("the-card-of-the-lan", "wan")
        ip("link set card0 name card1")
        links.catch_up()
        assert "card0" not in links.snapshot
        assert links.snapshot["card1"].altnames == ("the-card-of-the-lan", "wan")
        ip("link property del dev card1 altname wan")
        links.catch_up()
        assert [*links.snapshot["card1"].altnames] == ["the-card-of-the-lan"]


@pytest.mark.usefixtures("own_network")
async def test_what_is_no_card_has_no_place_and_no_mac_of_its_own() -> None:
    ip("link add card0 up type veth peer name far0")
    found = await seen("card0")
    assert (found.place, found.permanent_mac) == ("", "")
    assert found.mac
    assert place_of("card0", "virtio/virtio0") == ""  # a driver that tells no place
    assert place_of("gone0", "virtio/virtio0") == ""
    assert place_of("gone0", "0000:01:00.0") == "0000:01:00.0"


def test_a_card_of_this_machine_has_the_place_that_its_driver_knows() -> None:
    """By /sys here, to compare: the agent itself reads no links there."""
    cards = {
        path.name: next((part for part in reversed((path / "device").resolve().parts) if part.count(":") == 2), "")
        for path in Path("/sys/class/net").iterdir()
        if (path / "device").exists()
    }
    places = {name: place for name, place in cards.items() if place}
    if not places:
        pytest.skip("this machine has no card on a PCI bus")
    for name, place in places.items():
        assert asyncio.run(seen(name)).place == place
