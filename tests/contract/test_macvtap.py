"""Macvtaps on the real kernel: made, opened by the device that the kernel names, and lost with the link below."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.core.actions import LinkChange
from agent.core.errors import PermanentError, TransientError
from agent.core.marks import GROUP, is_own_macvtap
from agent.core.observed import LinkState
from agent.host import tap
from agent.host.netlink import Links
from agent.host.tap import macvtap
from tests.netns import ip, ip_output, network_namespace

MAC = "02:00:00:00:00:01"
BROADCAST = bytes.fromhex("ffffffffffff")


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    """A link `low`, whose other end is `far`."""
    with network_namespace():
        ip("link add low type veth peer name far", "link set low up", "link set far up")
        yield


async def make(links: Links, folder: Path, name: str = "mt0", queues: int = 1) -> tuple[LinkState, tuple[int, ...]]:
    """What the agent does: make it, open it, mark it and set it up."""
    with tap.Births() as births:
        made = await links.create_macvtap(name, links.snapshot["low"].ifindex, MAC, queues)
        device = births.device_of(made.ifindex)
    fds = tap.open_macvtap(name, made.ifindex, device, queues, folder)
    await links.change(name, made.ifindex, made.alias, LinkChange(up=True, alias="vmhost:tap/web/lan"))
    return made, fds


async def test_frames_pass_between_its_descriptor_and_its_link(tmp_path: Path) -> None:
    async with Links() as links:
        made, (fd,) = await make(links, tmp_path)
        assert is_own_macvtap(made)
        assert "macvtap mode bridge" in ip_output("-d link show mt0")
        assert (made.kind, made.group, made.alias, made.lower) == ("macvtap", GROUP, "", links.snapshot["low"].ifindex)
        assert (links.snapshot["mt0"].mac, links.snapshot["mt0"].up) == (MAC, True)
        assert tap.attached_link(fd) == "mt0"
        assert not os.get_inheritable(fd)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as far:
            far.bind(("far", 0x88B5))
            far.settimeout(10)
            frame = BROADCAST + bytes.fromhex(MAC.replace(":", "")) + struct.pack("!H", 0x88B5) + b"from the guest" * 5
            os.write(fd, bytes(10) + frame)
            assert far.recv(200) == frame
            answer = frame[6:12] + bytes.fromhex("020000000002") + frame[12:]
            far.send(answer)
            assert answer in await read_until(fd, answer)
        os.close(fd)


async def read_until(fd: int, wanted: bytes) -> bytes:
    """What a descriptor brings, up to a frame."""
    loop, heard = asyncio.get_running_loop(), b""
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        async with asyncio.timeout(10):
            while wanted not in heard:
                await ready.wait()
                ready.clear()
                heard += os.read(fd, 65536)
    finally:
        loop.remove_reader(fd)
    return heard


async def test_each_queue_is_a_descriptor(tmp_path: Path) -> None:
    async with Links() as links:
        _, fds = await make(links, tmp_path, queues=4)
        assert len(set(fds)) == 4
        assert [tap.attachment(fd) for fd in fds] == [tap.Attachment("mt0")] * 4
        tap.close_all(fds)


@pytest.mark.parametrize("way", ["itself", "with its link"])
async def test_a_lost_one_is_dead_and_cannot_be_taken_for_another(tmp_path: Path, way: str) -> None:
    async with Links() as links:
        made, (fd,) = await make(links, tmp_path)
        if way == "itself":
            await links.delete("mt0", made.ifindex, "vmhost:tap/web/lan")
        else:
            ip("link del low")
        assert tap.attached_link(fd) is None
        os.close(fd)


async def test_without_the_usual_name_a_node_of_its_own_is_made_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose /dev is no devtmpfs, or where the name leads to another namespace's macvtap."""
    monkeypatch.setattr(macvtap, "DEVICES", tmp_path / "dev")
    async with Links() as links:
        _, (fd,) = await make(links, tmp_path)
        assert tap.attached_link(fd) == "mt0"
        assert os.listdir(tmp_path) == []
        os.close(fd)
        ip("link del mt0")
        (tmp_path / "dev").mkdir()
        (tmp_path / "dev/tap4").symlink_to("/dev/null")
        _, (fd,) = await make(links, tmp_path, "mt1")
        assert tap.attached_link(fd) == "mt1"
        os.close(fd)


async def test_another_namespace_s_device_of_the_same_ifindex_is_not_taken(tmp_path: Path) -> None:
    async with Links() as links:
        ours, (fd,) = await make(links, tmp_path)
        theirs, name, own_device = the_same_elsewhere(tmp_path)
        assert (int(theirs), name) == (ours.ifindex, "mt0")
        assert int(own_device) != os.fstat(fd).st_rdev
        assert tap.attached_link(fd) == "mt0"
        os.close(fd)


async def test_where_no_node_can_be_had_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(macvtap, "DEVICES", tmp_path / "none")
    async with Links() as links:
        open_before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(PermanentError, match="mount a devtmpfs at /dev, or give the agent CAP_MKNOD") as refused:
            await make(links, tmp_path / "neither")
        assert refused.value.reason == "NoTapDevice"
        assert len(os.listdir("/proc/self/fd")) == open_before


async def test_what_the_kernel_refuses(tmp_path: Path) -> None:
    ip("link add br0 type bridge", "link set low master br0")
    async with Links() as links:
        with pytest.raises(TransientError):
            await make(links, tmp_path)
        with pytest.raises(TransientError) as gone:
            await links.create_macvtap("mt0", 4711, MAC, 1)
        assert gone.value.reason == "LinkGone"
        with tap.Births() as births, pytest.raises(TransientError, match="did not tell"):
            births.device_of(links.snapshot["low"].ifindex)


async def test_its_descriptors_are_found_in_another_process(tmp_path: Path) -> None:
    async with Links() as links:
        _, fds = await make(links, tmp_path, queues=2)
        with holder(fds) as pid:
            assert tap.find_same(pid, fds) == fds
            assert tap.find_same(pid, (*fds, 0)) == ()
            copies = tap.fetch_descriptors(pid, fds)
            assert [tap.attached_link(fd) for fd in copies] == ["mt0", "mt0"]
            tap.close_all(copies)
        tap.close_all(fds)


@contextlib.contextmanager
def holder(fds: tuple[int, ...]) -> Iterator[int]:
    """A process that has these descriptors open under the same numbers; its pid."""
    script = "import sys\nprint('ready', flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=fds
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process.pid
        finally:
            process.kill()


def the_same_elsewhere(folder: Path) -> list[str]:
    """The ifindex, name and device number that `in_another_namespace` prints."""
    command = [sys.executable, "-m", "tests.contract.test_macvtap", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()


async def in_another_namespace(folder: Path) -> None:
    """The same in a namespace of its own, where ifindexes begin anew."""
    with network_namespace():
        ip("link add low type veth peer name far", "link set low up", "link set far up")
        async with Links() as links:
            made, (fd,) = await make(links, folder)
            sys.stdout.write(f"{made.ifindex} {tap.attached_link(fd)} {os.fstat(fd).st_rdev}\n")


if __name__ == "__main__":
    asyncio.run(in_another_namespace(Path(sys.argv[1])))
