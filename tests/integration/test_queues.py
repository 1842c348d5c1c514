"""A real guest with several queues: it uses as many as it has CPUs, and no fault of its tap costs it any of them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST
from tests.integration.waiting import wait_for
from tests.netns import ip, ip_output
from tests.probe import answers_within, run_in_guest, tell_guest, uptime

BOOT_S = 180.0
HEAL_S = 30.0


def unit(boot_files: str, nic: str = "queues = 4\n") -> str:
    return (
        f'[vm.web]\nmemory = "160M"\naccel = "tcg"\ncpus = 2\n{boot_files}[vm.web.nic.lan]\nbridge = "br-test"\n{nic}'
    )


@pytest.fixture
def guest(agent: AgentProcess, boot_files: str) -> AgentProcess:
    """An agent with a guest of two CPUs and four queues."""
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", unit(boot_files))
    agent.start()
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    wait_for(lambda: host_queues() == (2, 2))
    return agent


def host_queues() -> tuple[int, int]:
    """How many queues of the tap are on, and off."""
    words = ip_output("-d link show web-lan").split()
    return int(words[words.index("numqueues") + 1]), int(words[words.index("numdisabled") + 1])


def attached_in(pid: int, tap: str = "web-lan") -> int:
    """How many descriptors of the living tap a QEMU has: with a dead one it spins."""
    infos = []
    for one in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # QEMU has closed it meanwhile: no tap's, those stay
            infos.append(one.read_text())
    return sum(f"iff:\t{tap}\n" in one for one in infos)


def guest_queues() -> list[str]:
    """The queues that the guest uses."""
    return run_in_guest(GUEST, "ls /sys/class/net/eth0/queues").split()


@pytest.mark.timeout(600)
def test_every_queue_is_healed_beneath_the_guest(guest: AgentProcess) -> None:
    used = ["rx-0", "rx-1", "tx-0", "tx-1"]
    assert guest_queues() == used
    seen, before = guest.vm("web"), uptime(GUEST)
    pid = int(seen["pid"])
    assert (seen["nics"][0]["queues"], seen["nics"][0]["vhost"]) == (4, False)
    for fault in ("beside the agent", "while no agent runs"):
        if fault == "beside the agent":
            ip("link del web-lan")
        else:
            guest.kill()
            ip("link del web-lan")
            guest.start()
        answers_within(GUEST, HEAL_S, BRIDGE_LINK)
        guest.vmhost("wait", "in-sync", "--timeout", "60")
        assert (host_queues(), attached_in(pid)) == ((2, 2), 4), fault
        assert (guest.vm("web")["pid"], uptime(GUEST).boot) == (pid, before.boot), fault
        assert guest_queues() == used
    assert "replug" not in guest.vmhost("events")
    # The driver switches queues off and on as it begins anew: QEMU aborts if one is not as it left it.
    tell_guest(GUEST, "reboot -f")
    wait_for(lambda: boot_now() not in {before.boot, ""}, BOOT_S)
    wait_for(lambda: host_queues() == (2, 2))
    assert guest.vm("web")["pid"] == pid


def boot_now() -> str:
    try:
        return uptime(GUEST, 0.5).boot
    except (OSError, KeyError):
        return ""


@pytest.mark.timeout(600)
def test_another_number_waits_for_a_restart_and_gets_another_tap(guest: AgentProcess, boot_files: str) -> None:
    guest.drop("web.toml", unit(boot_files, "vhost = true\n"))
    wait_for(lambda: bool(guest.pending("web")))
    assert guest.pending("web") == [("nic.lan.queues", "4", "1"), ("nic.lan.vhost", "false", "true")]
    guest.vmhost("restart", "web")
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    assert guest.pending("web") == []
    assert "multi_queue" not in ip_output("-d link show web-lan")
    assert guest_queues() == ["rx-0", "tx-0"]
    if not Path("/dev/vhost-net").exists():
        assert "lan goes without vhost-net, which is slower: /dev/vhost-net: No such file" in guest.vmhost("status")


@pytest.mark.timeout(600)
def test_a_nic_of_several_queues_is_plugged_and_taken_over_by_the_next_agent(
    guest: AgentProcess, boot_files: str
) -> None:
    pid = int(guest.vm("web")["pid"])
    more = '[bridge.br-more]\n[vm.web.nic.more]\nbridge = "br-more"\nqueues = 2\n'
    guest.drop("web.toml", f"{unit(boot_files)}{more}")
    wait_for(lambda: [nic["attached"] for nic in guest.vm("web")["nics"]] == [True, True])
    assert guest.pending("web") == []
    wait_for(lambda: "eth1" in run_in_guest(GUEST, "ls /sys/class/net"))
    guest.kill()
    ip("link del web-more")
    guest.start()
    wait_for(lambda: [nic["attached"] for nic in guest.vm("web")["nics"]] == [True, True])
    assert attached_in(pid, "web-more") == 2
    assert guest.vm("web")["pid"] == pid
