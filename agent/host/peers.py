"""Who opened a Unix socket, as the kernel noted it when they connected; users and groups of the host, by name."""

from __future__ import annotations

import grp
import pwd
import socket
import struct
from typing import Protocol

from agent.core.errors import ObservationError
from agent.core.rights import Peer

SO_PEERGROUPS = 59
"""The peer's supplementary groups (Linux 4.13, include/uapi/asm-generic/socket.h); Python has no name for it."""

MAX_GROUPS_BYTES = 1024
"""What Python's getsockopt takes at most: 256 groups."""


class ConnectedSocket(Protocol):
    """What is asked of a socket here; asyncio hands out sockets that can do little more."""

    def getsockopt(self, level: int, option: int, length: int, /) -> bytes:
        """getsockopt(2)."""


def peer_of(connection: ConnectedSocket) -> Peer:
    """Who is at the other end of a connected Unix socket. Raises ObservationError if the kernel does not say.

    The credentials are those of connect(2) (unix(7), SO_PEERCRED): nothing that the peer does, or that becomes of its
    pid, changes them. A peer in more than 256 groups is known by its user and its first group only.
    """
    try:
        _, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except OSError as error:
        raise ObservationError("peer", f"no credentials of the control socket's peer: {error.strerror}") from error
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, MAX_GROUPS_BYTES)
    except OSError:
        packed = b""
    return Peer(uid, frozenset({gid, *(group for (group,) in struct.iter_unpack("I", packed))}))


def find_user(uid: int) -> str:
    """The name of a user of this host, empty if there is none. It may ask a directory service, so it may block."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def find_group(name: str) -> int | None:
    """The number of a group of this host, None if there is none. It may ask a directory service, so it may block."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
