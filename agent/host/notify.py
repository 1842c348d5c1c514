"""The service manager: what it is told about the agent, and the descriptors that it keeps for the next agent.

One datagram of lines to the socket in $NOTIFY_SOCKET, descriptors beside it (sd_notify(3)); descriptors that were kept
come back as numbers from 3 on (sd_listen_fds(3)). Without a service manager nothing is told and nothing kept.

Telling never fails the agent, and waits for 50 ms at most: a manager that does not read has other worries, and what was
not told is told again (the status, the watchdog) or can be done without (a kept descriptor: QEMU has the same one).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Mapping, MutableMapping
from types import TracebackType
from typing import Self

FIRST_KEPT = 3
"""SD_LISTEN_FDS_START (sd_listen_fds(3))."""

PATIENCE_S = 0.05
"""What the agent's loop may be kept waiting for the service manager, which usually answers in less than 1 ms."""


class Notifier:
    """Speaks to the service manager that started this process.

    `watchdog_s`: within how many seconds `WATCHDOG=1` must come, None when nobody asks for it (sd_watchdog_enabled(3)).
    """

    def __init__(
        self, address: str = "", watchdog_s: float | None = None, kept: Mapping[str, int] | None = None
    ) -> None:
        self.watchdog_s = watchdog_s
        self._kept = dict(kept or {})
        self._socket = _connected(address) if address else None

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self:
        """What the environment says, which is taken out of it: it is meant for this process, not for its children."""
        address = environment.pop("NOTIFY_SOCKET", "")
        return cls(
            address if address[:1] in {"/", "@"} else "",
            _watchdog_s(environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")),
            _kept(*(environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_present(self) -> bool:
        """Whether there is a service manager to tell."""
        return self._socket is not None

    def ready(self) -> bool:
        """The agent serves, also again after a reload."""
        return self._tell("READY=1")

    def status(self, line: str) -> bool:
        """One line for `systemctl status`."""
        return self._tell(f"STATUS={' '.join(line.split())}")

    def alive(self) -> bool:
        """The agent made progress."""
        return self._tell("WATCHDOG=1")

    def reloading(self) -> bool:
        """A reload begins; `ready` ends it. The manager wants to know when, on CLOCK_MONOTONIC."""
        return self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> bool:
        """The agent ends because it was asked to."""
        return self._tell("STOPPING=1")

    def keep(self, name: str, fd: int) -> bool:
        """Have the manager keep a copy of a descriptor for the next agent; `release` a former one of this name first.

        It is kept also while it is in an error state: a tap that was deleted polls so, and is worth keeping (FDPOLL=0).
        `name`: ASCII without colon and control characters, at most 255.
        """
        return self._tell("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fd=fd)

    def release(self, *names: str) -> bool:
        """Have the manager close what it keeps under these names, if anything; whether it has done so.

        The answer is waited for: a tap whose descriptor is open elsewhere can be attached to by nobody (EBUSY).
        """
        told = [self._tell("FDSTOREREMOVE=1", f"FDNAME={name}") for name in names]
        return all(told) and (not told or self._barrier())

    def take_kept(self, name: str) -> int | None:
        """The descriptor that was kept under a name, which is the caller's from now on; None if there is none."""
        return self._kept.pop(name, None)

    def drop_kept(self) -> None:
        """Close what was kept and nobody took, here and at the manager."""
        for fd in self._kept.values():
            os.close(fd)
        self.release(*self._kept)
        self._kept.clear()

    def close(self) -> None:
        """Say no more. What the manager keeps, it keeps."""
        for fd in self._kept.values():
            os.close(fd)
        self._kept.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _barrier(self) -> bool:
        """Whether the manager has done all that it was told; it closes the pipe then (sd_notify_barrier(3))."""
        done, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            told = self._tell("BARRIER=1", fd=theirs)
        finally:
            os.close(theirs)
        with open(done, "rb"):
            return told and _ready(done, select.POLLIN)

    def _tell(self, *lines: str, fd: int | None = None) -> bool:
        """Whether the manager has it in its queue."""
        if self._socket is None:
            return False
        descriptors = [] if fd is None else [fd]
        data = "\n".join(lines).encode()
        with contextlib.suppress(OSError):
            if _ready(self._socket.fileno(), select.POLLOUT):
                socket.send_fds(self._socket, [data], descriptors)
                return True
        return False


def _connected(address: str) -> socket.socket | None:
    """A socket to the manager, None if nobody listens there. Connected, or poll(2) could not tell of a full queue."""
    found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        found.connect("\0" + address[1:] if address.startswith("@") else address)  # unix(7): abstract names
    except OSError:
        found.close()
        return None
    return found


def _ready(fd: int, event: int) -> bool:
    """Whether a descriptor is ready within our patience."""
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(PATIENCE_S * 1000))


def _watchdog_s(microseconds: str, pid: str) -> float | None:
    """The watchdog's interval, if it is this process that is asked."""
    if not microseconds.isdecimal() or int(microseconds) == 0 or pid not in {"", str(os.getpid())}:
        return None
    return int(microseconds) / 1e6


def _kept(pid: str, count: str, names: str) -> dict[str, int]:
    """Descriptors by name, closed on exec from now on. Of two with one name nobody knows which is right: neither is."""
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    found: dict[str, list[int]] = {}
    for fd, name in zip(range(FIRST_KEPT, FIRST_KEPT + int(count)), names.split(":"), strict=False):
        os.set_inheritable(fd, False)
        found.setdefault(name, []).append(fd)
    for fds in found.values():
        if len(fds) > 1:
            for fd in fds:
                os.close(fd)
    return {name: fds[0] for name, fds in found.items() if len(fds) == 1}
