"""Ends connections that the kernel tracks: ctnetlink (linux/netfilter/nfnetlink_conntrack.h).

What conntrack knows of a connection counts for all its packets, whatever the rules say by now: a UDP flow that goes on
keeps the guest that it was led to, or that it was led to none. So what no longer fits the rules is forgotten, one by
one, each by its own tuple. A deletion without a tuple would end every connection of the host; none is ever sent.

Messages are taken apart here, not by pyroute2's NFCTSocket: among 5,000 connections that takes three times as long, and
a host behind whose address many guests are has more of them.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from agent.core.errors import PermanentError, TransientError
from agent.core.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    attributes,
    errno_of,
    framed,
    messages,
    packed,
)
from agent.core.routing.ruleset import Element

NETLINK_NETFILTER = 12
_GET, _DELETE = 0x0101, 0x0102
"""NFNL_SUBSYS_CTNETLINK with IPCTNL_MSG_CT_GET and IPCTNL_MSG_CT_DELETE."""
_NESTED = 0x8000
_ORIG, _REPLY, _STATUS, _ID, _FILTER, _STATUS_MASK = 1, 2, 3, 12, 25, 26
_SEEN_REPLY, _SRC_NAT, _DST_NAT = 2, 16, 32
_FROM_ADDRESS, _PROTOCOL = 1, 8
"""CTA_FILTER_FLAG(CTA_IP_SRC), CTA_FILTER_FLAG(CTA_PROTO_NUM) (net/netfilter/nf_conntrack_netlink.c)."""

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
PROTOCOLS = {"tcp": 6, "udp": 17}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class _Way:
    """One direction of a connection: addresses, protocol and ports."""

    source: Address
    target: Address
    protocol: int
    source_port: int
    target_port: int


@dataclass(frozen=True, slots=True)
class _Connection:
    """A tracked connection; `tuple` and `id` as the kernel wrote them, which name it."""

    family: int
    there: _Way
    back: _Way
    status: int
    tuple: bytes
    id: bytes


@dataclass(frozen=True, slots=True)
class Strays:
    """Connections that began while the rules were not there: of `published` elements, and from `inside` networks.

    `local` are the host's own addresses.
    """

    published: tuple[Element, ...]
    inside: tuple[str, ...]
    local: frozenset[str]


def end_forwarded(ended: Iterable[Element]) -> int:
    """End the connections that `ended` elements tell of; how many there were. Blocks.

    `PermanentError` where the kernel tracks none, `TransientError` where it did not answer; what was ended stays so.
    """
    number = 0
    with _Conntrack() as kernel:
        for element in ended:
            proto, first, last, target, guest_port = element.key.split(" . ")
            address, protocol = ipaddress.ip_address(target), PROTOCOLS[proto]
            outer = range(int(first), int(last) + 1)
            inner = range(int(guest_port), int(guest_port) + len(outer))
            found = [
                one
                for one in kernel.dump(FAMILIES[address.version], _filter(address, protocol))
                if one.status & _DST_NAT
                and (one.back.source, one.there.protocol) == (address, protocol)
                and one.there.target_port in outer
                and one.back.source_port in inner
            ]
            number += kernel.delete(found)
    return number


def end_strays(strays: Strays) -> int:
    """End what began without the rules, got no answer, and would not follow them as long as it goes on; errors as
    `end_forwarded`."""
    local = frozenset(map(ipaddress.ip_address, strays.local))
    inside = tuple(map(ipaddress.ip_network, strays.inside))
    ports: dict[int, list[range]] = {}
    for element in strays.published:
        proto, written = element.key.split(" . ")[-2:]
        ports.setdefault(PROTOCOLS[proto], []).append(_range(written))

    def is_stray(one: _Connection) -> bool:
        there = one.there
        if one.status & (_SEEN_REPLY | _SRC_NAT | _DST_NAT):
            return False
        if there.target in local:
            return any(there.target_port in some for some in ports.get(there.protocol, ()))
        return _leaves(there, inside)

    with _Conntrack() as kernel:
        # The kernel goes through its whole table for each dump: one for both families.
        found = [one for one in kernel.dump(socket.AF_UNSPEC, _unanswered()) if is_stray(one)]
        return kernel.delete(found)


def _leaves(way: _Way, inside: Collection[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    homes = [network for network in inside if way.source in network]
    return bool(homes) and not any(way.target in network for network in homes) and not way.target.is_multicast


def _range(ports: str) -> range:
    first, _, last = ports.partition("-")
    return range(int(first), int(last or first) + 1)


def _filter(source: Address, protocol: int) -> bytes:
    """Only connections whose answers come from this address (CTA_FILTER, Linux 5.8); older kernels give all."""
    where = packed(1 if source.version == 4 else 3, source.packed)
    reply = packed(1 | _NESTED, where) + packed(2 | _NESTED, packed(1, bytes([protocol])))
    flags = packed(1, struct.pack("=I", 0)) + packed(2, struct.pack("=I", _FROM_ADDRESS | _PROTOCOL))
    return packed(_REPLY | _NESTED, reply) + packed(_FILTER | _NESTED, flags)


def _unanswered() -> bytes:
    """Only connections without an answer (CTA_STATUS_MASK, Linux 5.15); older kernels give all."""
    return packed(_STATUS, bytes(4)) + packed(_STATUS_MASK, struct.pack("!I", _SEEN_REPLY))


class _Conntrack:
    """A socket of ctnetlink, with its errors in this project's words."""

    def __enter__(self) -> Self:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
            self._socket.settimeout(10.0)
            self._socket.bind((0, 0))
        except OSError as e:
            raise PermanentError(f"connections cannot be ended: {e}", reason="KernelLacks") from e
        self._sequence = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def dump(self, family: int, wanted: bytes) -> list[_Connection]:
        """The connections of a family that a filter lets through; all of them where the kernel knows no such filter."""
        try:
            return list(self._dump(family, wanted))
        except OSError as e:
            if e.errno not in {errno.EINVAL, errno.EOPNOTSUPP} or not wanted:
                raise TransientError(f"connections cannot be listed: {e}", reason="ConntrackRefused") from e
        return self.dump(family, b"")

    def _dump(self, family: int, wanted: bytes) -> Iterator[_Connection]:
        for body in self._ask(_GET, NLM_F_DUMP, family, wanted):
            if (found := _parsed(body)) is not None:
                yield found

    def delete(self, connections: Collection[_Connection]) -> int:
        """Forget these; one that went by itself meanwhile, or is another one by now, is left out."""
        number = 0
        for one in connections:
            if not one.tuple:
                continue  # without a tuple it would be all of them
            named = packed(_ORIG | _NESTED, one.tuple) + (packed(_ID, one.id) if one.id else b"")
            try:
                self._ask(_DELETE, NLM_F_ACK, one.family, named)
                number += 1
            except OSError as e:
                if e.errno != errno.ENOENT:
                    raise TransientError(f"a connection cannot be ended: {e}", reason="ConntrackRefused") from e
        return number

    def _ask(self, kind: int, flags: int, family: int, body: bytes) -> list[bytes]:
        self._sequence += 1
        self._socket.send(framed(kind, NLM_F_REQUEST | flags, self._sequence, struct.pack("=BBH", family, 0, 0) + body))
        found: list[bytes] = []
        while True:
            done, parts = _read(self._socket.recv(1 << 17), self._sequence)
            found += parts
            if done:
                return found


def _read(datagram: bytes, sequence: int) -> tuple[bool, list[bytes]]:
    """Whether an answer is over, and its messages; OSError for a refusal."""
    found: list[bytes] = []
    for message, _, number in messages(datagram):
        if number != sequence:
            continue
        if message.type in {NLMSG_ERROR, NLMSG_DONE}:
            if code := errno_of(message):
                raise OSError(code, os.strerror(code))
            return True, found
        found.append(message.body)
    return False, found


def _parsed(body: bytes) -> _Connection | None:
    """A connection of a protocol with ports; None for any other."""
    seen = attributes(body, 4)
    there, back = _way(seen.get(_ORIG, b"")), _way(seen.get(_REPLY, b""))
    if there is None or back is None:
        return None
    status = int.from_bytes(seen.get(_STATUS, b""), "big")
    return _Connection(body[0], there, back, status, seen[_ORIG], seen.get(_ID, b""))


def _way(data: bytes) -> _Way | None:
    parts = attributes(data)
    addresses, proto = attributes(parts.get(1, b"")), attributes(parts.get(2, b""))
    source, target = addresses.get(1) or addresses.get(3), addresses.get(2) or addresses.get(4)
    if source is None or target is None or 2 not in proto or 3 not in proto:
        return None
    protocol, source_port, target_port = (int.from_bytes(proto[kind], "big") for kind in (1, 2, 3))
    return _Way(ipaddress.ip_address(source), ipaddress.ip_address(target), protocol, source_port, target_port)
