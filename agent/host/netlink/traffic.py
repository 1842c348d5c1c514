"""What rtnetlink says of queueing disciplines and filters, as states; and the requests (linux/pkt_sched.h, pkt_cls.h).

Written by hand: pyroute2 gives a token bucket its burst as time, with a table of 256 transmission times, and not in
bytes (TCA_TBF_BURST, since Linux 3.13).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping

from agent.core import marks
from agent.core.netlink import Message, attributes, packed
from agent.core.observed import IngressState, QdiscState
from agent.core.rates import Shape
from agent.host.netlink.wire import RawRequest

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46

ROOT = 0xFFFFFFFF
INGRESS = 0xFFFFFFF1
INGRESS_HANDLE = 0xFFFF0000
"""TC_H_ROOT, TC_H_INGRESS, and the handle that every ingress discipline has, which filters name as their parent."""

_TCMSG = struct.Struct("=BxHiIII")
_TBF_PARMS = struct.Struct("=BBHhHIBBHhHIIII")
"""struct tc_tbf_qopt: rate and peak rate as tc_ratespec, limit, buffer (in ticks), mtu."""
_MIRRED = struct.Struct("=IIiiiiI")
"""struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex."""
_SELECTOR = struct.Struct("=BBBxHHhhIIIii")
"""struct tc_u32_sel with one key; all that we set is zero but the flags and the number of keys."""
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")

_TCA_KIND, _TCA_OPTIONS = 1, 2
_TBF_PARMS_ATTR, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_U32_SEL, _U32_ACT = 5, 7
_ACT_KIND, _ACT_OPTIONS, _MIRRED_PARMS = 1, 2, 2

_LINKLAYER_ETHERNET = 1
_TICK_NS = 64
_U32_TERMINAL = 1
_EGRESS_REDIRECT = 1
_ACT_STOLEN = 4
_ETH_P_ALL = 0x0003
_MATCH_ALL = _SELECTOR.pack(_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)


class TrafficRequest(RawRequest):
    """A request about a queueing discipline or a filter: struct tcmsg and its attributes."""

    def __init__(self, ifindex: int, parent: int, handle: int = 0, info: int = 0, options: bytes = b"") -> None:
        super().__init__(_TCMSG.pack(0, 0, ifindex, handle, parent, info) + options)


def _kind(name: str) -> bytes:
    return packed(_TCA_KIND, name.encode() + b"\0")


def bucket_setting(ifindex: int, shape: Shape) -> TrafficRequest:
    """The RTM_NEWQDISC that makes a token bucket of ours the root of a link, or changes the one that is.

    With NLM_F_CREATE and without NLM_F_REPLACE the kernel refuses where somebody else's discipline is (EEXIST).
    """
    rate = shape.rate_bps // 8
    parms = _TBF_PARMS.pack(
        0, _LINKLAYER_ETHERNET, 0, 0, 0, min(rate, 0xFFFFFFFF), 0, 0, 0, 0, 0, 0, shape.queue_bytes, 0, 0
    )
    wide = packed(_TBF_RATE64, _U64.pack(rate)) if rate > 0xFFFFFFFF else b""
    burst = packed(_TBF_BURST, _U32.pack(shape.burst_bytes))
    options = packed(_TCA_OPTIONS, packed(_TBF_PARMS_ATTR, parms) + wide + burst)
    return TrafficRequest(ifindex, ROOT, marks.QDISC_HANDLE, options=_kind("tbf") + options)


def bucket_removal(ifindex: int) -> TrafficRequest:
    """The RTM_DELQDISC of a root of ours; the kernel refuses where the root has another handle."""
    return TrafficRequest(ifindex, ROOT, marks.QDISC_HANDLE)


def ingress_setting(ifindex: int) -> TrafficRequest:
    """The RTM_NEWQDISC of an ingress discipline, which holds filters and has nothing to set; and its RTM_DELQDISC."""
    return TrafficRequest(ifindex, INGRESS, INGRESS_HANDLE, options=_kind("ingress"))


def filter_query(ifindex: int) -> TrafficRequest:
    """The RTM_GETTFILTER dump of what a link does to frames that come in."""
    return TrafficRequest(ifindex, INGRESS_HANDLE)


def filter_removal(ifindex: int) -> TrafficRequest:
    """The RTM_DELTFILTER of all filters of our priority."""
    return TrafficRequest(ifindex, INGRESS_HANDLE, info=_filter_info(), options=_kind("u32"))


def redirect_setting(ifindex: int, to: int) -> TrafficRequest:
    """The RTM_NEWTFILTER that leads every frame that comes in to another link (tc-mirred(8)), by a u32 filter.

    u32 and mirred because every kernel that has ifb has them; `matchall` would say the same and is often absent.
    """
    mirred = _MIRRED.pack(0, 0, _ACT_STOLEN, 0, 0, _EGRESS_REDIRECT, to)
    action = packed(_ACT_KIND, b"mirred\0") + packed(_ACT_OPTIONS, packed(_MIRRED_PARMS, mirred))
    options = packed(_U32_SEL, _MATCH_ALL) + packed(_U32_ACT, packed(1, action))
    return TrafficRequest(
        ifindex, INGRESS_HANDLE, info=_filter_info(), options=_kind("u32") + packed(_TCA_OPTIONS, options)
    )


def _filter_info() -> int:
    return marks.FILTER_PRIORITY << 16 | int.from_bytes(_ETH_P_ALL.to_bytes(2, "big"), "little")


def place_of(message: Message) -> tuple[int, int]:
    """The ifindex and the parent that a message about a queueing discipline or a filter is about."""
    _, _, ifindex, _, parent, _ = _TCMSG.unpack_from(message.body)
    return ifindex, parent


def chosen_disciplines(messages: Iterable[Message]) -> Iterator[tuple[int, QdiscState | str]]:
    """The disciplines that somebody chose, by ifindex: a root as its state, an ingress discipline as its kind."""
    for message in messages:
        ifindex, parent = place_of(message)
        if parent == ROOT and is_chosen(message):
            yield ifindex, qdisc_state(message)
        elif parent == INGRESS:
            yield ifindex, kind_of(message)


def is_chosen(message: Message) -> bool:
    """Whether somebody chose this discipline; the kernel's default one has no handle."""
    _, _, _, handle, _, _ = _TCMSG.unpack_from(message.body)
    return bool(handle)


def kind_of(message: Message) -> str:
    """The kind of a discipline or filter."""
    return attributes(message.body, 20).get(_TCA_KIND, b"").rstrip(b"\0").decode(errors="backslashreplace")


def qdisc_state(message: Message) -> QdiscState:
    """The root discipline that a message states."""
    kind = kind_of(message)
    own = kind == "tbf" and _TCMSG.unpack_from(message.body)[3] == marks.QDISC_HANDLE
    return QdiscState(kind, own, _shape(message) if own else None)


def _shape(message: Message) -> Shape | None:
    options = attributes(attributes(message.body, 20).get(_TCA_OPTIONS, b""), 0)
    parms = options.get(_TBF_PARMS_ATTR, b"")
    if len(parms) < _TBF_PARMS.size:
        return None
    fields = _TBF_PARMS.unpack_from(parms)
    wide, peak = options.get(_TBF_RATE64), fields[11]
    rate = _U64.unpack(wide)[0] if wide else fields[5]
    # A peak rate is none of ours: such a bucket has the right rate and is still not as we make it.
    return None if peak else Shape(rate * 8, fields[13] * _TICK_NS * rate // 1_000_000_000, fields[12])


def ingress_state(kind: str, filters: Iterable[Message]) -> IngressState:
    """An ingress discipline of this kind with what it holds. Of several filters of ours the first would count alone."""
    ours: list[Mapping[int, bytes]] = []
    foreign = False
    for message in filters:
        info = _TCMSG.unpack_from(message.body)[5]
        if info >> 16 == marks.FILTER_PRIORITY and kind_of(message) == "u32":
            ours.append(attributes(attributes(message.body, 20).get(_TCA_OPTIONS, b""), 0))
        else:
            foreign = True
    rules = [options for options in ours if _U32_SEL in options]  # the others are tables that rules stand in
    redirect = _redirect(rules[0]) if len(rules) == 1 else 0
    return IngressState(kind, redirect if ours else None, foreign)


def _redirect(options: Mapping[int, bytes]) -> int:
    """Where a filter of ours leads everything; 0 for one that does not."""
    first = attributes(attributes(options.get(_U32_ACT, b""), 0).get(1, b""), 0)
    parms = attributes(first.get(_ACT_OPTIONS, b""), 0).get(_MIRRED_PARMS, b"")
    if first.get(_ACT_KIND) != b"mirred\0" or len(parms) < _MIRRED.size:
        return 0
    fields = _MIRRED.unpack_from(parms)
    to = int(fields[6])
    leads = options[_U32_SEL] == _MATCH_ALL and (fields[2], fields[5]) == (_ACT_STOLEN, _EGRESS_REDIRECT)
    return to if leads else 0
