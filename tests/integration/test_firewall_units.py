"""units/firewall as it is shipped, with a real guest between a machine of the LAN and one of the internet.

What stands for this host's places are only the folder of kernel and disk, and the namespace that it is in.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess
from tests.integration.shipped import shipped
from tests.integration.test_edits import master_of
from tests.integration.test_nat import sysctl
from tests.integration.waiting import wait_for
from tests.internet import Box
from tests.netns import ip, ip_output
from tests.probe import answers_within

GATEWAY, OUTSIDE, INSIDE, STRANGER = "192.168.1.1", "192.0.2.2", "192.168.1.10", "192.0.2.1"
BOOT_S = 180.0

pytestmark = pytest.mark.timeout(480)  # the first one boots the guest


@dataclass(slots=True)
class World:
    """The host's agent, a machine of the LAN, and one of the internet."""

    agent: AgentProcess
    inside: Box
    outside: Box

    def seen_as(self, timeout_s: float = 10.0) -> str | None:
        """As whom the machine of the internet sees the one of the LAN."""
        heard: str | None = self.inside.ask("hear_tcp", STRANGER, 4444, timeout_s)
        return heard


@pytest.fixture(scope="module")
def world(guest_kernel: Path, guest_initrd: Path) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        agent = stack.enter_context(shipped("firewall", guest_kernel, guest_initrd))
        inside = stack.enter_context(Box("eth1", addresses=(f"{INSIDE}/24",), gateways=(GATEWAY,)))
        outside = stack.enter_context(Box("eth2", addresses=(f"{STRANGER}/24",)))
        outside.ask("ip", [f"route add 192.168.1.0/24 via {OUTSIDE}"])
        outside.serve(4444, "stranger")
        agent.start(settle=False)
        agent.vmhost("wait", "in-sync", "--timeout", "120")
        answers_within(GATEWAY, BOOT_S, "br-lan")
        one = World(agent, inside, outside)
        wait_for(lambda: one.seen_as() is not None, 60.0)
        yield one


def test_the_host_becomes_what_the_set_says(world: World) -> None:
    members = {"eth1": "br-lan", "lan-tap": "br-lan", "eth2": "br-wan", "wan-tap": "br-wan"}
    assert {name: master_of(name) for name in members} == members
    vm = world.agent.vm("firewall")
    assert (vm["state"], vm["in_sync"], vm["conditions"]) == ("running", True, [])
    command = Path(f"/proc/{vm['pid']}/cmdline").read_bytes().decode().split("\0")
    assert command[command.index("-m") + 1].startswith("512")
    assert re.search(r"127\.0\.0\.1:1(,|$)", " ".join(command).replace(" ", ","))
    (disk,) = vm["disks"]
    assert Path(disk["path"]).stat().st_size < 1 << 30
    (default,) = json.loads(ip_output("-j route show default"))
    assert (default["gateway"], default["dev"], default["protocol"]) == (GATEWAY, "br-lan", "119")


def test_frames_pass_from_the_lan_to_the_internet_through_the_guest(world: World) -> None:
    assert world.seen_as() == f"stranger {INSIDE}"
    sysctl("ipv4/ip_forward", "0")  # the host itself passes nothing on
    assert world.seen_as() == f"stranger {INSIDE}"
    mac = {nic["name"]: nic["mac"] for nic in world.agent.vm("firewall")["nics"]}["wan"]
    neighbours = world.outside.ask("shown", "neighbour show")
    assert f"{OUTSIDE} dev eth0 lladdr {mac}" in neighbours
    assert INSIDE not in neighbours


def test_they_pass_again_whatever_is_taken_away(world: World) -> None:
    pid = world.agent.vm("firewall")["pid"]
    for lose in ("link del lan-tap", "link del br-wan", "link set eth1 nomaster", "link set eth2 name modem0"):
        ip(lose)
        wait_for(lambda: world.seen_as() == f"stranger {INSIDE}", 60.0)
    world.agent.vmhost("wait", "in-sync", "--timeout", "60")
    assert master_of("modem0") == "br-wan"
    assert world.agent.vm("firewall")["pid"] == pid


def test_a_mac_that_guest_and_card_share_is_told_and_the_remedy_works(world: World) -> None:
    mac = {nic["name"]: nic["mac"] for nic in world.agent.vm("firewall")["nics"]}["wan"]
    card = next(name for name in ("eth2", "modem0") if master_of_or_none(name) == "br-wan")
    ip(f"link set dev {card} address {mac}")

    def told() -> list[str]:
        conditions = world.agent.vm("firewall")["conditions"]
        return [one["message"] for one in conditions if one["type"] == "MacTaken"]

    wait_for(lambda: bool(told()))
    world.outside.ask("ip", ["neighbour flush all"])
    assert world.seen_as(2.0) is None
    (remedy,) = re.findall(r"ip (link set dev \S+ address [0-9a-f:]+)", told()[0])
    ip(remedy)
    wait_for(lambda: not told())
    wait_for(lambda: world.seen_as() == f"stranger {INSIDE}", 60.0)


def master_of_or_none(link: str) -> str | None:
    """The bridge of a link, None also where there is no such link."""
    found = {one["ifname"]: one.get("master") for one in json.loads(ip_output("-j link show"))}
    return found.get(link)
