"""Real QEMUs on the command lines that we make: they start, unprivileged, with the hardware that was meant."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.desired import DiskSpec, NicSpec
from agent.core.errors import PermanentError
from agent.core.qemu.argv import nic_device, nic_netdev
from agent.host.disks import create_disk
from agent.host.launches import Launches
from agent.host.processes import find_process, find_process_with, resident_bytes
from agent.host.qmp import Monitor
from agent.host.tap import open_tap
from tests.netns import network_namespace
from tests.qemu import UID, launched, paused_vm


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    with network_namespace():
        yield


@pytest.fixture
def tap_fd() -> Iterator[int]:
    (fd,) = open_tap("t0", UID)
    yield fd
    os.close(fd)


async def root_bus(monitor: Monitor) -> dict[str, tuple[int, int]]:
    """Device and function of all that has an id on the root bus; the firmware has not numbered other buses yet."""
    (bus,) = await monitor.execute("query-pci")
    return {device["qdev_id"]: (device["slot"], device["function"]) for device in bus["devices"] if device["qdev_id"]}


async def bus_of(monitor: Monitor, device: str) -> str:
    """The bus that a device hangs on: its name is that of its root port."""
    path = await monitor.execute("qom-get", {"path": f"/machine/peripheral/{device}", "property": "parent_bus"})
    return str(path).rpartition("/")[2]


@pytest.mark.parametrize(
    ("machine", "buses", "expected"),
    [
        ("q35", ("slot-0", "slot-9"), {"slot-0": (8, 0), "slot-9": (9, 1), "slot-15": (9, 7)}),
        ("pc", ("pci.0", "pci.0"), {"nic-lan": (8, 0), "disk-root": (17, 0)}),
        ("microvm", ("pcie.0", "pcie.0"), {"nic-lan": (8, 0), "disk-root": (17, 0)}),
    ],
)
async def test_it_starts_with_everything_in_its_place(
    launches: Launches,
    folder: Path,
    tap_fd: int,
    machine: str,
    buses: tuple[str, str],
    expected: dict[str, tuple[int, int]],
) -> None:
    root = DiskSpec(id="root", path=str(folder / "root.qcow2"), format="qcow2", slot=9, size_bytes=1 << 20)
    await create_disk(root)
    lan = NicSpec(id="lan", bridge="br", mac="02:00:00:00:00:01", tap="t0", slot=0, mtu=1400)
    spec = paused_vm(machine=machine, nics=(lan,), disks=(root,))
    async with launched(launches, spec, {"lan": (tap_fd,)}) as guest:
        monitor = await guest.monitor()
        everywhere = {"pvpanic": (3, 0), "rng": (4, 0)}
        assert (await root_bus(monitor)).items() >= (expected | everywhere).items()
        assert (await bus_of(monitor, "nic-lan"), await bus_of(monitor, "disk-root")) == buses
        assert (await monitor.execute("query-status"))["status"] == "prelaunch"
        assert (await monitor.execute("query-name"))["name"] == "web"
        assert (await monitor.execute("query-uuid"))["UUID"] == spec.uuid
        assert {chardev["label"] for chardev in await monitor.execute("query-chardev")} >= {"console", "operator"}
        mtu = {"path": "/machine/peripheral/nic-lan", "property": "host_mtu"}
        assert await monitor.execute("qom-get", mtu) == 1400
        await monitor.close()
    assert guest.log() == ""


async def test_qemu_has_no_privilege(launches: Launches) -> None:
    async with launched(launches, paused_vm()) as guest:
        await guest.monitor()
        lines = read_proc(guest.process.pid, "status").decode().splitlines()
        status = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
        assert status["Uid"] == status["Gid"] == [str(UID)] * 4
        assert status["Groups"] == []
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[capabilities][0], 16) == 0
        assert status["NoNewPrivs"] == ["1"]
        assert status["Seccomp"] == ["2"]
        assert os.getsid(guest.process.pid) == guest.process.pid
        environment = read_proc(guest.process.pid, "environ")
        assert {line.partition(b"=")[0] for line in environment.split(b"\0")[:-1]} == {b"PATH", b"LC_ALL"}
        assert os.readlink(f"/proc/{guest.process.pid}/fd/0") == "/dev/null"
        assert (resident_bytes(guest.process.pid) or 0) > 1 << 20


def read_proc(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


async def test_a_running_guest_is_never_started_again(launches: Launches) -> None:
    assert not launches.is_locked("web")
    async with launched(launches, paused_vm()) as guest:
        assert launches.is_locked("web")
        with pytest.raises(PermanentError) as refused:
            launches.lock("web", UID)
        assert refused.value.reason == "AlreadyRunning"
        with pytest.raises(PermanentError):
            launches.forget("web")
        await guest.monitor()
        found = find_process_with(launches.lock_path("web"))
        assert found is not None
        assert found.pid == guest.process.pid
    # The lock goes before the process can be seen to be gone; else a restart would be refused now and then.
    assert not launches.is_locked("web")
    launches.forget("web")
    assert [path.name for path in guest.directory.iterdir() if path.name.endswith(".sock")] == []


async def test_qemu_cannot_touch_its_record_and_lock(launches: Launches) -> None:
    async with launched(launches, paused_vm()) as guest:
        await guest.monitor()
        own = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--"]
        for command in (["rm", "-f", "launch.toml"], ["mv", "lock", "x"], ["cat", "launch.toml"], ["tee", "lock"]):
            assert await run([*own, *command], guest.directory) != 0
        assert await run([*own, "touch", "mine"], guest.directory) == 0
        assert launches.is_locked("web")


async def run(command: list[str], cwd: Path) -> int:
    null = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, cwd=cwd, stdin=null, stdout=null, stderr=null)
    return await process.wait()


async def test_a_renamed_guest_answers_under_its_new_name(launches: Launches) -> None:
    async with launched(launches, paused_vm()) as guest:
        await (await guest.monitor()).close()
        (record,) = launches.read()
        renamed = launches.rename(record, "www")  # type: ignore[arg-type]
        assert renamed.spec.name == "www"
        assert list(launches.read()) == [renamed]
        assert launches.is_locked("www")
        assert not launches.is_locked("web")
        moved = replace(guest, spec=renamed.spec)
        await (await moved.monitor()).execute("query-status")


async def test_a_process_is_known_by_pid_and_start_time(launches: Launches) -> None:
    async with launched(launches, paused_vm()) as guest:
        pid, start_time = guest.process.pid, guest.process.start_time
        adopted = find_process(pid, start_time)
        assert adopted is not None
        assert find_process(pid, start_time + 1) is None
        assert find_process(2**22 + 1, start_time) is None
        monitor = await guest.monitor()
        await monitor.execute("quit")
        await monitor.closed()
        assert await adopted.wait_exit() is None
        status = await guest.process.wait_exit()
        assert status is not None
        assert (status.code, status.reason) == (0, "host")
        assert await guest.process.wait_exit() == status
        assert find_process(pid, start_time) is None


async def test_a_nic_is_plugged_again_with_the_same_devices(launches: Launches, tap_fd: int) -> None:
    lan = NicSpec(id="lan", bridge="br", mac="02:00:00:00:00:01", tap="t0", slot=7)
    async with launched(launches, paused_vm()) as guest:
        monitor = await guest.monitor()
        await monitor.send_descriptor("tap-lan", tap_fd)
        await monitor.execute("netdev_add", nic_netdev(lan, ("tap-lan",)))
        await monitor.execute("device_add", nic_device("q35", lan))
        assert await bus_of(monitor, "nic-lan") == "slot-7"


async def test_it_boots_from_files_that_qemu_may_not_read(launches: Launches, folder: Path, guest_kernel: Path) -> None:
    kernel = folder / "vm,linuz=on"
    shutil.copyfile(guest_kernel, kernel)
    kernel.chmod(0o600)
    async with launched(launches, paused_vm(kernel=str(kernel), append="a,b=c")) as guest:
        await guest.monitor()
        (copy,) = guest.directory.glob("boot-*")
        status = copy.stat()
        assert (status.st_uid, status.st_mode & 0o777) == (UID, 0o400)
    kernel.chmod(0o644)
    async with launched(launches, paused_vm(kernel=str(kernel))) as guest:
        await guest.monitor()
        assert not list(guest.directory.glob("boot-*"))


async def test_a_machine_that_qemu_does_not_know(launches: Launches) -> None:
    async with launched(launches, paused_vm(machine="pdp11")) as guest:
        status = await guest.process.wait_exit()
        assert status is not None
        assert (status.code, status.reason) == (1, "crash")
        assert "unsupported machine type" in guest.log()


def test_a_held_lock_outlives_whoever_took_it(launches: Launches) -> None:
    lock = launches.lock("web", UID)
    inherited = os.dup(lock)
    os.close(lock)
    assert launches.is_locked("web")
    os.close(inherited)
    assert not launches.is_locked("web")
