"""Who listens on a TCP port of this host, as far as this process may see it (proc(5): /proc/net/tcp, /proc/PID/fd)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

_LISTENING = "0A"
"""TCP_LISTEN (include/net/tcp_states.h)."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A process that listens, by its pid and its name."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def find_listener(host: str, port: int) -> Listener | None:
    """The process in whose hands an address is, also as one of all addresses; None if there is none to be seen.

    Of other users' processes root sees them. It looks at every process, so it is for errors only.
    """
    wanted = ip_address(host)
    sockets = {
        f"socket:[{inode}]"
        for address, inode in _listening(port)
        if address == wanted or (address.is_unspecified and address.version >= wanted.version)
    }
    if not sockets:
        return None
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdecimal()):
        with contextlib.suppress(OSError):  # it is gone, or another user's
            if any(os.readlink(f"/proc/{pid}/fd/{fd}") in sockets for fd in os.listdir(f"/proc/{pid}/fd")):
                return Listener(pid, Path(f"/proc/{pid}/comm").read_text(errors="replace").strip())
    return None


def _listening(port: int) -> Iterator[tuple[IPv4Address | IPv6Address, str]]:
    """The addresses that are listened on with this port, each with its socket's inode."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
                address, _, number = local.partition(":")
                if state == _LISTENING and int(number, 16) == port:
                    yield _address(address), inode


def _address(text: str) -> IPv4Address | IPv6Address:
    """An address as the kernel prints it: words of the host's byte order."""
    words = bytes.fromhex(text)
    return ip_address(b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4)))
