"""Rtnetlink's sockets: requests that are answered at once, dumps that let the loop breathe, and events.

pyroute2's classes write the requests, by name. Its sockets and its decoding are not used: its queues grow without bound
when an answer is not fetched, and it builds an object for every attribute, 0.3 ms for a link where `attributes` takes
0.02 ms (measured with 402 links: a dump took 125 ms, all of it in one piece).

The kernel carries out an rtnetlink request within sendmsg(), in the sender's context, and has queued the answer and all
events of the change when that call returns (net/netlink/af_netlink.c: netlink_unicast_kernel). So a request needs no
await, and nothing of this agent can come between looking at a link and changing it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Protocol, Self

from agent.core.errors import ObservationError
from agent.core.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    Message,
    attributes,
    errno_of,
    framed,
    messages,
    packed,
)

# Sources: linux/netlink.h, linux/rtnetlink.h, asm-generic/socket.h.
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
SO_RCVBUFFORCE = 33
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_ACK_TLVS = 0x200
NLMSGERR_ATTR_MSG = 1

EVENT_BUFFER_BYTES = 16 * 1024 * 1024
"""2,000 links can change at once without a lost event; the default loses some after 900."""

RECEIVE_BYTES = 64 * 1024


class KernelRefusedError(Exception):
    """The kernel answered a request with an error: its errno, and its own words where it has some."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text or os.strerror(number))
        self.number = number


class NoAnswerError(Exception):
    """A request was sent and its answer was not there: whether it was carried out is not known."""


class Ignoring:
    """Lets these errors of the kernel be no errors, within a `with` block."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = numbers

    def __enter__(self) -> None:
        """Nothing to begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return isinstance(error, KernelRefusedError) and error.number in self._numbers


class Writable(Protocol):
    """What is needed of pyroute2's message classes (which are untyped)."""

    data: bytearray

    def encode(self) -> None:
        """Write the message with its header to `data`."""

    def __getitem__(self, key: str) -> dict[str, int]: ...


class RawRequest:
    """A request whose body is written by hand, with attributes: what pyroute2 has no words for, or takes 0.3 ms for."""

    def __init__(self, body: bytes, *about: tuple[int, bytes]) -> None:
        self._body = body + b"".join(packed(kind, value) for kind, value in about)
        self._header: dict[str, int] = {}
        self.data = bytearray()

    def __getitem__(self, key: str) -> dict[str, int]:
        return {"header": self._header}[key]

    def encode(self) -> None:
        """Write the message with its header to `data`."""
        header = self._header
        self.data = bytearray(framed(header["type"], header["flags"], header["sequence_number"], self._body))


def _netlink_socket() -> socket.socket:
    """A socket that never blocks, in the network namespace of the calling thread.

    It is bound, to a port that the kernel picks: one without a port counts as the kernel's and hears no events.
    """
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    opened = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
    opened.bind((0, 0))
    return opened


class RequestSocket:
    """A socket for requests, each with its answer before the next."""

    def __init__(self) -> None:
        self._socket = _netlink_socket()
        self._sequence = itertools.count(1)
        self._expected = 0
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; what was not received is dropped."""
        self._socket.close()

    def send(self, kind: int, message: Writable, flags: int = NLM_F_ACK) -> None:
        """Send a request; the kernel has carried it out when this returns."""
        self._expected = next(self._sequence) & 0xFFFFFFFF
        message["header"].update(type=kind, flags=NLM_F_REQUEST | flags, sequence_number=self._expected)
        message.encode()
        self._socket.send(message.data)

    def receive(self) -> tuple[list[Message], bool]:
        """The next part of the answer, and whether it was the last.

        Raises KernelRefusedError when the kernel refused, NoAnswerError when there is none.
        """
        try:
            datagram = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError as e:
            raise NoAnswerError("no answer from the kernel") from e
        found: list[Message] = []
        for message, flags, sequence in messages(datagram):
            if sequence != self._expected:
                continue  # of a request that was given up
            if message.type in {NLMSG_ERROR, NLMSG_DONE}:
                _raise_refusal(message, flags)
                return found, True
            found.append(message)
        return found, False

    def ask(self, kind: int, message: Writable, flags: int = NLM_F_ACK) -> list[Message]:
        """Send a request and return its whole answer; errors as `receive`, and OSError when it could not be sent."""
        self.send(kind, message, flags)
        answer: list[Message] = []
        done = False
        while not done:
            part, done = self.receive()
            answer += part
        return answer


def _raise_refusal(message: Message, flags: int) -> None:
    """Raise KernelRefusedError unless this is an acknowledgement."""
    if not (number := errno_of(message)):
        return
    text = b""
    if flags & NLM_F_ACK_TLVS:
        start = 4 if message.type == NLMSG_DONE else 20
        text = attributes(message.body, start).get(NLMSGERR_ATTR_MSG, b"")
    raise KernelRefusedError(number, text.rstrip(b"\0").decode(errors="replace"))


async def dump(kind: int, message: Writable) -> AsyncIterator[list[Message]]:
    """A table of the kernel in parts of up to 32 KiB, each about 0.6 ms of work; the loop turns between them.

    It has a socket of its own, so that requests go on meanwhile and nothing is left over when it is given up.
    """
    with RequestSocket() as requests:
        requests.send(kind, message, NLM_F_DUMP)
        done = False
        while not done:
            part, done = requests.receive()
            yield part
            await asyncio.sleep(0)


class EventSocket:
    """A socket that hears of every change in the groups given, from its making on."""

    def __init__(self, groups: tuple[int, ...]) -> None:
        self._socket = _netlink_socket()
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, EVENT_BUFFER_BYTES)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, EVENT_BUFFER_BYTES)
        for group in groups:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

    def fileno(self) -> int:
        """The descriptor, for a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket; events that were not read are dropped."""
        self._socket.close()

    def shrink(self, size_bytes: int) -> None:
        """Give the socket a smaller buffer, so that a test can make it overflow."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)

    def read(self) -> list[Message] | None:
        """The events of one datagram, None when there is none. OSError ENOBUFS: events were lost."""
        try:
            datagram = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None
        return [message for message, _, _ in messages(datagram)]


class Asking:
    """What asks over a socket of its own, of the network namespace that it is entered in."""

    def __enter__(self) -> Self:
        """Open the socket. Raises ObservationError."""
        try:
            self._requests = RequestSocket()
        except OSError as e:
            raise ObservationError("netlink", f"cannot open a socket: {e}") from e
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._requests.close()
