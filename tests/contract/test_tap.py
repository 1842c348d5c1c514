"""Taps against the real kernel, in a network namespace of their own."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from agent.core.actions import LinkChange
from agent.core.desired import BridgeSpec
from agent.core.errors import PermanentError, TransientError
from agent.host import tap
from agent.host.netlink import Links
from agent.host.tap import Attachment, TapSettings, ioctls
from tests.netns import ip, ip_output, network_namespace

UID = 1_900_000_001
NEGOTIATED = TapSettings(12, ioctls.TUN_F_CSUM | ioctls.TUN_F_TSO4 | ioctls.TUN_F_TSO6)


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    with network_namespace():
        yield


@pytest.fixture
def open_tap() -> Iterator[Callable[[str], int]]:
    """`tap.open_tap`, whose descriptors are closed at the end."""
    opened: list[int] = []

    def opening(name: str) -> int:
        opened.extend(tap.open_tap(name, UID))
        return opened[-1]

    yield opening
    for fd in opened:
        os.close(fd)


def there(name: str) -> bool:
    return f" {name}: " in ip_output("-o link")


def set_settings(fd: int, settings: TapSettings) -> None:
    """What QEMU does when its guest has negotiated."""
    fcntl.ioctl(fd, ioctls.TUNSETVNETHDRSZ, settings.header_bytes.to_bytes(4, "little"))
    fcntl.ioctl(fd, ioctls.TUNSETOFFLOAD, settings.offload_flags)


def test_a_tap_goes_with_its_descriptor_until_it_is_kept() -> None:
    (fd,) = tap.open_tap("t0", UID)
    assert tap.attached_link(fd) == "t0"
    assert not os.get_inheritable(fd)
    os.close(fd)
    assert not there("t0")
    (fd,) = tap.open_tap("t0", UID)
    tap.keep(fd)
    os.close(fd)
    assert there("t0")
    shown = ip_output("-d link show t0")
    assert f"user {UID}" in shown
    assert "vnet_hdr on" in shown


def test_a_kept_tap_is_attached_to_again(open_tap: Callable[[str], int]) -> None:
    (fd,) = tap.open_tap("t0", UID)
    tap.keep(fd)
    os.close(fd)
    assert tap.attached_link(open_tap("t0")) == "t0"


def test_a_second_opener_is_refused_for_now(open_tap: Callable[[str], int]) -> None:
    open_tap("t0")
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TransientError) as refused:
        tap.open_tap("t0", UID)
    assert refused.value.reason == "Busy"
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_another_kind_of_link_is_refused_for_good() -> None:
    ip("link add t0 type bridge")
    with pytest.raises(PermanentError):
        tap.open_tap("t0", UID)


@pytest.mark.parametrize("flags", [0, 1, 3, 7, 15])
def test_settings_are_read_from_a_living_tap(open_tap: Callable[[str], int], flags: int) -> None:
    fd = open_tap("t0")
    assert tap.read_settings(fd, "t0") == TapSettings(10, 0)
    set_settings(fd, TapSettings(12, flags))
    assert tap.read_settings(fd, "t0") == TapSettings(12, flags)


def test_a_dead_descriptor_has_no_link_and_is_rearmed_with_its_settings(open_tap: Callable[[str], int]) -> None:
    fd = open_tap("t0")
    set_settings(fd, NEGOTIATED)
    settings = tap.read_settings(fd, "t0")
    ip("link del t0")
    assert tap.attached_link(fd) is None
    tap.rearm([fd], "t0", UID, settings)
    assert tap.attached_link(fd) == "t0"
    assert tap.read_settings(fd, "t0") == NEGOTIATED
    assert f"user {UID}" in ip_output("-d link show t0")
    assert "persist off" in ip_output("-d link show t0")


def test_a_living_descriptor_is_not_rearmed(open_tap: Callable[[str], int]) -> None:
    fd = open_tap("t0")
    with pytest.raises(PermanentError):
        tap.rearm([fd], "t1", UID, TapSettings())


async def test_frames_reach_the_reader_of_a_rearmed_tap_through_the_bridge(open_tap: Callable[[str], int]) -> None:
    loop = asyncio.get_running_loop()
    fd = open_tap("t0")
    set_settings(fd, NEGOTIATED)
    async with Links() as links:
        await links.create_bridge(BridgeSpec("br0", "02:00:00:00:00:01", addresses=("192.0.2.1/24",)))
        ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev br0")

        async def heal() -> None:
            links.catch_up()
            change = LinkChange(alias="vmhost:tap/a/b", master=links.snapshot["br0"].ifindex, up=True)
            await links.change("t0", links.snapshot["t0"].ifindex, "", change)
            tap.keep(fd)

        async def frame_with(payload: bytes) -> bytes:
            """The frame that carries a datagram sent to the guest; multicast of the bridge itself is passed over.

            Sent anew until one passes: the bridge's own carrier follows its ports from a work queue of the kernel.
            """
            arrived: asyncio.Future[bytes] = loop.create_future()

            def read() -> None:
                frame = os.read(fd, 4096)
                if frame.endswith(payload) and not arrived.done():
                    arrived.set_result(frame)

            loop.add_reader(fd, read)
            try:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                    async with asyncio.timeout(30):
                        while not arrived.done():
                            sender.sendto(payload, ("192.0.2.2", 9))
                            await asyncio.wait([arrived], timeout=0.01)
                return await arrived
            finally:
                loop.remove_reader(fd)

        await heal()
        before = await frame_with(b"before")
        await links.delete("t0", links.snapshot["t0"].ifindex, "vmhost:tap/a/b")
        assert tap.attached_link(fd) is None
        tap.rearm([fd], "t0", UID, NEGOTIATED)
        await heal()
        after = await frame_with(b"behind")
    # 12 bytes of virtio header, 14 of Ethernet, 20 of IP, 8 of UDP.
    assert len(before) == len(after) == 12 + 14 + 20 + 8 + 6
    assert before[12:18] == after[12:18] == bytes.fromhex("020000000002")


async def test_the_kernel_announces_changed_offloads(open_tap: Callable[[str], int]) -> None:
    fd = open_tap("t0")
    async with Links() as links:

        def events_of(doing: Callable[[], object]) -> int:
            links.catch_up()
            before = links.events["newlink"]
            doing()
            links.catch_up()
            return links.events["newlink"] - before

        assert events_of(lambda: fcntl.ioctl(fd, ioctls.TUNSETOFFLOAD, 7)) == 1
        assert events_of(lambda: fcntl.ioctl(fd, ioctls.TUNSETOFFLOAD, 7)) == 0
        assert events_of(lambda: fcntl.ioctl(fd, ioctls.TUNSETVNETHDRSZ, (12).to_bytes(4, "little"))) == 0
        assert events_of(lambda: fcntl.ioctl(fd, ioctls.TUNSETOFFLOAD, 0)) == 1


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """A process that holds the tap `t0` as descriptor 3 and a file as descriptor 4; it prints when it is ready."""
    script = (
        "import os, sys\nfrom agent.host import tap\n"
        f"os.dup2(*tap.open_tap('t0', {UID}), 103)\nos.dup2(os.open('/dev/null', os.O_RDWR), 104)\n"
        "print('ready', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_a_descriptor_is_fetched_from_another_process_and_rearmed(holder: subprocess.Popen[str]) -> None:
    fd = tap.fetch_descriptor(holder.pid, 103)
    try:
        assert tap.attached_link(fd) == "t0"
        assert not os.get_inheritable(fd)
        ip("link del t0")
        tap.rearm([fd], "t0", UID, NEGOTIATED)
        again = tap.fetch_descriptor(holder.pid, 103)
        assert tap.attached_link(again) == "t0"
        os.close(again)
    finally:
        os.close(fd)


def test_what_cannot_be_fetched(holder: subprocess.Popen[str]) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PermanentError, match="not a tap's"):
        tap.fetch_descriptor(holder.pid, 104)
    with pytest.raises(TransientError):
        tap.fetch_descriptor(holder.pid, 999)
    holder.kill()
    holder.wait()
    with pytest.raises(TransientError):
        tap.fetch_descriptor(holder.pid, 103)
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_without_ptrace_rights_the_error_names_them() -> None:
    """A child without capabilities and with another uid tries at us."""
    script = (
        "import os, sys\nfrom agent.core.errors import PermanentError\nfrom agent.host import tap\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try:\n    tap.fetch_descriptor(os.getppid(), 0)\n"
        "except PermanentError as e:\n    print(e.reason, e)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20).stdout
    assert said.startswith("NotPermitted ")
    assert "CAP_SYS_PTRACE" in said


@pytest.mark.parametrize(
    ("features", "settings"),
    [
        ([], TapSettings(10, 0)),
        (["VIRTIO_F_VERSION_1: Device compliant for v1 spec (legacy)"], TapSettings(12, 0)),
        (["VIRTIO_NET_F_MRG_RXBUF", "VIRTIO_NET_F_GUEST_CSUM", "VIRTIO_NET_F_GUEST_TSO4"], TapSettings(12, 3)),
        (["VIRTIO_NET_F_GUEST_TSO4"], TapSettings(10, 0)),
    ],
)
def test_settings_follow_from_what_the_guest_negotiated(features: list[str], settings: TapSettings) -> None:
    assert tap.settings_from_virtio(features) == settings


def queues_of(name: str) -> tuple[int, int]:
    """How many queues of a tap are on, and off, as the kernel says."""
    words = ip_output(f"-d link show {name}").split()
    return int(words[words.index("numqueues") + 1]), int(words[words.index("numdisabled") + 1])


def switch(fd: int, *, on: bool) -> None:
    """What QEMU does when its guest uses more queues, or fewer."""
    flag = 0x0200 if on else ioctls.IFF_DETACH_QUEUE
    fcntl.ioctl(fd, ioctls.TUNSETQUEUE, struct.pack("=16xH22x", flag))


@pytest.fixture
def four() -> Iterator[tuple[int, ...]]:
    """The descriptors of a tap `t0` with four queues."""
    fds = tap.open_tap("t0", UID, 4)
    yield fds
    tap.close_all(fds)


def test_a_tap_of_several_queues_is_re_armed_whole_with_those_off_that_were(four: tuple[int, ...]) -> None:
    set_settings(four[0], NEGOTIATED)
    switch(four[2], on=False)
    switch(four[3], on=False)
    assert [tap.attachment(fd) for fd in four] == [
        Attachment("t0"),
        Attachment("t0"),
        Attachment("t0", detached=True),
        Attachment("t0", detached=True),
    ]
    assert queues_of("t0") == (2, 2)
    ip("link del t0")
    assert [tap.attachment(fd) for fd in four] == [None] * 4
    tap.rearm(four, "t0", UID, NEGOTIATED, {2, 3})
    assert queues_of("t0") == (2, 2)
    assert tap.read_settings(four[0], "t0") == NEGOTIATED
    switch(four[2], on=True)  # as QEMU does, which fails where a queue is on already
    switch(four[1], on=False)
    assert queues_of("t0") == (2, 2)
    assert f"user {UID}" in ip_output("-d link show t0")


def test_a_re_arming_that_was_interrupted_is_finished(four: tuple[int, ...]) -> None:
    ip("link del t0")
    tap.rearm(four[:2], "t0", UID, NEGOTIATED, {1})
    assert queues_of("t0") == (1, 1)
    tap.rearm(four, "t0", UID, NEGOTIATED, {1, 3})
    assert queues_of("t0") == (2, 2)


def test_a_tap_takes_one_descriptor_or_several_as_it_was_made(four: tuple[int, ...]) -> None:
    tap.keep(four[0])
    with pytest.raises(PermanentError):
        tap.open_tap("t0", UID)
    more = tap.open_tap("t0", UID, 2)
    assert queues_of("t0") == (6, 0)
    tap.close_all(more)
    (fd,) = tap.open_tap("t1", UID)
    tap.keep(fd)
    os.close(fd)
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PermanentError):
        tap.open_tap("t1", UID, 2)
    assert len(os.listdir("/proc/self/fd")) == open_before


async def test_the_kernel_says_which_taps_take_several(four: tuple[int, ...], open_tap: Callable[[str], int]) -> None:
    assert tap.attached_link(four[0]) == "t0"
    open_tap("t1")
    async with Links() as links:
        assert {name: link.multi_queue for name, link in links.snapshot.items() if name != "lo"} == {
            "t0": True,
            "t1": False,
        }


def test_all_queues_are_found_in_another_process_in_their_order() -> None:
    script = (
        f"import sys\nfrom agent.host import tap\nprint(*tap.open_tap('t0', {UID}, 3), flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        numbers = tuple(map(int, process.stdout.readline().split()))
        assert tap.find_descriptor_numbers(process.pid, "t0") == numbers
        fds = tap.fetch_descriptors(process.pid, numbers)
        assert [tap.attached_link(fd) for fd in fds] == ["t0"] * 3
        open_before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(TransientError):
            tap.fetch_descriptors(process.pid, (*numbers, 999))
        assert len(os.listdir("/proc/self/fd")) == open_before
        tap.close_all(fds)
        process.kill()
    assert tap.find_descriptor_numbers(process.pid, "t0") == ()


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("/dev/no-such-thing", "/dev/no-such-thing: No such file or directory; `modprobe vhost_net` brings it"),
        ("/etc/passwd", "/etc/passwd is no character device"),
        ("/dev/null", ""),
    ],
)
def test_what_keeps_guests_from_vhost(device: str, why: str) -> None:
    assert tap.vhost_problem(device) == why


@pytest.mark.kernel("vhost_net")
def test_vhost_net_is_opened_once_a_queue() -> None:
    fds = tap.open_vhost(3)
    assert len(set(fds)) == 3
    tap.close_all(fds)
    assert tap.vhost_problem() == ""
