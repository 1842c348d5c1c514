"""What rtnetlink's messages say, as states; and the requests, as pyroute2's messages (linux/if_link.h, if_addr.h)."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from agent.core import marks
from agent.core.netlink import Message, attribute_list, attributes
from agent.core.observed import AddressState, LinkState
from agent.core.vlans import BridgeVlans
from agent.host.netlink import traffic
from agent.host.netlink.vlans import RTM_DELVLAN, RTM_NEWVLAN, RTNLGRP_BRVLAN

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
_IFA_F_OPTIMISTIC, _IFA_F_DADFAILED, _IFA_F_TENTATIVE = 4, 8, 64
RT_SCOPE_LINK = 253

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER = 1, 3, 4, 5, 10
_IFLA_TUN_MULTI_QUEUE = 7
_IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_GROUP = 18, 20, 27
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
    return tuple(_text(value) for kind, value in attribute_list(properties) if kind == _IFLA_ALT_IFNAME)


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
