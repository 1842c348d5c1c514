"""What a guest's QEMU and its serial ports write: files of ours, in a folder that the guest's user may write to."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from agent.core.errors import TransientError

LOG_MAX_BYTES = 1 << 20
SHUTDOWN_LOOK_BYTES = 64 << 10
_OWN_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""A guest's user may write to the folder of its logs: no link of its is followed, no pipe waited for."""


def open_log(path: Path) -> int:
    """A descriptor that appends to a log, which only we may read; never through a link that somebody put there.

    A log over `LOG_MAX_BYTES` is put aside as `.1` first. TransientError `LogUnwritable` if it cannot be had.
    """
    try:
        return _open(path)
    except OSError as error:
        raise TransientError(f"{path}: {error.strerror}", reason="LogUnwritable") from error


def _open(path: Path) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _OWN_FILE, 0o600)
    if os.fstat(descriptor).st_size <= LOG_MAX_BYTES:
        os.set_blocking(descriptor, True)
        return descriptor
    os.close(descriptor)
    path.rename(path.with_name(f"{path.name}.1"))
    return _open(path)


def cap_log(path: Path) -> None:
    """Empty a log that has outgrown `LOG_MAX_BYTES` while its program runs, keeping its beginning as `.1`.

    The program appends (O_APPEND), so it goes on at the new end. What cannot be done now is done at the next call.
    """
    with contextlib.suppress(OSError), open(os.open(path, os.O_RDWR | _OWN_FILE), "rb") as log:
        if os.fstat(log.fileno()).st_size > LOG_MAX_BYTES:
            former = path.with_name(f"{path.name}.1")
            former.unlink(missing_ok=True)
            with open(os.open(former, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OWN_FILE, 0o600), "wb") as copy:
                copy.write(log.read(LOG_MAX_BYTES))
            os.truncate(log.fileno(), 0)


def log_size(log: Path) -> int:
    """How long a log is, for `last_line`; 0 if it is not there."""
    try:
        return log.stat(follow_symlinks=False).st_size
    except OSError:
        return 0


def last_line(log: Path, since_bytes: int = 0) -> str:
    """What a program wrote last to its log, without QEMU's timestamp; empty if there is nothing.

    Of what it wrote after `since_bytes`; of all, if the log was put aside since and is shorter.
    """
    try:
        with open(log, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(since_bytes if since_bytes <= size else 0, size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    spoken = [line.strip() for line in lines if line.strip()]
    return re.sub(r"^[0-9T:.-]+Z ", "", spoken[-1]) if spoken else ""


def shut_itself_down(pid: int, log: Path) -> bool:
    """Whether a QEMU that runs has said in its log that its guest switched itself off.

    It does, by its trace of `qemu_system_shutdown_request`, which a reboot does not pass through (QEMU,
    softmmu/runstate.c). Each line begins with the id of the thread that it is about, and those of others do not count.
    """
    try:
        with open(os.open(log, os.O_RDONLY | _OWN_FILE), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - SHUTDOWN_LOOK_BYTES))
            said = file.read()
        threads = {int(name) for name in os.listdir(f"/proc/{pid}/task")}
    except OSError:
        return False
    lines = re.findall(rb"^(\d+)@[0-9.]+:qemu_system_shutdown_request ", said, re.MULTILINE)
    return any(int(thread) in threads for thread in lines)
