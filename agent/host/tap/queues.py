"""Making a tap, and re-arming the descriptors of one that was deleted under its guest.

Each queue of a tap is a descriptor (tuntap.rst, 3.3); all of them are attached by the same flags. QEMU detaches those
queues that its guest does not use (TUNSETQUEUE), and such a one stays its tap's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from agent.host.tap.ioctls import (
    IFF_DETACH_QUEUE,
    IFF_MULTI_QUEUE,
    TAP_FLAGS,
    TUN_DEVICE,
    TUNGETIFF,
    TUNSETIFF,
    TUNSETOFFLOAD,
    TUNSETOWNER,
    TUNSETPERSIST,
    TUNSETQUEUE,
    TUNSETVNETHDRSZ,
    translated,
)
from agent.host.tap.settings import TapSettings


@dataclass(frozen=True, slots=True)
class Attachment:
    """The tap that a descriptor is attached to, and whether its guest has this queue switched off."""

    link: str
    detached: bool = False


def open_tap(name: str, uid: int, queues: int = 1) -> tuple[int, ...]:
    """New descriptors, one a queue, attached to the tap of this name, which is made if there is none.

    Only `uid` may attach to it. A tap that this made goes with its descriptors until `keep`: mark the link first, so
    that an agent that is killed in between leaves nothing unmarked behind. Another descriptor attached already:
    TransientError with reason Busy. Not a tap, or one of another kind (with one queue, with several): PermanentError.
    (tuntap.rst: 3.2, 3.3; TUNSETIFF, TUNSETOWNER)
    """
    fds: list[int] = []
    try:
        for _ in range(queues):
            fds.append(_open_device())
            _attach(fds[-1], name, uid, several=queues > 1)
    except BaseException:
        close_all(fds)
        raise
    return tuple(fds)


def close_all(fds: Collection[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


def keep(fd: int) -> None:
    """Let the tap outlive its descriptors (TUNSETPERSIST)."""
    try:
        fcntl.ioctl(fd, TUNSETPERSIST, 1)
    except OSError as e:
        raise translated(e, "make the tap persistent") from e


def attachment(fd: int) -> Attachment | None:
    """What a descriptor is attached to; None when that was deleted (TUNGETIFF: EBADFD of a tap, ENOLINK of a macvtap).

    The name is of the namespace that the tap is in, which may be another than the caller's.
    """
    request = bytearray(40)
    try:
        fcntl.ioctl(fd, TUNGETIFF, request)
    except OSError as e:
        if e.errno in {errno.EBADFD, errno.ENOLINK}:
            return None
        raise translated(e, "ask a descriptor for its tap") from e
    name = bytes(request[:16]).split(b"\0", 1)[0].decode(errors="backslashreplace")
    (flags,) = struct.unpack_from("=H", request, 16)
    return Attachment(name, bool(flags & IFF_DETACH_QUEUE))


def attached_link(fd: int) -> str | None:
    """The name of the tap that a descriptor is attached to; None when that was deleted."""
    found = attachment(fd)
    return None if found is None else found.link


def rearm(
    fds: Sequence[int], name: str, uid: int, settings: TapSettings, detached: Collection[int] = frozenset()
) -> None:
    """Attach all descriptors of a deleted tap to a new tap, made with this name, with the settings of the old one.

    Whoever reads the descriptors goes on with them unaware. `detached` are the places in `fds` of the queues that were
    switched off: they are so again, because QEMU switches on only what is off, and fails otherwise. Those that are on
    the new tap already, because an earlier try was interrupted, stay there. The tap appears in the namespace where the
    descriptors were opened, goes with them until `keep`, is down and in no bridge. A descriptor of another link:
    PermanentError. (TUNSETIFF on open files whose tap is gone; TUNSETVNETHDRSZ, TUNSETOFFLOAD, TUNSETQUEUE)
    """
    for fd in fds:
        if attached_link(fd) != name or len(fds) == 1:
            _attach(fd, name, uid, several=len(fds) > 1)
    try:
        fcntl.ioctl(fds[0], TUNSETVNETHDRSZ, struct.pack("=i", settings.header_bytes))
        fcntl.ioctl(fds[0], TUNSETOFFLOAD, settings.offload_flags)
        for place, fd in enumerate(fds):
            found = attachment(fd)
            if place in detached and found is not None and not found.detached:
                fcntl.ioctl(fd, TUNSETQUEUE, struct.pack("=16xH22x", IFF_DETACH_QUEUE))
    except OSError as e:
        raise translated(e, f"restore the settings of {name}") from e


def _open_device() -> int:
    try:
        return os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        raise translated(e, f"open {TUN_DEVICE}") from e


def _attach(fd: int, name: str, uid: int, *, several: bool) -> None:
    """TUNSETIFF and TUNSETOWNER. `struct ifreq` has 40 bytes, a name of 15 and its NUL first."""
    flags = TAP_FLAGS | (IFF_MULTI_QUEUE if several else 0)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("=16sH22x", name.encode(), flags))
        fcntl.ioctl(fd, TUNSETOWNER, uid)
    except OSError as e:
        raise translated(e, f"attach to the tap {name}") from e
