"""Each key that the table of effects calls live, edited beneath one running guest, which stays what it is."""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from agent.core.edits.effects import EFFECTS, Effect
from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST
from tests.integration.monitor import on_monitor
from tests.integration.waiting import ip_links, wait_for
from tests.netns import ip, ip_output
from tests.probe import answers_within, run_in_guest, uptime

BOOT_S = 180.0
OF_VLANS = {
    *(("nic", key) for key in ("vlan", "trunk", "native")),
    *(("vlan", key) for key in ("link", "id", "addresses")),
    *(("host-vlan", key) for key in ("addresses", "name")),
    ("bridge", "vlan"),
}
"""They need a kernel that has VLANs: tests/vlan/test_live.py."""
OF_SERVICES = {("vm", key) for key in ("cpu-weight", "cpu-quota", "io-weight", "tasks")}
"""Properties of a guest's service, which a guest has under systemd only: tests/lab/test_limits.py."""
BASE: Mapping[str, Mapping[str, str]] = {
    "bridge.br-other": {},
    "bridge.br-third": {},
    "vm.web": {"memory": '"160M"', "accel": '"tcg"', "max-cpus": "2"},
    "vm.web.disk.data": {"path": '"{folder}/data.raw"', "size": '"64M"'},
    "vm.web.disk.cd": {"media": '"cdrom"', "bus": '"virtio"'},
    "vm.web.nic.lan": {"bridge": '"br-test"'},
    "vm.web.nic.dmz": {"bridge": '"br-other"'},
}
TABLES = {
    "bridge": "bridge.br-other",
    "vm": "vm.web",
    "disk": "vm.web.disk.data",
    "cdrom": "vm.web.disk.cd",
    "nic": "vm.web.nic.dmz",
}


class Web:
    """The guest, its agent, and its unit as it is by now."""

    def __init__(self, agent: AgentProcess, boot_files: str) -> None:
        self.agent = agent
        self._boot = boot_files
        self._tables = {table: dict(keys) for table, keys in BASE.items()}
        (agent.folder / "one.iso").write_bytes(b"A" * 400 * 1024)
        agent.drop("net.toml", BRIDGE)
        ip("link add uplink type veth peer name far", "link set uplink up")
        self.write()
        agent.start()
        answers_within(GUEST, BOOT_S, BRIDGE_LINK)
        self.says("load-drivers cdrom")
        self.pid, self.boot_id = agent.vm("web")["pid"], uptime(GUEST).boot

    def write(self) -> None:
        """Write the unit anew."""
        text = ""
        for table, keys in self._tables.items():
            lines = "".join(f"{key} = {value}\n" for key, value in keys.items())
            text += f"[{table}]\n{lines}{self._boot if table == 'vm.web' else ''}".replace(
                "{folder}", f"{self.agent.folder}"
            )
        self.agent.drop("web.toml", text)

    def edit(self, table: str, key: str, value: str) -> None:
        """Change one key, and wait until everything is as the unit says, but for what waits for a restart."""
        self._tables.setdefault(TABLES.get(table, table), {})[key] = value
        self.write()
        self.agent.vmhost("wait", "settled", "--timeout", "110")

    def says(self, command: str) -> str:
        """What a command in the guest prints."""
        return run_in_guest(GUEST, command, 30.0).strip()

    def runs_with(self, field: str) -> Any:
        """What the guest is to be like by now, as its launch record has it."""
        return tomllib.loads((self.agent.run_dir / "vms/web/launch.toml").read_text())["spec"].get(field)

    def nic(self) -> dict[str, Any]:
        """The second NIC, as `vmhost status` has it."""
        return next(nic for nic in self.agent.vm("web")["nics"] if nic["name"] == "dmz")

    def limit(self, name: str) -> int:
        """A limit of the disk, as QEMU has it."""
        blocks = on_monitor(self.agent, "query-block")
        return next(int(one["inserted"][name]) for one in blocks if "data" in f"{one.get('qdev')}")

    def dnsmasq(self, file: str) -> str:
        """A file that the bridge's dnsmasq runs with; empty without one that serves."""
        bridge = self.agent.told("bridges", "br-other")
        directory = self.agent.run_dir / "services/dnsmasq-br-other"
        return (directory / file).read_text() if any(one["running"] for one in bridge["services"]) else ""

    def conditions(self) -> str:
        """What is told of the bridge."""
        bridge = self.agent.told("bridges", "br-other")
        return " ".join(one["message"] for one in bridge["conditions"])

    def balloon_mib(self) -> int:
        """How much memory the guest has left, as QEMU has it."""
        return int(on_monitor(self.agent, "query-balloon")["actual"]) >> 20


@dataclass(frozen=True, slots=True)
class Proof:
    """A value that a key is edited to, and what is so only once it is taken over."""

    value: str
    holds: Callable[[Web], object]


def nft_table() -> str:
    """The firewall's table, empty as long as there is none."""
    command = ["nft", "list", "table", "inet", "vmhost"]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout


def filter_set(name: str) -> str:
    """A set of the filters, empty as long as there is none."""
    command = ["nft", "list", "set", "bridge", "vmhost", name]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout


def kept(field: str, value: str, expected: object) -> Proof:
    """Of a policy, which counts later: the guest's record has it."""
    return Proof(value, lambda web: web.runs_with(field) == expected)


def of_link(value: str, link: str, words: str) -> Proof:
    """Of a link: the kernel says so."""
    return Proof(value, lambda _: words in ip_output(f"-d address show dev {link}"))


PROOFS: Mapping[tuple[str, str], Proof] = {
    ("bridge", "ports"): of_link('["uplink"]', "uplink", "master br-other"),
    ("bridge", "addresses"): of_link('["10.78.0.1/24"]', "br-other", "inet 10.78.0.1/24"),
    ("bridge", "mac"): of_link('"02:00:00:00:99:99"', "br-other", "ether 02:00:00:00:99:99"),
    ("bridge", "mtu"): of_link("1400", "br-other", "mtu 1400"),
    ("bridge", "stp"): of_link("true", "br-other", "stp_state 1"),
    ("bridge", "gateway"): Proof(
        '"10.78.0.254"', lambda _: "10.78.0.254 dev br-other" in ip_output("route show default")
    ),
    ("bridge", "routes"): Proof(
        '[{ to = "10.9.0.0/16", via = "10.78.0.253", metric = 7 }]',
        lambda _: "via 10.78.0.253 dev br-other proto 119 metric 7" in ip_output("route show 10.9.0.0/16"),
    ),
    ("bridge", "nat"): Proof("true", lambda _: '"br-other" . 10.78.0.0/24' in nft_table()),
    ("bridge", "dhcp"): Proof(
        '{ range = ["10.78.0.100", "10.78.0.110"] }', lambda web: "10.78.0.110" in web.dnsmasq("dnsmasq.conf")
    ),
    ("bridge", "dns"): Proof("true", lambda web: "port=0" not in web.dnsmasq("dnsmasq.conf")),
    ("bridge", "ipv6"): Proof('"ndp-proxy"', lambda _: "inet6 fe80::1/64" in ip_output("addr show dev br-other")),
    ("bridge", "uplink"): Proof('"far"', lambda web: "far, its uplink, has no IPv6 address" in web.conditions()),
    ("vm", "cpus"): Proof("2", lambda web: "cpu1" in web.says("ls /sys/devices/system/cpu")),
    ("vm", "balloon"): Proof('"128M"', lambda web: web.balloon_mib() == 128),
    ("vm", "restart"): kept("restart", '"always"', "always"),
    ("vm", "stop-timeout"): kept("stop_timeout_s", '"7s"', 7),
    ("vm", "after"): kept("after", '["path:/etc"]', ["path:/etc"]),
    ("vm", "ready"): kept("ready", '"tcp:10.77.0.10:7777"', "tcp:10.77.0.10:7777"),
    ("vm", "ready-timeout"): kept("ready_timeout_s", '"9s"', 9),
    ("vm", "description"): kept("description", '"shop"', "shop"),
    ("vm", "apply"): kept("apply", '"restart"', "restart"),
    ("vm", "fallback"): kept("fallback", "false", False),
    ("vm", "overcommit"): kept("overcommit", "true", True),
    ("disk", "size"): Proof('"96M"', lambda web: web.says("cat /sys/block/vda/size") == str(96 << 11)),
    ("disk", "iops"): Proof("100", lambda web: web.limit("iops") == 100),
    ("disk", "bandwidth"): Proof('"1M"', lambda web: web.limit("bps") == 1 << 20),
    ("cdrom", "path"): Proof('"{folder}/one.iso"', lambda web: web.says("head -c 3 /dev/sr0") == "AAA"),
    ("nic", "address"): Proof('"10.78.0.10"', lambda web: "10.78.0.10" in f"{web.nic()['address']}"),
    ("vm", "publish"): Proof('["8022:22"]', lambda _: "tcp . 8022 : 10.78.0.10 . 22" in nft_table()),
    ("nic", "serves"): Proof('["ra"]', lambda _: "web-dmz" in filter_set("dhcp") and "web-dmz" not in filter_set("ra")),
    ("nic", "isolated"): of_link("true", "web-dmz", "isolated on"),
    ("nic", "allow"): Proof('["22/tcp"]', lambda _: '"web-dmz" . tcp . 22' in filter_set("allow_from_ports4")),
    ("nic", "deny"): Proof('["to 10.9.0.0/16"]', lambda _: '"web-dmz" . 10.9.0.0/16' in filter_set("deny_to_any4")),
    ("nic", "anti-spoof"): Proof("false", lambda _: "web-dmz" not in filter_set("mac")),
    ("nic", "mtu"): of_link("1300", "web-dmz", "mtu 1300"),
    ("nic", "link"): Proof('"down"', lambda web: web.says("cat /sys/class/net/eth1/carrier") == "0"),
    ("nic", "rate-in"): Proof('"5Mbit"', lambda web: web.nic()["rate_in"] == "5Mbit"),
    ("nic", "rate-out"): Proof('"5Mbit"', lambda web: web.nic()["rate_out"] == "5Mbit"),
    ("nic", "bridge"): of_link('"br-third"', "web-dmz", "master br-third"),
    ("nic", "tap"): Proof('"shop"', lambda _: "shop" in ip_links() and "web-dmz" not in ip_links()),
}


def test_every_live_key_has_its_proof() -> None:
    live = {
        (table, key) for table, keys in EFFECTS.items() for key in keys if EFFECTS[table][key].effect is Effect.LIVE
    }
    of_uplinks = {("bridge", key) for key in ("adopt-addresses", "probe", "probe-timeout", "confirm")}  # test_uplinks
    elsewhere = OF_SERVICES | OF_VLANS | of_uplinks
    assert live == PROOFS.keys() | elsewhere | {("vm", "enabled"), ("bridge", "adopt")}


@pytest.mark.timeout(600)
def test_each_is_taken_over_by_the_guest_that_runs(agent: AgentProcess, boot_files: str) -> None:
    web = Web(agent, boot_files)
    for (table, key), proof in PROOFS.items():
        assert not proof.holds(web), f"{table}.{key} proves nothing"
        web.edit(table, key, proof.value)
        wait_for(partial(proof.holds, web), 60.0)
        seen = agent.vm("web")
        assert (seen["pid"], uptime(GUEST).boot) == (web.pid, web.boot_id), f"{table}.{key}"
        told_later = {"nic.dmz.mtu"}  # its tap has it, the guest hears of it at its next start
        assert {one["key"] for one in seen["pending"]} <= told_later, f"{table}.{key}"

    ip("link add br-foreign type bridge")
    agent.drop("foreign.toml", "[bridge.br-foreign]\n")
    wait_for(lambda: "br-foreign exists that is not ours" in agent.vmhost("status"))
    agent.drop("foreign.toml", "[bridge.br-foreign]\nadopt = true\n")
    wait_for(lambda: "vmhost:bridge/br-foreign" in ip_output("link show br-foreign"))

    web.edit("vm", "enabled", "false")
    assert agent.vm("web")["pid"] is None
    web.edit("vm", "enabled", "true")
    assert agent.vm("web")["pid"] not in {None, web.pid}
