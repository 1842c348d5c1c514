"""Netlink's messages and attributes as the bytes that they are, for every family of it (linux/netlink.h, RFC 3549).

Attributes begin at multiples of four bytes and have a header of four; messages one of sixteen.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
KIND_MASK = 0x3FFF
"""Without it an attribute's number says also whether it is nested, and in whose byte order it is."""

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


class Message(NamedTuple):
    """A netlink message: its type and what follows its header."""

    type: int
    body: bytes


def framed(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A message with its header, to the kernel (struct nlmsghdr)."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def messages(datagram: bytes) -> Iterator[tuple[Message, int, int]]:
    """The messages of a datagram, each with its flags and its sequence number."""
    start = 0
    while start + 16 <= len(datagram):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, start)
        if length < 16:
            break
        yield Message(kind, datagram[start + 16 : start + length]), flags, sequence
        start += (length + 3) & ~3


def errno_of(message: Message) -> int:
    """The errno of a refusal; 0 of an acknowledgement, and of the end of a dump that went well (struct nlmsgerr)."""
    return max(0, -struct.unpack_from("=i", message.body)[0]) if len(message.body) >= 4 else 0


def packed(kind: int, value: bytes) -> bytes:
    """An attribute as netlink has it: length, kind, value, filled up to four bytes (struct nlattr)."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes, start: int = 0) -> Mapping[int, bytes]:
    """The attributes from `start` on, by their number; of those that come more than once the last."""
    found: dict[int, bytes] = {}
    end = len(data)
    while start + 4 <= end:  # not by `split`: a table of links has tens of thousands
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4:
            break
        found[kind & KIND_MASK] = data[start + 4 : start + length]
        start += (length + 3) & ~3
    return found


def attribute_list(data: bytes, start: int = 0) -> list[tuple[int, bytes]]:
    """The attributes from `start` on in their order, also those whose number comes more than once."""
    return [(kind & KIND_MASK, value) for kind, value in split(data, start)]


def split(data: bytes, start: int = 0) -> list[tuple[int, bytes]]:
    """The attributes from `start` on in their order, each with its number as it was sent."""
    found: list[tuple[int, bytes]] = []
    while start + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4:
            break
        found.append((kind, data[start + 4 : start + length]))
        start += (length + 3) & ~3
    return found
