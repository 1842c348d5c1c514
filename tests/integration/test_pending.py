"""What an edit cannot change in a running guest is applied by the guest's own reboot, by its operator, or at once."""

from __future__ import annotations

import socket
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST, bare_vm
from tests.integration.waiting import wait_for
from tests.netns import ip_output
from tests.probe import UPTIME_PORT, answers_within, run_in_guest, tell_guest, uptime

BOOT_S = 300.0
"""An emulated guest that reboots needs up to 15 seconds of a CPU, of which a busy machine gives it a tenth."""
HEADS = {"plain": 'restart = "never"', "new": 'restart = "never"\ncpus = 2'}


class Web:
    """A guest that answers on TCP, with its unit in two versions that differ in what needs a restart."""

    def __init__(self, agent: AgentProcess, boot_files: str) -> None:
        self.agent = agent
        self._boot = boot_files
        agent.drop("net.toml", BRIDGE)
        self.edit("plain")
        agent.start()
        answers_within(GUEST, BOOT_S, BRIDGE_LINK)

    def edit(self, version: str, policy: str = "never") -> None:
        """Write the unit."""
        head = HEADS[version].replace("never", policy)
        nic = '[vm.web.nic.lan]\nbridge = "br-test"\n'
        self.agent.drop("web.toml", f'[vm.web]\nmemory = "128M"\naccel = "tcg"\n{self._boot}{head}\n{nic}')

    def record(self) -> dict[str, Any]:
        """What the agent wrote down of its launch."""
        return tomllib.loads((self.agent.run_dir / "vms/web/launch.toml").read_text())

    def wait_armed(self, armed: bool = True) -> None:
        """Wait until a reboot applies what waits, or is a plain one."""
        wait_for(lambda: bool(self.agent.vm("web")["pending"]) is armed)
        self.agent.vmhost("wait", "settled", "--timeout", "60")
        assert self.record()["reboot_ends"] is armed

    def reboots(self, command: str = "reboot -f") -> bool:
        """Have the guest reboot and wait until it is back; whether it is the same QEMU."""
        pid, boot = self.agent.vm("web")["pid"], uptime(GUEST).boot
        tell_guest(GUEST, command)
        self.wait_other_boot(boot)
        return bool(self.agent.vm("web")["pid"] == pid)

    def wait_other_boot(self, boot: str) -> None:
        """Wait until the guest has booted again."""
        wait_for(lambda: boot_of_guest() not in ("", boot), BOOT_S, lambda: f"boot {boot_of_guest()!r}, was {boot!r}")

    def cpus(self) -> str:
        """How many processors the guest sees."""
        return run_in_guest(GUEST, "grep -c ^processor /proc/cpuinfo").strip()


def boot_of_guest() -> str:
    """The guest's boot, empty while it does not answer.

    Who takes the connection may be slow to answer, so it is waited for: as long as the guest's kernel says each second
    that it knows of the connection, which one that has booted again does not. With a twentieth of a CPU a guest seldom
    answers within half a second, and has the more to do the more often it is asked anew.
    """
    try:
        with socket.create_connection((GUEST, UPTIME_PORT), 1.0) as asking:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 5)):
                asking.setsockopt(socket.IPPROTO_TCP, option, value)
            asking.settimeout(30.0)
            said = b"".join(iter(partial(asking.recv, 4096), b""))
    except OSError:
        return ""
    return said.decode().partition("boot=")[2].strip()


@pytest.fixture
def web(agent: AgentProcess, boot_files: str) -> Web:
    return Web(agent, boot_files)


def test_a_reboot_applies_what_waits_and_is_no_end(web: Web) -> None:
    web.edit("new")
    web.wait_armed()
    assert web.cpus() == "1"
    assert not web.reboots()
    assert web.cpus() == "2"
    web.agent.vmhost("wait", "in-sync", "--timeout", "60")
    vm = web.agent.vm("web")
    assert (vm["pending"], vm["restarts"], vm["digest"]) == ([], 0, vm["digest_wanted"])
    assert 'vmhost_vm_exits_total{reason="guest_reset",vm="web"} 1.0' in web.agent.metrics()
    assert web.reboots(), "with nothing pending a reboot is one of the same QEMU"

    web.edit("plain")
    web.wait_armed()
    web.edit("new")
    web.wait_armed(False)
    assert web.reboots(), "neither after the edit was taken back"


def test_a_guest_that_switches_itself_off_stays_off_also_with_something_pending(web: Web) -> None:
    web.edit("new", "on-failure")
    web.wait_armed()
    tell_guest(GUEST, "poweroff -f")
    wait_for(lambda: web.agent.vm("web")["state"] == "off")
    web.agent.vmhost("wait", "settled", "--timeout", "60")
    assert web.agent.vm("web")["pid"] is None
    web.agent.vmhost("start", "web")
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    assert web.cpus() == "2"


@pytest.mark.parametrize("command", ["reboot -f", "poweroff -f"])
def test_a_killed_agent_leaves_a_trace_of_what_the_guest_did(web: Web, command: str) -> None:
    web.edit("new", "on-failure")
    web.wait_armed()
    boot = uptime(GUEST).boot
    web.agent.kill()
    tell_guest(GUEST, command)
    wait_for(lambda: not boot_of_guest(), BOOT_S)
    web.agent.start(settle=False)
    if command.startswith("reboot"):
        web.wait_other_boot(boot)
        assert web.cpus() == "2"
    else:
        web.agent.vmhost("wait", "settled", "--timeout", "60")
        wait_for(lambda: web.agent.vm("web")["state"] == "off")  # it answers no more a moment before its QEMU ends
        web.agent.vmhost("wait", "settled", "--timeout", "60")
        assert (web.agent.vm("web")["state"], web.agent.vm("web")["pid"]) == ("off", None)


def test_an_agent_that_ends_leaves_guests_that_reboot_as_ever(web: Web) -> None:
    web.edit("new")
    web.wait_armed()
    boot = uptime(GUEST).boot
    assert web.agent.terminate() == 0
    tell_guest(GUEST, "reboot -f")
    web.wait_other_boot(boot)
    assert web.cpus() == "1"
    web.agent.start()
    web.wait_armed()
    assert not web.reboots()
    assert web.cpus() == "2"


def test_a_held_guest_reboots_as_ever_until_it_is_released(web: Web) -> None:
    web.edit("new")
    web.wait_armed()
    web.agent.vmhost("hold", "web")
    web.agent.vmhost("wait", "settled", "--timeout", "60")
    assert web.record()["reboot_ends"] is False
    assert web.reboots()
    web.agent.vmhost("release", "web")
    web.wait_armed()
    assert web.cpus() == "1"


def test_an_mtu_that_the_guest_does_not_know_yet_is_told(web: Web) -> None:
    pid = web.agent.vm("web")["pid"]
    path = web.agent.units / "web.toml"
    web.agent.drop("web.toml", path.read_text() + "mtu = 1400\n")
    wait_for(lambda: "mtu 1400" in _link(web.agent))
    web.wait_armed()
    (change,) = web.agent.vm("web")["pending"]
    assert (change["key"], change["from"], change["to"]) == ("nic.lan.mtu", "1500", "1400")
    web.agent.kill()
    web.agent.start()
    assert [one["key"] for one in web.agent.vm("web")["pending"]] == ["nic.lan.mtu"]
    assert web.agent.vm("web")["pid"] == pid
    assert not web.reboots()
    assert run_in_guest(GUEST, "cat /sys/class/net/eth0/mtu").strip() == "1400"
    web.agent.vmhost("wait", "in-sync", "--timeout", "60")
    assert web.agent.vm("web")["pending"] == []


def _link(agent: AgentProcess) -> str:
    return ip_output(f"link show {agent.vm('web')['nics'][0]['tap']}")


def test_apply_restart_restarts_one_at_once_and_asks_before_it_restarts_many(agent: AgentProcess) -> None:
    names = [f"g{number}" for number in range(5)]

    def drop(name: str, memory: str) -> None:
        agent.drop(f"{name}.toml", bare_vm(name, 'apply = "restart"').replace("32M", memory))

    for name in names:
        drop(name, "32M")
    agent.start()
    before = {vm["name"]: vm["pid"] for vm in agent.status()["vms"]}
    drop("g0", "48M")
    wait_for(lambda: agent.vm("g0")["pid"] not in (None, before["g0"]))
    agent.vmhost("wait", "in-sync", "--timeout", "60")

    for name in names[1:]:
        drop(name, "64M")
    wait_for(lambda: agent.status()["agent"]["approvals"])
    agent.vmhost("wait", "settled", "--timeout", "60")
    status = agent.status()
    now = {vm["name"]: vm["pid"] for vm in status["vms"]}
    (approval,) = status["agent"]["approvals"]
    asked = approval["guests"]
    assert {name: now[name] for name in asked} == {name: before[name] for name in asked}
    assert len(asked) >= 2
    agent.vmhost("approve", approval["id"])
    agent.vmhost("wait", "in-sync", "--timeout", "60")
    after = {vm["name"]: vm["pid"] for vm in agent.status()["vms"]}
    assert not set(before.values()) & set(after.values())
    assert agent.status()["agent"]["approvals"] == []


def test_plan_tells_the_cost_before_the_edit(agent: AgentProcess, tmp_path: Path) -> None:
    agent.drop("web.toml", bare_vm("web"))
    agent.start()
    edited = tmp_path / "web.toml"
    edited.write_text(bare_vm("web").replace("32M", "48M"))
    done = agent.command("plan", str(edited))
    cost = "restart: down until it has stopped (at most 1 s) and booted again"
    assert (
        f'vm/web: memory is "32M", its unit says "48M"; its own reboot or `vmhost restart web` applies it ({cost})'
        in (done.stdout)
    )
    edited.write_text(bare_vm("web", 'apply = "restart"').replace("32M", "48M"))
    rows = [line.split()[:3] for line in agent.command("plan", str(edited)).stdout.splitlines()]
    assert ["now", "restart", "vm/web"] in rows
