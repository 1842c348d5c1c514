"""The whole agent where the kernel has VLANs: unit files, real QEMUs, tagged frames on the cable, damage by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent_process import AgentProcess
from tests.frames import BROADCAST
from tests.integration.conftest import agent_in_a_folder, bare_vm
from tests.integration.waiting import wait_for
from tests.netns import ip, ip_output, network_namespace
from tests.vlan.cable import Cable, Frame
from tests.vlan.carried import UNTAGGED, Carried, bridge_vlan, carried

pytestmark = pytest.mark.kernel("8021q", "bridge-vlan")

SET = Path(__file__).resolve().parents[2] / "units" / "vlan-firewall"
NET = '[bridge.br0]\nports = ["eth1"]\n[bridge.br0.vlan.10]\naddresses = ["192.0.2.1/24"]\n'
EVENT_S = 5.0
"""Far less than the half minute after which a full look finds what no event told of."""
FAR_MAC, ARP, ANSWERS_S = "02:00:00:00:00:99", 0x0806, 30.0


def vm(name: str, nic: str) -> str:
    return bare_vm(name, f'[vm.{name}.nic.lan]\nbridge = "br0"\ntap = "{name}-lan"\n{nic}')


FW, TV = vm("fw", "trunk = [10, 20]"), vm("tv", "vlan = 20")


@pytest.fixture(scope="module")
def shared() -> Iterator[AgentProcess]:
    """Two guests and the host on one cable, once for all tests: in the virtual lab they take twenty seconds to come."""
    with network_namespace(), agent_in_a_folder() as agent:
        ip("link add eth1 type veth peer name far", "link set far up")
        agent.drop("fw.toml", FW)
        agent.drop("tv.toml", TV)
        agent.drop("net.toml", NET)
        agent.start()
        yield agent


@pytest.fixture
def running(shared: AgentProcess) -> AgentProcess:
    """All of it as at first, whatever the test before has edited."""
    for name, text in {"fw.toml": FW, "tv.toml": TV, "net.toml": NET}.items():
        shared.drop(name, text)
    shared.vmhost("wait", "in-sync", "--timeout", "60")
    return shared


EXPECTED = {
    "br0": [(1, UNTAGGED), (10, ())],
    "eth1": [(1, UNTAGGED), (10, ()), (20, ())],
    "fw-lan": [(10, ()), (20, ())],
    "tv-lan": [(20, UNTAGGED)],
}


def pids(agent: AgentProcess) -> set[object]:
    return {agent.vm(name)["pid"] for name in ("fw", "tv")}


def answer_of_host(cable: Cable, asked: bytes, vlan: int | None) -> Frame | None:
    """What comes back when somebody at the cable's far end asks who has the host's address (ARP, RFC 826)."""
    mac = bytes.fromhex(FAR_MAC.replace(":", ""))
    question = bytes.fromhex("0001080006040001") + mac + bytes([192, 0, 2, 9]) + bytes(6) + asked
    cable.send(FAR_MAC, BROADCAST, ARP, question, vlan=vlan)
    while (frame := cable.receive(ARP, ANSWERS_S)) is not None:
        if frame.target == FAR_MAC:
            return frame
    return None


def test_ports_carry_what_units_ask_for_and_the_host_answers_with_its_tag(running: AgentProcess) -> None:
    assert carried() == EXPECTED
    assert all(running.vm(name)["conditions"] == [] for name in ("fw", "tv"))
    with Cable("far") as cable:
        frame = answer_of_host(cable, bytes([192, 0, 2, 1]), 10)
    assert frame is not None
    assert frame.vlan == 10


def test_edits_change_only_what_differs_and_no_guest_notices(running: AgentProcess) -> None:
    before = pids(running)
    native = vm("fw", "trunk = [10, 20]\nnative = 1")
    edits: dict[str, tuple[str, str, Carried]] = {
        "a native network": (
            "fw.toml",
            native,
            {"fw-lan": [(1, UNTAGGED), (10, ()), (20, ())]},
        ),
        "less in a trunk": ("fw.toml", vm("fw", "trunk = [20]"), {"fw-lan": [(20, ())]}),
        "another VLAN": ("tv.toml", vm("tv", "vlan = 30"), {"tv-lan": [(30, UNTAGGED)]}),
        "none any more": ("tv.toml", vm("tv", ""), {"tv-lan": [(1, UNTAGGED)]}),
        "the host's own": ("net.toml", NET.replace("vlan.10", "vlan.40"), {"br0": [(1, UNTAGGED), (40, ())]}),
    }
    for what, (file, text, then) in edits.items():
        running.drop(file, text)
        running.vmhost("wait", "in-sync", "--timeout", "60")
        now = carried()
        assert {port: now[port] for port in then} == then, what
    assert carried()["eth1"] == [(1, UNTAGGED), (20, ()), (40, ())]
    assert pids(running) == before


def link_facts(name: str) -> tuple[str, int, set[str]]:
    """A VLAN link's lower link, its VLAN, and its IPv4 addresses."""
    (link,) = json.loads(ip_output(f"-d -j link show dev {name}"))
    (said,) = json.loads(ip_output(f"-4 -j addr show dev {name}"))
    addresses = {f"{one['local']}/{one['prefixlen']}" for one in said.get("addr_info", [])}
    info: dict[str, Any] = link["linkinfo"]
    return link["link"], info["info_data"]["id"], addresses


def test_vlan_links_of_the_host_follow_their_tables(running: AgentProcess) -> None:
    ip("link add eth2 type veth peer name far2", "link add eth3 type veth peer name far3")
    before = pids(running)
    tables = {
        ("lan10", NET.replace("addresses", 'name = "lan10"\naddresses')): ("br0", 10, {"192.0.2.1/24"}),
        ("br0.10", NET.replace("192.0.2.1", "192.0.2.7")): ("br0", 10, {"192.0.2.7/24"}),
    }
    free = '[vlan.v5]\nlink = "{}"\nid = {}\naddresses = ["{}"]\n'
    for link, number, address in (
        ("eth2", 5, "198.51.100.1/24"),
        ("eth2", 6, "198.51.100.1/24"),
        ("eth3", 6, "198.51.100.1/24"),
        ("eth3", 6, "198.51.100.2/24"),
    ):
        tables["v5", NET + free.format(link, number, address)] = (link, number, {address})
    for (name, text), then in tables.items():
        running.drop("net.toml", text)
        running.vmhost("wait", "in-sync", "--timeout", "60")
        assert link_facts(name) == then, text
    assert pids(running) == before
    running.drop("net.toml", NET)
    running.vmhost("wait", "in-sync", "--timeout", "60")
    assert "v5" not in ip_output("-br link")


@pytest.mark.parametrize(
    "damage",
    [
        "vlan del dev tv-lan vid 20",
        "vlan add dev tv-lan vid 30",
        "vlan add dev eth1 vid 99",
        "link set br0 type bridge vlan_filtering 0",
        "link set tv-lan nomaster",
        "link del br0.10",
    ],
)
def test_what_a_hand_changes_is_put_right_at_once(running: AgentProcess, damage: str) -> None:
    before = pids(running)
    if damage.startswith("vlan "):
        bridge_vlan(damage.removeprefix("vlan "))
    else:
        ip(damage)
    wait_for(lambda: carried() == EXPECTED and "vlan_filtering 1" in ip_output("-d link show br0"), EVENT_S)
    wait_for(lambda: "br0.10@br0" in ip_output("-br link"), EVENT_S)
    assert pids(running) == before


def test_the_shipped_set_converges(agent: AgentProcess) -> None:
    """As it is, but for its kernels: a guest without one starts within a second here too."""
    ip("link add eth0 type veth peer name far", "link set far up")
    for unit in SET.glob("*.toml"):
        text = re.sub(r"(?m)^(kernel|initrd|append|memory) = .*\n", "", unit.read_text())
        agent.drop(unit.name, re.sub(r"(?m)^(\[vm\.[a-z]+\])$", r'\1\nmemory = "32M"\naccel = "tcg"', text))
    agent.start()
    agent.vmhost("wait", "in-sync", "--timeout", "120")
    taps = {name: {nic["name"]: nic["tap"] for nic in agent.vm(name)["nics"]} for name in ("firewall", "web", "files")}
    assert carried() == {
        "br-trunk": [(1, UNTAGGED), (10, ())],
        "eth0": [(1, UNTAGGED), (10, ()), (20, ()), (30, ())],
        taps["firewall"]["wan"]: [(30, UNTAGGED)],
        taps["firewall"]["lan"]: [(1, UNTAGGED), (10, ()), (20, ())],
        taps["web"]["dmz"]: [(20, UNTAGGED)],
        taps["files"]["lan"]: [(1, UNTAGGED)],
    }
    assert "192.168.10.2/24" in ip_output("addr show")
    assert agent.vm("firewall")["nics"][0]["mac"] == "00:0d:60:77:31:04"
