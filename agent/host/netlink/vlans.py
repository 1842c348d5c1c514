"""What the kernel says of VLANs on bridges, and how they are set (linux/if_bridge.h, net/bridge/br_vlan.c).

Read by RTM_GETVLAN, which tells of one port at a time and knows ranges, and heard of by RTNLGRP_BRVLAN (Linux 5.6);
set by RTM_SETLINK and RTM_DELLINK of family AF_BRIDGE. Written by hand, as pyroute2 knows no RTM_GETVLAN.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator

from agent.core.netlink import NLM_F_ACK, Message, attribute_list, attributes, packed
from agent.core.vlans import PortVlans, Ranges, VlanEntry, difference, port_vlans
from agent.host.netlink.wire import RawRequest, Writable

RTM_DELLINK, RTM_SETLINK = 17, 19
RTM_NEWVLAN, RTM_DELVLAN, RTM_GETVLAN = 112, 113, 114
RTNLGRP_BRVLAN = 33
AF_BRIDGE = 7

_IFLA_AF_SPEC = 26
_IFLA_BRIDGE_FLAGS, _IFLA_BRIDGE_VLAN_INFO = 0, 2
_BRIDGE_FLAGS_SELF = 2
_PVID, _UNTAGGED, _RANGE_BEGIN, _RANGE_END = 2, 4, 8, 16
_BRIDGE_VLANDB_ENTRY, _ENTRY_INFO, _ENTRY_RANGE = 1, 1, 2

Ask = Callable[[int, Writable, int], list[Message]]
"""Send a request and return its answer."""


def vlan_query(ifindex: int) -> Writable:
    """The body of the RTM_GETVLAN dump of what one port, or bridge, carries (struct br_vlan_msg)."""
    return RawRequest(struct.pack("=BBHI", AF_BRIDGE, 0, 0, ifindex))


def vlan_index(message: Message) -> int:
    """The ifindex that an event about VLANs is about."""
    return int(struct.unpack_from("=I", message.body, 4)[0])


def vlans_said(answer: Iterable[Message]) -> PortVlans:
    """What the port carries that was asked about."""
    return port_vlans(entry for message in answer for entry in _entries(message))


def _entries(message: Message) -> Iterator[VlanEntry]:
    for kind, value in attribute_list(message.body, 8):
        if kind != _BRIDGE_VLANDB_ENTRY:
            continue
        found = attributes(value, 0)
        flags, first = struct.unpack_from("=HH", found[_ENTRY_INFO])
        last = struct.unpack_from("=H", found[_ENTRY_RANGE])[0] if _ENTRY_RANGE in found else first
        yield VlanEntry(first, last, bool(flags & _UNTAGGED), bool(flags & _PVID))


def set_vlans(ask: Ask, ifindex: int, seen: PortVlans, wanted: PortVlans, *, is_bridge: bool) -> None:
    """Lead a port, or a bridge itself, from what it carries to what it is to carry: first less, then more.

    What is right already is not touched, and its frames go on.
    """
    surplus, entries = difference(seen, wanted)
    if surplus:
        ask(RTM_DELLINK, _setting(ifindex, _removal(surplus), is_bridge=is_bridge), NLM_F_ACK)
    if entries:
        ask(RTM_SETLINK, _setting(ifindex, b"".join(map(_info, entries)), is_bridge=is_bridge), NLM_F_ACK)


def _removal(ranges: Ranges) -> bytes:
    return b"".join(_info(VlanEntry(first, last)) for first, last in ranges)


def _info(entry: VlanEntry) -> bytes:
    """IFLA_BRIDGE_VLAN_INFO, two of them for a range (struct bridge_vlan_info)."""
    flags = (_UNTAGGED if entry.untagged else 0) | (_PVID if entry.pvid else 0)
    if entry.first == entry.last:
        return packed(_IFLA_BRIDGE_VLAN_INFO, struct.pack("=HH", flags, entry.first))
    begin = struct.pack("=HH", flags | _RANGE_BEGIN, entry.first)
    end = struct.pack("=HH", flags | _RANGE_END, entry.last)
    return packed(_IFLA_BRIDGE_VLAN_INFO, begin) + packed(_IFLA_BRIDGE_VLAN_INFO, end)


def added_vlans(ifindex: int, wanted: PortVlans) -> bytes:
    """The body of the RTM_SETLINK that has a port carry these beside what it carries."""
    _, entries = difference(PortVlans(), wanted)
    return _setting_body(ifindex, b"".join(map(_info, entries)), is_bridge=False)


def _setting(ifindex: int, infos: bytes, *, is_bridge: bool) -> Writable:
    return RawRequest(_setting_body(ifindex, infos, is_bridge=is_bridge))


def _setting_body(ifindex: int, infos: bytes, *, is_bridge: bool) -> bytes:
    own = packed(_IFLA_BRIDGE_FLAGS, struct.pack("=H", _BRIDGE_FLAGS_SELF)) if is_bridge else b""
    return struct.pack("=BxHiII", AF_BRIDGE, 0, ifindex, 0, 0) + packed(_IFLA_AF_SPEC, own + infos)
