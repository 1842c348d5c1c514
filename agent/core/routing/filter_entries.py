"""Entries of a NIC's `allow` and `deny`, as specs have them: `22/tcp`, `icmp from 10.0.0.0/8`, `25/tcp to 0.0.0.0/0`.

The text is canonical: networks without host bits, of one address without their length.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from agent.core.routing.filters import list_set
from agent.core.routing.ruleset import Element

EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
_PROTO = {("icmp", 6): "ipv6-icmp"}
"""What nft(8) calls a protocol, where it is not what we call it."""

_LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Entry:
    """What may or may not be begun towards a guest (`direction` `from`), or by it (`to`).

    `proto` is `tcp`, `udp`, `icmp`, or empty for all of IP; ports `first` to `last` are those that are asked for.
    `network`: who asks, or is asked; empty for everybody.
    """

    direction: str
    proto: str = ""
    first: int = 0
    last: int = _LAST_PORT
    network: str = ""

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions that it is for."""
        return (6 if ":" in self.network else 4,) if self.network else (4, 6)

    def __str__(self) -> str:
        ports = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        what = f"{ports}/{self.proto}" if self.proto in {"tcp", "udp"} else self.proto
        return " ".join(part for part in (what, self.network and f"{self.direction} {self.network}") if part)


@lru_cache(4096)
def entry(text: str) -> Entry:
    """What `str()` of an entry says; ValueError for anything else."""
    words = text.split()
    what = "" if words[0] in {"from", "to"} else words.pop(0)
    direction, network = (words[0], words[1]) if words else ("from", "")
    ports, slash, proto = what.partition("/")
    if not slash:
        return Entry(direction, what, network=network)
    first, _, last = ports.partition("-")
    return Entry(direction, proto, int(first), int(last or first), network)


@lru_cache(4096)
def list_elements(
    verdict: str, texts: tuple[str, ...], version: int, bridged: str, routed: tuple[str, ...]
) -> tuple[Element, ...]:
    """What a list is in the tables, for packets of an IP version.

    `bridged` and `routed` are what the keys begin with in either table: a tap, and bridges with the NIC's addresses.
    No two elements of a set meet: the kernel takes none that does (net/netfilter/nft_set_pipapo.c).
    """
    entries = [one for one in map(entry, texts) if version in one.versions]
    found: list[Element] = []
    for direction in ("from", "to"):
        ours = [one for one in entries if one.direction == direction]
        keys = [("ports", f"{proto} . {ports} . {network}") for proto, ports, network in _boxes(ours, version)]
        keys += [("any", network) for network in _networks((one for one in ours if not one.proto), version)]
        for kind, key in keys:
            name = list_set(verdict, direction, kind, version)
            found.append(Element(name, f"{bridged} . {key}"))
            found += [Element(f"routed_{name}", f"{one} . {key}") for one in routed]
    return tuple(found)


def _boxes(entries: Iterable[Entry], version: int) -> Iterator[tuple[str, str, str]]:
    """Protocol, ports and network of what entries with a protocol name, cut up so that no two meet."""
    by_proto: dict[str, list[Entry]] = {}
    for one in entries:
        if one.proto:
            by_proto.setdefault(one.proto, []).append(one)
    for proto, ours in by_proto.items():
        cuts = sorted({one.first for one in ours} | {one.last + 1 for one in ours})
        slices: list[tuple[int, int, tuple[str, ...]]] = []
        for first, beyond in itertools.pairwise(cuts):
            networks = tuple(_networks((one for one in ours if one.first <= first < one.last + 1), version))
            if slices and slices[-1][1:] == (first - 1, networks):
                slices[-1] = slices[-1][0], beyond - 1, networks
            elif networks:
                slices.append((first, beyond - 1, networks))
        for first, last, networks in slices:
            ports = str(first) if first == last else f"{first}-{last}"
            yield from ((_PROTO.get((proto, version), proto), ports, network) for network in networks)


def _networks(entries: Iterable[Entry], version: int) -> list[str]:
    """The networks of entries, none within another, as nft prints them."""
    texts = {one.network or EVERYWHERE[version] for one in entries}
    if version == 4:
        return [_written(one) for one in ipaddress.collapse_addresses(map(ipaddress.IPv4Network, texts))]
    return [_written(one) for one in ipaddress.collapse_addresses(map(ipaddress.IPv6Network, texts))]


def _written(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def closes(allow: Iterable[str], direction: str) -> bool:
    """Whether there is an entry of this direction among what is allowed: then nothing else passes."""
    return any(entry(text).direction == direction for text in allow)
