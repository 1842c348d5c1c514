"""VLANs (IEEE 802.1Q) as sets of numbers, and what each port of a bridge, and the bridge itself, carries of them.

Inside a bridge every frame is in a VLAN. `UNTAGGED_ID` stands for the network without tags: what comes from a card
without a tag is in it, and so are NICs without `vlan` or `trunk`, and the host's addresses on the bridge itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from agent.core.desired import NicSpec

FIRST_ID, LAST_ID = 1, 4094
UNTAGGED_ID = 1
PROTOCOL = 0x8100
"""ETH_P_8021Q; the other one that bridges know is 802.1ad (0x88a8)."""

Ranges = tuple[tuple[int, int], ...]
"""Numbers as first and last of each run, sorted, none next to another."""

EVERY_ID: Ranges = ((FIRST_ID, LAST_ID),)


@dataclass(frozen=True, slots=True)
class PortVlans:
    """What a port carries. `tagged` and `untagged`: VLANs whose frames leave with a tag, and without.

    `pvid`: the VLAN of frames that come in without a tag, None: those are dropped.
    """

    tagged: Ranges = ()
    untagged: Ranges = ()
    pvid: int | None = None

    @property
    def ids(self) -> Ranges:
        """All that it carries."""
        return joined((*self.tagged, *self.untagged))


@dataclass(frozen=True, slots=True)
class BridgeVlans:
    """How a bridge treats tags: whether it heeds them, the VLAN that a new port is given (0: none), and their kind."""

    filtering: bool
    default_pvid: int = UNTAGGED_ID
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class VlanEntry:
    """VLANs `first` to `last` of a port with the same flags; only one alone may be its PVID."""

    first: int
    last: int
    untagged: bool = False
    pvid: bool = False


@dataclass(frozen=True, slots=True)
class VlanWish:
    """What a bridge that is to heed VLANs carries: its cards (`uplink`), and itself (`own`)."""

    uplink: PortVlans
    own: PortVlans


AWARE = BridgeVlans(filtering=True, default_pvid=0)
"""No port is given a VLAN by itself: until its own ones are set, it carries nothing."""

PLAIN = BridgeVlans(filtering=False)
UNTAGGED_PORT = PortVlans(untagged=((UNTAGGED_ID, UNTAGGED_ID),), pvid=UNTAGGED_ID)


def joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Any ranges in their canonical form."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return tuple(found)


def without(ranges: Ranges, number: int) -> Ranges:
    """Ranges less one number."""
    parts = ((first, min(last, number - 1)) for first, last in ranges if first < number)
    rest = ((max(first, number + 1), last) for first, last in ranges if last > number)
    return joined((*parts, *rest))


def holds(ranges: Ranges, number: int) -> bool:
    """Whether a number is within."""
    return any(first <= number <= last for first, last in ranges)


def in_words(ranges: Ranges) -> str:
    """Ranges as a unit writes them."""
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges) or "none"


@lru_cache(1024)
def trunk_ranges(trunk: tuple[str, ...]) -> Ranges:
    """What the texts of a spec's `trunk` say, as `10` and `100-120`; ValueError for others."""
    pairs = (text.partition("-") for text in trunk)
    return joined((int(first), int(last or first)) for first, _, last in pairs)


def is_tagged(nic: NicSpec) -> bool:
    """Whether a NIC needs a bridge that heeds VLANs."""
    return nic.vlan is not None or bool(nic.trunk)


def nic_vlans(nic: NicSpec) -> PortVlans:
    """What the tap of a NIC is to carry."""
    return _nic_vlans(nic.vlan, nic.trunk, nic.native)


@lru_cache(1024)
def _nic_vlans(vlan: int | None, trunk: tuple[str, ...], native: int | None) -> PortVlans:
    if trunk:
        ranges = trunk_ranges(trunk)
        if native is None:
            return PortVlans(tagged=ranges)
        return PortVlans(without(ranges, native), ((native, native),), native)
    own = UNTAGGED_ID if vlan is None else vlan
    return PortVlans(untagged=((own, own),), pvid=own)


def reaches_untagged(nic: NicSpec) -> bool:
    """Whether what a NIC sends without a tag is in the network without tags, where the host serves."""
    return nic_vlans(nic).pvid == UNTAGGED_ID


def uplink_vlans(nics: Iterable[NicSpec], host_ids: Iterable[int]) -> PortVlans:
    """What a bridge's cards carry: all that its NICs and the host have there, and the network without tags."""
    carried = joined((one, one) for one in host_ids)
    distinct = {(nic.vlan, nic.trunk, nic.native) for nic in nics}
    ids = joined((*carried, *itertools.chain.from_iterable(_nic_vlans(*one).ids for one in distinct)))
    return PortVlans(without(ids, UNTAGGED_ID), UNTAGGED_PORT.untagged, UNTAGGED_ID)


def own_vlans(host_ids: Iterable[int]) -> PortVlans:
    """What a bridge itself carries, that is the host: its VLAN links there, and the network without tags."""
    ids = joined((one, one) for one in host_ids)
    return PortVlans(without(ids, UNTAGGED_ID), UNTAGGED_PORT.untagged, UNTAGGED_ID)


def _flags(vlans: PortVlans) -> Mapping[int, tuple[bool, bool]]:
    """By number: whether it leaves untagged, and whether it is the PVID."""
    tagged = {n: (False, n == vlans.pvid) for first, last in vlans.tagged for n in range(first, last + 1)}
    untagged = {n: (True, n == vlans.pvid) for first, last in vlans.untagged for n in range(first, last + 1)}
    return {**tagged, **untagged}


def difference(seen: PortVlans, wanted: PortVlans) -> tuple[Ranges, tuple[VlanEntry, ...]]:
    """What to take from a port, and what to set on it after that; nothing that is right already."""
    if seen == wanted:
        return (), ()
    before, after = _flags(seen), _flags(wanted)
    surplus = joined((one, one) for one in before.keys() - after.keys())
    setting = sorted(one for one, flags in after.items() if before.get(one) != flags)
    return surplus, tuple(_entries((one, *after[one]) for one in setting))


def _entries(numbers: Iterable[tuple[int, bool, bool]]) -> Iterator[VlanEntry]:
    run: VlanEntry | None = None
    for number, untagged, pvid in numbers:
        if run and run.last + 1 == number and run.untagged == untagged and not (run.pvid or pvid):
            run = VlanEntry(run.first, number, untagged)
            continue
        if run:
            yield run
        run = VlanEntry(number, number, untagged, pvid)
    if run:
        yield run


def port_vlans(entries: Iterable[VlanEntry]) -> PortVlans:
    """What a port carries, from what was read of it."""
    kept = list(entries)
    return PortVlans(
        joined((one.first, one.last) for one in kept if not one.untagged),
        joined((one.first, one.last) for one in kept if one.untagged),
        next((one.first for one in kept if one.pvid), None),
    )
