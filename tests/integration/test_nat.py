"""NAT and published ports through the whole agent: a stranger behind the uplink, the host, and boxes in guests' places.

The kernel is real, and so is the agent; its guests wait for a path that is never there, because what is published of a
guest does not depend on whether it runs. What answers in their stead are boxes on ports of their bridges.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST, bare_vm
from tests.integration.waiting import ip_links, wait_for
from tests.internet import Box
from tests.netns import ip, ip_output
from tests.probe import UPTIME_PORT, answers_within, run_in_guest, uptime

HOST, HOST6 = "198.51.100.1", "2001:db8:1::1"
STRANGER, STRANGER6 = "198.51.100.9", "2001:db8:1::9"
WEB, WEB6, DB, FAR = "192.168.0.100", "fd00:a::100", "192.168.0.101", "192.168.1.100"
NETWORK = """
[bridge.br-a]
addresses = ["192.168.0.1/24", "fd00:a::1/64"]
nat = true

[bridge.br-b]
addresses = ["192.168.1.1/24"]
nat = true
"""


def guest(name: str, bridge: str, addresses: str, publish: str) -> str:
    nic = f'[vm.{name}.nic.lan]\nbridge = "{bridge}"\naddress = {addresses}\n'
    return bare_vm(name, f'after = ["path:/srv/none"]\npublish = {publish}\n{nic}')


PUBLISHED = {
    "web.toml": guest("web", "br-a", f'["{WEB}", "{WEB6}"]', '["80", "1234:22", "5000-5010/udp"]'),
    "db.toml": guest("db", "br-a", f'"{DB}"', '["53/udp", "198.51.100.1:81:8080"]'),
    "far.toml": guest("far", "br-b", f'"{FAR}"', '["90:80"]'),
}


@dataclass(slots=True)
class World:
    """The host's agent, the stranger, and what stands for the guests."""

    agent: AgentProcess
    stranger: Box
    web: Box
    db: Box
    far: Box


@pytest.fixture
def world(agent: AgentProcess) -> Iterator[World]:
    with contextlib.ExitStack() as boxes:
        stranger = boxes.enter_context(
            Box("up0", addresses=(f"{STRANGER}/24", f"{STRANGER6}/64"), gateways=(HOST, HOST6))
        )
        ip(f"addr add {HOST}/24 dev up0", f"addr add {HOST6}/64 dev up0 nodad")
        ip(f"route add default via {STRANGER}")
        agent.drop("net.toml", NETWORK)
        for name, text in PUBLISHED.items():
            agent.drop(name, text)
        agent.start()
        gateways = ("192.168.0.1", "fd00:a::1")
        web = boxes.enter_context(Box("web0", addresses=(f"{WEB}/24", f"{WEB6}/64"), gateways=gateways))
        db = boxes.enter_context(Box("db0", addresses=(f"{DB}/24",), gateways=gateways[:1]))
        far = boxes.enter_context(Box("far0", addresses=(f"{FAR}/24",), gateways=("192.168.1.1",)))
        ip("link set web0 master br-a", "link set db0 master br-a", "link set far0 master br-b")
        wait_for(lambda: "tentative" not in ip_output("addr show dev br-a"))
        for port in (80, 22, 7000):
            web.serve(port, "web")
        for port in (53, 5000, 5010, 5011):
            (web if port > 53 else db).serve(port, "web" if port > 53 else "db", "udp")
        db.serve(8080, "db")
        far.serve(80, "far")
        stranger.serve(443, "stranger")
        stranger.serve(53, "stranger", "udp")
        stranger.serve(443, "stranger", "udp")
        yield World(agent, stranger, web, db, far)


def nft(*words: str) -> str:
    return subprocess.run(["nft", *words], capture_output=True, text=True, check=True, timeout=20).stdout


def table() -> str:
    with contextlib.suppress(subprocess.CalledProcessError):
        return nft("list", "table", "inet", "vmhost")
    return ""


def sysctl(name: str, value: str | None = None) -> str:
    path = Path("/proc/thread-self/root/proc/sys/net", name)
    if value is not None:
        path.write_text(value)
    return path.read_text().strip()


def conditions(agent: AgentProcess) -> str:
    status = agent.status()
    return json.dumps([status["agent"]["conditions"], *(one["conditions"] for one in status["vms"])])


def test_published_ports_are_reached_from_everywhere_and_others_are_not(world: World) -> None:
    stranger, web = world.stranger, world.web
    assert stranger.hear(HOST, 80) == f"web {STRANGER}"
    assert stranger.hear(HOST6, 80) == f"web {STRANGER6}"
    assert stranger.hear(HOST, 1234) == f"web {STRANGER}"
    assert stranger.hear(HOST, 81) == f"db {STRANGER}"
    assert stranger.hear(HOST, 90) == f"far {STRANGER}"
    assert stranger.hear(HOST, 53, "udp") == f"db {STRANGER}"
    assert stranger.hear(HOST, 5010, "udp") == f"web {STRANGER}"
    assert stranger.hear(HOST6, 5000, "udp") == f"web {STRANGER6}"
    assert stranger.hear(HOST, 5011, "udp", 0.3) is None
    assert stranger.hear(HOST, 7000, timeout_s=0.3) is None
    assert stranger.hear(HOST, 22, timeout_s=0.3) is None
    for target in (WEB, WEB6):  # the host is no open router, not for its own guests either
        assert stranger.hear(target, 7000, timeout_s=0.3) is None
    with socket.create_connection((HOST, 80), 20.0) as from_host:
        assert from_host.recv(100).decode() == f"web {HOST}"
    with socket.create_connection((HOST6, 80), 20.0) as from_host:
        assert from_host.recv(100).decode() == f"web {HOST6}"
    # Hairpin: to a neighbour, to a guest of another bridge, and to itself.
    for netfilter in ("1", "0"):
        sysctl("bridge/bridge-nf-call-iptables", netfilter)
        sysctl("bridge/bridge-nf-call-ip6tables", netfilter)
        assert (world.db.hear(HOST, 80) or "").startswith("web 192.168.0.1"), netfilter
        assert world.far.hear(HOST, 80) == "web 192.168.0.1", netfilter
        assert web.hear(HOST, 90) == "far 192.168.1.1", netfilter
        assert web.hear(FAR, 80, timeout_s=0.3) is None  # another bridge, and not what it publishes
    assert web.hear(HOST, 80) == "web 192.168.0.1"
    assert web.hear(HOST6, 80) == "web fd00:a::1"
    assert world.agent.status()["agent"]["conditions"] == []


def test_nat_is_for_the_bridges_own_subnets_and_never_for_what_is_bridged(world: World) -> None:
    web, db = world.web, world.db
    assert web.hear(STRANGER, 443) == f"stranger {HOST}"
    assert world.far.hear(STRANGER, 443) == f"stranger {HOST}"
    for netfilter in ("0", "1"):
        sysctl("bridge/bridge-nf-call-iptables", netfilter)
        assert db.hear(WEB, 80) == f"web {DB}", netfilter
        assert db.hear(WEB, 5000, "udp") == f"web {DB}", netfilter
    # A subnet that is not the bridge's is not translated, and does not leave.
    web.ask("ip", ["addr add 10.9.9.9/32 dev lo", "route replace default via 192.168.0.1 dev eth0 src 10.9.9.9"])
    nft("add", "table", "inet", "other")
    nft("add", "chain", "inet", "other", "c", "{ type filter hook postrouting priority 0; }")
    nft("add", "rule", "inet", "other", "c", "ip", "saddr", "10.9.9.9", "counter")
    for somebody_forwards in ("0", "1"):
        sysctl("ipv4/ip_forward", somebody_forwards)
        world.agent.vmhost("wait", "settled", "--timeout", "60")
        assert web.hear(STRANGER, 443, timeout_s=0.3) is None
        assert "counter packets 0 " in nft("list", "table", "inet", "other"), somebody_forwards
    # A second subnet of the same bridge is no other link.
    world.agent.drop("net.toml", NETWORK.replace('"192.168.0.1/24"', '"192.168.0.1/24", "10.5.0.1/24"'))
    db.ask("ip", ["addr add 10.5.0.7/24 dev eth0"])
    web.ask("ip", ["route replace default via 192.168.0.1 dev eth0"])
    wait_for(lambda: "10.5.0.0/24" in table())
    world.agent.vmhost("wait", "settled", "--timeout", "60")
    assert web.hear("10.5.0.7", 8080) == f"db {WEB}"


def test_whatever_is_done_to_the_rules_is_undone_and_foreign_tables_stay(world: World) -> None:
    stranger = world.stranger
    assert stranger.ask("open_stream", HOST, 80).startswith("web")
    pairs = "{ tcp . 80 : 192.168.0.100 . 80 }"
    faults: dict[str, Callable[[], object]] = {
        "flush": lambda: nft("flush", "ruleset"),
        "table": lambda: nft("delete", "table", "inet", "vmhost"),
        "element": lambda: nft("delete", "element", "inet", "vmhost", "ports4", pairs),
        "chain": lambda: nft("flush", "chain", "inet", "vmhost", "published"),
        "foreign rule": lambda: nft("insert", "rule", "inet", "vmhost", "forward", "drop"),
        "dormant": lambda: nft("add", "table", "inet", "vmhost", "{ flags dormant; }"),
        "forwarding": lambda: sysctl("ipv4/ip_forward", "1") and sysctl("ipv4/ip_forward", "0"),
    }
    for name, inflict in faults.items():
        before = table()
        inflict()
        took_s = stranger.ask("hear_again", HOST, 80, 30.0)
        print(f"{name}: {took_s * 1000:.0f} ms")
        world.agent.vmhost("wait", "settled", "--timeout", "60")
        assert strip(table()) == strip(before), name
        assert stranger.ask("stream_lives", 80), name
    nft("add", "table", "inet", "other")
    nft("add", "chain", "inet", "other", "c", "{ type filter hook input priority 5; }")
    nft("add", "rule", "inet", "other", "c", "tcp", "dport", "4", "drop")
    generation = nft("list", "table", "inet", "other")
    nft("delete", "table", "inet", "vmhost")
    wait_for(table)
    assert nft("list", "table", "inet", "other") == generation
    assert world.agent.metric('vmhost_repairs_total{kind="firewall",reason="missing"}') > 0


def strip(listing: str) -> list[str]:
    """A listing without what counts, and in no order: that of elements is the kernel's own."""
    words = listing.replace(",", " ").split()
    return sorted(word for word in words if not word.isdecimal())


def test_an_edit_changes_one_forward_and_ends_its_connections_only(world: World) -> None:
    agent, stranger = world.agent, world.stranger
    assert stranger.ask("open_stream", HOST, 80).startswith("web")
    assert stranger.ask("open_stream", HOST, 90).startswith("far")
    assert stranger.hear(HOST, 5000, "udp") == f"web {STRANGER}"
    world.db.serve(5000, "db", "udp")
    assert stranger.hear(HOST, 5050, "udp", 0.3) is None
    agent.drop("web.toml", guest("web", "br-a", f'["{WEB}", "{WEB6}"]', '["1234:22"]'))
    agent.drop("db.toml", guest("db", "br-a", f'"{DB}"', '["53/udp", "5000/udp", "5050:5000/udp"]'))
    wait_for(lambda: f"udp . 5000 : {DB} . 5000" in table())
    agent.vmhost("wait", "settled", "--timeout", "60")
    assert stranger.hear(HOST, 5000, "udp") == f"db {STRANGER}"  # the same flow
    assert stranger.hear(HOST, 5050, "udp") == f"db {STRANGER}"  # one that nobody answered so far
    assert not stranger.ask("stream_lives", 80)
    assert stranger.ask("stream_lives", 90)
    assert stranger.hear(HOST, 80, timeout_s=0.3) is None
    assert "elements" not in table().split("set ended4 {")[1].split("}")[0]


def test_a_restarted_agent_undoes_and_finishes_what_changed_meanwhile(world: World) -> None:
    agent, stranger = world.agent, world.stranger
    agent.kill()
    assert stranger.hear(HOST, 80) == f"web {STRANGER}"
    nft("flush", "ruleset")
    agent.drop("far.toml", guest("far", "br-b", f'"{FAR}"', '["91:80"]'))
    agent.start()
    assert stranger.hear(HOST, 80) == f"web {STRANGER}"
    assert stranger.hear(HOST, 91) == f"far {STRANGER}"
    assert stranger.hear(HOST, 90, timeout_s=0.3) is None
    for unit in ("web", "db", "far"):
        (agent.units / f"{unit}.toml").unlink()
    agent.drop("net.toml", NETWORK.replace("nat = true", "nat = false"))
    wait_for(lambda: not table())
    agent.vmhost("wait", "settled", "--timeout", "60")
    links = ("up0", "br-a", "br-b")
    assert {sysctl(f"ipv4/conf/{link}/forwarding") for link in links} == {"0"}
    assert {sysctl(f"ipv6/conf/{link}/force_forwarding") for link in links if link != "br-b"} == {"0"}


def test_whoever_is_behind_an_uplink_is_not_routed_back_there_also_if_it_is_a_bridge(agent: AgentProcess) -> None:
    uplink = f'[bridge.br-ext]\nports = ["up0", "up1"]\naddresses = ["{HOST}/24", "{HOST6}/64"]\n'
    with (
        Box("up0", addresses=(f"{STRANGER}/24", f"{STRANGER6}/64"), gateways=(HOST, HOST6)) as stranger,
        Box("up1", addresses=("198.51.100.8/24", "2001:db8:1::8/64", "203.0.113.5/32", "2001:db8:2::5/128")) as other,
    ):
        agent.drop("net.toml", NETWORK + uplink)
        agent.drop("web.toml", guest("web", "br-a", f'["{WEB}", "{WEB6}"]', '["80"]'))
        agent.start()
        ip("route add 203.0.113.5 via 198.51.100.8", "route add 2001:db8:2::5 via 2001:db8:1::8")
        other.serve(443, "other")
        for netfilter in ("0", "1"):
            sysctl("bridge/bridge-nf-call-iptables", netfilter)
            sysctl("bridge/bridge-nf-call-ip6tables", netfilter)
            wait_for(lambda: stranger.hear("198.51.100.8", 443, timeout_s=0.5) == f"other {STRANGER}")
            assert stranger.hear("2001:db8:1::8", 443) == f"other {STRANGER6}"
            for target in ("203.0.113.5", "2001:db8:2::5"):
                assert stranger.hear(target, 443, timeout_s=0.3) is None, (netfilter, target)


def test_a_link_that_was_opened_is_guarded_and_closed_whatever_its_name_is_by_now(agent: AgentProcess) -> None:
    """Else the host would be a router for whoever is behind it."""
    ip("link add up0 type veth peer name up1", f"addr add {HOST}/24 dev up0", "link set up0 up", "link set up1 up")
    agent.drop("net.toml", NETWORK)
    agent.start()

    def is_guarded(name: str) -> bool:
        return f'"{name}"' in table().split("set opened4")[1].split("}")[0]

    def rename(old: str, new: str) -> None:
        ip(f"link set {old} down", f"link set {old} name {new}", f"link set {new} up")

    assert is_guarded("up0")
    rename("up0", "wan0")
    wait_for(lambda: is_guarded("wan0") and not is_guarded("up0"))
    agent.kill()
    rename("wan0", "wan1")
    agent.start()
    assert is_guarded("wan1")
    agent.kill()
    shutil.rmtree(agent.folder / "state")
    agent.start()
    assert is_guarded("wan1")
    assert sysctl("ipv4/conf/wan1/forwarding") == "1"
    agent.drop("net.toml", NETWORK.replace("nat = true", ""))
    wait_for(lambda: not table())
    agent.vmhost("wait", "settled", "--timeout", "60")
    assert sysctl("ipv4/conf/wan1/forwarding") == "0"


def test_a_port_that_a_process_of_the_host_has_is_told_with_its_name_and_left_to_it(world: World) -> None:
    agent, stranger = world.agent, world.stranger
    with socket.create_server(("0.0.0.0", 8000)) as holder:
        agent.drop("far.toml", guest("far", "br-b", f'"{FAR}"', '["90:80", "8000:80"]'))
        wait_for(lambda: "PortTaken" in conditions(agent))
        told = re.search(r"8000:80/tcp is not published: (\S+ \(pid \d+\)) has that port", conditions(agent))
        assert told is not None
        assert told[1].endswith(f" (pid {os.getpid()})")
        assert agent.vm("far")["in_sync"] is False
        holder.setblocking(False)
        assert stranger.hear(HOST, 90) == f"far {STRANGER}"
    wait_for(lambda: stranger.hear(HOST, 8000, timeout_s=2.0) == f"far {STRANGER}", 90.0)
    agent.vmhost("wait", "settled", "--timeout", "60")


def test_without_nft_it_is_told_which_package_is_wanted_and_the_rest_goes_on(
    agent: AgentProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert not shutil.which("nft")
    agent.drop("net.toml", NETWORK)
    agent.drop("web.toml", guest("web", "br-a", f'"{WEB}"', '["80"]'))
    agent.start()
    status = agent.status()
    conditions = {one["resource"]: one for one in status["agent"]["conditions"]}
    assert conditions.keys() == {"firewall", "filters"}
    assert all(one["type"] == "FirewallUnavailable" for one in conditions.values())
    assert all("apt install nftables" in one["message"] for one in conditions.values())
    assert {one["name"]: one["in_sync"] for one in status["bridges"]} == {"br-a": False, "br-b": False}
    assert {"br-a", "br-b"} <= ip_links()


def test_a_real_guest_is_reached_reaches_out_and_notices_nothing(agent: AgentProcess, boot_files: str) -> None:
    with Box("up0", addresses=(f"{STRANGER}/24",), gateways=(HOST,)) as stranger:
        ip(f"addr add {HOST}/24 dev up0")
        stranger.serve(443, "stranger")
        net = f"{BRIDGE}nat = true\n"
        agent.drop("net.toml", net)
        unit = (
            f'[vm.web]\nmemory = "128M"\naccel = "tcg"\n{boot_files}publish = ["{{}}"]\n'
            f'[vm.web.nic.lan]\nbridge = "{BRIDGE_LINK}"\naddress = "{GUEST}"\n'
        )
        agent.drop("web.toml", unit.format(f"80:{UPTIME_PORT}"))
        agent.start()
        answers_within(GUEST, 180.0, BRIDGE_LINK)
        pid, boot = agent.vm("web")["pid"], uptime(GUEST).boot
        assert f"boot={boot}" in (stranger.hear(HOST, 80) or "")
        ask = f"nc {STRANGER} 443 </dev/null"
        assert run_in_guest(GUEST, ask) == f"stranger {HOST}"
        nft("flush", "ruleset")
        stranger.ask("hear_again", HOST, 80, 30.0)
        assert run_in_guest(GUEST, ask) == f"stranger {HOST}"
        agent.kill()
        agent.drop("web.toml", unit.format(f"81:{UPTIME_PORT}"))
        assert f"boot={boot}" in (stranger.hear(HOST, 80) or "")
        agent.start()
        assert f"boot={boot}" in (stranger.hear(HOST, 81) or "")
        assert stranger.hear(HOST, 80, timeout_s=0.3) is None
        agent.drop("net.toml", BRIDGE)
        wait_for(
            lambda: "nat4" in table() and "inside" in table() and "10.77.0.0/24 }" not in table().split("subnets4")[0]
        )
        assert "stranger" not in run_in_guest(GUEST, f"timeout 1 {ask}")
        assert (agent.vm("web")["pid"], uptime(GUEST).boot) == (pid, boot)
        agent.vmhost("wait", "in-sync", "--timeout", "60")
