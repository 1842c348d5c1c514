"""Taking a copy of a tap's descriptor from the process that has it open."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from agent.core.errors import PermanentError
from agent.host.tap.ioctls import translated
from agent.host.tap.queues import close_all

SYS_PIDFD_GETFD = 438
"""The same number on every architecture that has the call (asm-generic/unistd.h)."""


def fetch_descriptors(pid: int, numbers: Sequence[int]) -> tuple[int, ...]:
    """Copies of several descriptors of a process, all or none; errors as of `fetch_descriptor`."""
    copies: list[int] = []
    try:
        copies.extend(fetch_descriptor(pid, number) for number in numbers)
    except BaseException:
        close_all(copies)
        raise
    return tuple(copies)


def fetch_descriptor(pid: int, fd: int) -> int:
    """A copy of a tap descriptor that another process has open (pidfd_getfd(2)), close-on-exec.

    Needs ptrace rights over the process: PermanentError with reason NotPermitted without them. Process or descriptor
    gone: TransientError. Something else than a tap's descriptor: PermanentError, and the copy is closed.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as e:
        raise translated(e, f"open process {pid}") from e
    try:
        copy = _pidfd_getfd(pidfd, fd)
    except OSError as e:
        if e.errno == errno.EPERM:
            raise PermanentError(
                f"cannot fetch a descriptor of process {pid}: no ptrace rights over it; the agent needs "
                "CAP_SYS_PTRACE and kernel.yama.ptrace_scope below 3",
                reason="NotPermitted",
            ) from e
        raise translated(e, f"fetch descriptor {fd} of process {pid}") from e
    finally:
        os.close(pidfd)
    if not _is_tap(copy):
        os.close(copy)
        raise PermanentError(f"descriptor {fd} of process {pid} is not a tap's")
    return copy


def find_descriptor_numbers(pid: int, name: str) -> tuple[int, ...]:
    """The numbers, lowest first, under which a process has a tap of this name open; none if it may not be looked at.

    QEMU keeps the order in which it was given queues. (/proc/PID/fdinfo/N names the tap: drivers/net/tun.c,
    tun_chr_show_fdinfo; that of a macvtap says nothing: `find_same`)
    """
    return tuple(number for number, text in _fdinfo_of(pid) if f"iff:\t{name}\n" in text)


def find_same(pid: int, fds: Sequence[int]) -> tuple[int, ...]:
    """The numbers under which a process has the files of our descriptors open; none unless it has all of them.

    Known by mount and inode (proc_pid_fdinfo(5): `mnt_id`, `ino`). Queues of one macvtap that were opened by one node
    are told apart by nothing: QEMU was given them in this order.
    """
    open_there: dict[tuple[str, ...], list[int]] = {}
    for number, text in _fdinfo_of(pid):
        open_there.setdefault(_place_of(text), []).append(number)
    try:
        places = [_place_of(Path(f"/proc/self/fdinfo/{fd}").read_text()) for fd in fds]
        return tuple(open_there[place].pop(0) for place in places)
    except (OSError, KeyError, IndexError):
        return ()


def _place_of(text: str) -> tuple[str, ...]:
    return tuple(line for line in text.splitlines() if line.startswith(("mnt_id:", "ino:")))


def _fdinfo_of(pid: int) -> list[tuple[int, str]]:
    """What the kernel says of each descriptor of a process, by number, lowest first."""
    found: list[tuple[int, str]] = []
    try:
        for number in os.listdir(f"/proc/{pid}/fdinfo"):
            with contextlib.suppress(OSError):
                found.append((int(number), Path(f"/proc/{pid}/fdinfo/{number}").read_text()))
    except OSError:
        return []
    return sorted(found)


def _pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2), which Python has no function for; the copy is close-on-exec by itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    copy = int(libc.syscall(SYS_PIDFD_GETFD, pidfd, fd, 0))
    if copy < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return copy


def _is_tap(fd: int) -> bool:
    """Whether a descriptor is one of /dev/net/tun, by its device number (misc major 10, minor 200), or a macvtap's."""
    seen = os.fstat(fd)
    if not stat.S_ISCHR(seen.st_mode):
        return False
    major = os.major(seen.st_rdev)
    return (major, os.minor(seen.st_rdev)) == (10, 200) or major == macvtap_major()


def macvtap_major() -> int | None:
    """The kernel's number for macvtaps, given anew in each boot; None while it has none (proc_devices(5))."""
    for line in Path("/proc/devices").read_text().splitlines():
        number, _, name = line.strip().partition(" ")
        if name == "macvtap":
            return int(number)
    return None
