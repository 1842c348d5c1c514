"""Taking a copy of a tap's descriptor from the process that has it open."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from pathlib import Path

from agent.core.errors import PermanentError
from agent.host.tap.ioctls import translated

SYS_PIDFD_GETFD = 438
"""The same number on every architecture that has the call (asm-generic/unistd.h)."""


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
    if not _is_tun(copy):
        os.close(copy)
        raise PermanentError(f"descriptor {fd} of process {pid} is not a tap's")
    return copy


def find_descriptor_number(pid: int, name: str) -> int | None:
    """The number under which a process has a tap of this name open, None if it has none or may not be looked at.

    (/proc/PID/fdinfo/N names the tap: drivers/net/tun.c, tun_chr_show_fdinfo)
    """
    try:
        for number in os.listdir(f"/proc/{pid}/fdinfo"):
            with contextlib.suppress(OSError):
                if f"iff:\t{name}\n" in Path(f"/proc/{pid}/fdinfo/{number}").read_text():
                    return int(number)
    except OSError:
        return None
    return None


def _pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2), which Python has no function for; the copy is close-on-exec by itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    copy = int(libc.syscall(SYS_PIDFD_GETFD, pidfd, fd, 0))
    if copy < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return copy


def _is_tun(fd: int) -> bool:
    """Whether a descriptor is one of /dev/net/tun, by its device number (misc major 10, minor 200)."""
    seen = os.fstat(fd)
    return stat.S_ISCHR(seen.st_mode) and (os.major(seen.st_rdev), os.minor(seen.st_rdev)) == (10, 200)
