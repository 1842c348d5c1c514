"""The frontier for bridges, their addresses and their ports."""

from __future__ import annotations

from collections.abc import Mapping

from agent.core.actions import (
    ChangeAddresses,
    ChangeLink,
    CreateBridge,
    DeleteLink,
    EnslavePort,
    LinkChange,
    ReleasePort,
)
from agent.core.desired import BridgeSpec
from agent.core.marks import bridge_mark, bridge_resource, is_own_bridge, port_resource
from agent.core.observed import LinkState
from agent.core.planner.draft import Draft
from agent.core.planner.uplinks import gives_back, is_in_move, plan_uplink, with_moved_mac, without_adopted
from agent.core.reasons import Reason
from agent.core.uplinks.port import port_link


def plan_bridge(draft: Draft, spec: BridgeSpec, bridges: Mapping[str, BridgeSpec]) -> None:
    """Plan what makes a bridge as its spec says; a foreign link of its name is left alone, unless `adopt` takes it."""
    resource = bridge_resource(spec.name)
    link = draft.observed.links.get(spec.name)
    spec = with_moved_mac(draft, spec)
    if link is None:
        draft.propose(CreateBridge(resource, Reason.MISSING, without_adopted(draft, spec)))
        _tell_missing_ports(draft, spec)
        return
    if not is_own_bridge(link):
        if not (spec.adopt and link.kind == "bridge"):
            draft.tell(resource, "Conflict", _conflict_message(spec, link))
            return
        mark = LinkChange(alias=bridge_mark(spec.name))
        draft.propose(ChangeLink(resource, Reason.UNMARKED, link.name, link.ifindex, link.alias, mark))
        return
    _plan_settings(draft, without_adopted(draft, spec), link)
    for port in spec.ports:
        _plan_port(draft, spec, link, port, bridges)
    _plan_released_ports(draft, spec, link)


def _conflict_message(spec: BridgeSpec, link: LinkState) -> str:
    kind = link.kind or "physical"
    if link.kind == "bridge":
        return f"a bridge {spec.name} exists that is not ours; set adopt = true to take it over, or choose another name"
    return f"a {kind} link {spec.name} exists that is not ours; rename it or choose another name for the bridge"


def _tell_missing_ports(draft: Draft, spec: BridgeSpec) -> None:
    for port in spec.ports:
        if port not in draft.observed.links:
            _tell_port_missing(draft, spec, port)


def _tell_port_missing(draft: Draft, spec: BridgeSpec, port: str) -> None:
    message = f"there is no link {port}; it is enslaved to {spec.name} when it appears"
    draft.tell(port_resource(port), "PortMissing", message)


def _plan_settings(draft: Draft, spec: BridgeSpec, link: LinkState) -> None:
    resource = bridge_resource(spec.name)
    change, reason = settings_change(spec, link)
    if reason is not None:
        draft.propose(ChangeLink(resource, reason, link.name, link.ifindex, link.alias, change))
    present = {a.address for a in link.addresses}
    missing = tuple(a for a in spec.addresses if a not in present)
    surplus = tuple(sorted(a.address for a in link.addresses if a.own and a.address not in spec.addresses))
    if missing or surplus:
        draft.propose(ChangeAddresses(resource, Reason.ADDRESS, link.name, link.ifindex, missing, surplus))


def settings_change(spec: BridgeSpec, link: LinkState) -> tuple[LinkChange, Reason | None]:
    """What to set on an own bridge, and the reason that weighs most; the reason is None when all is right."""
    mark = bridge_mark(spec.name)
    change = LinkChange(
        up=None if link.up else True,
        mac=None if link.mac == spec.mac else spec.mac,
        mtu=None if link.mtu == spec.mtu else spec.mtu,
        alias=None if link.alias == mark else mark,
        stp=None if link.stp == spec.stp else spec.stp,
        snooping=False if link.snooping else None,
        group_learning=False if link.group_learning else None,
    )
    reasons = (
        (change.up, Reason.DOWN),
        (change.mac, Reason.MAC),
        (change.mtu, Reason.MTU),
        (change.alias, Reason.UNMARKED),
        (change.stp, Reason.SETTINGS),
        (change.snooping, Reason.SETTINGS),
        (change.group_learning, Reason.SETTINGS),
    )
    return change, next((reason for value, reason in reasons if value is not None), None)


def _plan_port(draft: Draft, spec: BridgeSpec, bridge: LinkState, port: str, bridges: Mapping[str, BridgeSpec]) -> None:
    resource = port_resource(port)
    link = port_link(draft.observed.links, port)
    if link is None:
        _tell_port_missing(draft, spec, port)
        return
    if is_in_move(draft, spec, bridge, link):
        return
    if link.master == bridge.ifindex:
        _plan_enslaved_port(draft, spec, link)
        return
    if link.master is not None and not _is_from_own_bridge(draft, link, bridges):
        master = _name_of(draft, link.master)
        draft.tell(resource, "Conflict", f"{port} is a port of {master}, which is not ours; take it out of there first")
        return
    if spec.adopt_addresses and plan_uplink(draft, spec, bridge, link):
        return
    carried = [a.address for a in link.addresses if not a.link_local]
    if carried:
        message = (
            f"{port} carries {', '.join(carried)}: enslaving it would cut them off; move them to {spec.name} first, "
            "or have them moved with adopt-addresses = true"
        )
        draft.tell(resource, "PortAddressed", message)
        return
    reason = Reason.DETACHED if (port, spec.name) in draft.observed.enslaved else Reason.WANTED
    draft.propose(EnslavePort(resource, reason, spec.name, bridge.ifindex, port, link.ifindex, spec.port_mtu))


def _plan_enslaved_port(draft: Draft, spec: BridgeSpec, link: LinkState) -> None:
    mtu = spec.port_mtu if spec.port_mtu not in (None, link.mtu) else None
    if link.up and mtu is None:
        return
    change = LinkChange(up=None if link.up else True, mtu=mtu)
    reason = Reason.MTU if link.up else Reason.DOWN
    draft.propose(ChangeLink(port_resource(link.name), reason, link.name, link.ifindex, link.alias, change))


def _is_from_own_bridge(draft: Draft, link: LinkState, bridges: Mapping[str, BridgeSpec]) -> bool:
    """Whether a port sits in a bridge of ours that does not want it: then it may be moved."""
    name = _name_of(draft, link.master)
    master = draft.observed.links.get(name)
    if master is None or not is_own_bridge(master):
        return False
    return name not in bridges or link.name not in bridges[name].ports


def _name_of(draft: Draft, ifindex: int | None) -> str:
    return next((link.name for link in draft.observed.links.values() if link.ifindex == ifindex), f"link {ifindex}")


def _plan_released_ports(draft: Draft, spec: BridgeSpec, bridge: LinkState) -> None:
    for port, name in sorted(draft.observed.enslaved):
        link = draft.observed.links.get(port)
        if name != spec.name or port in spec.ports or link is None or link.master != bridge.ifindex:
            continue
        resource = port_resource(port)
        if gives_back(draft, spec.name, port, f"{spec.file or 'the unit'} names {port} no more"):
            continue
        draft.propose(ReleasePort(resource, Reason.UNWANTED, spec.name, port, link.ifindex, bridge.ifindex))


def plan_unwanted_bridges(draft: Draft, bridges: Mapping[str, BridgeSpec]) -> None:
    """Delete own bridges that nobody needs; one that still has foreign ports is left to whoever put them there."""
    links = draft.observed.links
    for link in links.values():
        if link.kind != "bridge" or link.name in bridges or link.alias != bridge_mark(link.name):
            continue
        resource = bridge_resource(link.name)
        if gives_back(draft, link.name, "", "no unit wants the bridge any more"):
            continue
        strangers = sorted(
            port.name
            for port in links.values()
            if port.master == link.ifindex
            and (port.name, link.name) not in draft.observed.enslaved
            and not port.alias.startswith("vmhost:tap/")
        )
        if strangers:
            message = f"no unit wants {link.name}, but {', '.join(strangers)} is still in it; take it out to let it go"
            draft.tell(resource, "StillNeeded", message)
            continue
        draft.propose(DeleteLink(resource, Reason.UNWANTED, link.name, link.ifindex, link.alias))
