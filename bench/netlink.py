"""Inflicts faults on links and waits for their repair, with a clock that no process start blurs (rtnetlink(7))."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

RTM_NEWLINK, RTM_DELLINK = 16, 17
NLM_F_REQUEST, NLM_F_ACK = 1, 4
NLMSG_ERROR = 2
RTMGRP_LINK = 1
IFLA_MTU, IFLA_MASTER = 4, 10
_HEADER, _IFINFO = struct.Struct("=IHHII"), struct.Struct("=BxHiII")


def delete_link(name: str) -> None:
    """Delete a link, at once."""
    _request(RTM_DELLINK, socket.if_nametoindex(name), b"")


@contextlib.contextmanager
def being_deleted(name: str) -> Iterator[None]:
    """Within, a link is deleted: the kernel tells of it long before it is done with it (RCU) and answers."""
    deletion = threading.Thread(target=delete_link, args=(name,))
    deletion.start()
    try:
        yield
    finally:
        deletion.join()


def take_out_of_bridge(name: str) -> None:
    """What `ip link set NAME nomaster` does."""
    _request(RTM_NEWLINK, socket.if_nametoindex(name), struct.pack("=HHI", 8, IFLA_MASTER, 0))


def _request(kind: int, ifindex: int, attributes: bytes) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asked:
        body = _IFINFO.pack(0, 0, ifindex, 0, 0) + attributes
        asked.send(_HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_ACK, 1, 0) + body)
        answer = asked.recv(4096)
        error = struct.unpack_from("=i", answer, _HEADER.size)[0]
        if error:
            raise OSError(-error, f"link {ifindex}")


class LinkEvents:
    """Hears of every change of a link from its making on."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._socket.bind((0, RTMGRP_LINK))

    def __enter__(self) -> LinkEvents:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def until_deleted(self, ifindex: int, timeout_s: float = 20.0) -> float:
        """The time (perf_counter) at which the kernel said that a link is no more; TimeoutError if it did not."""
        return self._until(lambda data: ifindex in _deleted_links(data), timeout_s)

    def until(self, holds: Callable[[int, dict[int, int]], bool], timeout_s: float = 20.0) -> float:
        """The time (perf_counter) of the first change for which `holds(ifindex, attributes)`; TimeoutError if none."""
        return self._until(lambda data: any(holds(*stated) for stated in _new_links(data)), timeout_s)

    def _until(self, holds: Callable[[bytes], bool], timeout_s: float) -> float:
        deadline = time.perf_counter() + timeout_s
        while True:
            self._socket.settimeout(max(0.001, deadline - time.perf_counter()))
            data = self._socket.recv(1 << 16)
            at = time.perf_counter()
            if holds(data):
                return at


def _new_links(data: bytes) -> Iterator[tuple[int, dict[int, int]]]:
    """Of each RTM_NEWLINK of a datagram its ifindex and its attributes of four bytes."""
    for kind, ifindex, rest in _link_messages(data):
        if kind == RTM_NEWLINK:
            yield ifindex, _attributes(rest)


def _deleted_links(data: bytes) -> set[int]:
    return {ifindex for kind, ifindex, _ in _link_messages(data) if kind == RTM_DELLINK}


def _link_messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, ifindex and attributes of each message of a datagram that is about a link itself."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        # Of a bridge's own family are messages about its port in it, not about the link.
        if data[at + _HEADER.size] == socket.AF_UNSPEC:
            ifindex = struct.unpack_from("=i", data, at + _HEADER.size + 4)[0]
            yield kind, ifindex, data[at + _HEADER.size + _IFINFO.size : at + length]
        at += (length + 3) & ~3


def _attributes(data: bytes) -> dict[int, int]:
    found: dict[int, int] = {}
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length == 8:
            found[kind] = struct.unpack_from("=I", data, at + 4)[0]
        at += max(4, (length + 3) & ~3)
    return found
