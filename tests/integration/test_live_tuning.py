"""What a guest is told while it runs: limits, cables, balloon, CPUs and media, seen and measured in the guest."""

from __future__ import annotations

import hashlib
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST
from tests.integration.waiting import wait_for
from tests.probe import answers_within, run_in_guest, uptime
from tests.throughput import share_within

BOOT_S = 180.0
KIB = 1024


@pytest.fixture
def web(agent: AgentProcess, boot_files: str) -> Web:
    """A guest with a disk, a second NIC and a CD-ROM drive, not started yet."""
    return Web(agent, boot_files)


class Web:
    """The guest, its agent, and how its unit is written anew."""

    def __init__(self, agent: AgentProcess, boot_files: str) -> None:
        self.agent = agent
        self._boot = boot_files
        self.isos = [agent.folder / f"{name}.iso" for name in ("one", "two")]
        for number, iso in enumerate(self.isos):
            iso.write_bytes(bytes([65 + number]) * (400 + 2 * number) * KIB)
            iso.chmod(0o600)
        agent.drop("net.toml", BRIDGE + "[bridge.br-other]\n")  # on the same one, either NIC would answer for both

    def edit(self, vm: str = "", disk: str = "", nic: str = "", cd: Path | None = None) -> None:
        """Write the unit with these keys, and one medium in both drives; the guest has no driver for dvd."""
        medium = f'path = "{cd}"\n' if cd is not None else ""
        self.agent.drop(
            "web.toml",
            f'[vm.web]\nmemory = "160M"\naccel = "tcg"\nmax-cpus = 3\n{self._boot}{vm}\n'
            f'[vm.web.disk.data]\npath = "{self.agent.folder}/data.raw"\nsize = "64M"\ncache = "none"\n{disk}\n'
            f'[vm.web.disk.cd]\nmedia = "cdrom"\nbus = "virtio"\n{medium}'
            f'[vm.web.disk.dvd]\nmedia = "cdrom"\n{medium}'
            f'[vm.web.nic.lan]\nbridge = "br-test"\n[vm.web.nic.dmz]\nbridge = "br-other"\n{nic}\n',
        )

    def boot(self) -> None:
        """Start the agent and the guest."""
        self.agent.start()
        answers_within(GUEST, BOOT_S, BRIDGE_LINK)
        self.pid, self.boot_id = self.agent.vm("web")["pid"], uptime(GUEST).boot

    def settle(self) -> None:
        """Wait until the guest is as its unit says, and see that it is the same one."""
        self.agent.vmhost("wait", "in-sync", "--timeout", "60")
        assert (self.agent.vm("web")["pid"], uptime(GUEST).boot) == (self.pid, self.boot_id)

    def says(self, command: str) -> str:
        """What a command in the guest prints."""
        return run_in_guest(GUEST, command, 60.0).strip()

    def carrier(self) -> str:
        """Whether the second NIC's cable is plugged, as the guest sees it."""
        return self.says("cat /sys/class/net/eth1/carrier")

    def balloon_mib(self) -> int:
        """How much memory the guest has given back; MemTotal says nothing of it, with deflate-on-oom."""
        counted = dict(line.split() for line in self.says("grep ^balloon_.*flate /proc/vmstat").splitlines())
        return (int(counted["balloon_inflate"]) - int(counted["balloon_deflate"])) * 4 // KIB

    def cpus(self) -> int:
        """How many CPUs the guest sees, online or not."""
        return len(self.says("ls -d /sys/devices/system/cpu/cpu[0-9]*").split())

    def writes_s(self, size: str, count: int, disk: str = "vda") -> float:
        """How long so many writes take, past the guest's cache; a burst of 0.1 s is free and taken before."""
        write = f"dd if=/dev/zero of=/dev/{disk} bs={size} oflag=direct"
        took = self.says(f"{write} count=40 2>/dev/null; time -p {write} count={count} 2>&1")
        return float(took.split("real")[1].split()[0])

    def medium(self) -> str:
        """The digest of what is in the drive, or why it cannot be read."""
        return self.says("md5sum </dev/sr0 2>&1").split(" ", 1)[0]

    def is_like(self, carrier: str, ballooned_mib: int) -> bool:
        """Whether the second NIC's cable and the balloon are so."""
        return (self.carrier(), self.balloon_mib()) == (carrier, ballooned_mib)

    def has_medium(self, medium: str | None) -> bool:
        """Whether what is in the drive has this digest; None: whether it is empty."""
        return self.medium() == medium if medium else "No medium found" in self.says("cat /dev/sr0 2>&1")

    def holds(self, path: Path) -> int:
        """How many descriptors QEMU has of a file."""
        return sum(fd.resolve() == path for fd in Path(f"/proc/{self.pid}/fd").iterdir())

    def conditions(self) -> dict[str, Any]:
        return {condition["type"]: condition for condition in self.agent.vm("web")["conditions"]}


def digest(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


LIMITED = ('balloon = "128M"\n', "iops = 100\n", 'link = "down"\n')


def test_limits_cable_balloon_and_cpus_before_the_first_instruction_and_live(web: Web) -> None:
    web.edit(*LIMITED)
    web.boot()
    wait_for(lambda: "eth1" in web.says("ls /sys/class/net"))
    assert web.carrier() == "0"
    assert "up" not in web.says("dmesg | grep -i 'eth1.*link'")
    wait_for(lambda: web.balloon_mib() == 32)
    share_within(lambda: 3.0 / web.writes_s("4k", 300))

    web.edit("cpus = 3", disk='bandwidth = "1M"\n')
    web.settle()
    wait_for(lambda: web.carrier() == "1")
    wait_for(lambda: web.balloon_mib() == 0)
    wait_for(lambda: web.cpus() == 3)
    web.says("for cpu in 1 2; do echo 1 >/sys/devices/system/cpu/cpu$cpu/online; done")
    wait_for(lambda: web.says("nproc") == "3")
    share_within(lambda: 3.0 / web.writes_s("64k", 48))

    web.edit("cpus = 3")
    web.settle()
    wait_for(lambda: web.writes_s("64k", 48) < 2.0, 120.0)  # once is enough: a limit lets it never

    # A disk that is plugged has its limit, too; fewer CPUs wait.
    more = f'[vm.web.disk.more]\npath = "{web.agent.folder}/more.raw"\nsize = "64M"\niops = 50\n'
    web.edit("cpus = 2", nic=f'link = "down"\n{more}')
    wait_for(lambda: [(one["key"], one["to"]) for one in web.agent.vm("web")["pending"]] == [("cpus", "2")])
    wait_for(lambda: web.carrier() == "0")
    wait_for(lambda: "vdb" in web.says("ls /sys/block"))
    share_within(lambda: 2.0 / web.writes_s("4k", 100, "vdb"))
    assert (web.agent.vm("web")["pid"], web.cpus()) == (web.pid, 3)


def test_an_agent_killed_at_any_moment_leaves_the_same_limits(web: Web) -> None:
    web.edit()
    web.boot()
    web.says("load-drivers cdrom")
    dice = random.Random(20261121)
    for round_ in range(6):
        limited = round_ % 2 == 0
        if limited:
            web.edit(*LIMITED, cd=web.isos[round_ // 2 % 2])
        else:
            web.edit()
        time.sleep(dice.uniform(0.0, 0.4))
        web.agent.kill()
        web.agent.start(settle=False)
        web.settle()
        wait_for(partial(web.is_like, "0" if limited else "1", 32 if limited else 0))
        medium = digest(web.isos[round_ // 2 % 2]) if limited else None
        wait_for(partial(web.has_medium, medium))
        if limited:
            assert web.writes_s("4k", 60) > 0.5
        else:  # once is enough: a limit lets it never
            wait_for(lambda: web.writes_s("4k", 60) <= 0.5, 120.0)


def test_media_come_change_and_go_and_a_locked_tray_is_told(web: Web) -> None:
    one, two = web.isos
    web.edit(cd=one)
    web.boot()
    web.says("load-drivers cdrom")
    wait_for(lambda: web.medium() == digest(one))
    web.edit(cd=two)
    web.settle()
    wait_for(lambda: web.medium() == digest(two))
    assert web.holds(one) == 0, "QEMU has closed the former medium"
    assert web.holds(two) >= 2, "both drives have the new one"
    web.edit()
    web.settle()
    wait_for(lambda: "No medium found" in web.says("cat /dev/sr0 2>&1"))
    assert web.holds(two) == 0
    assert web.agent.vm("web")["disks"][1]["path"] is None
    web.edit(cd=one)
    web.settle()
    wait_for(lambda: web.medium() == digest(one))

    # Who looks into an empty drive closes its tray, also in the middle of a change.
    web.says("while :; do cat /dev/sr0; done >/dev/null 2>&1 & echo $! >/tmp-pid")
    for medium in (None, two, None, one):
        web.edit(cd=medium)
        web.settle()
    web.says("kill $(cat /tmp-pid)")
    wait_for(lambda: web.medium() == digest(one))

    web.says("sleep 1000 </dev/sr0 >/dev/null 2>&1 & echo $! >/tmp-pid")
    web.edit(cd=two)
    wait_for(lambda: "TrayLocked" in web.conditions())
    message = "web has locked the tray of cd; it is asked to eject: unmount the medium there"
    assert web.conditions()["TrayLocked"]["message"] == message
    web.agent.kill()
    web.agent.start()
    wait_for(lambda: "TrayLocked" in web.conditions())
    web.says("kill $(cat /tmp-pid)")
    web.settle()
    wait_for(lambda: web.medium() == digest(two))
    assert web.conditions() == {}

    missing = web.agent.folder / "three.iso"
    web.edit(cd=missing)
    wait_for(lambda: "DiskMissing" in web.conditions())
    assert web.medium() == digest(two), "the former medium stays until there is another"
    one.rename(missing)
    wait_for(lambda: web.medium() == digest(missing))
    web.settle()
