"""Whether a value of a packet, as far as it is known, is what a rule or a set names."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from agent.core.doctor.rules import Json

MAX_MEMBERS = 20_000
"""Of a larger set nobody knows what is in it: to read one takes longer than a look may."""

PROTOCOLS = {"1": "icmp", "6": "tcp", "17": "udp", "58": "ipv6-icmp", "icmpv6": "ipv6-icmp"}


class Span(NamedTuple):
    """Addresses of one IP version, from the first to the last, as numbers."""

    version: int
    first: int
    last: int


def span_of(text: str) -> Span:
    """The span of a network or an address; bits beyond its prefix do not count. Raises ValueError."""
    if "/" not in text:  # most of what large sets have; three times as fast
        address = ip_address(text)
        return Span(address.version, int(address), int(address))
    network = ip_network(text, strict=False)
    return Span(network.version, int(network.network_address), int(network.broadcast_address))


def bare(element: Json) -> Json:
    """An element without its counter, its timeout or what it maps to."""
    if isinstance(element, dict) and "elem" in element:
        return bare(element["elem"].get("val"))
    return bare(element[0]) if isinstance(element, list) and len(element) == 2 else element


def is_named(known: object, right: Json) -> bool | None:
    """Whether what is known is what a rule names; None where it may be."""
    if isinstance(known, Span):
        return _is_within(known, right)
    if isinstance(right, dict) and "range" in right:
        first, last = right["range"]
        return first <= known <= last if isinstance(known, int) and isinstance(first, int) else None
    if isinstance(right, dict):
        return None
    if isinstance(right, str) and right.endswith("*"):
        return str(known).startswith(right[:-1])
    return str(known) == PROTOCOLS.get(str(right), str(right))


def _is_within(known: Span, right: Json) -> bool | None:
    try:
        named = named_span(right)
    except (ValueError, TypeError, KeyError):
        return None
    if named.version != known.version or named.last < known.first or known.last < named.first:
        return False
    return True if named.first <= known.first and known.last <= named.last else None


def named_span(right: Json) -> Span:
    """The addresses that a rule names. Raises ValueError, TypeError or KeyError for what are none."""
    if isinstance(right, dict) and "range" in right:
        first, last = (ip_address(one) for one in right["range"])
        return Span(first.version, int(first), int(last))
    if isinstance(right, dict):
        return span_of(f"{right['prefix']['addr']}/{right['prefix']['len']}")
    return span_of(str(right))


@dataclass(frozen=True, slots=True)
class SpanSet:
    """The addresses of a set, in order; nft lets none overlap (nft(8), SETS). `odd`: it has members of other kinds."""

    spans: tuple[Span, ...]
    odd: bool

    def holds(self, known: Span) -> bool | None:
        """Whether one member has all of these addresses; None where some have a part, or it cannot be known."""
        place = bisect_right(self.spans, (known.version, known.first, 1 << 128))
        before = self.spans[place - 1] if place else None
        after = self.spans[place] if place < len(self.spans) else None
        overlap = False
        if before is not None and before.version == known.version and before.last >= known.first:
            if before.last >= known.last:
                return True
            overlap = True
        if after is not None and after.version == known.version and after.first <= known.last:
            overlap = True
        return None if overlap or self.odd else False


def span_set(members: Sequence[Json]) -> SpanSet:
    """The addresses that members of a set name."""
    found: list[Span] = []
    odd = False
    for one in members:
        try:
            found.append(named_span(bare(one)))
        except (ValueError, TypeError, KeyError):
            odd = True
    return SpanSet(tuple(sorted(found)), odd)
