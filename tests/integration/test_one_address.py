"""units/one-address-server as it is shipped, with real guests: an internet, the provider's router, and the host.

What stands for this host's places are only the folder of kernel and disks, and the namespace that it is in.
"""

from __future__ import annotations

import contextlib
import functools
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess
from tests.integration.shipped import shipped
from tests.integration.test_nat import nft, strip, sysctl, table
from tests.integration.waiting import wait_for
from tests.internet import Box
from tests.netns import ip
from tests.probe import answers_within, run_in_guest

HOST, HOST6 = "37.59.3.136", "2001:41d0:8:5688::1"
ROUTER, ROUTER6 = "37.59.3.254", "2001:41d0:8:5688::fe"
STRANGER, STRANGER6 = "203.0.113.9", "2001:db8:9::9"
GATEWAY, WEB, MAIL = "192.168.0.1", "192.168.0.100", "192.168.0.200"
BOOT_S = 180.0
BIG = 64 << 20
"""A hundred seconds, as slowly as the stranger reads."""
GUEST_ANSWERS_S, ANSWERS_AGAIN_S = 1.0, 60.0
"""Not a figure to be proud of: `make bench` measures it (0.1 s is what it has to reach)."""

pytestmark = pytest.mark.timeout(600)  # the first one boots both guests


@dataclass(slots=True)
class World:
    """The host's agent, and somebody far behind the provider's router."""

    agent: AgentProcess
    stranger: Box

    def page(self, host: str, port: int = 80) -> str | None:
        """What the web server there says to the stranger: its name, and whom it sees."""
        found: str | None = self.stranger.ask("page", host, port, 30.0)
        return found

    def greet(self, host: str, port: int, timeout_s: float = 30.0) -> str | None:
        """Who says something there, by its name."""
        heard: str | None = self.stranger.ask("greet", host, port, timeout_s)
        return heard.split()[0] if heard else None

    def edit(self, name: str, former: str, latter: str) -> None:
        """Edit a unit, and return once that is done."""
        text = (self.agent.units / name).read_text()
        assert former in text
        self.agent.drop(name, text.replace(former, latter))
        self.agent.vmhost("wait", "in-sync", "--timeout", "60")


@pytest.fixture(scope="module")
def world(guest_kernel: Path, guest_initrd: Path) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        agent = stack.enter_context(shipped("one-address-server", guest_kernel, guest_initrd))
        agent.start(settle=False)
        stranger = provider(stack)
        agent.vmhost("wait", "in-sync", "--timeout", "120")
        for guest in (WEB, MAIL):
            answers_within(guest, BOOT_S, "br0")
        one = World(agent, stranger)
        wait_for(lambda: one.page(HOST) and one.greet(HOST, 25), 90.0)
        yield one


def provider(stack: contextlib.ExitStack) -> Box:
    """The provider's router, a stranger beyond it, and this host's uplink to it."""
    router = stack.enter_context(Box("eth0", addresses=(f"{ROUTER}/24", f"{ROUTER6}/64")))
    far = ("203.0.113.1", "2001:db8:9::1")
    stranger = stack.enter_context(Box("far0", addresses=(f"{STRANGER}/24", f"{STRANGER6}/64"), gateways=far))
    ip(f"link set far0 netns {router.pid}")
    # The provider is no better than its customers: it would pass on what is not for the internet, too.
    inside = f"route add 192.168.0.0/24 via {HOST}"
    router.ask("ip", ["link set far0 up", f"addr add {far[0]}/24 dev far0", f"addr add {far[1]}/64 dev far0 nodad"])
    router.ask("ip", [inside])
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        router.ask("sysctl", name, "1")
    ip(f"addr add {HOST}/24 dev eth0", f"addr add {HOST6}/64 dev eth0 nodad")
    ip(f"route add default via {ROUTER}", f"route add default via {ROUTER6}")
    return stranger


def forwards(agent: AgentProcess) -> dict[tuple[str, str], str]:
    """The metric of each published port, by guest and port."""
    line = r'^vmhost_forward_up\{port="(.+)",proto="tcp",vm="(.+)"\} (.+)$'
    return {(vm, port): value for port, vm, value in re.findall(line, agent.metrics(), re.MULTILINE)}


def in_guest(guest: str, command: str) -> str:
    return run_in_guest(guest, command, 60.0).strip()


def test_published_ports_reach_the_right_guest_and_others_reach_none(world: World) -> None:
    assert world.page(HOST) == f"vm1-web {STRANGER}"
    assert world.page(HOST6) == world.page(HOST6, 443) == f"vm1-web {GATEWAY}"
    assert [world.greet(HOST, port) for port in (1234, 5678, 25)] == ["vm1-web", "vm2-email", "vm2-email"]
    for host, ports in {HOST: (22, 443, 7777), HOST6: (22, 25, 1234, 5678), WEB: (22, 80, 7777)}.items():
        for port in ports:
            assert world.greet(host, port, 0.2) is None, (host, port)
    with socket.create_connection((HOST, 1234), 30.0) as from_host:
        assert from_host.recv(100).decode().startswith("vm1-web")


def test_guests_reach_the_internet_with_the_host_s_address(world: World) -> None:
    world.stranger.serve(4444, "stranger")
    for guest in (WEB, MAIL):
        assert in_guest(guest, f"nc {STRANGER} 4444 </dev/null") == f"stranger {HOST}"


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("netfilter", ["1", "0"])
def test_what_is_bridged_is_not_rewritten_and_what_is_published_is_reached_from_within(
    netfilter: str,
) -> None:
    with contextlib.suppress(FileNotFoundError):  # a kernel without br_netfilter
        sysctl("bridge/bridge-nf-call-iptables", netfilter)
    assert in_guest(MAIL, "wget -qO- http://vm1-web/") == f"vm1-web {MAIL}"
    assert in_guest(WEB, "nc vm2-email 25 </dev/null").split()[0] == "vm2-email"
    # By the host; with br_netfilter the answer is seen on the bridge, and nobody's address has to change for it.
    assert in_guest(MAIL, f"wget -qO- http://{HOST}/") in {f"vm1-web {GATEWAY}", f"vm1-web {MAIL}"}
    assert in_guest(WEB, f"nc {HOST} 25 </dev/null").split()[0] == "vm2-email"


def begin_transfers(world: World, *hosts: str) -> None:
    """The stranger begins to fetch something large from the web server at each of these."""
    fill = f"dd if=/dev/zero of=/www/big bs=1M count={BIG >> 20} 2>/dev/null; wc -c </www/big"
    assert in_guest(WEB, fill) == str(BIG)
    for host in hosts:
        world.stranger.ask("pull", host, 80, "/big")


def have_gone_on(stranger: Box, before: list[int]) -> bool:
    return all(later > earlier for later, earlier in zip(stranger.ask("pulled"), before, strict=True))


def test_a_running_transfer_is_not_cut_by_a_change_of_another_guest(world: World) -> None:
    begin_transfers(world, HOST, HOST6)
    for former, latter in (("5678:22", "5679:22"), ("0.0.0.0:25", "[::]:25"), ("[::]:25", "0.0.0.0:25")):
        before = world.stranger.ask("pulled")
        world.edit("vm2-email.toml", former, latter)
        wait_for(functools.partial(have_gone_on, world.stranger, before))
    assert world.greet(HOST, 5679) == "vm2-email"
    assert world.greet(HOST, 5678, 0.2) is None
    world.edit("vm2-email.toml", "5679:22", "5678:22")
    assert all(0 < number < BIG for number in world.stranger.ask("pulled"))  # still on their way
    world.stranger.ask("end_pulls")


def test_after_a_flush_published_ports_answer_again(world: World) -> None:
    before = table()
    begin_transfers(world, HOST6)  # by haproxy: nothing of it is translated
    for _ in range(5):
        nft("flush", "ruleset")
        took_s = world.stranger.ask("hear_again", HOST, 25, ANSWERS_AGAIN_S, GUEST_ANSWERS_S)
        print(f"answers again after {took_s * 1000:.0f} ms")
        world.agent.vmhost("wait", "in-sync", "--timeout", "60")
    assert strip(table()) == strip(before)
    wait_for(functools.partial(have_gone_on, world.stranger, world.stranger.ask("pulled")))
    world.stranger.ask("end_pulls")
    assert world.page(HOST) == f"vm1-web {STRANGER}"


def test_status_says_that_all_is_as_the_units_say(world: World) -> None:
    status = world.agent.status()
    assert [one["in_sync"] for one in (*status["bridges"], *status["vms"])] == [True, True, True]
    assert status["agent"]["conditions"] == []
    (bridge,) = status["bridges"]
    assert {one["name"]: one["address"] for one in bridge["dhcp"]["leases"]} == {"vm1-web": WEB, "vm2-email": MAIL}
    wait_for(lambda: set(forwards(world.agent).values()) == {"1.0"})
    assert set(forwards(world.agent)) == {
        ("vm1-web", "1234"),
        ("vm1-web", "80"),
        ("vm1-web", "443"),
        ("vm2-email", "5678"),
        ("vm2-email", "25"),
    }
    began = time.monotonic()
    pids = [world.agent.vm(name)["pid"] for name in ("vm1-web", "vm2-email")]
    world.agent.kill()
    assert world.page(HOST6) == f"vm1-web {GATEWAY}"
    world.agent.start()
    print(f"killed and back within {time.monotonic() - began:.1f} s")
    assert [world.agent.vm(name)["pid"] for name in ("vm1-web", "vm2-email")] == pids
    assert world.page(HOST) == f"vm1-web {STRANGER}"
