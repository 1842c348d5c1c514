"""What rtnetlink is asked for, as the agent asks (linux/rtnetlink.h, linux/if_link.h)."""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import cast

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # type: ignore[import-untyped]
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # type: ignore[import-untyped]
from pyroute2.netlink.rtnl.ifstatsmsg import ifstatsmsg  # type: ignore[import-untyped]
from pyroute2.netlink.rtnl.rtmsg import rtmsg  # type: ignore[import-untyped]

from agent.core import marks
from agent.core.actions import LinkChange
from agent.core.desired import BridgeSpec, VlanSpec
from agent.core.netlink import packed
from agent.core.vlans import AWARE, BridgeVlans
from agent.host.netlink.wire import RawRequest, Writable

IFF_UP = 1
IFA_F_NODAD = 2
RT_SCOPE_LINK = 253
RT_TABLE_MAIN = 254
RTN_UNICAST = 1
RTEXT_FILTER_SKIP_STATS = 8
_IFLA_EXT_MASK = 29
_IFLA_LINKINFO = 18
_IFLA_INFO_KIND = 1
_IFLA_INFO_DATA = 2
_IFLA_BR_MULTI_BOOLOPT = 46
_NO_GROUP_LEARNING = 1
"""1 << BR_BOOLOPT_NO_LL_LEARN (linux/if_bridge.h)."""
_IFLA_STATS_LINK_64 = 1


def link_query(ifindex: int = 0) -> Writable:
    """The body of RTM_GETLINK, for one link or for all (struct ifinfomsg, IFLA_EXT_MASK)."""
    mask = struct.pack("=I", RTEXT_FILTER_SKIP_STATS)
    return RawRequest(struct.pack("=BxHiII", 0, 0, ifindex, 0, 0), (_IFLA_EXT_MASK, mask))


def group_learning(ifindex: int, *, on: bool) -> Writable:
    """The body of the RTM_NEWLINK by which a bridge learns from frames to 802.1's groups, or does not."""
    options = struct.pack("=II", 0 if on else _NO_GROUP_LEARNING, _NO_GROUP_LEARNING)
    data = packed(_IFLA_INFO_DATA, packed(_IFLA_BR_MULTI_BOOLOPT, options))
    info = packed(_IFLA_INFO_KIND, b"bridge") + data
    return RawRequest(struct.pack("=BxHiII", 0, 0, ifindex, 0, 0), (_IFLA_LINKINFO, info))


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
