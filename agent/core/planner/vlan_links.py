"""The frontier for the VLAN links of the host: `[vlan.NAME]` and `[bridge.NAME.vlan.ID]`, and others that do harm."""

from __future__ import annotations

from collections.abc import Mapping

from agent.core.actions import ChangeLink, DeleteLink, LinkChange
from agent.core.desired import BridgeSpec, Desired, VlanSpec
from agent.core.marks import bridge_resource, is_own_bridge, is_own_vlan, port_resource, vlan_mark, vlan_resource
from agent.core.observed import LinkState, vlan_links_on
from agent.core.planner.addresses import plan_addresses
from agent.core.planner.direct import guests_on, once_stopped
from agent.core.planner.draft import Draft
from agent.core.planner.ports import Ports, port_names
from agent.core.planner.vlans import NO_VLANS
from agent.core.reasons import Reason
from agent.core.vlan_actions import CreateVlan


def plan_vlan_links(draft: Draft, desired: Desired, bridges: Mapping[str, BridgeSpec], ports: Ports) -> None:
    """Plan the VLAN links of the host, and tell of those that somebody else has where they do harm."""
    homes = {name: bridge for bridge, name in port_names(bridges, ports)}
    wanted = {f"{bridge_resource(b.name)}/vlan/{one.id}": one for b in bridges.values() for one in b.vlans}
    wanted |= {vlan_resource(one.name): one for one in desired.vlans.values()}
    for resource, spec in sorted(wanted.items(), key=lambda one: _depth(one[1], desired.vlans)):
        _plan_vlan_link(draft, resource, spec, homes)
    kept = {spec.name for spec in wanted.values()}
    for link in draft.observed.links.values():
        if link.kind != "vlan":
            continue
        if is_own_vlan(link) and link.name not in kept and desired.complete:
            above = {spec.name for spec in wanted.values() if spec.link == link.name}
            _plan_unwanted_link(draft, link, sorted({*_users(draft, link, homes), *above}))
        _tell_if_on_port(draft, link, homes)


def _depth(spec: VlanSpec, vlans: Mapping[str, VlanSpec], most: int = 8) -> int:
    """On how many other VLAN links of units it is: what is beneath is planned first. The kernel stacks eight."""
    below = vlans.get(spec.link)
    return 1 + _depth(below, vlans, most - 1) if below is not None and most else 0


def _plan_unwanted_link(draft: Draft, link: LinkState, users: list[str]) -> None:
    """Delete a VLAN link that no unit names any more, unless a guest, a bridge or another VLAN link goes on by it."""
    resource = vlan_resource(link.name)
    if users:
        message = f"no unit wants {link.name} any more, but {', '.join(users)} still uses it; it stays"
        draft.tell(resource, "StillNeeded", f"{message} until it is used no more")
        return
    draft.leaving.add(link.name)
    draft.propose(DeleteLink(resource, Reason.UNWANTED, link.name, link.ifindex, link.alias))


def _users(draft: Draft, link: LinkState, ports: Mapping[str, str]) -> list[str]:
    """The bridge that a VLAN link is a port of, and the guests that run on it."""
    home = {ports[link.name]} if link.name in ports and link.master is not None else set()
    return sorted({*home, *guests_on(draft, link)})


def _tell_if_on_port(draft: Draft, vlan: LinkState, ports: Mapping[str, str]) -> None:
    lower = next((one for one in draft.observed.links.values() if one.ifindex == vlan.lower), None)
    bridge = ports.get(lower.name) if lower is not None else None
    home = draft.observed.links.get(bridge) if bridge is not None else None
    if lower is None or bridge is None or home is None or lower.master != home.ifindex:
        return
    message = (
        f"{vlan.name} is a VLAN link on {lower.name}, a port of {bridge}: it takes the frames of VLAN {vlan.vlan_id} "
        f"before {bridge} sees them, so no guest gets any; `ip link del {vlan.name}`, and for the host itself "
        f"[bridge.{bridge}.vlan.{vlan.vlan_id}] addresses = [...]"
    )
    draft.tell(port_resource(lower.name), "VlanLinkOnPort", message, deviates=False)


def _plan_vlan_link(draft: Draft, resource: str, spec: VlanSpec, ports: Mapping[str, str]) -> None:
    link, lower = draft.observed.links.get(spec.name), draft.observed.links.get(spec.link)
    if obstacle := _obstacle(draft, spec, link, lower, ports):
        draft.tell(resource, *obstacle)
    elif lower is None or spec.link in draft.leaving:
        draft.tell_deviating(resource)  # what it is on is about to be made
    elif link is None:
        _plan_new_link(draft, resource, spec, lower, ports)
    elif (link.vlan_id, link.lower) != (spec.id, lower.ifindex):
        _plan_other_vlan(draft, resource, spec, link)
    else:
        _plan_present_link(draft, resource, spec, link, lower)


def _obstacle(
    draft: Draft, spec: VlanSpec, link: LinkState | None, lower: LinkState | None, ports: Mapping[str, str]
) -> tuple[str, str] | None:
    """What stands in the way of a VLAN link as a condition and its message; None if nothing does that stays."""
    if link is not None and not is_own_vlan(link):
        message = f"a {link.kind or 'physical'} link {spec.name} exists that is not ours; rename it"
        return "Conflict", f"{message}, or give the VLAN link another name"
    if bridge := _bridge_over(draft, spec, lower, ports):
        return "VlanLinkOnPort", _on_port(draft, spec, bridge)
    if spec.link in draft.leaving or (lower is None and spec.on_bridge):
        return None
    if lower is None:
        return "LinkMissing", f"there is no link {spec.link}; {spec.name} is made when it appears"
    if spec.on_bridge and not is_own_bridge(lower):
        return "LinkMissing", f"{spec.link} is not our bridge; its condition says why"
    if lower.kind == "bridge" and is_own_bridge(lower) and lower.bridging is None:
        return "VlanUnsupported", f"{NO_VLANS}: {spec.name} is not made until it runs one that has them"
    return None


def _bridge_over(draft: Draft, spec: VlanSpec, lower: LinkState | None, ports: Mapping[str, str]) -> str:
    """The bridge or bond of which the link beneath a VLAN link is a port, or is to be one; empty for none."""
    links = draft.observed.links.values()
    master = next((one.name for one in links if lower is not None and one.ifindex == lower.master), "")
    return ports.get(spec.link, master)


def _on_port(draft: Draft, spec: VlanSpec, bridge: str) -> str:
    message = f"{spec.link} is a port of {bridge}: a VLAN link on it would take the frames of VLAN {spec.id} "
    found = draft.observed.links.get(bridge)
    if found is not None and found.kind != "bridge":  # a bond, or a team
        return message + f'before {bridge} sees them; write link = "{bridge}" instead'
    message += f"before {bridge} sees them, so no guest would get any; "
    return message + f"write [bridge.{bridge}.vlan.{spec.id}] addresses = [...] instead"


def _plan_other_vlan(draft: Draft, resource: str, spec: VlanSpec, link: LinkState) -> None:
    """Have a link that is of another VLAN, or on another link, be made anew: never beneath a guest that runs.

    Its macvtap would go with it, and its NIC be unplugged: that waits for its next start, as any edit of `direct` does.
    """
    guests = guests_on(draft, link)
    if not guests:
        draft.leaving |= {link.name, *(one.name for one in vlan_links_on(link, draft.observed.links))}
        draft.propose(DeleteLink(resource, Reason.SETTINGS, link.name, link.ifindex, link.alias))
        return
    lower = next((one.name for one in draft.observed.links.values() if one.ifindex == link.lower), "another link")
    message = (
        f"{link.name} is to be VLAN {spec.id} of {spec.link}, and is VLAN {link.vlan_id} of {lower} beneath "
        f"{', '.join(guests)}, whose NIC would have to be unplugged for that: it is made anew {once_stopped(guests)}"
    )
    draft.tell(resource, "StillNeeded", message)


def _plan_new_link(draft: Draft, resource: str, spec: VlanSpec, lower: LinkState, ports: Mapping[str, str]) -> None:
    """Make a VLAN link, once its VLAN is free: one of ours that has it is deleted when nobody uses it any more."""
    links = draft.observed.links.values()
    taken = next((one for one in links if (one.lower, one.vlan_id) == (lower.ifindex, spec.id)), None)
    if taken is None:
        draft.propose(CreateVlan(resource, Reason.MISSING, spec, lower.ifindex))
    elif not is_own_vlan(taken):
        message = f"VLAN {spec.id} of {spec.link} is taken by the link {taken.name}"
        draft.tell(resource, "Conflict", f"{message}; `ip link del {taken.name}` frees it")
    elif users := _users(draft, taken, ports):
        guests = guests_on(draft, taken)
        when = once_stopped(guests) if guests == users else "once none of them uses it any more"
        message = f"VLAN {spec.id} of {spec.link} is still {taken.name}'s, beneath {', '.join(users)}; "
        draft.tell(resource, "StillNeeded", f"{message}{spec.name} is made {when}")
    else:
        draft.tell_deviating(resource)


def _plan_present_link(draft: Draft, resource: str, spec: VlanSpec, link: LinkState, lower: LinkState) -> None:
    """Heal a VLAN link; it cannot be up on a link that is down (net/8021q/vlan_dev.c), which is set up for it."""
    if not lower.up and not is_own_bridge(lower):
        up = LinkChange(up=True)
        draft.propose(ChangeLink(resource, Reason.DOWN, lower.name, lower.ifindex, lower.alias, up))
        return
    mark = vlan_mark(spec.name)
    change = LinkChange(up=None if link.up or not lower.up else True, alias=None if link.alias == mark else mark)
    if change != LinkChange():
        reason = Reason.DOWN if change.up else Reason.UNMARKED
        draft.propose(ChangeLink(resource, reason, link.name, link.ifindex, link.alias, change))
    plan_addresses(draft, resource, link, spec.addresses)
