"""How this agent knows its own: the marks on links, and the names of resources.

A link is owned when its `ifalias` is our mark. A bridge cannot be given an alias in the request that creates it, but it
can be given a group, so a bridge without alias in `GROUP` is one whose making was interrupted (rtnetlink, IFLA_GROUP).
"""

from __future__ import annotations

import functools
import hashlib
import uuid as uuids

from agent.core.observed import LinkState

GROUP = 0x766D686F
"""The link group of our bridges, VLAN links and ifbs ("vmho")."""

ADDRESS_PROTOCOL = 118
"""The IFA_PROTO of addresses that we put on a link."""

QDISC_HANDLE = 0x766D0000
"""The handle of a queueing discipline of ours ("vm", minor 0); the kernel gives 8001: and up to those without one."""

FILTER_PRIORITY = 0x766D
"""The priority of our filter among those of a tap: behind what an operator gives a small number."""

LIMITS = "limits"

MAX_LINK_NAME = 15
"""IFNAMSIZ less the terminating NUL (linux/if.h)."""


def bridge_mark(name: str) -> str:
    """The alias of an own bridge."""
    return f"vmhost:bridge/{name}"


def tap_mark(vm: str, nic: str) -> str:
    """The alias of an own tap."""
    return f"vmhost:tap/{vm}/{nic}"


def ifb_mark(vm: str, nic: str) -> str:
    """The alias of the own ifb link through which passes what a NIC sends, while that is limited."""
    return f"vmhost:ifb/{vm}/{nic}"


def vlan_mark(name: str) -> str:
    """The alias of an own VLAN link."""
    return f"vmhost:vlan/{name}"


def is_own_vlan(link: LinkState) -> bool:
    """Whether a link is a VLAN link of ours, also one whose making was interrupted before it had its alias."""
    return link.kind == "vlan" and (link.alias == vlan_mark(link.name) or (link.alias == "" and link.group == GROUP))


def is_own_ifb(link: LinkState) -> bool:
    """Whether a link is an ifb of ours, also one whose making was interrupted before it had its alias."""
    return link.kind == "ifb" and (link.alias.startswith("vmhost:ifb/") or (link.alias == "" and link.group == GROUP))


def is_own_macvtap(link: LinkState) -> bool:
    """Whether a link is a macvtap of ours, also one whose making was interrupted before it had its alias."""
    return link.kind == "macvtap" and (
        link.alias.startswith("vmhost:tap/") or (link.alias == "" and link.group == GROUP)
    )


def guest_of(mark: str) -> str:
    """The guest that the mark of an own tap or ifb names; empty for an ifb that has none yet."""
    _, _, place = mark.partition("/")
    return place.partition("/")[0]


def is_own_bridge(link: LinkState) -> bool:
    """Whether a link is a bridge of ours, also one whose making was interrupted before it had its alias."""
    return link.kind == "bridge" and (
        link.alias == bridge_mark(link.name) or (link.alias == "" and link.group == GROUP)
    )


def reboot_resource(name: str) -> str:
    """What QEMU does when a guest reboots, which is changed beside whatever else is done to the guest."""
    return f"vm/{name}/reboot"


def bridge_resource(name: str) -> str:
    """The resource name of a bridge."""
    return f"bridge/{name}"


def port_resource(name: str) -> str:
    """The resource name of a host link that is (to be) a bridge's port."""
    return f"port/{name}"


def vlans_resource(bridge: str) -> str:
    """The resource name of what a bridge and its ports carry."""
    return f"bridge/{bridge}/vlans"


def vlan_resource(name: str) -> str:
    """The resource name of a VLAN link of the host."""
    return f"vlan/{name}"


def tap_resource(vm: str, nic: str) -> str:
    """The resource name of a NIC's tap."""
    return f"tap/{vm}/{nic}"


def disk_resource(vm: str, disk: str) -> str:
    """The resource name of a guest's disk."""
    return f"vm/{vm}/disk/{disk}"


def cpus_resource(vm: str) -> str:
    """The resource name of a guest's CPUs."""
    return f"vm/{vm}/cpus"


def vm_resource(name: str) -> str:
    """The resource name of a guest."""
    return f"vm/{name}"


def limits_resource(name: str) -> str:
    """The resource name of what a guest's service is limited to."""
    return f"vm/{name}/{LIMITS}"


def derived_mac(*parts: str) -> str:
    """A stable, locally administered unicast MAC from what identifies its owner (IEEE 802: bits 0 and 1 of octet 0)."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()[:6]
    octets = [(digest[0] & 0xFC) | 0x02, *digest[1:]]
    return ":".join(f"{octet:02x}" for octet in octets)


def derived_tap(vm: str, nic: str) -> str:
    """The default name of a NIC's tap: readable where it fits into a link's name, else hashed."""
    readable = f"{vm}-{nic}"
    if len(readable) <= MAX_LINK_NAME:
        return readable
    return "vm" + hashlib.sha256(readable.encode()).hexdigest()[: MAX_LINK_NAME - 2]


def derived_vlan(link: str, number: int) -> str:
    """The default name of a VLAN link: `br-lan.20` where it fits into a link's name, else hashed."""
    readable = f"{link}.{number}"
    if len(readable.encode()) <= MAX_LINK_NAME:
        return readable
    return "vl" + hashlib.sha256(readable.encode()).hexdigest()[: MAX_LINK_NAME - 2]


@functools.lru_cache(4096)
def derived_ifb(vm: str, nic: str) -> str:
    """The name of a NIC's ifb: readable where it fits into a link's name, else hashed."""
    readable = f"ifb-{vm}-{nic}"
    if len(readable) <= MAX_LINK_NAME:
        return readable
    return "ifb" + hashlib.sha256(readable.encode()).hexdigest()[: MAX_LINK_NAME - 3]


def derived_uuid(seed: uuids.UUID, name: str) -> str:
    """A guest's uuid from a random seed and its name."""
    return str(uuids.uuid5(seed, name))
