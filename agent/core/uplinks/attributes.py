"""The bytes of rtnetlink messages, as far as moving them from one link to another needs to read and change them.

What is not understood is kept as it came: a lossy parse would put back less than there was. Sources: linux/netlink.h,
linux/rtnetlink.h, linux/if_addr.h, linux/neighbour.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from agent.core.netlink import KIND_MASK, packed, split

ADDRESS, ROUTE, NEIGHBOUR = struct.Struct("=BBBBI"), struct.Struct("=BBBBBBBBI"), struct.Struct("=BxxxiHBB")
"""ifaddrmsg: family, prefix, flags, scope, ifindex. rtmsg: family, lengths of destination and source, TOS, table,
protocol, scope, type, flags. ndmsg: family, ifindex, state, flags, type."""

AF_INET, AF_INET6 = 2, 10
IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_CACHEINFO, IFA_FLAGS, IFA_PROTO = 1, 2, 3, 6, 8, 11
IFA_F_NODAD, IFA_F_TENTATIVE = 0x02, 0x40
IFAPROT_KERNEL_LL = 3
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_MULTIPATH, RTA_CACHEINFO, RTA_TABLE, RTA_VIA = 1, 4, 5, 9, 12, 15, 18
RTA_PRIORITY, RTA_EXPIRES, RTA_NH_ID = 6, 23, 30
RTPROT_KERNEL, RTPROT_RA = 2, 9
RTNH_F_ONLINK, RTM_F_CLONED = 0x04, 0x200
NDA_DST, NDA_LLADDR, NDA_CACHEINFO, NDA_PROBES = 1, 2, 3, 4
NUD_PERMANENT, NTF_PROXY = 0x80, 0x08
FOREVER = 0xFFFFFFFF

_NEXT_HOP = struct.Struct("=HBBi")

Attributes = Sequence[tuple[int, bytes]]
"""Each with its number as it was sent, flags of nesting included."""


def join(head: bytes, attributes: Iterable[tuple[int, bytes]]) -> bytes:
    """A message's body from its header and its attributes."""
    return head + b"".join(packed(kind, value) for kind, value in attributes)


def find(body: bytes, header: struct.Struct, number: int) -> bytes | None:
    """The value of an attribute, None if it is not there."""
    return next((value for kind, value in split(body, header.size) if kind & KIND_MASK == number), None)


def next_hops(value: bytes) -> list[tuple[int, int, int, bytes]]:
    """The legs of RTA_MULTIPATH: flags, weight less one, ifindex, and their attributes."""
    found, start = [], 0
    while start + _NEXT_HOP.size <= len(value):
        length, flags, hops, ifindex = _NEXT_HOP.unpack_from(value, start)
        if length < _NEXT_HOP.size:
            break
        found.append((flags, hops, ifindex, value[start + _NEXT_HOP.size : start + length]))
        start += (length + 3) & ~3
    return found


def _join_hops(hops: Iterable[tuple[int, int, int, bytes]]) -> bytes:
    parts = []
    for flags, weight, ifindex, rest in hops:
        parts.append(_NEXT_HOP.pack(_NEXT_HOP.size + len(rest), flags, weight, ifindex) + rest + bytes(-len(rest) % 4))
    return b"".join(parts)


def bare_address(body: bytes) -> bytes:
    """An address as it can be set and compared: without the times of its making, and whether it is being checked."""
    family, prefix, flags, scope, ifindex = ADDRESS.unpack_from(body)
    kept = []
    for kind, value in split(body, ADDRESS.size):
        if kind & KIND_MASK == IFA_CACHEINFO:
            value = value[:8] + bytes(len(value) - 8)  # noqa: PLW2901 - struct ifa_cacheinfo: preferred, valid, two times
        if kind & KIND_MASK == IFA_FLAGS:
            value = struct.pack("=I", struct.unpack("=I", value)[0] & ~IFA_F_TENTATIVE)  # noqa: PLW2901 - the same
        kept.append((kind, value))
    return join(ADDRESS.pack(family, prefix, flags & ~IFA_F_TENTATIVE, scope, ifindex), kept)


def bare_route(body: bytes) -> bytes:
    """A route as it can be set and compared: without what the kernel says of it and nobody sets (carrier, use)."""
    *head, flags = ROUTE.unpack_from(body)
    kept = []
    for kind, value in split(body, ROUTE.size):
        if kind & KIND_MASK == RTA_CACHEINFO:
            continue
        if kind & KIND_MASK == RTA_MULTIPATH:
            hops = next_hops(value)
            value = _join_hops((f & RTNH_F_ONLINK, w, i, rest) for f, w, i, rest in hops)  # noqa: PLW2901 - as above
        kept.append((kind, value))
    return join(ROUTE.pack(*head, flags & RTNH_F_ONLINK), kept)


def bare_neighbour(body: bytes) -> bytes:
    """A neighbour as it can be set and compared: without its counters."""
    kept = [(k, v) for k, v in split(body, NEIGHBOUR.size) if k & KIND_MASK not in {NDA_CACHEINFO, NDA_PROBES}]
    return join(body[: NEIGHBOUR.size], kept)


def address_on(body: bytes, ifindex: int, was: str, name: str) -> bytes:
    """An address on another link; a label that begins with the old link's name begins with the new one's."""
    family, prefix, flags, scope, _ = ADDRESS.unpack_from(body)
    kept = [
        (kind, _relabelled(value, was, name) if kind & KIND_MASK == IFA_LABEL else value)
        for kind, value in split(body, ADDRESS.size)
    ]
    return join(ADDRESS.pack(family, prefix, flags, scope, ifindex), kept)


def _relabelled(value: bytes, was: str, name: str) -> bytes:
    label = value.rstrip(b"\0").decode(errors="surrogateescape")
    if label == was or label.startswith(f"{was}:"):
        longer = name + label.removeprefix(was)
        label = longer if len(longer.encode()) < 16 else name  # IFNAMSIZ
    return label.encode(errors="surrogateescape") + b"\0"


def route_on(body: bytes, was: int, ifindex: int) -> bytes:
    """A route with another link in place of one, also in its legs."""
    kept = []
    for kind, value in split(body, ROUTE.size):
        if kind & KIND_MASK == RTA_OIF and struct.unpack("=i", value)[0] == was:
            value = struct.pack("=i", ifindex)  # noqa: PLW2901 - the same attribute
        if kind & KIND_MASK == RTA_MULTIPATH:
            hops = [(f, w, ifindex if i == was else i, rest) for f, w, i, rest in next_hops(value)]
            value = _join_hops(hops)  # noqa: PLW2901 - the same attribute
        kept.append((kind, value))
    return join(body[: ROUTE.size], kept)


def neighbour_on(body: bytes, ifindex: int) -> bytes:
    """A neighbour on another link."""
    family, _, state, flags, kind = NEIGHBOUR.unpack_from(body)
    return NEIGHBOUR.pack(family, ifindex, state, flags, kind) + body[NEIGHBOUR.size :]


def address_flags(body: bytes) -> int:
    """The flags of an address: those of IFA_FLAGS, which hold more than a byte, where it has them."""
    wide = find(body, ADDRESS, IFA_FLAGS)
    return int(struct.unpack("=I", wide)[0]) if wide is not None else body[2]


def with_address_flags(body: bytes, flags: int) -> bytes:
    """An address with other flags."""
    family, prefix, _, scope, ifindex = ADDRESS.unpack_from(body)
    kept = [(k, v) for k, v in split(body, ADDRESS.size) if k & KIND_MASK != IFA_FLAGS]
    head = ADDRESS.pack(family, prefix, flags & 0xFF, scope, ifindex)
    return join(head, [*kept, (IFA_FLAGS, struct.pack("=I", flags))])
