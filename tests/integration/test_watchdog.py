"""A guest's watchdog fires, driven by its registers, because the guest's kernel has no driver for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST
from tests.integration.test_guest import BOOT_S, unit, wait_for_other_pid
from tests.integration.waiting import wait_for
from tests.probe import answers_within, tell_guest, uptime

FIRE = (
    "d=/sys/bus/pci/devices/0000:00:05.0; echo 1 >$d/enable; read bar rest <$d/resource; "
    # Both stages last 100 units of about a millisecond; each write must be unlocked (QEMU, hw/watchdog/wdt_i6300esb.c).
    "for at in 0 4; do devmem $((bar + 12)) 16 0x80; devmem $((bar + 12)) 16 0x86; devmem $((bar + at)) 32 100; done; "
    r"printf '\002' | dd of=$d/config bs=1 seek=104"
)
"""Arms the watchdog and never feeds it: two tenths of a second later it fires."""


@pytest.fixture
def start(agent: AgentProcess, boot_files: str) -> Callable[[str], AgentProcess]:
    def started(action: str) -> AgentProcess:
        agent.drop("net.toml", BRIDGE)
        agent.drop("web.toml", unit(boot_files, f'watchdog = "{action}"\n'))
        agent.start()
        answers_within(GUEST, BOOT_S, BRIDGE_LINK)
        return agent

    return started


def test_poweroff_is_a_failure_also_while_no_agent_runs(start: Callable[[str], AgentProcess]) -> None:
    agent = start("poweroff")
    for kill in (False, True):
        pid = agent.vm("web")["pid"]
        if kill:
            agent.kill()
        tell_guest(GUEST, FIRE)
        if kill:
            wait_for(lambda: not _answers())
            agent.start(settle=False)
            agent.vmhost("wait", "running", "web", "--timeout", "60")
        wait_for_other_pid(agent, pid)
        answers_within(GUEST, BOOT_S, BRIDGE_LINK)
        events = agent.vmhost("events")
        assert "watchdog" in events
    assert 'vmhost_vm_exits_total{reason="watchdog",vm="web"} 1.0' in agent.metrics()


def test_reset_is_no_end(start: Callable[[str], AgentProcess]) -> None:
    agent = start("reset")
    pid, before = agent.vm("web")["pid"], uptime(GUEST)
    tell_guest(GUEST, FIRE)
    wait_for(lambda: _answers() not in ("", before.boot), BOOT_S)
    assert agent.vm("web")["pid"] == pid
    # The guest may be back before the agent has heard of it.
    wait_for(lambda: "the watchdog of web fired" in agent.vmhost("events"))
    # QEMU tells of one reset twice: where it stalls in between for longer than an echo may be late, that makes two.
    wait_for(lambda: agent.metric('vmhost_vm_exits_total{reason="guest_reset",vm="web"}') >= 1)


def test_pause_is_told_and_a_restart_helps(start: Callable[[str], AgentProcess]) -> None:
    agent = start("pause")
    pid = agent.vm("web")["pid"]
    tell_guest(GUEST, FIRE)
    wait_for(lambda: [one["type"] for one in agent.vm("web")["conditions"]] == ["WatchdogFired"])
    assert agent.vm("web")["state"] == "paused"
    agent.vmhost("restart", "web", "--timeout", "60")
    assert agent.vm("web")["pid"] != pid
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)


def _answers() -> str:
    try:
        return uptime(GUEST, 0.5).boot
    except (OSError, KeyError):
        return ""
