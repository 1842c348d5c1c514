"""The frontier for direct NICs: a macvtap on a link of the host itself, beneath no bridge.

The kernel hands nothing between that link and the macvtaps on it (Documentation of `ip link`, macvlan mode bridge), so
host and guest cannot talk by it; that is told. A macvtap goes with the link that it is on. Its descriptor cannot be
attached to another one (drivers/net/tap.c knows no such request), so what is lost is healed by a replug.
"""

from __future__ import annotations

from agent.core.actions import ChangeLink, DeleteLink, LinkChange
from agent.core.desired import NicSpec
from agent.core.device_actions import ArmTap
from agent.core.marks import guest_of, is_own_macvtap, port_resource, tap_mark, tap_resource, vm_resource
from agent.core.observed import LinkState, vlan_links_on
from agent.core.planner.draft import Draft
from agent.core.reasons import Reason

WHY_REPLUGGED = "a macvtap's descriptor cannot be attached to another one"


def tell_apart(draft: Draft, vm: str, nic: NicSpec) -> None:
    """Tell what everybody trips over: that the host is out of the guest's reach there. It is no deviation."""
    message = (
        f"by {nic.id} the guest and this host cannot talk, only the guest and others on {nic.direct}: the kernel hands "
        f"nothing between {nic.direct} and the macvtaps on it; where they must, give the NIC a bridge"
    )
    draft.tell(tap_resource(vm, nic.id), "HostApart", message, deviates=False)


def guests_on(draft: Draft, link: LinkState) -> list[str]:
    """The guests that run, or are just being started, with a NIC on a link of the host, or on a VLAN link on it."""
    observed = draft.observed
    below = {link.ifindex, *(one.ifindex for one in vlan_links_on(link, observed.links))}
    on_it = (one for one in observed.links.values() if one.lower in below and one.kind == "macvtap")
    macvtaps = {one.name: guest_of(one.alias) for one in on_it}
    if not macvtaps:
        return []
    found = {name for name in macvtaps.values() if vm_resource(name) in observed.in_flight}
    for name, state in observed.vms.items():
        plugged = any(seen.link in macvtaps for seen in state.nics.values())  # also one that lost its mark
        if state.alive and (plugged or name in macvtaps.values()):
            found.add(name)
    return sorted(found)


def once_stopped(guests: list[str]) -> str:
    """When what guests stand in the way of is done, and what to do for that."""
    if len(guests) == 1:
        return f"once {guests[0]} is stopped; `vmhost restart {guests[0]}` does it"
    return f"once {', '.join(guests)} are stopped; `vmhost stop` them, then start them"


def find_lower(draft: Draft, vm: str, nic: NicSpec) -> LinkState | None:
    """The link that a direct NIC is to be on, set up where it is down; None, and told, where none can carry it."""
    resource, lower = tap_resource(vm, nic.id), draft.observed.links.get(nic.direct)
    if lower is None:
        message = f"there is no link {nic.direct}; {nic.id} is put on it when it appears"
        draft.tell(resource, "LinkMissing", message)
        return None
    if lower.master is not None:
        master = next((link.name for link in draft.observed.links.values() if link.ifindex == lower.master), "another")
        message = f"{nic.direct} is a port of {master}, and the kernel puts no macvtap on a port; take it out of there"
        draft.tell(resource, "Conflict", f'{message}, or put the NIC on {master} by bridge = "{master}"')
        return None
    if lower.name in draft.leaving:
        draft.tell_deviating(resource)
        return None
    if lower.mac == nic.mac:
        message = f"{nic.mac} is the MAC of {nic.direct} itself, and nobody else can have it there; give one another"
        draft.tell(resource, "MacTaken", message)
        return None
    if not lower.up:
        change = LinkChange(up=True)
        port = port_resource(lower.name)
        draft.propose(ChangeLink(port, Reason.DOWN, lower.name, lower.ifindex, lower.alias, change))
    return lower


def plan_macvtap_before_launch(draft: Draft, vm: str, uid: int, nic: NicSpec) -> bool:
    """Make a direct NIC's macvtap; whether it is there, right, and open.

    One that nobody has open is deleted and made anew: only its maker hears which device is its own.
    """
    resource, link = tap_resource(vm, nic.id), draft.observed.links.get(nic.tap)
    tell_apart(draft, vm, nic)
    lower = find_lower(draft, vm, nic)
    if link is not None and not _is_own(link, vm, nic):
        message = f"a link {nic.tap} exists that is not ours; rename it, or give the NIC another tap ="
        draft.tell(resource, "Conflict", message)
        return False
    if lower is None:
        return False
    if link is None:
        draft.propose(ArmTap(resource, Reason.MISSING, vm, uid, nic, None, running=False, lower_ifindex=lower.ifindex))
        return False
    if (
        link.kind != "macvtap"
        or link.lower != lower.ifindex
        or link.alias == ""
        or link.name not in draft.observed.opened
    ):
        draft.propose(DeleteLink(resource, Reason.SETTINGS, link.name, link.ifindex, link.alias))
        return False
    return maintain_macvtap(draft, vm, nic, link) and resource not in draft.observed.in_flight


def plan_running_macvtap(draft: Draft, vm: str, nic: NicSpec, link: LinkState) -> None:
    """Keep the macvtap of a running guest as it is to be. It follows its link, also under another name."""
    names = {one.ifindex: one.name for one in draft.observed.links.values()}
    present = names.get(link.lower or 0)
    if nic.direct not in draft.observed.links and present is not None:
        message = f"{nic.direct} is called {present} by now, and {nic.id} goes on on it; the guest's next start waits"
        way_out = f'`ip link set {present} down name {nic.direct}`, or direct = "{present}", prevents that'
        draft.tell(tap_resource(vm, nic.id), "LinkMissing", f"{message} for {nic.direct}: {way_out}")
    elif find_lower(draft, vm, nic) is None:
        return
    maintain_macvtap(draft, vm, nic, link)


def maintain_macvtap(draft: Draft, vm: str, nic: NicSpec, link: LinkState) -> bool:
    """Keep a macvtap up, with its guest's MAC, its MTU and its mark; whether nothing was to be done."""
    mark, mtu = tap_mark(vm, nic.id), _mtu(draft, vm, nic)
    change = LinkChange(
        up=None if link.up else True,
        mac=None if link.mac == nic.mac else nic.mac,
        mtu=None if link.mtu == mtu else mtu,
        alias=None if link.alias == mark else mark,
    )
    reasons = (
        (change.up, Reason.DOWN),
        (change.mac, Reason.MAC),
        (change.mtu, Reason.MTU),
        (change.alias, Reason.UNMARKED),
    )
    reason = next((reason for value, reason in reasons if value is not None), None)
    if reason is None:
        return True
    draft.propose(ChangeLink(tap_resource(vm, nic.id), reason, link.name, link.ifindex, link.alias, change))
    return False


def _is_own(link: LinkState, vm: str, nic: NicSpec) -> bool:
    """Also its tap, while it was on a bridge: it is made anew as a macvtap."""
    mark = tap_mark(vm, nic.id)
    return (is_own_macvtap(link) and link.alias in {"", mark}) or (link.kind == "tun" and link.alias == mark)


def _mtu(draft: Draft, vm: str, nic: NicSpec) -> int:
    """What a NIC's macvtap can have: the kernel gives it no more than the link below has (drivers/net/macvlan.c)."""
    lower = draft.observed.links.get(nic.direct)
    if lower is None or nic.mtu <= lower.mtu:
        return nic.mtu
    message = f"{nic.id} is to have an MTU of {nic.mtu}, and {nic.direct} has {lower.mtu}: longer packets are lost"
    draft.tell(tap_resource(vm, nic.id), "MtuTooLarge", f"{message}; give {nic.direct} the larger, or the NIC mtu =")
    return lower.mtu
