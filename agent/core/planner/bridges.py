"""The frontier for bridges, their addresses and their ports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from agent.core.actions import (
    ChangeLink,
    CreateBridge,
    DeleteLink,
    EnslavePort,
    LinkChange,
    ReleasePort,
)
from agent.core.desired import BridgeSpec
from agent.core.marks import bridge_mark, bridge_resource, is_own_bridge, is_own_vlan, port_resource
from agent.core.observed import LinkState
from agent.core.planner.addresses import plan_addresses
from agent.core.planner.draft import Draft
from agent.core.planner.ports import Ports
from agent.core.planner.uplinks import gives_back, is_in_move, plan_uplink, with_moved_mac, without_adopted
from agent.core.planner.vlans import uplink_place
from agent.core.reasons import Reason
from agent.core.vlans import PortVlans


def plan_bridge(draft: Draft, spec: BridgeSpec) -> None:
    """Plan what makes a bridge as its spec says; a foreign link of its name is left alone, unless `adopt` takes it."""
    resource = bridge_resource(spec.name)
    link = draft.observed.links.get(spec.name)
    spec = with_moved_mac(draft, spec)
    if link is None:
        wish = draft.vlans.get(spec.name)
        vlans = wish.own if wish is not None else None
        draft.propose(CreateBridge(resource, Reason.MISSING, without_adopted(draft, spec), vlans))
        return
    if not is_own_bridge(link):
        if not (spec.adopt and link.kind == "bridge"):
            draft.tell(resource, "Conflict", _conflict_message(spec, link))
            return
        mark = LinkChange(alias=bridge_mark(spec.name))
        draft.propose(ChangeLink(resource, Reason.UNMARKED, link.name, link.ifindex, link.alias, mark))
        return
    _plan_settings(draft, without_adopted(draft, spec), link)


def _conflict_message(spec: BridgeSpec, link: LinkState) -> str:
    kind = link.kind or "physical"
    if link.kind == "bridge":
        return f"a bridge {spec.name} exists that is not ours; set adopt = true to take it over, or choose another name"
    return f"a {kind} link {spec.name} exists that is not ours; rename it or choose another name for the bridge"


def _plan_settings(draft: Draft, spec: BridgeSpec, link: LinkState) -> None:
    resource = bridge_resource(spec.name)
    change, reason = settings_change(spec, link)
    if reason is not None:
        draft.propose(ChangeLink(resource, reason, link.name, link.ifindex, link.alias, change))
    plan_addresses(draft, resource, link, spec.addresses)


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


def plan_ports(draft: Draft, bridges: Mapping[str, BridgeSpec], ports: Ports) -> None:
    """Plan the ports of own bridges: what is wanted goes in, behind its filters, and what we put in goes out."""
    for spec in bridges.values():
        link = draft.observed.links.get(spec.name)
        if link is not None and not is_own_bridge(link):
            continue
        for entry in spec.ports:
            if (trouble := ports.troubles.get((spec.name, entry))) is not None:
                draft.tell(port_resource(entry), trouble.type, trouble.message)
            if link is not None and (port := ports.links.get((spec.name, entry))) is not None:
                _plan_port(draft, spec, link, _Port(entry, port), bridges)
        if link is not None:
            _plan_released_ports(draft, spec, link, ports)


class _Port(NamedTuple):
    """A port as its unit calls it, and the link that it is."""

    entry: str
    link: LinkState


def _plan_port(
    draft: Draft, spec: BridgeSpec, bridge: LinkState, port: _Port, bridges: Mapping[str, BridgeSpec]
) -> None:
    resource, link, observed = port_resource(port.entry), port.link, draft.observed
    if is_in_move(draft, spec, bridge, port.entry, link):
        return
    if link.master == bridge.ifindex:
        _plan_enslaved_port(draft, spec, bridge, port)
        return
    if link.master is not None:
        _plan_port_elsewhere(draft, port, bridges)
        return
    if spec.adopt_addresses and plan_uplink(draft, spec, bridge, port.entry, link):
        return
    carried = [a.address for a in link.addresses if not a.link_local]
    if carried:
        message = (
            f"{link.name} carries {', '.join(carried)}: enslaving it would cut them off; move them to {spec.name} "
            "first, or have them moved with adopt-addresses = true"
        )
        draft.tell(resource, "PortAddressed", message)
        return
    place = uplink_place(draft, bridge)
    if draft.is_port_gated(link.name) or place.bridge is None or _waits_for_its_link(draft, link):
        draft.tell_deviating(resource)  # until it is filtered, its bridge heeds VLANs, and it can be set up
        return
    was_there = (link.name, spec.name) in observed.enslaved or (port.entry, spec.name) in observed.cards
    reason = Reason.DETACHED if was_there else Reason.WANTED
    draft.propose(_enslaving(spec, bridge, port, reason, place.vlans))


def _waits_for_its_link(draft: Draft, link: LinkState) -> bool:
    """Whether it is a VLAN link of ours on one that is still down: nothing is up on that."""
    lower = next((one for one in draft.observed.links.values() if one.ifindex == link.lower), None)
    return is_own_vlan(link) and (lower is None or not lower.up)


def _enslaving(
    spec: BridgeSpec, bridge: LinkState, port: _Port, reason: Reason, vlans: PortVlans | None
) -> EnslavePort:
    entry, link = port.entry if port.entry != port.link.name else "", port.link
    resource = port_resource(port.entry)
    return EnslavePort(
        resource, reason, spec.name, bridge.ifindex, link.name, link.ifindex, spec.port_mtu, entry, vlans
    )


def _plan_enslaved_port(draft: Draft, spec: BridgeSpec, bridge: LinkState, port: _Port) -> None:
    link = port.link
    former = [
        entry
        for (entry, name), index in draft.observed.cards.items()
        if name == spec.name and index == link.ifindex and entry not in spec.ports
    ]
    if former:  # the unit calls it by another name now, by which it is to be known when it is renamed or returns
        draft.propose(_enslaving(spec, bridge, port, Reason.WANTED, uplink_place(draft, bridge).vlans))
        return
    mtu = spec.port_mtu if spec.port_mtu not in (None, link.mtu) else None
    if link.up and mtu is None:
        return
    change = LinkChange(up=None if link.up else True, mtu=mtu)
    reason = Reason.MTU if link.up else Reason.DOWN
    draft.propose(ChangeLink(port_resource(port.entry), reason, link.name, link.ifindex, link.alias, change))


def _plan_port_elsewhere(draft: Draft, port: _Port, bridges: Mapping[str, BridgeSpec]) -> None:
    """A port that sits in another bridge: it is taken out where we put it, and stays where somebody else did."""
    resource, link = port_resource(port.entry), port.link
    name = _name_of(draft, link.master)
    master = draft.observed.links.get(name)
    if master is None or not is_own_bridge(master):
        message = f"{link.name} is a port of {name}, which is not ours; take it out of there first"
        draft.tell(resource, "Conflict", message)
    elif (link.name, name) not in draft.observed.enslaved:
        message = f"{link.name} is a port of {name}, where somebody else put it; take it out of there first"
        draft.tell(resource, "Conflict", message)
    elif name in bridges:
        draft.tell_deviating(resource)  # that bridge lets go of it
    elif not gives_back(draft, name, link, "no unit wants the bridge any more"):
        draft.propose(ReleasePort(resource, Reason.UNWANTED, name, link.name, link.ifindex, master.ifindex))


def _name_of(draft: Draft, ifindex: int | None) -> str:
    return next((link.name for link in draft.observed.links.values() if link.ifindex == ifindex), f"link {ifindex}")


def _plan_released_ports(draft: Draft, spec: BridgeSpec, bridge: LinkState, ports: Ports) -> None:
    wanted = ports.of(spec.name)
    for port, name in sorted(draft.observed.enslaved):
        link = draft.observed.links.get(port)
        if name != spec.name or port in wanted or link is None or link.master != bridge.ifindex:
            continue
        if gives_back(draft, spec.name, link, f"{spec.file or 'the unit'} names {port} no more"):
            continue
        resource = port_resource(_entry_of(draft, spec.name, link))
        draft.propose(ReleasePort(resource, Reason.UNWANTED, spec.name, port, link.ifindex, bridge.ifindex))


def _entry_of(draft: Draft, bridge: str, link: LinkState) -> str:
    """What the unit called a link that we put into this bridge; its name where nobody remembers."""
    known = (entry for (entry, name), index in draft.observed.cards.items() if (name, index) == (bridge, link.ifindex))
    return next(known, link.name)


def plan_unwanted_bridges(draft: Draft, bridges: Mapping[str, BridgeSpec]) -> None:
    """Delete own bridges that nobody needs; one that still has foreign ports is left to whoever put them there."""
    links = draft.observed.links
    for link in links.values():
        if link.kind != "bridge" or link.name in bridges or link.alias != bridge_mark(link.name):
            continue
        resource = bridge_resource(link.name)
        if gives_back(draft, link.name, None, "no unit wants the bridge any more"):
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
