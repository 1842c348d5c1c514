"""Opening the devices of macvtaps: `/dev/tapIFINDEX`, where it is that, or a node of our own.

A macvtap's descriptors come from a character device whose minor number the kernel chooses (drivers/net/tap.c:
tap_get_minor) and tells in two places: sysfs, below the class `macvtap`, and the uevent of the device's birth. sysfs
shows the links of the network namespace in which it was *mounted*, so an agent in another one finds nothing there, or a
stranger of the same ifindex; devtmpfs has one name for the devices of all namespaces. A uevent is heard only in the
macvtap's own namespace (lib/kobject_uevent.c: uevent_net_broadcast_tagged) and is queued before the answer to the
RTM_NEWLINK that made it (drivers/net/macvtap.c: macvtap_device_event), so it is what counts here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.core.errors import PermanentError, TransientError
from agent.host.tap.ioctls import IFF_MULTI_QUEUE, TAP_FLAGS, TUNSETIFF, translated
from agent.host.tap.queues import attached_link, close_all
from agent.host.tap.uevents import Uevents

DEVICES = Path("/dev")


class Births:
    """Hears of devices that are made while it is entered: enter it before the macvtap is made."""

    def __enter__(self) -> Self:
        self._uevents = Uevents()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._uevents.close()

    def device_of(self, ifindex: int) -> int:
        """The device number of the macvtap with this ifindex; TransientError `NoDescriptor` if it was not told."""
        found: int | None = None
        born = {"ACTION": "add", "SUBSYSTEM": "macvtap", "DEVNAME": f"tap{ifindex}"}
        for event in self._uevents.read():
            if born.items() <= event.items():
                found = os.makedev(int(event["MAJOR"]), int(event["MINOR"]))
        if found is None:
            raise TransientError(f"the kernel did not tell of the device of link {ifindex}", reason="NoDescriptor")
        return found


def open_macvtap(name: str, ifindex: int, device: int, queues: int, own_folder: Path) -> tuple[int, ...]:
    """New descriptors of a macvtap, one a queue; each is one, because each opening is (drivers/net/tap.c: tap_open).

    `/dev/tapIFINDEX` is taken if it has the right number; else a node is made in `own_folder`, or in /dev where that
    folder takes no devices, and removed at once. PermanentError `NoTapDevice` where neither can be had.
    """
    fds: list[int] = []
    try:
        for _ in range(queues):
            fds.append(_open_device(ifindex, device, own_folder))
            _set_flags(fds[-1], name, several=queues > 1)
            if attached_link(fds[-1]) != name:
                raise TransientError(f"the device of {name} is another link's by now", reason="LinkChanged")
    except BaseException:
        close_all(fds)
        raise
    return tuple(fds)


def _open_device(ifindex: int, device: int, own_folder: Path) -> int:
    usual = DEVICES / f"tap{ifindex}"
    try:
        fd = _open(usual)
        if os.fstat(fd).st_rdev == device:
            return fd
        os.close(fd)
        why = f"{usual} is another device"
    except OSError as error:
        why = f"{usual}: {error.strerror}"
    for folder in (own_folder, DEVICES):
        try:
            return _open_own_node(folder / f".vmhost-tap{ifindex}", device)
        except OSError as error:
            why += f"; {folder}: {error.strerror}"
    raise PermanentError(
        f"the device of link {ifindex} cannot be opened: {why}; mount a devtmpfs at /dev, or give the agent CAP_MKNOD",
        reason="NoTapDevice",
    )


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)


def _open_own_node(path: Path, device: int) -> int:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()  # of an agent that was killed in between
    os.mknod(path, stat.S_IFCHR | 0o600, device)
    try:
        return _open(path)
    finally:
        path.unlink(missing_ok=True)


def _set_flags(fd: int, name: str, *, several: bool) -> None:
    """Frames with a virtio header and nothing before it; the name is of no account there (tap.c: TUNSETIFF)."""
    flags = TAP_FLAGS | (IFF_MULTI_QUEUE if several else 0)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("=16sH22x", name.encode(), flags))
    except OSError as e:
        raise translated(e, f"attach to the macvtap {name}") from e
