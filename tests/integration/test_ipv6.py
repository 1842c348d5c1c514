"""IPv6 modes through the whole agent: the internet, a provider's router, this host, and boxes in guests' places.

The provider takes the prefix on the host's uplink for on-link and routes nothing of it to the host: it only solicits,
as hosting companies do. Guests wait for a path that is never there; boxes on ports of their bridges answer for them.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.core.planner.services import ADVERTISES_FOR_S
from tests.agent_process import AgentProcess
from tests.integration.conftest import bare_vm
from tests.integration.waiting import wait_for
from tests.internet import Box
from tests.netns import ip, ip_output
from tests.probe import UPTIME_PORT, run_in_guest

ROUTER, HOST, FAR = "2001:db8:5::1", "2001:db8:5::2", "2001:db8:9::9"
WEB, DB, ELSE = "2001:db8:5::100", "2001:db8:5::101", "2001:db8:5::102"
MACS = {"web": "02:00:00:00:00:64", "db": "02:00:00:00:00:65", "else": "02:00:00:00:00:66"}
PROXY = (
    '[bridge.br-a]\nipv6 = "ndp-proxy"\ndns = { upstream = [] }\n[bridge.br-b]\nipv6 = "ndp-proxy"\nuplink = "up0"\n'
)
OWN, ULA = "2001:db8:a::1/64", "fd00:a::1/64"
ADVERTISED_S = 60.0
"""A guest that heard that its router is none has no default route before the next advertisement: within 20 s in a
dnsmasq's first minute, on a machine that has nothing else to do."""
LEASE_S, BOOT_S = 30.0, 180.0


def guest(name: str, bridge: str, *addresses: str, more: str = "") -> str:
    nic = f'[vm.{name}.nic.lan]\nbridge = "{bridge}"\nmac = "{MACS[name]}"\naddress = {json.dumps(addresses)}\n'
    return bare_vm(name, f'after = ["path:/srv/none"]\n{more}{nic}')


def sysctl(name: str, value: str | None = None) -> str:
    path = Path("/proc/thread-self/root/proc/sys/net", name)
    if value is not None:
        path.write_text(value)
    return path.read_text().strip()


def dropped(why: str) -> int:
    """How many packets a rule dropped, known by how its comment begins."""
    listing = subprocess.run(["nft", "list", "table", "inet", "vmhost"], capture_output=True, text=True, check=True)
    (line,) = [line for line in listing.stdout.splitlines() if f'comment "{why}' in line]
    return int(line.split("packets ")[1].split()[0])


@dataclass(slots=True)
class World:
    """This host's agent between the provider's router, with the internet behind it, and its guests."""

    agent: AgentProcess
    router: Box
    far: Box
    stack: contextlib.ExitStack

    def plug(self, name: str, bridge: str, *addresses: str, gateways: tuple[str, ...] = ()) -> Box:
        """Plug in what stands for a guest, with what its operator set by hand; it serves its name on port 80."""
        box = self.stack.enter_context(Box(f"{name}0"))
        box.ask("ip", ["link set eth0 down", f"link set eth0 address {MACS[name]}"])
        box.ask("sysctl", "ipv6/conf/eth0/accept_dad", "0")
        box.ask("sysctl", "ipv6/conf/eth0/accept_ra", "0" if gateways else "1")
        box.ask("sysctl", "ipv6/conf/eth0/router_solicitation_delay", "0")
        # Its neighbours are soon in doubt, and asked whether they are there, and routers, still.
        box.ask("sysctl", "ipv6/neigh/eth0/base_reachable_time_ms", "20")
        box.ask("sysctl", "ipv6/neigh/eth0/delay_first_probe_time", "0")
        ip(f"link set {name}0 master {bridge}")
        box.ask("ip", ["link set eth0 up", *(f"addr add {one} dev eth0 nodad" for one in addresses)])
        wait_for(lambda: "fe80::/64" in box.ask("shown", "-6 route"))
        box.ask("ip", [f"route add default via {one} dev eth0" for one in gateways])
        box.serve(80, name)
        return box

    def settled(self) -> None:
        self.agent.vmhost("wait", "settled", "--timeout", "60")


@pytest.fixture
def world(agent: AgentProcess) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        far = stack.enter_context(Box("in0", addresses=(f"{FAR}/64",)))
        router = stack.enter_context(Box("up0", addresses=(f"{ROUTER}/64",)))
        ip(f"link set in0 netns {router.pid}")
        router.ask("sysctl", "ipv6/conf/all/forwarding", "1")
        router.ask(
            "sysctl", "ipv6/conf/eth0/dad_transmits", "0"
        )  # a carrier that comes again would cost it two seconds
        router.ask(
            "ip", ["link set in0 up", "addr add 2001:db8:9::1/64 dev in0 nodad", "addr add 2001:db8:8::1/128 dev lo"]
        )
        far.ask("ip", ["route add default via 2001:db8:9::1 dev eth0"])
        ip(f"addr add {HOST}/64 dev up0 nodad", f"route add default via {ROUTER} dev up0")
        far.serve(443, "far")
        router.serve(443, "router")
        stack.callback(agent.end_services)
        yield World(agent, router, far, stack)


def proxied(world: World) -> tuple[Box, Box, Box]:
    """Three guests behind a proxy: one that asks for all it has, one that is set up by hand, one on another bridge."""
    world.agent.drop("net.toml", PROXY)
    world.agent.drop("web.toml", guest("web", "br-a", WEB))
    world.agent.drop("db.toml", guest("db", "br-a", DB))
    world.agent.drop("else.toml", guest("else", "br-b", ELSE))
    world.agent.start()
    web = world.plug("web", "br-a")
    db = world.plug("db", "br-a", f"{DB}/64", gateways=("fe80::1",))
    other = world.plug("else", "br-b", f"{ELSE}/128", gateways=("fe80::1",))
    wait_for(lambda: "default via fe80::" in web.ask("shown", "-6 route"))
    assert web.ask("lease6", "eth0", MACS["web"], LEASE_S)["address"] == WEB
    return web, db, other


def test_with_ndp_proxy_guests_of_the_providers_prefix_are_reached_and_reach_out(world: World) -> None:
    web, db, other = proxied(world)
    began = time.perf_counter()
    assert world.far.hear(WEB, 80) == f"web {FAR}"
    print(f"first connection from outside: {(time.perf_counter() - began) * 1000:.1f} ms")
    began = time.perf_counter()
    assert web.hear(FAR, 443) == f"far {WEB}"
    print(f"first connection to the outside: {(time.perf_counter() - began) * 1000:.1f} ms")
    assert world.far.hear(DB, 80) == f"db {FAR}"
    assert world.far.hear(ELSE, 80) == f"else {FAR}"
    assert db.hear(FAR, 443) == f"far {DB}"
    assert world.router.hear(WEB, 80) == f"web {ROUTER}"
    for one, address in ((web, WEB), (db, DB), (other, ELSE)):  # guests each other, and their router, on-link or not
        for name, target in (("web", WEB), ("db", DB), ("else", ELSE)):
            assert one.hear(target, 80) == f"{name} {address}"
        assert one.hear(ROUTER, 443) == f"router {address}"
    assert "2001:db8:5::/64" not in web.ask("shown", "-6 route")
    assert web.ask("lease6", "eth0", MACS["web"], LEASE_S)["dns"][0].startswith("fd")
    # Nobody is answered for who is no guest, nor let in or out under a name that is not his.
    assert world.router.hear("2001:db8:5::dead", 80, timeout_s=0.3) is None
    web.ask(
        "ip",
        [
            "addr add 2001:db8:5::dead/128 dev lo nodad",
            "route add 2001:db8:9::/64 via fe80::1 dev eth0 src 2001:db8:5::dead",
        ],
    )
    assert web.hear(FAR, 443, timeout_s=0.3) is None
    assert dropped("not from its bridge") > 0
    status = {one["name"]: one for one in world.agent.status()["bridges"]}
    assert status["br-a"]["ipv6"] == {"mode": "ndp-proxy", "uplink": "up0", "led": [WEB, DB]}
    assert "fe80::1/64" in status["br-a"]["addresses"]
    assert [one["conditions"] for one in status.values()] == [[], []]
    with contextlib.suppress(OSError):
        assert world.far.hear(HOST, 443, timeout_s=0.3) is None  # the host has its own address yet, and nothing there


def test_whatever_is_done_to_a_proxy_is_healed(world: World) -> None:
    web, _, _ = proxied(world)
    assert world.far.hear(WEB, 80) == f"web {FAR}"

    def flap() -> None:
        ip("link set up0 down")
        ip("link set up0 up", f"addr add {HOST}/64 dev up0 nodad", f"route add default via {ROUTER} dev up0")

    def flap_bridge() -> None:
        ip("link set br-a down")
        ip("link set br-a up")

    faults: dict[str, Callable[[], object]] = {
        "uplink down and up": flap,
        "route": lambda: ip(f"route del {WEB} dev br-a"),
        "neighbour": lambda: ip(f"neigh del proxy {WEB} dev up0"),
        "bridge down and up": flap_bridge,
        "gateway": lambda: ip("addr del fe80::1/64 dev br-a"),
        "proxy_ndp": lambda: sysctl("ipv6/conf/up0/proxy_ndp", "0"),
        "forwarding": lambda: sysctl("ipv6/conf/up0/forwarding", "0"),
        "force_forwarding": lambda: sysctl("ipv6/conf/br-a/force_forwarding", "0"),
        "all.forwarding": lambda: sysctl("ipv6/conf/all/forwarding", "1") and sysctl("ipv6/conf/all/forwarding", "0"),
        "delay": lambda: sysctl("ipv6/neigh/up0/proxy_delay", "80"),
        "rules": lambda: subprocess.run(["nft", "flush", "ruleset"], check=True),
    }
    for name, inflict in faults.items():
        inflict()
        began = time.perf_counter()
        wait_for(lambda: f"{WEB} dev up0" in ip_output("-6 neigh show proxy") and WEB in ip_output("-6 route"))
        there_s = time.perf_counter() - began
        world.router.ask("ip", ["neigh flush all"])
        took_s = world.far.ask("hear_again", WEB, 80, ADVERTISED_S)
        print(f"{name}: there after {there_s * 1000:.0f} ms, answers {took_s * 1000:.0f} ms later")
        wait_for(lambda: sysctl("ipv6/neigh/up0/proxy_delay") == "0")
        world.settled()
        assert web.hear(FAR, 443) == f"far {WEB}", name
    ip("link del br-a")
    wait_for(lambda: WEB in ip_output("-6 route"))
    ip("link set web0 master br-a")
    took_s = world.far.ask("hear_again", WEB, 80, ADVERTISED_S)
    print(f"bridge deleted: {took_s * 1000:.0f} ms after it was plugged in again")
    assert world.agent.metric('vmhost_repairs_total{kind="ipv6",reason="missing"}') > 0
    world.agent.kill()
    assert world.far.hear(WEB, 80) == f"web {FAR}"
    ip(f"route del {WEB} dev br-a", f"neigh del proxy {WEB} dev up0")
    world.agent.start()
    assert world.far.hear(WEB, 80) == f"web {FAR}"


def test_a_guest_that_lost_its_router_is_told_of_it_again_at_once(world: World) -> None:
    proxied(world)
    served_s = time.monotonic() + ADVERTISES_FOR_S
    assert world.far.hear(WEB, 80) == f"web {FAR}"
    wait_for(lambda: time.monotonic() > served_s, 30.0)  # until then dnsmasq advertises by itself
    for value in "10":
        sysctl("ipv6/conf/all/forwarding", value)
    began = time.perf_counter()
    wait_for(lambda: "start dnsmasq-br-a anew, so that it advertises at once" in world.agent.vmhost("events"))
    world.router.ask("ip", ["neigh flush all"])
    world.far.ask("hear_again", WEB, 80, ADVERTISED_S)
    print(f"answers {time.perf_counter() - began:.1f} s after forwarding was lost")
    world.settled()


def test_an_edit_changes_what_it_says_and_nothing_is_left_behind(world: World) -> None:
    agent = world.agent
    ip(f"route add {ELSE} dev up0 proto 7", "neigh add proxy 2001:db8:5::77 dev up0")
    before = {name: sysctl(name) for name in NAMES}
    web, _, _ = proxied_but_one(world)

    def conflicts() -> list[str]:
        return [one["message"] for one in agent.vm("else")["conditions"] if one["type"] == "Conflict"]

    wait_for(lambda: conflicts() == [f"a route to {ELSE} that is not ours leads to up0: ip -6 route del {ELSE}"])
    ip(f"route del {ELSE} dev up0")
    wait_for(lambda: f"{ELSE} dev br-b proto 118" in ip_output("-6 route"))
    agent.drop("web.toml", guest("web", "br-a", "2001:db8:5::200"))
    wait_for(lambda: "2001:db8:5::200" in ip_output("-6 neigh show proxy"))
    world.settled()
    assert WEB not in ip_output("-6 neigh show proxy")
    assert WEB not in ip_output("-6 route")
    web.ask("ip", [f"addr del {WEB}/128 dev eth0"])
    assert web.ask("lease6", "eth0", MACS["web"], LEASE_S)["address"] == "2001:db8:5::200"
    assert world.far.hear("2001:db8:5::200", 80) == f"web {FAR}"
    agent.kill()
    agent.start()
    agent.drop("web.toml", guest("web", "br-a", "2001:db8:77::1"))
    wait_for(lambda: any(one["type"] == "NotInSubnet" for one in agent.vm("web")["conditions"]))
    agent.drop("net.toml", PROXY.replace('uplink = "up0"', 'uplink = "wan7"'))
    wait_for(lambda: "there is no link wan7, its uplink" in json.dumps(agent.status()["bridges"]))
    agent.drop("net.toml", "[bridge.br-a]\n[bridge.br-b]\n")
    wait_for(lambda: " proto 118" not in ip_output("-6 route"))
    world.settled()
    assert ip_output("-6 neigh show proxy").split() == ["2001:db8:5::77", "dev", "up0", "proxy"]
    assert {name: sysctl(name) for name in NAMES} == before
    assert "fe80::1/64" not in ip_output("addr show dev br-a")
    assert agent.status()["bridges"][0]["services"] == []


NAMES = (
    "ipv6/conf/up0/proxy_ndp",
    "ipv6/conf/up0/forwarding",
    "ipv6/conf/up0/force_forwarding",
    "ipv6/neigh/up0/proxy_delay",
)


def proxied_but_one(world: World) -> tuple[Box, Box, Box]:
    """As `proxied`, where something foreign is in the way of one."""
    world.agent.drop("net.toml", PROXY)
    world.agent.drop("web.toml", guest("web", "br-a", WEB))
    world.agent.drop("db.toml", guest("db", "br-a", DB))
    world.agent.drop("else.toml", guest("else", "br-b", ELSE))
    world.agent.start(settle=False)
    wait_for(lambda: WEB in ip_output("-6 route"))
    web = world.plug("web", "br-a")
    wait_for(lambda: "default via fe80::" in web.ask("shown", "-6 route"))
    assert web.ask("lease6", "eth0", MACS["web"], LEASE_S)["address"] == WEB
    return web, web, web


def test_a_routed_prefix_is_reached_from_outside_and_guests_make_their_own_addresses(world: World) -> None:
    agent = world.agent
    world.router.ask("ip", [f"route add 2001:db8:a::/64 via {HOST} dev eth0"])
    agent.drop("net.toml", f'[bridge.br-a]\naddresses = ["{OWN}"]\nipv6 = "routed"\ndns = {{ upstream = [] }}\n')
    agent.drop("web.toml", guest("web", "br-a", "2001:db8:a::100", more='publish = ["8080:80"]\n'))
    agent.start()
    web = world.plug("web", "br-a")
    made = "2001:db8:a:0:0:ff:fe00:64"
    wait_for(lambda: "2001:db8:a::ff:fe00:64/64" in web.ask("shown", "-6 addr show dev eth0"))
    assert world.far.hear(made, 80) == f"web {FAR}"
    assert web.hear(FAR, 443) == "far 2001:db8:a::ff:fe00:64"
    assert web.ask("lease6", "eth0", MACS["web"], LEASE_S) == {"address": "2001:db8:a::100", "dns": ["2001:db8:a::1"]}
    assert world.far.hear("2001:db8:a::100", 80) == f"web {FAR}"
    assert world.far.hear(HOST, 8080) == f"web {FAR}"
    # The route that it was told of stays when the host is asked whether it is still there: it calls itself a router.
    for _ in range(5):
        web.hear(FAR, 9, "udp", 0.1)  # who asks in vain doubts that its router is there, and asks it
    assert "default via fe80::" in web.ask("shown", "-6 route")
    assert sysctl("ipv6/conf/all/forwarding") == "0"
    agent.drop("net.toml", f'[bridge.br-a]\naddresses = ["{OWN}"]\ndns = {{ upstream = [] }}\n')
    wait_for(lambda: sysctl("ipv6/conf/br-a/forwarding") == "0")
    world.settled()
    assert world.far.hear("2001:db8:a::100", 80, timeout_s=0.3) is None


def test_nat66_hides_a_local_prefix_behind_the_host(world: World) -> None:
    agent = world.agent
    agent.drop("net.toml", f'[bridge.br-a]\naddresses = ["{ULA}"]\nipv6 = "nat66"\n')
    agent.drop("web.toml", guest("web", "br-a", "fd00:a::100", more='publish = ["8080:80"]\n'))
    agent.start()
    web = world.plug("web", "br-a")
    wait_for(lambda: "fd00:a::ff:fe00:64/64" in web.ask("shown", "-6 addr show dev eth0"))
    assert web.hear(FAR, 443) == f"far {HOST}"
    world.router.ask("ip", [f"route add fd00:a::/64 via {HOST} dev eth0"])
    assert world.router.hear("fd00:a::ff:fe00:64", 80, timeout_s=0.3) is None
    web.ask("lease6", "eth0", MACS["web"], LEASE_S)
    assert world.far.hear(HOST, 8080) == f"web {FAR}"
    via = web.ask("shown", "-6 route show default").split()[2]
    other = f"2001:db8:9::/64 via {via} dev eth0 metric 1"
    web.ask("ip", ["addr add fd00:b::1/128 dev lo nodad", f"route add {other} src fd00:b::1"])
    assert dropped("not from its bridge") == 0
    assert web.hear(FAR, 443, timeout_s=0.3) is None
    assert dropped("not from its bridge") > 0
    agent.drop("net.toml", f'[bridge.br-a]\naddresses = ["{ULA}", "{OWN}"]\nipv6 = "routed"\n')
    web.ask("ip", [f"route del {other}"])
    world.settled()
    assert world.router.hear("fd00:a::ff:fe00:64", 80) == f"web {ROUTER}"


def boot_of(world: World) -> str:
    """The boot of the guest that the internet reaches."""
    return (world.far.hear(WEB, UPTIME_PORT) or "").rpartition("=")[2]


def test_a_real_guest_of_the_providers_prefix_is_reached_and_reaches_out(world: World, boot_files: str) -> None:
    """It is set up by nothing but its own address; its way out it hears of, as any guest does."""
    agent = world.agent
    agent.drop("net.toml", PROXY)
    files = boot_files.replace("vmhost.nic0=10.77.0.10/24,10.77.0.1", f"vmhost.nic0={WEB}/128")
    nic = f'[vm.web.nic.lan]\nbridge = "br-a"\naddress = "{WEB}"\n'
    agent.drop("web.toml", f'[vm.web]\nmemory = "128M"\naccel = "tcg"\n{files}{nic}')
    agent.start()
    wait_for(lambda: "boot=" in (world.far.hear(WEB, UPTIME_PORT, timeout_s=5.0) or ""), BOOT_S)
    assert run_in_guest(WEB, f"nc {FAR} 443 </dev/null") == f"far {WEB}"
    pid, boot = agent.vm("web")["pid"], boot_of(world)
    ip("link del br-a")
    took_s = world.far.ask("hear_again", WEB, UPTIME_PORT, ADVERTISED_S)
    print(f"bridge deleted under a guest: reached again after {took_s * 1000:.0f} ms")
    assert run_in_guest(WEB, f"nc {FAR} 443 </dev/null") == f"far {WEB}"
    assert (agent.vm("web")["pid"], boot_of(world)) == (pid, boot)
    agent.vmhost("wait", "in-sync", "--timeout", "60")
