"""The agent's side of `launcher.py`: gives a process that the service manager started its descriptors and its command.

The launcher runs this very file's neighbour under the interpreter of the agent, without its packages. Whoever it is, is
told by the kernel (SO_PASSCRED, unix(7)), so its pid need not be believed.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agent.core.errors import PermanentError, TransientError

READY_TIMEOUT_S = 20.0
"""Python starts in 10 ms; a host that has been busy for this long starts no guest well."""

MAX_DESCRIPTORS = 250
"""In one message, as the launcher has it; the kernel takes 253 (SCM_MAX_FD)."""

_CREDENTIALS = struct.Struct("3i")


def launcher_command() -> list[str]:
    """The command line of the launcher: isolated, and without a look at any package."""
    return [os.path.realpath(sys.executable), "-I", "-S", str(Path(__file__).with_name("launcher.py"))]


class Handover:
    """A socket to one launcher. `theirs` is for its standard input, and is closed by `sent`."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    def sent(self) -> None:
        """The launcher has its end: close ours of it, or its end would never be seen."""
        self.theirs.close()

    def close(self) -> None:
        """Let go; a launcher that still waits ends by itself."""
        self.theirs.close()
        self._ours.close()

    async def ready(self) -> int:
        """The pid of the launcher, once it runs. TransientError `LaunchFailed` if it ends or is not heard of."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await _readable(self._ours)
        except TimeoutError as error:
            raise TransientError(f"not begun within {READY_TIMEOUT_S:.0f} s", reason="LaunchFailed") from error
        data, ancillary, _, _ = self._ours.recvmsg(16, socket.CMSG_SPACE(_CREDENTIALS.size))
        for level, kind, part in ancillary if data else ():
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                return int(_CREDENTIALS.unpack(part[: _CREDENTIALS.size])[0])
        raise TransientError("it ended before it began", reason="LaunchFailed")

    def give(self, command: Sequence[str], fds: Sequence[int]) -> None:
        """Have the launcher become a command that finds copies of these descriptors under the same numbers."""
        try:
            for first in range(0, len(fds), MAX_DESCRIPTORS):
                some = list(fds[first : first + MAX_DESCRIPTORS])
                socket.send_fds(self._ours, [_message("descriptors", *map(str, some))], some)
            # In a file, because what a socket takes at once is less than what the kernel takes as a command line.
            with os.fdopen(os.memfd_create("vmhost-command"), "wb", buffering=0) as text:
                text.write(b"\0".join(map(os.fsencode, command)))
                text.seek(0)
                socket.send_fds(self._ours, [_message("command")], [text.fileno()])
        except BlockingIOError as error:
            raise TransientError(f"the launcher does not read: {error.strerror}", reason="LaunchFailed") from error
        except OSError as error:
            raise PermanentError(f"the launcher cannot be told: {error.strerror}", reason="LaunchFailed") from error


def _message(*fields: str) -> bytes:
    return b"\0".join(os.fsencode(field) for field in fields)


@contextmanager
def handover() -> Iterator[Handover]:
    """A handover that is closed at the end."""
    one = Handover()
    try:
        yield one
    finally:
        one.close()


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection)
