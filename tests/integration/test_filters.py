"""What guests may send and get, through the whole agent: each lie is dropped and counted, its honest twin passes.

The kernel and the agent are real. Its guests wait for a path that is never there, and boxes have their taps' names:
what is filtered is told by that name, and is in place before there is a tap.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from agent.core.routing.filters_wanted import link_local
from agent.core.routing.ipv6 import conf
from agent.host.sysctls import look_at_settings
from tests import box
from tests.agent_process import AgentProcess
from tests.frames import UDP, ipv4, router, udp
from tests.integration.conftest import BRIDGE_LINK, GUEST, bare_vm
from tests.integration.waiting import wait_for
from tests.internet import Box
from tests.lies import BRIDGE_MAC, DB, DB6, END, HOST, HOST6, LIES, MAC, OTHER, STRANGER, TRUTHS, WEB, WEB6
from tests.netns import ip, ip_output
from tests.probe import answers_within, run_in_guest, tell_guest, uptime

NETWORK = f"""
[bridge.br-a]
addresses = ["{HOST}/24", "{HOST6}/64"]
mac = "{BRIDGE_MAC}"
nat = true
"""


def guest(name: str, mac: str, addresses: str, more: str = "") -> str:
    nic = f'[vm.{name}.nic.lan]\nbridge = "br-a"\ntap = "{name}-lan"\nmac = "{mac}"\naddress = {addresses}\n{more}\n'
    return bare_vm(name, f'after = ["path:/srv/none"]\n{nic}')


def call_netfilter(value: str) -> None:
    """Whether bridged frames come by the tables for routed packets as well (br_netfilter)."""
    for name in ("iptables", "ip6tables", "arptables"):
        Path("/proc/thread-self/root/proc/sys/net/bridge", f"bridge-nf-call-{name}").write_text(value)


def edit(agent: AgentProcess, name: str, text: str) -> None:
    """Edit a unit, and wait until that is done."""
    agent.drop(name, text)
    agent.vmhost("wait", "settled", "--timeout", "60")


@dataclass(slots=True)
class World:
    """The host's agent, two guests' boxes on one bridge, and a listener on the host's end of the bridge."""

    agent: AgentProcess
    web: Box
    db: Box
    host: socket.socket


@pytest.fixture
def world(agent: AgentProcess) -> Iterator[World]:
    with contextlib.ExitStack() as opened:
        agent.drop("net.toml", NETWORK)
        agent.drop("web.toml", guest("web", MAC, f'["{WEB}", "{WEB6}"]'))
        agent.drop("db.toml", guest("db", OTHER, f'["{DB}", "{DB6}"]'))
        agent.start()
        web = opened.enter_context(Box("web-lan"))
        db = opened.enter_context(Box("db-lan"))
        for box, mac, address, address6 in ((web, MAC, WEB, WEB6), (db, OTHER, DB, DB6)):
            box.ask(
                "ip",
                [
                    f"link set eth0 address {mac}",
                    f"addr add {address}/24 dev eth0",
                    f"addr add {address6}/64 dev eth0 nodad",
                    f"route add default via {HOST}",
                    f"route add default via {HOST6}",
                ],
            )
        ip("link set web-lan master br-a", "link set db-lan master br-a")
        wait_for(lambda: "tentative" not in ip_output("addr show dev br-a"))
        host = opened.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        host.bind(("br-a", 0))
        host.settimeout(30)
        yield World(agent, web, db, host)


def heard(world: World, frames: dict[str, bytes]) -> tuple[set[str], set[str]]:
    """Which of these frames of web's the neighbour hears, and which the host."""
    world.db.ask("hear_frames")
    world.web.ask("send_frames", [one.hex() for one in (*frames.values(), END)])
    neighbour_heard = set(world.db.ask("heard_frames", END.hex(), 5.0))
    host_heard: set[str] = set()
    while END.hex() not in host_heard:
        frame, (_, _, kind, *_) = world.host.recvfrom(65536)
        if kind != socket.PACKET_OUTGOING:
            host_heard.add(frame.hex())
    names = {one.hex(): name for name, one in frames.items()}
    return {names[f] for f in neighbour_heard & names.keys()}, {names[f] for f in host_heard & names.keys()}


def dropped(reason: str, tap: str = "web-lan", family: str = "bridge", table: str = "vmhost") -> int:
    """What a tap's element of a set has counted."""
    words = ["nft", "-j", "list", "set", family, table, reason]
    body = json.loads(subprocess.run(words, capture_output=True, check=True, timeout=20).stdout)["nftables"][1]["set"]
    counted = [one["elem"] for one in body.get("elem", [])]
    return sum(one["counter"]["packets"] for one in counted if one["val"] == tap or tap in str(one["val"]))


@pytest.mark.parametrize("netfilter", ["1", "0"])
def test_lies_are_dropped_towards_everybody_and_counted_and_the_truth_passes(world: World, netfilter: str) -> None:
    call_netfilter(netfilter)
    for reason, frames in LIES.items():
        before = dropped(reason)
        assert heard(world, frames) == (set(), set()), reason
        assert dropped(reason) - before == len(frames), reason
    assert heard(world, TRUTHS) == (set(TRUTHS), set(TRUTHS))
    assert world.agent.status()["agent"]["conditions"] == []


def test_a_nic_may_serve_what_its_unit_says_and_lie_where_it_says_so(world: World) -> None:
    agent = world.agent
    edit(agent, "web.toml", guest("web", MAC, f'["{WEB}", "{WEB6}"]', 'serves = ["dhcp"]'))
    assert heard(world, LIES["dhcp"])[0] == set(LIES["dhcp"])
    assert heard(world, LIES["ra"])[0] == set()
    edit(agent, "web.toml", guest("web", MAC, f'["{WEB}", "{WEB6}"]', "anti-spoof = false"))
    for frames in LIES.values():
        assert heard(world, frames)[0] == set(frames)
    edit(agent, "net.toml", NETWORK + 'dhcp = { range = ["192.168.0.150", "192.168.0.160"] }\n')
    for reason, frames in LIES.items():
        assert heard(world, frames)[0] == (set() if reason in {"ra", "dhcp"} else set(frames)), reason
    unnamed = guest("web", MAC, f'"{WEB}"', "anti-spoof = true").replace(f'address = "{WEB}"\n', "")
    edit(agent, "web.toml", unnamed)
    for reason in ("mac", "ipv4"):
        assert heard(world, LIES[reason])[0] == (set() if reason == "mac" else set(LIES[reason])), reason


def test_whatever_is_done_to_the_tables_is_undone_and_what_was_counted_stays(world: World) -> None:
    agent = world.agent
    for _ in range(20):
        heard(world, LIES["mac"])
    counted = 20 * len(LIES["mac"])
    wait_for(lambda: series(agent, "web", "mac") == counted)
    faults = (
        ["flush", "ruleset"],
        ["delete", "table", "bridge", "vmhost"],
        ["delete", "table", "inet", "vmhost_filter"],
        ["delete", "element", "bridge", "vmhost", "mac", '{ "web-lan" }'],
        ["insert", "rule", "bridge", "vmhost", "ingress", "accept"],
        ["flush", "chain", "bridge", "vmhost", "ingress"],
    )
    for fault in faults:
        began = time.perf_counter()
        subprocess.run(["nft", *fault], check=True, timeout=20)
        wait_for(is_filtered)
        print(f"{fault}: {(time.perf_counter() - began) * 1000:.0f} ms")
        wait_for(lambda: heard(world, LIES["mac"]) == (set(), set()))
        agent.vmhost("wait", "settled", "--timeout", "60")
    assert agent.metric('vmhost_repairs_total{kind="filters",reason="missing"}') > 0
    assert series(agent, "web", "mac") >= counted
    more = dropped("mac")
    wait_for(lambda: series(agent, "web", "mac") >= counted + more)


def is_filtered() -> bool:
    """Whether web's tap is in the table."""
    done = subprocess.run(
        ["nft", "list", "set", "bridge", "vmhost", "mac"], capture_output=True, check=False, timeout=20
    )
    return b"web-lan" in done.stdout


def series(agent: AgentProcess, vm: str, reason: str) -> float:
    """What the metric says of a guest's NIC."""
    name = f'vmhost_filtered_packets_total{{nic="lan",reason="{reason}",vm="{vm}"}} '
    return next((float(line.removeprefix(name)) for line in agent.metrics().splitlines() if line.startswith(name)), -1)


def test_dhcp_neither_leaves_nor_enters_by_a_port(world: World) -> None:
    agent = world.agent
    served = NETWORK + 'ports = ["up0"]\ndhcp = { range = ["192.168.0.150", "192.168.0.160"]'
    ask, offer = TRUTHS["discover"], ipv4(OTHER, "192.168.0.77", "255.255.255.255", UDP, udp(67, 68, b"x"))
    frames = {"ask": ask, "offer": offer, "other": TRUTHS["packet"]}
    with Box("up0") as outside:
        for more, passes in ((" }\n", False), (", ports = true }\n", True)):
            edit(agent, "net.toml", served + more)
            wait_for(lambda: "master br-a" in ip_output("link show up0"))
            outside.ask("hear_frames")
            world.web.ask("send_frames", [frames["ask"].hex(), END.hex()])
            assert (ask.hex() in outside.ask("heard_frames", END.hex(), 5.0)) is passes
            world.db.ask("hear_frames")
            outside.ask("send_frames", [frames["offer"].hex(), frames["ask"].hex(), END.hex()])
            found = world.db.ask("heard_frames", END.hex(), 5.0)
            assert (offer.hex() in found, ask.hex() in found) == (passes, passes)
            for id_, free in ((20, True), (1, passes)):  # a packet socket shows them without their tags
                inside_out, outside_in = (one[:12] + struct.pack("!HH", 0x8100, id_) + one[12:] for one in (ask, offer))
                outside.ask("hear_frames")
                world.web.ask("send_frames", [inside_out.hex(), END.hex()])
                assert (ask.hex() in outside.ask("heard_frames", END.hex(), 5.0)) is free, id_
                world.db.ask("hear_frames")
                outside.ask("send_frames", [outside_in.hex(), END.hex()])
                assert (offer.hex() in world.db.ask("heard_frames", END.hex(), 5.0)) is free, id_


LISTS = f"""allow = ["22/tcp", "80/udp from {DB}", "icmp", "80-90/tcp to 192.168.0.0/24", "80/udp to 0.0.0.0/0"]
deny = ["icmp from {DB}", "81/tcp to {HOST}"]
"""


@pytest.mark.parametrize("held", ["anti-spoof = true", "anti-spoof = false"])
def test_lists_are_for_what_is_begun_and_answers_pass(world: World, held: str) -> None:
    web, db = world.web, world.db
    for port in (22, 80):
        for proto in ("tcp", "udp"):
            web.serve(port, "web", proto)
            db.serve(port, "db", proto)
    edit(world.agent, "web.toml", guest("web", MAC, f'["{WEB}", "{WEB6}"]', f"{held}\n{LISTS}"))
    with HostServer(80), HostServer(81):
        for netfilter in ("0", "1"):
            call_netfilter(netfilter)
            assert db.hear(WEB, 22) == f"web {DB}"
            assert db.hear(WEB6, 22) == f"web {DB6}"
            assert db.hear(WEB, 80, timeout_s=0.2) is None
            assert db.hear(WEB6, 80, timeout_s=0.2) is None
            assert db.hear(WEB, 80, "udp") == f"web {DB}"
            assert db.hear(WEB, 22, "udp", 0.2) is None
            assert web.hear(DB, 80) == f"db {WEB}"
            assert web.hear(DB, 22, timeout_s=0.2) is None
            assert web.hear(DB6, 80, timeout_s=0.2) is None
            assert web.hear(DB, 80, "udp") == f"db {WEB}"
            assert web.hear(DB, 22, "udp", 0.2) is None
            assert web.hear(HOST, 80) == f"host {WEB}"
            assert web.hear(HOST, 81, timeout_s=0.2) is None
            assert asks(WEB, 22) == "web"
            assert is_silent(WEB, 80)
            assert not db.ask("pings", WEB, 0.3)
            assert box.pings(WEB, 10.0)
    wait_for(lambda: series(world.agent, "web", "deny") > 0)


def test_a_published_port_is_begun_from_outside(world: World) -> None:
    agent, web = world.agent, world.web
    for port in (80, 22):
        web.serve(port, "web")
    with Box("up0", addresses=(f"{STRANGER}/24",)) as stranger:
        ip("addr add 198.51.100.1/24 dev up0")
        stranger.serve(443, "stranger")
        stranger.serve(80, "stranger")
        unit = guest("web", MAC, f'["{WEB}", "{WEB6}"]', "%s")
        unit = unit.replace("after =", 'publish = ["8080:80", "22"]\nafter =')
        edit(agent, "web.toml", unit % "")
        assert stranger.hear("198.51.100.1", 8080) == f"web {STRANGER}"
        assert stranger.ask("open_stream", "198.51.100.1", 22).startswith("web")
        edit(agent, "web.toml", unit % f'allow = ["80/tcp from {STRANGER}", "443/tcp to 0.0.0.0/0"]')
        assert stranger.hear("198.51.100.1", 8080) == f"web {STRANGER}"
        assert stranger.hear("198.51.100.1", 22, timeout_s=0.3) is None
        assert stranger.ask("stream_lives", 22)
        assert is_silent(WEB, 80)
        assert is_silent("198.51.100.1", 8080)
        assert web.hear(STRANGER, 443) == "stranger 198.51.100.1"
        assert web.hear(STRANGER, 80, timeout_s=0.3) is None
        edit(agent, "web.toml", unit % f'deny = ["from {STRANGER}"]')
        assert stranger.hear("198.51.100.1", 8080, timeout_s=0.3) is None
        assert asks(WEB, 80) == "web"


class HostServer:
    """The host answers on a TCP port."""

    def __init__(self, port: int) -> None:
        self._listening = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        threading.Thread(target=self._answer, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                taker, who = self._listening.accept()
                with taker:
                    taker.sendall(f"host {who[0].removeprefix('::ffff:')}".encode())


def asks(host: str, port: int, timeout_s: float = 10.0) -> str | None:
    """What answers this host, without the address that it was asked from."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout_s) as asking:
        asking.shutdown(socket.SHUT_WR)
        return asking.recv(100).decode().partition(" ")[0]
    return None


def is_silent(host: str, port: int) -> bool:
    """Whether nobody answers this host for a while."""
    return asks(host, port, 0.3) is None


def isolated(tap: str) -> bool | None:
    """Whether a tap is isolated on a bridge; None where it is on none."""
    words = ["bridge", "-j", "-d", "link", "show", "dev", tap]
    done = subprocess.run(words, capture_output=True, check=False, timeout=20)
    ports = [one for one in json.loads(done.stdout or "[]") if one.get("ifname") == tap and "isolated" in one]
    return ports[0]["isolated"] if ports else None


def test_isolation_is_kept_whatever_happens_to_taps_and_bridges(agent: AgentProcess) -> None:
    nic = '[vm.{0}.nic.lan]\nbridge = "br-a"\ntap = "{0}-lan"\nisolated = {1}\n'
    agent.drop("net.toml", NETWORK)
    for name in ("one", "two"):
        agent.drop(f"{name}.toml", bare_vm(name, nic.format(name, "true")))
    agent.start()
    assert (isolated("one-lan"), isolated("two-lan")) == (True, True)
    assert '"change-link"' not in Path(agent.folder, "agent.log").read_text()  # they were from the first moment on
    for fault in (
        "bridge link set dev one-lan isolated off",
        "ip link set one-lan nomaster",
        "ip link del one-lan",
        "ip link set one-lan name other",
        "ip link del br-a",
        "ip link set br-a type bridge no_linklocal_learn 0",
    ):
        subprocess.run(fault.split(), check=True, timeout=20)
        wait_for(lambda: isolated("one-lan") and isolated("two-lan"))
        agent.vmhost("wait", "settled", "--timeout", "60")
        assert look_at_settings([conf("one-lan", "disable_ipv6")]) == {conf("one-lan", "disable_ipv6"): 1}
    wait_for(lambda: "no_linklocal_learn 1" in ip_output("-d link show br-a"))
    edit(agent, "one.toml", bare_vm("one", nic.format("one", "false")))
    assert (isolated("one-lan"), isolated("two-lan")) == (False, True)
    agent.kill()
    subprocess.run(["bridge", "link", "set", "dev", "two-lan", "isolated", "off"], check=True, timeout=20)
    agent.start()
    assert (isolated("one-lan"), isolated("two-lan")) == (False, True)
    assert agent.metric('vmhost_repairs_total{kind="tap",reason="settings"}') > 0


GUEST_MAC, GUEST6 = "de:ad:be:ef:02:00", "fd00:77::10"


def test_a_real_guest_that_lies_is_not_heard(agent: AgentProcess, boot_files: str) -> None:
    agent.drop("net.toml", f'[bridge.{BRIDGE_LINK}]\naddresses = ["10.77.0.1/24", "fd00:77::1/64"]\n')
    agent.drop(
        "web.toml",
        f'[vm.web]\nmemory = "128M"\naccel = "tcg"\n{boot_files}[vm.web.nic.lan]\nbridge = "{BRIDGE_LINK}"\n'
        f'tap = "web-lan"\nmac = "{GUEST_MAC}"\naddress = ["{GUEST}", "{GUEST6}"]\n',
    )
    agent.start()
    answers_within(GUEST, 180.0, BRIDGE_LINK)
    boot = uptime(GUEST).boot
    run_in_guest(GUEST, f"ip addr add {GUEST6}/64 dev eth0")
    wait_for(lambda: "1 packets received" in run_in_guest(GUEST, "ping -6 -c 1 -W 2 fd00:77::1"))
    offer = ipv4(GUEST_MAC, GUEST, "255.255.255.255", UDP, udp(67, 68, b"lie"))
    lies = {
        "ipv4": "ip addr add 10.77.0.66/24 dev eth0; ping -c 1 -W 1 -I 10.77.0.66 10.77.0.1; "
        "ip addr del 10.77.0.66/24 dev eth0",
        "ipv6": "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad; "
        "ip addr add fd00:77::66/64 dev eth0; ping -6 -c 1 -W 1 -I fd00:77::66 fd00:77::1; "
        "ip addr del fd00:77::66/64 dev eth0",
        "dhcp": f"echo {offer.hex()} | send-frames eth0",
        "ra": f"echo {router(GUEST_MAC, link_local(GUEST_MAC)).hex()} | send-frames eth0",
        "mac": "ip link set eth0 address 02:00:00:00:66:66; ping -c 1 -W 1 10.77.0.1; "
        f"ip link set eth0 address {GUEST_MAC}",
    }
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as host:
        host.bind((BRIDGE_LINK, 0))
        for reason, lie in lies.items():
            before = dropped(reason)
            tell_guest(GUEST, f"({lie}) >/dev/null 2>&1 &")
            deadline = time.monotonic() + 60
            while dropped(reason) == before:
                assert time.monotonic() < deadline, reason
                time.sleep(0.05)
        answers_within(GUEST, 60.0, BRIDGE_LINK)
        heard = frames_of(host)
    own = GUEST_MAC.replace(":", "")
    assert {frame[12:24] for frame in heard} == {own}
    senders = {frame[52:60] for frame in heard if frame[24:28] == "0800"}
    assert senders == {"0a4d000a"}
    assert not [frame for frame in heard if "0a4d0042" in frame or "00000066" in frame or "006c6965" in frame]
    assert not [frame for frame in heard if frame[24:28] == "86dd" and (frame[40:42], frame[108:110]) == ("3a", "86")]
    assert uptime(GUEST).boot == boot


def frames_of(hearing: socket.socket) -> list[str]:
    """What has come so far."""
    hearing.setblocking(False)
    found: list[str] = []
    with contextlib.suppress(BlockingIOError):
        while True:
            frame, (_, _, kind, *_) = hearing.recvfrom(65536)
            if kind != socket.PACKET_OUTGOING:
                found.append(frame.hex())
    return found
