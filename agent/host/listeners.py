"""Who has a port of this host, as far as this process may see it (sock_diag(7), proc(5): /proc/net, /proc/PID/fd)."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from agent.core.netlink import NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, errno_of, framed, messages
from agent.core.routing.publications import Publication, publication

_LISTENING = {"tcp": "0A", "udp": "07"}
"""TCP_LISTEN, and TCP_CLOSE, in which a UDP socket is that nobody connected (include/net/tcp_states.h)."""


_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_TCP_LISTEN = 10
_ANSWER_S = 10.0
_DIAG = struct.Struct("=B3x2s2x16s16x12x4x8xII")
"""struct inet_diag_msg: family, port, address, uid, inode."""

_Listening = tuple[IPv4Address | IPv6Address, int, str]
"""A socket that listens: address, port, inode."""

_Row = tuple[bytes, int, int, str]
"""A socket that listens: address, port, uid, inode."""


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


def find_free(published: Collection[str], own: Collection[int] = ()) -> frozenset[str]:
    """Those of a few published ports that nobody has, see `find_holders`; none where the kernel cannot be asked.

    Raises nothing. Made for the event loop: it asks for what listens alone (sock_diag(7)).
    """
    tcp = _diagnosed()
    if tcp is None:
        return frozenset()
    rows = {"tcp": tcp, "udp": [*_printed("udp")] if any(text.endswith("/udp") for text in published) else []}
    listening = {proto: list(_without(ones, own)) for proto, ones in rows.items()}
    return frozenset(text for text in published if not _takers(publication(text), listening))


def _holder(what: Publication, listening: Mapping[str, Collection[_Listening]]) -> str:
    found = _takers(what, listening)
    if not found:
        return ""
    number, inode = min(found)
    return str(_process_with({f"socket:[{inode}]"}) or f"somebody on port {number}")


def _takers(what: Publication, listening: Mapping[str, Collection[_Listening]]) -> list[tuple[int, str]]:
    """Port and inode of each socket that could get what comes to a published port."""
    return [
        (number, inode)
        for address, number, inode in listening[what.proto]
        if what.first <= number <= what.last and not address.is_loopback and _shares(what, address)
    ]


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


def _listening(proto: str, but: Collection[int] = ()) -> Iterator[_Listening]:
    """What is listened on by a protocol, but not by some users.

    The kernel goes through all that it has room for to print TCP's tables, 15 ms of it on an idle host; asked for what
    listens it goes through that alone, but not every kernel can be asked.
    """
    found = _diagnosed() if proto == "tcp" else None
    return _without(_printed(proto) if found is None else found, but)


def _without(rows: Iterable[_Row], but: Collection[int]) -> Iterator[_Listening]:
    return ((ip_address(address), number, inode) for address, number, uid, inode in rows if uid not in but)


def _printed(proto: str) -> Iterator[_Row]:
    """From /proc/net."""
    for table in (proto, f"{proto}6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, _, _, _, uid, _, inode, *_ = line.split()
                if state == _LISTENING[proto]:
                    address, _, number = local.partition(":")
                    yield _packed(address), int(number, 16), int(uid), inode


def _packed(text: str) -> bytes:
    """An address as the kernel prints it: words of the host's byte order."""
    words = bytes.fromhex(text)
    return b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))


def _diagnosed() -> list[_Row] | None:
    """What listens over TCP, from sock_diag(7); None where the kernel does not tell."""
    found: list[_Row] = []
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as kernel:
            kernel.settimeout(_ANSWER_S)
            kernel.bind((0, 0))
            for family in (socket.AF_INET, socket.AF_INET6):
                kernel.send(framed(_SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, _asked(family)))
                is_over = False
                while not is_over:
                    rows, is_over = _rows(kernel.recv(1 << 16))
                    found += rows
    except OSError:
        return None
    return found


def _asked(family: int) -> bytes:
    """struct inet_diag_req_v2 (linux/inet_diag.h), of all that listens."""
    return struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 0, 1 << _TCP_LISTEN)


def _rows(datagram: bytes) -> tuple[list[_Row], bool]:
    """What a part of an answer tells (struct inet_diag_msg), and whether it is the last; OSError for a refusal."""
    found: list[_Row] = []
    for message, _, _ in messages(datagram):
        if message.type == NLMSG_DONE and not errno_of(message):
            return found, True
        if message.type != _SOCK_DIAG_BY_FAMILY or len(message.body) < _DIAG.size:
            raise OSError("refused")  # also by an errno in the end: there is no module for TCP
        family, port, address, uid, inode = _DIAG.unpack_from(message.body)
        size = 4 if family == socket.AF_INET else 16
        found.append((address[:size], int.from_bytes(port, "big"), uid, str(inode)))
    return found, False
