"""The links of the host as the kernel states them: a cache that follows its events, corrected by looks at the whole."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from agent.core.errors import ObservationError
from agent.core.netlink import NLM_F_DUMP
from agent.core.observed import AddressState, IngressState, LinkState, QdiscState
from agent.core.vlans import PortVlans
from agent.host.netlink import messages as said
from agent.host.netlink import requests as asked
from agent.host.netlink import traffic
from agent.host.netlink.cache import LinkCache
from agent.host.netlink.vlans import RTM_GETVLAN, vlan_query, vlans_said
from agent.host.netlink.wire import EventSocket, Ignoring, KernelRefusedError, NoAnswerError, RequestSocket, dump

EVENTS_AT_ONCE = 64
"""Datagrams that are read before the loop turns again, so that a flood (20 µs each) does not starve it."""


FILTERS_AT_ONCE = 16
"""Taps whose filters are read before the loop turns again, 0.05 ms for each."""


def _nobody(_: str) -> None:
    """Nobody listens yet."""


class LinkView:
    """The links of the network namespace that it is entered in. Use as an async context manager.

    `events` counts by message type, `errors` by errno name, `overflows` the times that events were lost.
    """

    def __init__(self) -> None:
        self.overflows = 0
        self.errors: Counter[str] = Counter()
        self._cache = LinkCache()
        self._looking = asyncio.Lock()
        self._overflowed = asyncio.Event()
        self._ring: Callable[[str], None] = _nobody

    async def __aenter__(self) -> Self:
        """Open the sockets, events first, and look at everything. Raises ObservationError."""
        with contextlib.ExitStack() as opened:
            try:
                self._events = EventSocket(said.EVENT_GROUPS)
                opened.callback(self._events.close)
                self._requests = opened.enter_context(RequestSocket())
            except OSError as e:
                raise ObservationError("netlink", f"cannot open a socket: {e}") from e
            await self.full_look()
            opened.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._events.close()
        self._requests.close()

    @property
    def snapshot(self) -> Mapping[str, LinkState]:
        """All links by name as the kernel last stated them; the same object until something changes."""
        return self._cache.snapshot

    def take_stated(self) -> frozenset[str]:
        """The links that the kernel stated anew since the last call; a tap's offloads change with such a statement."""
        return self._cache.take_stated()

    @property
    def events(self) -> Counter[str]:
        """How many events were read, by message type."""
        return self._cache.events

    async def watch(self, ring: Callable[[str], None]) -> None:
        """Follow the events for ever and call `ring("netlink")` after each batch of them.

        After lost events it opens a new socket and looks at everything. Raises ObservationError if that fails.
        """
        self._ring = ring
        loop = asyncio.get_running_loop()
        reading = -1
        try:
            while True:
                reading = self._events.fileno()
                loop.add_reader(reading, self.catch_up, EVENTS_AT_ONCE)
                await self._overflowed.wait()
                self._overflowed.clear()
                loop.remove_reader(reading)
                self._reopen_events()
                await self.full_look()
                ring("netlink")
        finally:
            self._ring = _nobody
            loop.remove_reader(reading)

    def catch_up(self, limit: int = 1_000_000) -> None:
        """Read the events that the kernel has queued by now, at most `limit` datagrams; rings if there were any."""
        heard = False
        for _ in range(limit):
            try:
                batch = self._events.read()
            except OSError as e:
                self._lost(e)
                break
            if batch is None:
                break
            heard = True
            for message in batch:
                self._cache.apply(message)
        if heard:
            for ifindex, kind in self._cache.take_unread():
                self._read_filters(ifindex, kind)
            self._catch_up_with_vlans()
            self._ring("netlink")

    def _catch_up_with_vlans(self) -> None:
        for ifindex in self._cache.take_unread_vlans():
            self._read_vlans(ifindex)

    def _read_vlans(self, ifindex: int) -> None:
        """Read what a port carries, or a bridge itself, into the cache."""
        self._cache.put_vlans(ifindex, self._look_at_vlans(ifindex))

    def _look_at_vlans(self, ifindex: int) -> PortVlans | None:
        """What a port carries, or a bridge itself, as of now; None where that cannot be had."""
        try:
            return vlans_said(self._requests.ask(RTM_GETVLAN, vlan_query(ifindex), NLM_F_DUMP))
        except (OSError, KernelRefusedError, NoAnswerError) as e:
            self._count(e.number if isinstance(e, KernelRefusedError) else getattr(e, "errno", 0) or 0)
            return None

    def _read_filters(self, ifindex: int, kind: str) -> IngressState | None:
        """Read what an own tap does to what comes in, in 0.05 ms; where that fails, the next full look decides."""
        try:
            filters = self._requests.ask(traffic.RTM_GETTFILTER, traffic.filter_query(ifindex), NLM_F_DUMP)
        except (OSError, KernelRefusedError, NoAnswerError) as e:
            self._count(e.number if isinstance(e, KernelRefusedError) else getattr(e, "errno", 0) or 0)
            return None
        seen = traffic.ingress_state(kind, filters)
        self._cache.put_filters(ifindex, seen)
        return seen

    def _look_at_ingress(self, ifindex: int) -> IngressState | None:
        """What a tap does to what comes in as of now; None when nothing is done to it."""
        self.catch_up()
        kind = self._cache.ingress_kind(ifindex)
        return None if kind is None else self._read_filters(ifindex, kind)

    def _lost(self, error: OSError) -> None:
        """Count lost events and wake `watch`, which looks at everything."""
        if not self._overflowed.is_set():
            self.overflows += 1
            self._count(error.errno or 0)
        self._overflowed.set()

    def _reopen_events(self) -> None:
        """A new socket is subscribed before the old one goes, which is full of what a look shows sooner."""
        try:
            fresh = EventSocket(said.EVENT_GROUPS)
        except OSError as e:
            raise ObservationError("netlink", f"cannot reopen the event socket: {e}") from e
        self._events.close()
        self._events = fresh

    async def full_look(self) -> None:
        """Look at all links and addresses and correct the cache; what events say meanwhile is newer and stays.

        Raises ObservationError; the cache is then as the events left it.
        """
        async with self._looking:
            links: list[LinkState] = []
            addresses: list[tuple[int, AddressState]] = []
            disciplines: list[tuple[int, QdiscState | str]] = []
            try:
                self.catch_up()
                self._cache.begin_look()
                async for part in dump(said.RTM_GETLINK, asked.link_query()):
                    links += [link for m in part if (link := said.link_state(m)) is not None]
                async for part in dump(said.RTM_GETADDR, asked.address_query()):
                    addresses += [stated for m in part if (stated := said.address_state(m)) is not None]
                with Ignoring(errno.EOPNOTSUPP):  # a kernel without any disciplines
                    async for part in dump(traffic.RTM_GETQDISC, traffic.TrafficRequest(0, 0)):
                        disciplines += traffic.chosen_disciplines(part)
            except (OSError, KernelRefusedError, NoAnswerError) as e:
                raise ObservationError("netlink", str(e)) from e
            self.catch_up()
            self._cache.end_look(links, addresses)
            self._cache.end_traffic_look(disciplines)
            for number, (ifindex, kind) in enumerate(self._cache.take_unread(), start=1):
                self._read_filters(ifindex, kind)
                if number % FILTERS_AT_ONCE == 0:
                    await asyncio.sleep(0)
            self._cache.doubt_vlans()
            for number, ifindex in enumerate(self._cache.take_unread_vlans(), start=1):
                self._read_vlans(ifindex)
                if number % FILTERS_AT_ONCE == 0:
                    await asyncio.sleep(0)

    async def statistics(self) -> Mapping[str, said.LinkStatistics]:
        """The counters of all links by name. Raises ObservationError."""
        found: dict[str, said.LinkStatistics] = {}
        try:
            async for part in dump(said.RTM_GETSTATS, asked.statistics_query()):
                for message in part:
                    stated = said.statistics(message)
                    link = None if stated is None else self._cache.get(stated[0])
                    if stated is not None and link is not None:
                        found[link.name] = stated[1]
        except (OSError, KernelRefusedError, NoAnswerError) as e:
            raise ObservationError("netlink", str(e)) from e
        return found

    def _count(self, number: int) -> None:
        self.errors[errno.errorcode.get(number, str(number))] += 1
