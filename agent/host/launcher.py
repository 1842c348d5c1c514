"""Run by the service manager in a guest's unit: takes descriptors over from the agent and becomes QEMU.

A transient unit gets standard input, output and error and no other descriptor (systemd 252), so standard input is a
socket to the agent. This says "ready" there, by which the agent learns the pid, and then reads messages: descriptors
(SCM_RIGHTS, unix(7)) with the numbers that QEMU is to find them under, and at last that of a file with the command
line. Nothing of the command line is ever in the unit's own settings, which anybody may read.

Every guest's start waits for this: it imports only what is part of the interpreter, because `socket` alone would
take longer than Python itself (measured: 10 ms for Python, 2 ms for this, 15 ms for `socket`).
"""

import os
from _signal import SIG_DFL, SIGPIPE, SIGXFSZ, signal  # type: ignore[import-not-found]  # typeshed has `signal` only
from _socket import AF_UNIX, CMSG_SPACE, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, socket
from fcntl import F_DUPFD_CLOEXEC, fcntl

DESCRIPTORS, COMMAND = b"descriptors", b"command"
"""The first field of a message; fields are separated by NUL, as are the words of the command."""

MAX_DESCRIPTORS = 250
"""In one message; the kernel takes 253 (SCM_MAX_FD)."""

SPACE = CMSG_SPACE(4 * MAX_DESCRIPTORS)
RIGHTS = (SOL_SOCKET, SCM_RIGHTS)
MAX_MESSAGE_BYTES = 4096
KEPT_VARIABLES = ("PATH", "LC_ALL")


def main() -> None:
    """Become the command that the agent sends, with its descriptors and /dev/null as standard input."""
    agent = socket(AF_UNIX, SOCK_SEQPACKET, 0, 0)
    agent.send(b"ready")
    received: dict[int, int] = {}
    while True:
        data, ancillary, _, _ = agent.recvmsg(MAX_MESSAGE_BYTES, SPACE, MSG_CMSG_CLOEXEC)
        kind, *fields = data.split(b"\0")
        fds = [fd for level, what, part in ancillary if (level, what) == RIGHTS for fd in _numbers(part)]
        if kind == DESCRIPTORS:
            received.update(zip(map(int, fields), fds, strict=True))
        elif kind == COMMAND:
            break
        else:
            raise SystemExit("vmhost: the agent went away before it said what to start")
    with open(fds[0], "rb") as text:
        command = text.read().split(b"\0")
    put_in_place(received)
    for number in (SIGPIPE, SIGXFSZ):
        signal(number, SIG_DFL)  # Python ignores these, and whoever it becomes would go on doing so (execve(2))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    os.execvpe(os.fsdecode(command[0]), command, environment)


def _numbers(part: bytes) -> list[int]:
    return memoryview(part).cast("i").tolist()


def put_in_place(received: dict[int, int]) -> None:
    """Move descriptors to the numbers that they are wanted under; these survive an exec, and nothing else does."""
    above = max(received, default=2) + 1
    moved = {number: _duplicate(fd, above) for number, fd in received.items()}
    for number, fd in moved.items():
        os.dup2(fd, number, inheritable=True)


def _duplicate(fd: int, above: int) -> int:
    """A copy at or above a number, closed on exec, so that none is overwritten before it is moved (fcntl(2))."""
    return fcntl(fd, F_DUPFD_CLOEXEC, above)


if __name__ == "__main__":
    main()
