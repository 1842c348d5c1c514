"""Neighbours of a host learn where its addresses are, by real frames at the other end of its card's cable."""

from __future__ import annotations

import ipaddress
import json
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.agent_process import AgentProcess
from tests.frames import ARP, BROADCAST, ICMPV6, IPV6
from tests.integration.uplink_world import UNIT, adopted, quiet, settled
from tests.integration.waiting import wait_for
from tests.internet import Box
from tests.netns import ip, ip_output, network_namespace_of
from tests.vlan.cable import Cable, Frame

ALL_NODES_MAC = "33:33:00:00:00:01"
ADVERTISEMENT, OVERRIDE, TARGET_LLADDR = 136, 0x20, b"\x02\x01"
MOVED = {"192.0.2.5", "192.0.2.6", "2001:db8::5", "2001:db8::6"}


class Heard:
    """The announcements that came over a cable so far: address and MAC, and how often."""

    def __init__(self, arp: Cable, ipv6: Cable) -> None:
        self._cables = {ARP: arp, IPV6: ipv6}
        self.told: Counter[tuple[str, str]] = Counter()

    def addresses(self) -> set[str]:
        for kind, cable in self._cables.items():  # each drops what is of another kind
            while (frame := cable.receive(kind, 0.0)) is not None:
                self.told.update(_announced(frame))
        return {address for address, _ in self.told}


@pytest.fixture
def heard(provider: Box) -> Iterator[Heard]:
    """The provider's end of the cable; the card has a second address of each kind."""
    ip("addr add 192.0.2.6/24 dev up0 label up0:more", "addr add 2001:db8::6/64 dev up0 nodad")
    quiet()
    with network_namespace_of(provider.pid):
        arp, ipv6 = Cable("eth0"), Cable("eth0")
    with arp, ipv6:
        yield Heard(arp, ipv6)


def _announced(frame: Frame) -> Iterator[tuple[str, str]]:
    """Gratuitous ARP (RFC 5227: sender and target are one) to all, or an unsolicited NA that overrides (RFC 4861)."""
    body = frame.body
    if frame.kind == ARP and frame.target == BROADCAST and body[14:18] == body[24:28]:
        yield str(ipaddress.ip_address(body[14:18])), body[8:14].hex(":")
    if frame.kind == IPV6 and frame.target == ALL_NODES_MAC and (body[6], body[40]) == (ICMPV6, ADVERTISEMENT):
        assert body[44] & OVERRIDE
        assert body[64:66] == TARGET_LLADDR
        yield str(ipaddress.ip_address(body[48:64])), body[66:72].hex(":")


def test_what_is_moved_is_announced_by_the_bridge(agent: AgentProcess, heard: Heard) -> None:
    mac = json.loads(ip_output("-j link show up0"))[0]["address"]
    agent.drop("net.toml", UNIT)
    assert heard.addresses() == set()
    agent.start()
    wait_for(adopted)
    wait_for(lambda: heard.addresses() >= MOVED, says=lambda: str(heard.told))
    assert {told for _, told in heard.told} == {mac}
    settled(agent)
