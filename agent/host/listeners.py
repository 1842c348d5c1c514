"""Who has a port of this host, as far as this process may see it (proc(5): /proc/net/tcp, /proc/PID/fd)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from agent.core.routing.publications import Publication, publication

_LISTENING = {"tcp": "0A", "udp": "07"}
"""TCP_LISTEN, and TCP_CLOSE, in which a UDP socket is that nobody connected (include/net/tcp_states.h)."""


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
        for address, number, inode in _listening("tcp")
        if number == port and (address == wanted or (address.is_unspecified and address.version >= wanted.version))
    }
    return _process_with(sockets)


def find_holders(published: Iterable[str], own: Collection[int] = ()) -> Mapping[str, str]:
    """Who has each of these published ports (`agent.core.routing.publications`), in words; empty for nobody.

    Whoever listens on loopback only is in nobody's way, nor is what users with one of the uids `own` listen on.
    Blocks; it looks at every process if there is somebody.
    """
    listening = {proto: list(_listening(proto, own)) for proto in _LISTENING}
    return {text: _holder(publication(text), listening) for text in published}


def _holder(what: Publication, listening: Mapping[str, Collection[tuple[IPv4Address | IPv6Address, int, str]]]) -> str:
    found = [
        (number, inode)
        for address, number, inode in listening[what.proto]
        if what.first <= number <= what.last and not address.is_loopback and _shares(what, address)
    ]
    if not found:
        return ""
    number, inode = min(found)
    return str(_process_with({f"socket:[{inode}]"}) or f"somebody on port {number}")


def _shares(what: Publication, address: IPv4Address | IPv6Address) -> bool:
    """Whether what comes to a published port could be for a socket with this address; `::` takes IPv4 as well."""
    if address.is_unspecified:
        return address.version >= min(what.versions)
    return address.version in what.versions and what.address in {"", str(address)}


def _process_with(sockets: Collection[str]) -> Listener | None:
    """The first process that has one of these open; None if there is none to be seen."""
    if not sockets:
        return None
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdecimal()):
        with contextlib.suppress(OSError):  # it is gone, or another user's
            if any(os.readlink(f"/proc/{pid}/fd/{fd}") in sockets for fd in os.listdir(f"/proc/{pid}/fd")):
                return Listener(pid, Path(f"/proc/{pid}/comm").read_text(errors="replace").strip())
    return None


def _listening(proto: str, but: Collection[int] = ()) -> Iterator[tuple[IPv4Address | IPv6Address, int, str]]:
    """What is listened on by a protocol, but not by some users: addresses and ports, each with its socket's inode."""
    for table in (proto, f"{proto}6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, _, _, _, uid, _, inode, *_ = line.split()
                if state == _LISTENING[proto] and int(uid) not in but:
                    address, _, number = local.partition(":")
                    yield _address(address), int(number, 16), inode


def _address(text: str) -> IPv4Address | IPv6Address:
    """An address as the kernel prints it: words of the host's byte order."""
    words = bytes.fromhex(text)
    return ip_address(b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4)))
