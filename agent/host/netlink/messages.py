"""What rtnetlink's messages say, as states; and the requests, as pyroute2's messages (linux/if_link.h, if_addr.h)."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # type: ignore[import-untyped]
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # type: ignore[import-untyped]
from pyroute2.netlink.rtnl.ifstatsmsg import ifstatsmsg  # type: ignore[import-untyped]
from pyroute2.netlink.rtnl.rtmsg import rtmsg  # type: ignore[import-untyped]

from agent.core import marks
from agent.core.actions import LinkChange
from agent.core.desired import BridgeSpec, VlanSpec
from agent.core.observed import AddressState, LinkState
from agent.core.vlans import AWARE, BridgeVlans
from agent.host.netlink import traffic
from agent.host.netlink.vlans import RTM_DELVLAN, RTM_NEWVLAN, RTNLGRP_BRVLAN
from agent.host.netlink.wire import Message, Writable, attributes

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_GETROUTE = 26
RTM_GETSTATS = 94
EVENT_NAMES = {
    RTM_NEWLINK: "newlink",
    RTM_DELLINK: "dellink",
    RTM_NEWADDR: "newaddr",
    RTM_DELADDR: "deladdr",
    traffic.RTM_NEWQDISC: "newqdisc",
    traffic.RTM_DELQDISC: "delqdisc",
    traffic.RTM_NEWTFILTER: "newtfilter",
    traffic.RTM_DELTFILTER: "deltfilter",
    RTM_NEWVLAN: "newvlan",
    RTM_DELVLAN: "delvlan",
}
EVENT_GROUPS = (1, 4, 5, 9, RTNLGRP_BRVLAN)
"""RTNLGRP_LINK, RTNLGRP_TC, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_BRVLAN."""

IFF_UP = 1
IFA_F_NODAD = 2
_IFA_F_OPTIMISTIC, _IFA_F_DADFAILED, _IFA_F_TENTATIVE = 4, 8, 64
RT_SCOPE_LINK = 253
RT_TABLE_MAIN = 254
RTN_UNICAST = 1
RTEXT_FILTER_SKIP_STATS = 8

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER = 1, 3, 4, 5, 10
_IFLA_TUN_MULTI_QUEUE = 7
_IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_GROUP, _IFLA_EXT_MASK = 18, 20, 27, 29
_IFLA_PROP_LIST, _IFLA_ALT_IFNAME, _IFLA_PERM_ADDRESS = 52, 53, 54
_IFLA_PARENT_DEV_NAME, _IFLA_PARENT_DEV_BUS_NAME = 56, 57
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_IFLA_PROTINFO, _IFLA_BRPORT_ISOLATED = 12, 33
_IFLA_BR_STP_STATE, _IFLA_BR_MCAST_SNOOPING, _IFLA_BR_MULTI_BOOLOPT = 5, 23, 46
_IFLA_BR_VLAN_FILTERING, _IFLA_BR_VLAN_PROTOCOL, _IFLA_BR_VLAN_DEFAULT_PVID = 7, 8, 39
_IFLA_VLAN_ID = 1
_NO_GROUP_LEARNING = 1
"""1 << BR_BOOLOPT_NO_LL_LEARN (linux/if_bridge.h)."""
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS, _IFA_PROTO = 1, 2, 8, 11
_RTA_DST = 1
_IFLA_STATS_LINK_64 = 1

_LINK_LOCAL = (ipaddress.ip_network("169.254.0.0/16"), ipaddress.ip_network("fe80::/10"))


@dataclass(frozen=True, slots=True)
class LinkStatistics:
    """Counters of a link since it was made, in the host's sense: what a tap sends, its guest receives."""

    rx_bytes: int
    tx_bytes: int
    rx_packets: int
    tx_packets: int
    rx_errors: int
    tx_errors: int
    rx_dropped: int
    tx_dropped: int


def _text(value: bytes) -> str:
    """A name or alias; the kernel takes any bytes, and no name may make the agent fail."""
    return value.rstrip(b"\0").decode(errors="backslashreplace")


def _number(value: bytes | None) -> int:
    return int.from_bytes(value, "little") if value else 0


def link_index(message: Message) -> tuple[int, int]:
    """The family and the ifindex that a link message is about (struct ifinfomsg)."""
    return message.body[0], struct.unpack_from("=i", message.body, 4)[0]


def link_state(message: Message) -> LinkState | None:
    """The link that a message of family 0 states in full, without addresses; None for one that states only a part.

    Wireless drivers send such parts: they carry no name.
    """
    _, _, _, ifindex, flags, _ = struct.unpack_from("=BBHiII", message.body)
    found = attributes(message.body, 16)
    if _IFLA_IFNAME not in found:
        return None
    info = attributes(found.get(_IFLA_LINKINFO, b""), 0)
    kind = _text(info[_IFLA_INFO_KIND]) if _IFLA_INFO_KIND in info else None
    data = attributes(info.get(_IFLA_INFO_DATA, b""), 0) if kind in {"bridge", "tun"} else {}
    bridge, tun = (data, {}) if kind == "bridge" else ({}, data)
    port = attributes(info[_IFLA_INFO_SLAVE_DATA], 0) if _is_bridge_port(info) else {}
    vlan = attributes(info.get(_IFLA_INFO_DATA, b""), 0) if kind == "vlan" else {}
    return LinkState(
        ifindex=ifindex,
        name=_text(found[_IFLA_IFNAME]),
        kind=kind,
        up=bool(flags & IFF_UP),
        mtu=_number(found.get(_IFLA_MTU)),
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        master=_number(found.get(_IFLA_MASTER)) or None,
        alias=_text(found.get(_IFLA_IFALIAS, b"")),
        group=_number(found.get(_IFLA_GROUP)),
        stp=bool(_number(bridge.get(_IFLA_BR_STP_STATE))),
        snooping=bool(_number(bridge.get(_IFLA_BR_MCAST_SNOOPING))),
        isolated=bool(_number(port.get(_IFLA_BRPORT_ISOLATED))),
        group_learning=_learns_from_groups(bridge),
        altnames=_altnames(found.get(_IFLA_PROP_LIST, b"")),
        permanent_mac=found.get(_IFLA_PERM_ADDRESS, b"").hex(":"),
        place=_place(found),
        lower=_number(found.get(_IFLA_LINK)) or None,
        multi_queue=bool(_number(tun.get(_IFLA_TUN_MULTI_QUEUE))),
        bridging=_bridging(bridge),
        vlan_id=_number(vlan[_IFLA_VLAN_ID]) if _IFLA_VLAN_ID in vlan else None,
    )


def _altnames(properties: bytes) -> tuple[str, ...]:
    """A link's other names: attributes of one number, as many as there are (net/core/rtnetlink.c: rtnl_prop_list)."""
    names, start = [], 0
    while start + 4 <= len(properties):
        length, kind = struct.unpack_from("=HH", properties, start)
        if length < 4:
            break
        if kind & 0x3FFF == _IFLA_ALT_IFNAME:
            names.append(_text(properties[start + 4 : start + length]))
        start += (length + 3) & ~3
    return tuple(names)


def _place(found: Mapping[int, bytes]) -> str:
    """Where on the PCI bus the link's device is; of one on another bus, as virtio's own, its name there with the bus.

    `bus.place_of` knows more of those.
    """
    name, bus = (_text(found.get(key, b"")) for key in (_IFLA_PARENT_DEV_NAME, _IFLA_PARENT_DEV_BUS_NAME))
    return name if bus == "pci" else f"{bus}/{name}" if name else ""


def _learns_from_groups(bridge: Mapping[int, bytes]) -> bool:
    options = bridge.get(_IFLA_BR_MULTI_BOOLOPT)  # the values, then which of them the kernel has
    return options is not None and not _number(options[:4]) & _NO_GROUP_LEARNING


def _bridging(bridge: Mapping[int, bytes]) -> BridgeVlans | None:
    """Only kernels whose bridges know VLANs say which one a new port is given (net/bridge/br_netlink.c)."""
    if _IFLA_BR_VLAN_DEFAULT_PVID not in bridge:
        return None
    protocol = int.from_bytes(bridge.get(_IFLA_BR_VLAN_PROTOCOL, b""), "big")
    filtering = bool(_number(bridge.get(_IFLA_BR_VLAN_FILTERING)))
    return BridgeVlans(filtering, _number(bridge[_IFLA_BR_VLAN_DEFAULT_PVID]), protocol)


def _is_bridge_port(info: Mapping[int, bytes]) -> bool:
    return _text(info.get(_IFLA_INFO_SLAVE_KIND, b"")) == "bridge" and _IFLA_INFO_SLAVE_DATA in info


def port_isolation(message: Message) -> bool | None:
    """Whether the port that a message of family AF_BRIDGE is about is isolated; None where it does not say.

    Nothing else is said when only that changes (net/bridge/br_netlink.c: br_ifinfo_notify).
    """
    port = attributes(attributes(message.body, 16).get(_IFLA_PROTINFO, b""), 0)
    return bool(_number(port[_IFLA_BRPORT_ISOLATED])) if _IFLA_BRPORT_ISOLATED in port else None


def address_state(message: Message) -> tuple[int, AddressState] | None:
    """The ifindex and the address that a message states; None for a family that is neither IPv4 nor IPv6."""
    family, length, flags, scope, ifindex = struct.unpack_from("=BBBBI", message.body)
    found = attributes(message.body, 8)
    flags = _number(found.get(_IFA_FLAGS)) or flags
    value = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if family not in {socket.AF_INET, socket.AF_INET6} or value is None:
        return None
    address = ipaddress.ip_address(value)
    return ifindex, AddressState(
        address=f"{address.compressed}/{length}",
        own=_number(found.get(_IFA_PROTO)) == marks.ADDRESS_PROTOCOL,
        link_local=scope == RT_SCOPE_LINK or address.is_link_local,
        tentative=bool(flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED)) and not flags & _IFA_F_OPTIMISTIC,
    )


def statistics(message: Message) -> tuple[int, LinkStatistics] | None:
    """The ifindex and counters of a statistics message (struct if_stats_msg, struct rtnl_link_stats64)."""
    ifindex = struct.unpack_from("=I", message.body, 4)[0]
    counters = attributes(message.body, 12).get(_IFLA_STATS_LINK_64)
    if counters is None:
        return None
    rx_packets, tx_packets, rx_bytes, tx_bytes, *others = struct.unpack_from("=8Q", counters)
    return ifindex, LinkStatistics(rx_bytes, tx_bytes, rx_packets, tx_packets, *others)


def is_link_local_route(message: Message) -> bool:
    """Whether a route leads to link-local addresses only; those come with every link and lead nowhere else."""
    destination = attributes(message.body, 12).get(_RTA_DST)
    if destination is None:
        return False
    address = ipaddress.ip_address(destination)
    return any(address in network for network in _LINK_LOCAL if network.version == address.version)


def normal_address(address: str) -> str:
    """An address as the cache writes it, so that equal ones compare equal."""
    return ipaddress.ip_interface(address).with_prefixlen


class LinkQuery:
    """The body of RTM_GETLINK, for one link or for all (struct ifinfomsg, IFLA_EXT_MASK).

    Written by hand, because a link is looked at before and after each change, and pyroute2 takes 0.1 ms for this.
    """

    def __init__(self, ifindex: int = 0) -> None:
        self._ifindex = ifindex
        self._header: dict[str, int] = {}
        self.data = bytearray()

    def __getitem__(self, key: str) -> dict[str, int]:
        return {"header": self._header}[key]

    def encode(self) -> None:
        """Write the message with its header to `data`."""
        header = self._header
        self.data = bytearray(
            struct.pack("=IHHII", 40, header["type"], header["flags"], header["sequence_number"], 0)
            + struct.pack("=BxHiII", 0, 0, self._ifindex, 0, 0)
            + struct.pack("=HHI", 8, _IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
        )


class GroupLearning:
    """The body of the RTM_NEWLINK by which a bridge learns from frames to 802.1's groups, or does not.

    By hand, because pyroute2 does not know the attribute.
    """

    def __init__(self, ifindex: int, *, on: bool) -> None:
        options = struct.pack("=II", 0 if on else _NO_GROUP_LEARNING, _NO_GROUP_LEARNING)
        data = _attribute(_IFLA_INFO_DATA, _attribute(_IFLA_BR_MULTI_BOOLOPT, options))
        info = _attribute(_IFLA_LINKINFO, _attribute(_IFLA_INFO_KIND, b"bridge") + data)
        self._body = struct.pack("=BxHiII", 0, 0, ifindex, 0, 0) + info
        self._header: dict[str, int] = {}
        self.data = bytearray()

    def __getitem__(self, key: str) -> dict[str, int]:
        return {"header": self._header}[key]

    def encode(self) -> None:
        """Write the message with its header to `data`."""
        header, length = self._header, 16 + len(self._body)
        head = struct.pack("=IHHII", length, header["type"], header["flags"], header["sequence_number"], 0)
        self.data = bytearray(head + self._body)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def link_setting(ifindex: int, change: LinkChange) -> Writable:
    """The body of the RTM_NEWLINK that sets every field of a change at once."""
    message = ifinfmsg()
    message["index"] = ifindex
    if change.up is not None:
        message["flags"], message["change"] = (IFF_UP if change.up else 0), IFF_UP
    named = {
        "IFLA_MTU": change.mtu,
        "IFLA_ADDRESS": change.mac,
        "IFLA_MASTER": change.master,
        "IFLA_IFALIAS": change.alias,
        "IFLA_IFNAME": change.name,
    }
    message["attrs"] = [(name, value) for name, value in named.items() if value is not None]
    if change.stp is not None or change.snooping is not None:
        message["attrs"].append(("IFLA_LINKINFO", _bridge_info(change.stp, change.snooping)))
    return cast("Writable", message)


def isolation(ifindex: int, *, isolated: bool, up: bool | None) -> Writable:
    """The body of the RTM_NEWLINK that isolates a bridge's port, or no longer does, before it sets it up.

    A request of its own: the kernel takes what is of a port before it puts a link into a bridge (net/core/rtnetlink.c).
    """
    message = ifinfmsg()
    message["index"] = ifindex
    if up is not None:
        message["flags"], message["change"] = (IFF_UP if up else 0), IFF_UP
    data = {"attrs": [("IFLA_BRPORT_ISOLATED", int(isolated))]}
    info = {"attrs": [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", data)]}
    message["attrs"] = [("IFLA_LINKINFO", info)]
    return cast("Writable", message)


def _bridge_info(stp: bool | None, snooping: bool | None) -> dict[str, list[tuple[str, object]]]:
    """IFLA_LINKINFO of a bridge. Without STP there is nothing to listen for, so ports forward at once."""
    data: list[tuple[str, int]] = []
    if stp is not None:
        data.append(("IFLA_BR_STP_STATE", int(stp)))
        data.append(("IFLA_BR_FORWARD_DELAY", 1500 if stp else 0))  # clock ticks of 1/100 s (USER_HZ)
    if snooping is not None:
        data.append(("IFLA_BR_MCAST_SNOOPING", int(snooping)))
    return {"attrs": [("IFLA_INFO_KIND", "bridge"), ("IFLA_INFO_DATA", {"attrs": data})]}


def bridging_setting(ifindex: int, bridging: BridgeVlans) -> Writable:
    """The body of the RTM_NEWLINK by which a bridge treats VLANs so."""
    message = ifinfmsg()
    message["index"] = ifindex
    info = {"attrs": [("IFLA_INFO_KIND", "bridge"), ("IFLA_INFO_DATA", {"attrs": _bridging_data(bridging)})]}
    message["attrs"] = [("IFLA_LINKINFO", info)]
    return cast("Writable", message)


def _bridging_data(bridging: BridgeVlans) -> list[tuple[str, int]]:
    return [
        ("IFLA_BR_VLAN_FILTERING", int(bridging.filtering)),
        ("IFLA_BR_VLAN_PROTOCOL", bridging.protocol),
        ("IFLA_BR_VLAN_DEFAULT_PVID", bridging.default_pvid),
    ]


def new_vlan(spec: VlanSpec, lower_ifindex: int) -> Writable:
    """The body of the RTM_NEWLINK that makes a VLAN link, recognisable as ours by its group from the first moment."""
    message = ifinfmsg()
    info = {"attrs": [("IFLA_INFO_KIND", "vlan"), ("IFLA_INFO_DATA", {"attrs": [("IFLA_VLAN_ID", spec.id)]})]}
    message["attrs"] = [
        ("IFLA_IFNAME", spec.name),
        ("IFLA_GROUP", marks.GROUP),
        ("IFLA_LINK", lower_ifindex),
        ("IFLA_LINKINFO", info),
    ]
    return cast("Writable", message)


def new_bridge(spec: BridgeSpec, *, aware: bool = False) -> Writable:
    """The body of the RTM_NEWLINK that makes a bridge, recognisable as ours by its group from the first moment.

    Its MTU is one beside the wanted: a bridge follows the MTU of its ports until its own is *changed* (net/bridge:
    BROPT_MTU_SET_BY_USER), and a bridge that is made with an MTU has not changed it. `aware`: it heeds VLANs.
    """
    message = ifinfmsg()
    info = _bridge_info(spec.stp, snooping=False)
    if aware:
        data = cast("dict[str, list[tuple[str, int]]]", info["attrs"][1][1])
        data["attrs"] += _bridging_data(AWARE)
    beside = spec.mtu - 1 if spec.mtu > 1280 else spec.mtu + 1
    message["attrs"] = [
        ("IFLA_IFNAME", spec.name),
        ("IFLA_MTU", beside),
        ("IFLA_GROUP", marks.GROUP),
        ("IFLA_LINKINFO", info),
    ]
    if spec.mac:
        message["attrs"].append(("IFLA_ADDRESS", spec.mac))
    return cast("Writable", message)


def new_ifb(name: str) -> Writable:
    """The body of the RTM_NEWLINK that makes an ifb link, recognisable as ours by its group from the first moment."""
    message = ifinfmsg()
    message["attrs"] = [
        ("IFLA_IFNAME", name),
        ("IFLA_GROUP", marks.GROUP),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "ifb")]}),
    ]
    return cast("Writable", message)


def new_macvtap(name: str, lower_ifindex: int, mac: str, queues: int) -> Writable:
    """The body of the RTM_NEWLINK that makes a macvtap, recognisable as ours by its group from the first moment.

    In mode "bridge": macvtaps on one link reach each other, and never the link itself (linux/if_link.h).
    """
    message = ifinfmsg()
    message["attrs"] = [
        ("IFLA_IFNAME", name),
        ("IFLA_LINK", lower_ifindex),
        ("IFLA_ADDRESS", mac),
        ("IFLA_GROUP", marks.GROUP),
        ("IFLA_NUM_TX_QUEUES", queues),
        ("IFLA_NUM_RX_QUEUES", queues),
        (
            "IFLA_LINKINFO",
            {
                "attrs": [
                    ("IFLA_INFO_KIND", "macvtap"),
                    ("IFLA_INFO_DATA", {"attrs": [("IFLA_MACVTAP_MODE", "bridge")]}),
                ]
            },
        ),
    ]
    return cast("Writable", message)


def address_query(ifindex: int = 0) -> Writable:
    """The body of RTM_GETADDR, for one link or for all."""
    message = ifaddrmsg()
    message["index"] = ifindex
    return cast("Writable", message)


def address_setting(ifindex: int, address: str, *, own: bool) -> Writable:
    """The body of RTM_NEWADDR and RTM_DELADDR. An IPv6 address is usable at once: nobody else was given it (NODAD)."""
    interface = ipaddress.ip_interface(address)
    message = ifaddrmsg()
    message["index"] = ifindex
    message["family"] = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    message["prefixlen"] = interface.network.prefixlen
    message["scope"] = RT_SCOPE_LINK if interface.is_link_local else 0
    message["attrs"] = [("IFA_LOCAL", str(interface.ip)), ("IFA_ADDRESS", str(interface.ip))]
    if isinstance(interface, ipaddress.IPv6Interface):
        message["attrs"].append(("IFA_FLAGS", IFA_F_NODAD))
    elif interface.network.prefixlen < 31:
        message["attrs"].append(("IFA_BROADCAST", str(interface.network.broadcast_address)))
    if own:
        message["attrs"].append(("IFA_PROTO", marks.ADDRESS_PROTOCOL))
    return cast("Writable", message)


def route_query(family: int, ifindex: int) -> Writable:
    """The body of the RTM_GETROUTE dump of the main table's unicast routes that leave by a link."""
    message = rtmsg()
    message["family"], message["table"], message["type"] = family, RT_TABLE_MAIN, RTN_UNICAST
    message["attrs"] = [("RTA_OIF", ifindex)]
    return cast("Writable", message)


def statistics_query() -> Writable:
    """The body of the RTM_GETSTATS dump of all links' counters."""
    message = ifstatsmsg()
    message["filter_mask"] = 1 << (_IFLA_STATS_LINK_64 - 1)
    return cast("Writable", message)
