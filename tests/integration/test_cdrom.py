"""CD-ROM drives of real guests: firmware boots from one when the disk is empty, Linux reads one and finds one empty."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST, bare_vm
from tests.integration.test_guest import unit
from tests.integration.waiting import wait_for
from tests.iso import bootable_iso
from tests.probe import answers_within, run_in_guest

TEXT = b"booted from the CD-ROM\r\n"
BOOT_S = 180.0


@pytest.fixture
def iso(agent: AgentProcess) -> Path:
    """Of root alone: QEMU's own user could not open it."""
    path = agent.folder / "install.iso"
    path.write_bytes(bootable_iso(TEXT))
    path.chmod(0o600)
    return path


def conditions(agent: AgentProcess, name: str) -> dict[str, dict[str, Any]]:
    return {condition["type"]: condition for condition in agent.vm(name)["conditions"]}


def says(agent: AgentProcess, name: str, text: bytes, timeout_s: float = 120.0) -> bool:
    """Whether a guest writes a text to its serial port."""
    heard = b""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(timeout_s)
        line.connect(str(agent.run_dir / "vms" / name / "console.sock"))
        while text not in heard:
            part = line.recv(4096)
            if not part:
                return False
            heard = (heard + part)[-4096:]
    return True


def test_an_installer_boots_while_the_disk_is_empty(agent: AgentProcess, iso: Path) -> None:
    """On each machine and bus; the three share one image, and one of them has no disk at all."""
    drive = f'disk.cd = {{ media = "cdrom", path = "{iso}"'
    disk = f'disk.root = {{ path = "{agent.folder}/NAME.raw", size = "1M" }}'
    agent.drop("a.toml", bare_vm("a", f"{drive} }}\n{disk.replace('NAME', 'a')}"))
    agent.drop("b.toml", bare_vm("b", f'machine = "pc"\n{drive} }}\n{disk.replace("NAME", "b")}'))
    agent.drop("c.toml", bare_vm("c", f'{drive}, bus = "virtio" }}'))
    agent.start()
    for name in "abc":
        assert says(agent, name, TEXT), name
        assert agent.vm(name)["conditions"] == []
    assert {unit["state"] for unit in agent.status()["units"]} == {"valid"}
    # What is written to the disk comes first from then on: here a program that says something else.
    agent.vmhost("stop", "a")
    program = bootable_iso(b"booted from the disk\r\n")[20 * 2048 :][:510]
    (agent.folder / "a.raw").write_bytes((program.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
    agent.vmhost("start", "a")
    assert says(agent, "a", b"booted from the disk\r\n")


def test_linux_reads_a_medium_and_finds_an_empty_drive(agent: AgentProcess, boot_files: str, iso: Path) -> None:
    hidden = iso.rename(iso.with_suffix(".away"))
    drives = (
        f'[vm.web.disk.cd]\nmedia = "cdrom"\nbus = "virtio"\npath = "{iso}"\n'
        '[vm.web.disk.empty]\nmedia = "cdrom"\nbus = "virtio"\n'
    )
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", unit(boot_files) + drives)
    agent.start()
    missing = f"{iso} does not exist; it is waited for, without path = there is none"
    assert conditions(agent, "web")["DiskMissing"]["message"] == missing
    assert agent.vm("web")["state"] == "waiting"
    hidden.rename(iso)
    agent.vmhost("wait", "running", "web", "--timeout", "60")
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    run_in_guest(GUEST, "load-drivers cdrom")
    wait_for(lambda: run_in_guest(GUEST, "ls /sys/block").split().count("sr1"))
    assert run_in_guest(GUEST, "md5sum </dev/sr0").split()[0] == hashlib.md5(iso.read_bytes()).hexdigest()
    assert "No medium found" in run_in_guest(GUEST, "cat /dev/sr1 2>&1")
    assert "Read-only file system" in run_in_guest(GUEST, "echo x 2>&1 >/dev/sr0")
    drive = {"format": "raw", "media": "cdrom", "read_only": True, "size_bytes": None}
    assert agent.vm("web")["disks"] == [
        {"name": "cd", "path": str(iso), **drive},
        {"name": "empty", "path": None, **drive},
    ]
