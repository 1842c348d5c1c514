"""An edit that could not be started leaves the guest running, whatever ends others; once it could, it is applied."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess, kill_qemu
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST, bare_vm
from tests.integration.test_pending import BOOT_S, boot_of_guest
from tests.integration.waiting import wait_for
from tests.probe import answers_within, tell_guest, uptime


@dataclass
class Edit:
    """A unit's lines before and after, what the agent says of it, and what brings about what is missing."""

    before: str
    after: str
    says: str
    mend: Callable[[], object]


def disk_edit(agent: AgentProcess) -> Edit:
    first, second = agent.folder / "a.raw", agent.folder / "b.raw"
    first.write_bytes(bytes(1 << 20))
    table = '[vm.web.disk.data]\npath = "{}"\n'
    after = table.format(second)
    return Edit(table.format(first), after, f"{second} is not there", lambda: second.write_bytes(bytes(1 << 20)))


def kernel_edit(agent: AgentProcess, kernel: Path) -> Edit:
    second = agent.folder / "vmlinuz-new"
    return Edit("", "", f"kernel = {second} is no file that is there", lambda: os.link(kernel, second))


def too_much_mib() -> int:
    """More memory than the host has."""
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return (pages * page >> 20) + 1024


def conditions(agent: AgentProcess, name: str = "web") -> dict[str, str]:
    return {one["type"]: one["message"] for one in agent.vm(name)["conditions"]}


class Web:
    """A guest that answers on TCP, and one edit of it that could not be started until something is mended."""

    def __init__(self, agent: AgentProcess, boot_files: str, guest_kernel: Path, kind: str) -> None:
        self.agent = agent
        self._boot = boot_files
        kernel = agent.folder / guest_kernel.name
        edit = kernel_edit(agent, kernel) if kind == "kernel" else disk_edit(agent)
        after = boot_files.replace(str(kernel), str(agent.folder / "vmlinuz-new")) if kind == "kernel" else boot_files
        self._drop(boot_files, edit.before)
        agent.drop("net.toml", BRIDGE)
        agent.start()
        answers_within(GUEST, BOOT_S, BRIDGE_LINK)
        if kind == "memory":
            self._drop(boot_files, edit.before, f"{too_much_mib()}M")
            self.says = "would be left without it"
            self.mend: Callable[[], object] = lambda: self._drop(boot_files, edit.before, "160M")
        else:
            self._drop(after, edit.after)
            self.says, self.mend = edit.says, edit.mend

    def _drop(self, boot: str, tables: str, memory: str = "128M") -> None:
        head = f'[vm.web]\nmemory = "{memory}"\naccel = "tcg"\nrestart = "always"\n{boot}\n'
        self.agent.drop("web.toml", f'{head}[vm.web.nic.lan]\nbridge = "br-test"\n{tables}')

    def reboot(self) -> None:
        """Have the guest reboot from within, and wait until it is back."""
        boot = uptime(GUEST).boot
        tell_guest(GUEST, "reboot -f")
        wait_for(lambda: boot_of_guest() not in ("", boot), BOOT_S)


@pytest.mark.parametrize("kind", ["disk", "kernel", "memory"])
def test_a_reboot_stays_one_until_the_edit_could_be_started(
    agent: AgentProcess, boot_files: str, guest_kernel: Path, kind: str
) -> None:
    web = Web(agent, boot_files, guest_kernel, kind)
    pid = agent.vm("web")["pid"]
    wait_for(lambda: web.says in conditions(agent).get("EditUnstartable", ""))
    agent.vmhost("wait", "settled", "--timeout", "60")
    assert agent.vm("web")["pending"]
    assert "reboot_ends = true" not in (agent.run_dir / "vms/web/launch.toml").read_text()
    web.reboot()
    assert agent.vm("web")["pid"] == pid, "it is a reboot of the same QEMU"
    refused = agent.command("restart", "web")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert web.says in refused.stderr
    assert "`vmhost stop web` and `vmhost start web`" in refused.stderr
    assert agent.vm("web")["pid"] == pid
    assert web.says in agent.vmhost("why", "web")

    web.mend()
    wait_for(lambda: not conditions(agent))
    agent.vmhost("wait", "settled", "--timeout", "60")
    web.reboot()
    vm = agent.vm("web")
    assert vm["pid"] not in (None, pid)
    assert (vm["pending"], vm["digest"], vm["restarts"]) == ([], vm["digest_wanted"], 0)


def test_apply_restart_waits_for_memory_and_a_crash_brings_back_what_ran(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web", 'apply = "restart"'))
    agent.start()
    pid = agent.vm("web")["pid"]
    agent.drop("web.toml", bare_vm("web", 'apply = "restart"').replace("32M", f"{too_much_mib()}M"))
    wait_for(lambda: "would be left without it" in conditions(agent).get("EditUnstartable", ""))
    agent.vmhost("wait", "settled", "--timeout", "60")
    refused = agent.command("restart", "web")
    assert refused.returncode == 1
    assert "MiB" in refused.stderr
    assert agent.vm("web")["pid"] == pid

    kill_qemu(pid, agent.run_dir)
    wait_for(lambda: agent.vm("web")["pid"] not in (None, pid) and agent.vm("web")["state"] == "running")
    wait_for(lambda: set(conditions(agent)) == {"EditUnstartable"})
    pid = agent.vm("web")["pid"]
    agent.drop("web.toml", bare_vm("web", 'apply = "restart"').replace("32M", "48M"))
    wait_for(lambda: agent.vm("web")["pid"] not in (None, pid))
    agent.vmhost("wait", "in-sync", "--timeout", "60")


def test_a_crash_and_a_restart_that_is_asked_again_once_the_file_is_there(agent: AgentProcess) -> None:
    edit = disk_edit(agent)
    agent.drop("web.toml", bare_vm("web", 'restart = "always"') + edit.before)
    agent.start()
    agent.drop("web.toml", bare_vm("web", 'restart = "always"') + edit.after)
    wait_for(lambda: "EditUnstartable" in conditions(agent))
    pid = agent.vm("web")["pid"]
    kill_qemu(pid, agent.run_dir)
    wait_for(lambda: agent.vm("web")["pid"] not in (None, pid) and agent.vm("web")["state"] == "running")
    wait_for(lambda: set(conditions(agent)) == {"EditUnstartable"})
    assert "it is started as it last ran" in agent.vmhost("events")

    pid = agent.vm("web")["pid"]
    agent.kill()
    kill_qemu(pid, agent.run_dir)
    agent.start(settle=False)
    agent.vmhost("wait", "running", "web", "--timeout", "60")
    assert agent.vm("web")["pid"] not in {None, pid}
    wait_for(lambda: set(conditions(agent)) == {"EditUnstartable"})

    edit.mend()
    agent.vmhost("restart", "web")  # at once: it looks again instead of refusing by what it saw last
    agent.vmhost("wait", "in-sync", "--timeout", "60")
    assert conditions(agent) == {}


def test_its_operator_may_take_it_down_all_the_same(agent: AgentProcess) -> None:
    edit = disk_edit(agent)
    agent.drop("web.toml", bare_vm("web") + edit.before)
    agent.start()
    agent.drop("web.toml", bare_vm("web") + edit.after)
    wait_for(lambda: "EditUnstartable" in conditions(agent))
    agent.vmhost("stop", "web")
    agent.vmhost("start", "web", "--no-wait")
    wait_for(lambda: any(one["type"] == "DiskMissing" for one in agent.vm("web")["conditions"]))
    edit.mend()
    agent.vmhost("wait", "in-sync", "--timeout", "60")
