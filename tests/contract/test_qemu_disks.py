"""Disks by descriptor with a real QEMU that may not open them itself."""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.desired import DiskSpec
from agent.core.errors import PermanentError, TransientError
from agent.host.disks import DiskLook, create_disk, grow_disk, look_at_disk, open_disk, prepare_boot_file
from agent.host.launches import Launches
from tests.qemu import UID, launched, paused_vm

NASTY = 'a "b",readonly=off\n:c.qcow2'


@pytest.fixture
async def root(folder: Path) -> DiskSpec:
    disk = DiskSpec(id="root", path=str(folder / NASTY), format="qcow2", slot=0, size_bytes=8 << 20)
    await create_disk(disk)
    return disk


@pytest.mark.parametrize("cache", ["writeback", "none", "writethrough", "directsync", "unsafe"])
async def test_a_disk_of_root_in_every_cache_mode(launches: Launches, root: DiskSpec, cache: str) -> None:
    before = os.stat(root.path)
    assert (before.st_uid, before.st_mode & 0o777) == (0, 0o600)
    async with launched(launches, paused_vm(disks=(replace(root, cache=cache),))) as guest:
        monitor = await guest.monitor()
        (block,) = await monitor.execute("query-block")
        inserted = block["inserted"]
        direct, no_flush = cache in {"none", "directsync"}, cache == "unsafe"
        assert inserted["cache"]["direct"] is direct
        assert inserted["cache"]["no-flush"] is no_flush
        assert inserted["cache"]["writeback"] is (cache not in {"writethrough", "directsync"})
        assert (inserted["node-name"], inserted["ro"]) == ("disk-root", False)
        assert inserted["image"]["virtual-size"] == 8 << 20
        assert has_direct_descriptor(guest.process.pid, root.path) is direct
    after = os.stat(root.path)
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)


def has_direct_descriptor(pid: int, path: str) -> bool:
    wanted = os.stat(path).st_ino
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if os.stat(entry).st_ino == wanted:
            info = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text()
            flags = int(info.split("flags:")[1].split()[0], 8)
            if flags & os.O_DIRECT:
                return True
    return False


@pytest.mark.parametrize("read_only", [False, True])
async def test_nobody_else_gets_a_disk_that_is_written(launches: Launches, root: DiskSpec, read_only: bool) -> None:
    async with launched(launches, paused_vm(disks=(root,))) as first:
        await first.monitor()
        other = paused_vm(name="other", uid=UID + 1, disks=(replace(root, read_only=read_only),))
        async with launched(launches, other) as second:
            status = await second.process.wait_exit()
            assert status is not None
            assert status.code == 1
            assert "Is another process using the image" in second.log()


async def test_a_read_only_disk_may_be_shared(launches: Launches, root: DiskSpec) -> None:
    disk = replace(root, read_only=True)
    async with (
        launched(launches, paused_vm(disks=(disk,))) as first,
        launched(launches, paused_vm(name="other", uid=UID + 1, disks=(disk,))) as second,
    ):
        for guest in (first, second):
            (block,) = await (await guest.monitor()).execute("query-block")
            assert block["inserted"]["ro"] is True


async def test_a_raw_disk(launches: Launches, folder: Path) -> None:
    disk = DiskSpec(id="data", path=str(folder / "data.raw"), format="raw", slot=3, size_bytes=4 << 20)
    await create_disk(disk)
    async with launched(launches, paused_vm(disks=(disk,))) as guest:
        (block,) = await (await guest.monitor()).execute("query-block")
        assert block["inserted"]["image"]["virtual-size"] == 4 << 20


async def test_creating_never_replaces(root: DiskSpec) -> None:
    os.truncate(root.path, 0)
    await create_disk(root)
    assert os.stat(root.path).st_size == 0
    assert os.listdir(os.path.dirname(root.path)) == [NASTY]


async def test_creating_removes_what_an_interrupted_try_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = DiskSpec(id="d", path=str(folder / "d.qcow2"), format="qcow2", slot=0, size_bytes=1 << 30)
    (folder / ".d.qcow2.vmhost-new-0123").write_bytes(b"half")
    (folder / ".e.qcow2.vmhost-new-0123").write_bytes(b"of another disk")
    busy = folder / ".d.qcow2.vmhost-new-4567"
    busy.touch()
    monkeypatch.setattr("agent.host.disks._under_way", {str(busy)})
    await asyncio.gather(create_disk(disk), create_disk(disk))
    assert sorted(os.listdir(folder)) == [busy.name, ".e.qcow2.vmhost-new-0123", "d.qcow2"]
    shown = image_info(disk.path)
    assert "file format: qcow2" in shown
    assert "1073741824 bytes" in shown


def image_info(path: str) -> str:
    return subprocess.run(["qemu-img", "info", path], capture_output=True, text=True, check=True).stdout


async def test_creating_refuses(folder: Path) -> None:
    disk = DiskSpec(id="d", path=str(folder / "no" / "d.raw"), format="raw", slot=0, size_bytes=1 << 20)
    with pytest.raises(TransientError) as missing:
        await create_disk(disk)
    assert missing.value.reason == "DiskMissing"
    with pytest.raises(PermanentError):
        await create_disk(replace(disk, size_bytes=None))
    with pytest.raises(TransientError, match=r"No space|too large|Could not resize"):
        await create_disk(replace(disk, path=str(folder / "d.raw"), size_bytes=1 << 62))
    assert os.listdir(folder) == []


def test_states_of_disks(folder: Path) -> None:
    (folder / "d.raw").touch()
    size_bytes = (folder / "d.raw").stat().st_size
    assert look_at_disk(str(folder / "d.raw"), "raw") == DiskLook(True, True, size_bytes)
    assert look_at_disk(str(folder / "e.raw"), "raw") == DiskLook(False, True)
    assert look_at_disk(str(folder / "no" / "e.raw"), "raw") == DiskLook(False, False)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
async def test_a_disk_grows_and_never_shrinks(folder: Path, image_format: str) -> None:
    path = str(folder / f"grown.{image_format}")
    await create_disk(DiskSpec("d", path, image_format, 0, size_bytes=1 << 20))
    for wanted, seen in ((1 << 22, 1 << 22), (1 << 20, 1 << 22)):
        await grow_disk(DiskSpec("d", path, image_format, 0, size_bytes=wanted))
        assert look_at_disk(path, image_format).size_bytes == seen


def test_opening_refuses(folder: Path) -> None:
    disk = DiskSpec(id="d", path=str(folder / "d"), format="raw", slot=0)
    with pytest.raises(TransientError) as missing:
        open_disk(disk)
    assert missing.value.reason == "DiskMissing"
    os.mkfifo(disk.path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PermanentError):
        open_disk(disk)
    with pytest.raises(PermanentError):
        open_disk(replace(disk, path="/dev/null"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_boot_file_below_a_closed_folder_is_copied(folder: Path) -> None:
    closed, run = folder / "closed", folder / "run"
    closed.mkdir(0o700)
    run.mkdir(0o755)
    kernel = closed / "k"
    kernel.write_bytes(b"k" * 3_000_000)
    kernel.chmod(0o644)
    copy = Path(prepare_boot_file(str(kernel), run, UID))
    assert copy.parent == run
    assert copy.read_bytes() == kernel.read_bytes()
    link = folder / "link"
    link.symlink_to(kernel)
    assert prepare_boot_file(str(link), run, UID) != str(link)
    kernel.write_bytes(b"new")
    assert Path(prepare_boot_file(str(kernel), run, UID)).read_bytes() == b"new"
    closed.chmod(0o711)
    assert prepare_boot_file(str(kernel), run, UID) == str(kernel)
    with pytest.raises(TransientError) as missing:
        prepare_boot_file(str(closed / "gone"), run, UID)
    assert missing.value.reason == "FileMissing"
