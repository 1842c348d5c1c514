"""The datapath canary: whether bridges have learnt guests' MACs where they should, and how soon guests answer."""

from __future__ import annotations

import asyncio
import bisect
import ipaddress
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

import structlog

from agent.core.desired import NicSpec
from agent.core.errors import ObservationError
from agent.core.measures import REACH_BOUNDS_S, Histogram, ReachMeasure
from agent.core.observed import LinkState
from agent.core.services.leases import Lease, unexpired
from agent.host.netlink import Links
from agent.host.netlink.neighbours import Neighbours, learnt_macs

log = structlog.get_logger("vmhost.canary")

UNANSWERED_AFTER_S = REACH_BOUNDS_S[-1]
_TICKS_S = 0.05
"""The kernel asks at its next tick but one; it has one each 1 to 10 ms."""


class Canary:
    """What is known of the way to guests. `watch` looks at all bridges' tables, from time to time.

    `neighbours` is who asks guests for all.
    """

    def __init__(self, links: Links, leases: Callable[[], Mapping[str, Sequence[Lease]]]) -> None:
        self._links = links
        self._leases = leases
        self._macs: Mapping[str, frozenset[int]] = {}
        self._sent: Mapping[str, int] = {}
        self._sending: frozenset[str] = frozenset()
        self._looked = False
        self.neighbours = Neighbours()

    async def watch(self, interval_s: float) -> None:
        """Look at where MACs are learnt, again and again, until cancelled."""
        while True:
            try:
                await self.look()
            except ObservationError as error:
                self._looked = False
                log.info("what bridges have learnt is not known", why=str(error))
            await asyncio.sleep(interval_s)

    async def look(self) -> None:
        """Look at where MACs are learnt, and at who has sent something since the last time; ObservationError."""
        # In this order: what was counted before the look is learnt by then.
        sent = {tap: one.rx_packets for tap, one in (await self._links.statistics()).items()}
        self._macs = await learnt_macs()
        self._sending = frozenset(tap for tap, number in sent.items() if number > self._sent.get(tap, number))
        self._sent, self._looked = sent, True

    def learnt(self, nic: NicSpec) -> bool | None:
        """Whether a NIC's bridge has learnt its MAC at its own tap.

        None where nothing is known: the guest has been silent for longer than a bridge remembers (300 s), or there is
        no bridge. False where the MAC is at another port of the bridge, or nowhere though the guest sent frames lately.
        """
        links = self._links.snapshot
        tap, bridge = links.get(nic.tap), links.get(nic.bridge)
        if not self._looked or tap is None or bridge is None or tap.master != bridge.ifindex:
            return None
        ports = self._macs.get(nic.mac.lower(), frozenset())
        if tap.ifindex in ports:
            return True
        if nic.tap in self._sending:
            return False
        elsewhere = ports and any(one.ifindex in ports for one in links.values() if one.master == bridge.ifindex)
        return False if elsewhere else None

    def askable(self, nic: NicSpec) -> Iterator[tuple[int, str]]:
        """The link and the address at which a NIC can be asked: one of each family that the host shares with it.

        A NIC without an IPv4 address in its unit is asked at the one that was leased to it.
        """
        bridge = self._links.snapshot.get(nic.bridge)
        if nic.link != "up" or bridge is None or not bridge.up:
            return
        for version in (4, 6):
            for address in (*nic.address, *self._leased(nic)):
                if _version(address) == version and _shared(bridge, address):
                    yield bridge.ifindex, address
                    break

    def _leased(self, nic: NicSpec) -> Sequence[str]:
        leases = [lease for lease in self._leases().get(nic.bridge, ()) if lease.mac == nic.mac.lower()]
        return [lease.address for lease in unexpired(tuple(leases), time.time())]


class Reach:
    """How soon one NIC answered, over its guest's life."""

    def __init__(self, neighbours: Neighbours) -> None:
        self._neighbours = neighbours
        self._counts = [0] * (len(REACH_BOUNDS_S) + 1)
        self._sum_s = 0.0
        self._unanswered = 0
        self._was_asked = False

    async def ask(self, nic: NicSpec, places: Iterable[tuple[int, str]]) -> None:
        """Ask at these places, one after the other; what cannot be asked is told, and counts as nothing."""
        for ifindex, address in places:
            try:
                seconds = await self._neighbours.ask(ifindex, address, nic.mac, UNANSWERED_AFTER_S + _TICKS_S)
            except ObservationError as error:
                log.debug("a guest cannot be asked", nic=nic.id, why=str(error))
                continue
            self._was_asked = True
            if seconds is None or seconds > UNANSWERED_AFTER_S:
                self._unanswered += 1
            else:
                self._counts[bisect.bisect_left(REACH_BOUNDS_S, seconds)] += 1
                self._sum_s += seconds

    def measure(self, nic: NicSpec, learnt: bool | None) -> ReachMeasure:
        """All answers until now."""
        seconds = Histogram(REACH_BOUNDS_S, tuple(self._counts), self._sum_s) if self._was_asked else None
        return ReachMeasure(nic.id, learnt, seconds, self._unanswered)


def _shared(bridge: LinkState, address: str) -> bool:
    """Whether the host can ask for an address on a bridge: in IPv4 from one of that subnet, in IPv6 from its link-local
    one (net/ipv6/ndisc.c: ndisc_send_ns), which it has a second after the bridge is up."""
    if _version(address) == 6:
        return any(one.link_local and not one.tentative and ":" in one.address for one in bridge.addresses)
    return any(_holds(one.address, address) for one in bridge.addresses)


@lru_cache(4096)
def _version(address: str) -> int:
    return ipaddress.ip_interface(address).version


@lru_cache(4096)
def _holds(interface: str, address: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_interface(interface).network
