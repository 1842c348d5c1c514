"""Where bridges have learnt MACs, and how soon a neighbour answers ARP (IPv4) or ND (IPv6), by rtnetlink(7).

A question is the kernel's own: an entry of its table of neighbours is told to be in doubt (NUD_DELAY). At its next tick
the kernel asks that neighbour, in unicast, and says so (NUD_PROBE); when the answer comes it says that, too
(net/core/neighbour.c: neigh_timer_handler, __neigh_update). All the while what is sent there goes on being sent. This
needs CAP_NET_ADMIN, where a question of one's own would need CAP_NET_RAW.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.core.errors import ObservationError
from agent.core.netlink import NLM_F_ACK, attributes
from agent.host.netlink.wire import (
    NLM_F_CREATE,
    EventSocket,
    KernelRefusedError,
    NoAnswerError,
    RawRequest,
    RequestSocket,
    dump,
)

RTM_NEWNEIGH, RTM_GETNEIGH = 28, 30
RTNLGRP_NEIGH = 3
AF_INET, AF_INET6, AF_BRIDGE = 2, 10, 7
NUD_REACHABLE, NUD_STALE, NUD_DELAY, NUD_PROBE, NUD_FAILED = 0x02, 0x04, 0x08, 0x10, 0x20
NUD_NOARP, NUD_PERMANENT = 0x40, 0x80
NTF_EXT_LEARNED = 0x10

_NDMSG = struct.Struct("=BxxxiHBB")
"""Family, ifindex, state, flags, type (linux/neighbour.h)."""
_NDA_DST, _NDA_LLADDR = 1, 2
EVENTS_AT_ONCE = 64
"""Datagrams that are read before the loop turns again."""

_TICK_S = time.clock_getres(6)
"""CLOCK_MONOTONIC_COARSE, which goes by the kernel's tick."""


async def learnt_macs() -> Mapping[str, frozenset[int]]:
    """The ports at which bridges have learnt a MAC, by ifindex; not what they have as their own.

    One dump for all bridges, between whose parts the loop turns. Raises ObservationError.
    """
    found: dict[str, set[int]] = {}
    try:
        async for part in dump(RTM_GETNEIGH, RawRequest(_NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0))):
            for message in part:
                _, ifindex, state, _, _ = _NDMSG.unpack_from(message.body)
                mac = attributes(message.body, _NDMSG.size).get(_NDA_LLADDR, b"")
                if not state & NUD_PERMANENT:
                    found.setdefault(mac.hex(":"), set()).add(ifindex)
    except (OSError, KernelRefusedError, NoAnswerError) as e:
        raise ObservationError("netlink", f"what bridges have learnt: {e}") from e
    return {mac: frozenset(ports) for mac, ports in found.items()}


@dataclass(slots=True)
class _Question:
    """A neighbour that is asked. `asked_s`: when the kernel sent the question; `answer`: seconds, None for none."""

    family: int
    ifindex: int
    address: bytes
    mac: bytes
    asked_s: float | None = None
    answer: asyncio.Future[float | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def key(self) -> tuple[int, bytes]:
        return self.ifindex, self.address

    def request(self, state: int, mac: bytes = b"") -> RawRequest:
        body = _NDMSG.pack(self.family, self.ifindex, state, 0, 0)
        return RawRequest(body, (_NDA_DST, self.address), *([(_NDA_LLADDR, mac)] if mac else []))

    def take(self, state: int, requests: RequestSocket) -> None:
        """Take what the kernel says of this neighbour now."""
        now_s = time.monotonic()
        if self.answer.done():
            return
        if state == NUD_PROBE and self.asked_s is None:
            self.asked_s = now_s
        elif state == NUD_REACHABLE and self.asked_s is None:
            # Traffic has confirmed it lately, so the kernel does not ask. This was a tick; it asks at the next one.
            self.asked_s = now_s + _TICK_S
            requests.ask(RTM_NEWNEIGH, self.request(NUD_PROBE))
        elif state == NUD_REACHABLE and self.asked_s is not None:
            self.answer.set_result(max(0.0, now_s - self.asked_s))
        elif state == NUD_FAILED:
            self.answer.set_result(None)


class Neighbours:
    """Asks neighbours in the network namespace of the thread that it is used in; its sockets are open while it does.

    One socket hears of all: with one each, each would hear of every other.
    """

    def __init__(self) -> None:
        self._asked: dict[tuple[int, bytes], _Question] = {}
        self._events: EventSocket | None = None
        self._requests: RequestSocket | None = None

    async def ask(self, ifindex: int, address: str, mac: str, timeout_s: float) -> float | None:
        """Ask a neighbour on a link whether it is there: the seconds until its answer, None if it gives none in time.

        What is measured is at most too short by as long as the loop was busy meanwhile. An entry that the kernel has is
        used as it is, otherwise one with this MAC is made, which the kernel drops again in time.
        Raises ObservationError if it cannot be asked: the link is gone, somebody has set this neighbour by hand, or it
        is being asked already.
        """
        ip = ipaddress.ip_address(address)
        family = AF_INET if ip.version == 4 else AF_INET6
        question = _Question(family, ifindex, ip.packed, bytes.fromhex(mac.replace(":", "")))
        if question.key in self._asked:
            raise ObservationError("netlink", f"neighbour {address}: it is being asked already")
        try:
            self._asked[question.key] = question
            _doubt(self._open(), question)
            async with asyncio.timeout(timeout_s):
                return await question.answer
        except TimeoutError:
            return None
        except (OSError, KernelRefusedError, NoAnswerError) as e:
            raise ObservationError("netlink", f"neighbour {address}: {e}") from e
        finally:
            del self._asked[question.key]
            if not self._asked:
                self._close()

    def _open(self) -> RequestSocket:
        if self._requests is None:
            self._requests = RequestSocket()
        if self._events is None:
            self._events = EventSocket((RTNLGRP_NEIGH,))
            asyncio.get_running_loop().add_reader(self._events.fileno(), self._hear)
        return self._requests

    def _close(self) -> None:
        if self._events is not None:
            asyncio.get_running_loop().remove_reader(self._events.fileno())
            self._events.close()
        if self._requests is not None:
            self._requests.close()
        self._events = self._requests = None

    def _hear(self) -> None:
        """Take what the kernel says of neighbours; where something of that was lost, nothing was learnt."""
        try:
            for _ in range(EVENTS_AT_ONCE):
                if self._events is None or self._requests is None or (batch := self._events.read()) is None:
                    return
                for message in batch:
                    if message.type == RTM_NEWNEIGH and message.body[0] in {AF_INET, AF_INET6}:
                        _, ifindex, state, _, _ = _NDMSG.unpack_from(message.body)
                        address = attributes(message.body, _NDMSG.size).get(_NDA_DST, b"")
                        if (question := self._asked.get((ifindex, address))) is not None:
                            question.take(state, self._requests)
        except (OSError, KernelRefusedError, NoAnswerError) as e:
            for question in self._asked.values():
                if not question.answer.done():
                    question.answer.set_exception(ObservationError("netlink", f"neighbours: {e}"))


def _doubt(requests: RequestSocket, question: _Question) -> None:
    """Have the kernel doubt a neighbour, whether it has an entry or not; one that somebody has set stays as it is."""
    state, flags = _entry(requests, question)
    if state & (NUD_PERMANENT | NUD_NOARP) or flags & NTF_EXT_LEARNED:
        raise KernelRefusedError(errno.EPERM, "it was set by hand")
    if state & (NUD_PROBE | NUD_DELAY):
        requests.ask(RTM_NEWNEIGH, question.request(NUD_STALE))  # or the change would be none, and unsaid
    try:
        requests.ask(RTM_NEWNEIGH, question.request(NUD_DELAY))
    except KernelRefusedError as e:
        if e.number not in {errno.ENOENT, errno.EINVAL}:
            raise
        requests.ask(RTM_NEWNEIGH, question.request(NUD_DELAY, mac=question.mac), NLM_F_ACK | NLM_F_CREATE)


def _entry(requests: RequestSocket, question: _Question) -> tuple[int, int]:
    """State and flags of the kernel's entry, zero if there is none."""
    try:
        answer = requests.ask(RTM_GETNEIGH, question.request(0))
    except KernelRefusedError as e:
        if e.number != errno.ENOENT:
            raise
        return 0, 0
    for message in answer:
        _, _, state, flags, _ = _NDMSG.unpack_from(message.body)
        return state, flags
    return 0, 0
