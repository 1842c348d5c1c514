"""A guest on a machine of type microvm: as well healed as any other, and sooner there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST
from tests.integration.test_guest import BOOT_S, HEAL_S, wait_for_other_pid
from tests.integration.waiting import wait_for
from tests.netns import ip
from tests.probe import answers_within, run_in_guest, tell_guest, uptime


def unit(machine: str, boot_files: str) -> str:
    # Without KVM a kernel on a microvm has one short try to find out how fast its clock is, which fails on a host that
    # is busy; it then waits for ever for a timer that is not there. So it is told.
    mhz = re.search(r"^cpu MHz\s*: ([0-9.]+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert mhz is not None
    boot_files = boot_files.replace('append = "', f'append = "tsc_early_khz={float(mhz[1]) * 1000:.0f} ')
    return (
        f'[vm.web]\nmachine = "{machine}"\nmemory = "128M"\naccel = "tcg"\nstop-timeout = "1h"\n{boot_files}'
        '[vm.web.nic.lan]\nbridge = "br-test"\n[vm.web.disk.data]\npath = "%s"\nsize = "8M"\n'
    )


def test_it_is_healed_adopted_reset_panics_and_stops_as_others_do(agent: AgentProcess, boot_files: str) -> None:
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", unit("microvm", boot_files) % (agent.folder / "data.raw"))
    agent.start()
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    assert run_in_guest(GUEST, "cat /sys/block/vda/serial") == "data"
    pid, before = agent.vm("web")["pid"], uptime(GUEST)
    ip("link del web-lan")
    answers_within(GUEST, HEAL_S, BRIDGE_LINK)
    agent.kill()
    ip("link del web-lan")
    agent.start()
    answers_within(GUEST, HEAL_S, BRIDGE_LINK)
    assert (agent.vm("web")["pid"], uptime(GUEST).boot) == (pid, before.boot)
    agent.vmhost("reset", "web")
    wait_for(lambda: _boot() not in ("", before.boot), BOOT_S)
    assert agent.vm("web")["pid"] == pid
    tell_guest(GUEST, "echo c > /proc/sysrq-trigger")
    wait_for_other_pid(agent, pid)
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    assert 'vmhost_vm_exits_total{reason="panic",vm="web"} 1.0' in agent.metrics()
    agent.vmhost("stop", "web", "--timeout", "110")  # by its power button: nothing else ends it within an hour
    assert agent.vm("web")["pid"] is None


def _boot() -> str:
    try:
        return uptime(GUEST, 0.5).boot
    except (OSError, KeyError):
        return ""
