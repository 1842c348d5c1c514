"""Making a tap, and re-arming the descriptor of one that was deleted under its guest."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from agent.host.tap.ioctls import (
    TAP_FLAGS,
    TUN_DEVICE,
    TUNGETIFF,
    TUNSETIFF,
    TUNSETOFFLOAD,
    TUNSETOWNER,
    TUNSETPERSIST,
    TUNSETVNETHDRSZ,
    translated,
)
from agent.host.tap.settings import TapSettings


def open_tap(name: str, uid: int) -> int:
    """A new descriptor attached to the tap of this name, which is made if there is none; only `uid` may attach to it.

    A tap that this made goes with its descriptor until `keep`: mark the link first, so that an agent that is killed in
    between leaves nothing unmarked behind. Another descriptor attached already: TransientError with reason Busy.
    Not a tap: PermanentError. (tuntap.rst: 3.2; TUNSETIFF, TUNSETOWNER)
    """
    try:
        fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        raise translated(e, f"open {TUN_DEVICE}") from e
    try:
        _attach(fd, name, uid)
    except BaseException:
        os.close(fd)
        raise
    return fd


def keep(fd: int) -> None:
    """Let the tap outlive its descriptor (TUNSETPERSIST)."""
    try:
        fcntl.ioctl(fd, TUNSETPERSIST, 1)
    except OSError as e:
        raise translated(e, "make the tap persistent") from e


def attached_link(fd: int) -> str | None:
    """The name of the tap that a descriptor is attached to; None when that was deleted (TUNGETIFF: EBADFD).

    The name is of the namespace that the tap is in, which may be another than the caller's.
    """
    request = bytearray(40)
    try:
        fcntl.ioctl(fd, TUNGETIFF, request)
    except OSError as e:
        if e.errno == errno.EBADFD:
            return None
        raise translated(e, "ask a descriptor for its tap") from e
    return bytes(request[:16]).split(b"\0", 1)[0].decode(errors="backslashreplace")


def rearm(fd: int, name: str, uid: int, settings: TapSettings) -> None:
    """Attach the descriptor of a deleted tap to a new tap, made with this name, with the settings of the old one.

    Whoever reads the descriptor goes on with it unaware. The tap appears in the namespace where the descriptor was
    opened, goes with the descriptor until `keep`, is down and in no bridge. A descriptor that is attached already:
    PermanentError. (TUNSETIFF on an open file whose tap is gone; TUNSETVNETHDRSZ, TUNSETOFFLOAD)
    """
    _attach(fd, name, uid)
    try:
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("=i", settings.header_bytes))
        fcntl.ioctl(fd, TUNSETOFFLOAD, settings.offload_flags)
    except OSError as e:
        raise translated(e, f"restore the settings of {name}") from e


def _attach(fd: int, name: str, uid: int) -> None:
    """TUNSETIFF and TUNSETOWNER. `struct ifreq` has 40 bytes, a name of 15 and its NUL first."""
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("=16sH22x", name.encode(), TAP_FLAGS))
        fcntl.ioctl(fd, TUNSETOWNER, uid)
    except OSError as e:
        raise translated(e, f"attach to the tap {name}") from e
