"""Requests of rtnetlink as the bytes that they are: many at once in one datagram, which the kernel works off in a row.

The kernel carries out all messages of a datagram within sendmsg(), one after the other, whatever became of the ones
before (net/netlink/af_netlink.c: netlink_rcv_skb), so nothing of this process comes between them.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Protocol

from agent.core.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_ERROR, Message, errno_of, framed, messages
from agent.host.netlink.wire import SO_RCVBUFFORCE, KernelRefusedError, NoAnswerError, RawRequest, RequestSocket

AT_ONCE = 256
"""Messages in a datagram: the kernel takes some 200 KiB, and each answer waits in the socket's buffer."""
BUFFER_BYTES = 4 << 20


class Asked(Protocol):
    """What is sent (`core.uplinks.order.Request`)."""

    @property
    def kind(self) -> int:
        """The type of the message."""

    @property
    def flags(self) -> int:
        """Flags beside those of every request."""

    @property
    def body(self) -> bytes:
        """What follows the header."""

    @property
    def fine(self) -> frozenset[int]:
        """Refusals that say that it is so already."""


def dump(requests: RequestSocket, kind: int, body: bytes) -> list[Message]:
    """A whole table. Raises KernelRefusedError, NoAnswerError, OSError."""
    return requests.ask(kind, RawRequest(body), NLM_F_DUMP)


def send_all(requests: Sequence[Asked]) -> None:
    """Send requests in this order; all are carried out, also behind one that is refused.

    Raises KernelRefusedError for the first that was refused and not `fine`, NoAnswerError if an answer is missing,
    OSError if they could not be sent.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as opened:
        opened.bind((0, 0))
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        for start in range(0, len(requests), AT_ONCE):
            _send(opened, requests[start : start + AT_ONCE])


def _send(opened: socket.socket, requests: Sequence[Asked]) -> None:
    sent = bytearray()
    for number, one in enumerate(requests):
        flags = NLM_F_REQUEST | NLM_F_ACK | one.flags
        sent += framed(one.kind, flags, number, one.body)
        sent += bytes(-len(one.body) % 4)
    opened.send(sent)
    unanswered, refused = set(range(len(requests))), []
    while unanswered:
        try:
            datagram = opened.recv(64 * 1024)
        except BlockingIOError as error:
            raise NoAnswerError(f"no answer to {len(unanswered)} requests") from error
        for message, _, sequence in messages(datagram):
            if message.type != NLMSG_ERROR:
                continue
            unanswered.discard(sequence)
            number = errno_of(message)
            if number and number not in requests[sequence].fine:
                refused.append((sequence, number))
    if refused:
        raise KernelRefusedError(min(refused)[1], "")
