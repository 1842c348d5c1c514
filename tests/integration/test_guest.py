"""A unit file becomes a guest that boots a real Linux, and stays one: each fault, and what the guest noticed of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST
from tests.integration.monitor import run_state
from tests.integration.waiting import ip_links, wait_for
from tests.netns import ip
from tests.probe import Outage, answers_within, run_in_guest, tell_guest, uptime

BOOT_S = 180.0
HEAL_S = 30.0


@pytest.fixture
def guest(agent: AgentProcess, boot_files: str) -> AgentProcess:
    """An agent with one guest that answers on TCP."""
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", unit(boot_files))
    agent.start()
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    return agent


def unit(boot_files: str, more: str = 'restart = "on-failure"') -> str:
    return f'[vm.web]\nmemory = "128M"\naccel = "tcg"\n{boot_files}{more}\n[vm.web.nic.lan]\nbridge = "br-test"\n'


FAULTS: dict[str, Callable[[], object]] = {
    "tap deleted": lambda: ip("link del web-lan"),
    "tap out of its bridge": lambda: ip("link set web-lan nomaster"),
    "tap down": lambda: ip("link set web-lan down"),
    "tap with another MTU": lambda: ip("link set web-lan mtu 600"),
    "tap renamed": lambda: ip("link set web-lan name oops0"),
    "bridge deleted": lambda: ip("link del br-test"),
    "bridge and tap deleted": lambda: ip("link del br-test", "link del web-lan"),
    "bridge down": lambda: ip("link set br-test down"),
    "bridge's address deleted": lambda: ip("addr del 10.77.0.1/24 dev br-test"),
    "bridge's MAC changed": lambda: ip("link set br-test address 02:00:00:00:00:99"),
}


def test_each_fault_of_a_link_is_healed_in_the_same_qemu(guest: AgentProcess) -> None:
    pid, before = guest.vm("web")["pid"], uptime(GUEST)
    for name, inflict in FAULTS.items():
        with Outage(GUEST, BRIDGE_LINK) as outage:
            inflict()
            answers_within(GUEST, HEAL_S, BRIDGE_LINK)
            guest.vmhost("wait", "in-sync", "--timeout", "60")
        print(f"{name}: {outage.longest_s() * 1000:.1f} ms")
        after = uptime(GUEST)
        assert (guest.vm("web")["pid"], after.boot) == (pid, before.boot), name
        assert after.seconds >= before.seconds
    large = run_in_guest(GUEST, "cat /sys/class/net/eth0/mtu")
    assert large.strip() == "1500"
    events = guest.vmhost("events")
    for reason in ("missing", "detached", "down", "mtu", "renamed", "address", "mac"):
        assert reason in events, events


def test_three_agents_killed_and_the_guest_never_notices(guest: AgentProcess) -> None:
    pid, before = guest.vm("web")["pid"], uptime(GUEST)
    for _ in range(3):
        guest.kill()
        ip("link del web-lan")
        guest.start()
        answers_within(GUEST, HEAL_S, BRIDGE_LINK)
        assert guest.vm("web")["pid"] == pid
    after = uptime(GUEST)
    assert after.boot == before.boot
    assert after.seconds > before.seconds


def test_qemu_is_unprivileged(guest: AgentProcess) -> None:
    pid = int(guest.vm("web")["pid"])
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    uids = {int(uid) for uid in status["Uid"].split() + status["Gid"].split()}
    assert len(uids) == 1
    assert min(uids) >= 1_900_000_000
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"
    assert guest.process is not None
    priorities = [os.getpriority(os.PRIO_PROCESS, process) for process in (guest.process.pid, pid)]
    assert priorities == [-10, 0]
    assert status["Seccomp"].strip() == "2"


def test_killed_and_panicked_guests_come_back_and_a_poweroff_is_respected(guest: AgentProcess) -> None:
    ends: list[Callable[[], object]] = [
        lambda: os.kill(int(guest.vm("web")["pid"]), signal.SIGKILL),
        lambda: tell_guest(GUEST, "echo c > /proc/sysrq-trigger"),
    ]
    for end in ends:
        pid, before = guest.vm("web")["pid"], uptime(GUEST)
        end()
        wait_for_other_pid(guest, pid)
        guest.vmhost("wait", "running", "web", "--timeout", "60")
        answers_within(GUEST, BOOT_S, BRIDGE_LINK)
        assert uptime(GUEST, BOOT_S).boot != before.boot
    tell_guest(GUEST, "poweroff -f")
    guest.vmhost("wait", "stopped", "web", "--timeout", "60")
    guest.vmhost("wait", "settled", "--timeout", "60")
    assert guest.vm("web")["pid"] is None
    guest.vmhost("start", "web")
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    metrics = guest.metrics()
    for reason in ("killed", "panic", "guest_shutdown"):
        assert f'vmhost_vm_exits_total{{reason="{reason}",vm="web"}} 1.0' in metrics


def test_ends_while_no_agent_ran_are_told_apart(guest: AgentProcess) -> None:
    guest.kill()
    tell_guest(GUEST, "poweroff -f")
    wait_for(lambda: run_state(guest) == "shutdown", 60.0)  # QEMU keeps what is left
    guest.start()
    assert guest.vm("web")["pid"] is None
    assert "guest_shutdown" in guest.vmhost("events")
    guest.vmhost("start", "web")
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    pid = int(guest.vm("web")["pid"])
    guest.kill()
    os.kill(pid, signal.SIGKILL)
    guest.start()
    guest.vmhost("wait", "running", "web", "--timeout", "60")
    assert guest.vm("web")["pid"] != pid


def test_a_removed_unit_shuts_its_guest_down_gracefully_and_takes_its_tap(guest: AgentProcess) -> None:
    (guest.units / "web.toml").unlink()
    guest.vmhost("wait", "stopped", "web", "--timeout", "60")
    guest.vmhost("wait", "settled", "--timeout", "60")
    assert [vm["name"] for vm in guest.status()["vms"]] == []
    assert "web-lan" not in ip_links()
    assert "br-test" in ip_links()
    (guest.units / "net.toml").unlink()
    wait_for(lambda: "br-test" not in ip_links())


def test_stop_start_restart_reset(guest: AgentProcess) -> None:
    pid, before = guest.vm("web")["pid"], uptime(GUEST)
    guest.vmhost("reset", "web")
    wait_for(lambda: _boot() not in (before.boot, ""), BOOT_S)
    assert guest.vm("web")["pid"] == pid
    guest.vmhost("restart", "web")
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    assert guest.vm("web")["pid"] != pid
    guest.vmhost("stop", "web")
    assert guest.vm("web")["pid"] is None
    guest.kill()
    guest.start()
    assert guest.vm("web")["pid"] is None
    guest.vmhost("start", "web")
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)


def wait_for_other_pid(guest: AgentProcess, pid: int) -> None:
    wait_for(lambda: guest.vm("web")["pid"] not in (pid, None), 60.0)


def _boot() -> str:
    try:
        return uptime(GUEST, 5.0).boot
    except (OSError, KeyError, ValueError):  # it is away, or went away before it had said all
        return ""
