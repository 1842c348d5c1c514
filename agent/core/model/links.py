"""What actions on links make of the model host; each asserts that its precondition holds."""

from __future__ import annotations

from dataclasses import replace

from agent.core.actions import (
    ChangeAddresses,
    ChangeLink,
    ChangeRate,
    CreateBridge,
    DeleteLink,
    EnslavePort,
    LinkChange,
    ReleasePort,
)
from agent.core.desired import NicSpec
from agent.core.marks import (
    GROUP,
    bridge_mark,
    derived_ifb,
    ifb_mark,
    is_own_bridge,
    is_own_ifb,
    is_own_macvtap,
    is_own_vlan,
    port_resource,
    tap_mark,
    vlan_mark,
)
from agent.core.model.filters import require_filters
from agent.core.model.ipv6 import without_places
from agent.core.model.routes import without_routes
from agent.core.model.vlans import entered, made_bridge, require_own_vlans, with_vlans
from agent.core.observed import (
    AddressState,
    IngressState,
    LinkState,
    Observed,
    QdiscState,
    VmState,
    vlan_links_on,
)
from agent.core.preconditions import require
from agent.core.rates import shape_of
from agent.core.vlan_actions import ChangeVlans, CreateVlan


def _with_link(observed: Observed, link: LinkState) -> Observed:
    return replace(observed, links={**observed.links, link.name: link})


def _link(observed: Observed, name: str, ifindex: int) -> LinkState:
    require(name in observed.links and observed.links[name].ifindex == ifindex, f"{name} is there as link {ifindex}")
    return observed.links[name]


def _next_ifindex(observed: Observed) -> int:
    return 1 + max((link.ifindex for link in observed.links.values()), default=0)


def _is_own(link: LinkState) -> bool:
    own_kind = is_own_bridge(link) or is_own_ifb(link) or is_own_macvtap(link) or is_own_vlan(link)
    return link.alias.startswith("vmhost:") or own_kind


def with_links(
    observed: Observed,
    action: CreateBridge
    | ChangeAddresses
    | EnslavePort
    | ReleasePort
    | ChangeLink
    | DeleteLink
    | ChangeRate
    | ChangeVlans
    | CreateVlan,
) -> Observed:
    """The world after an action on links."""
    match action:
        case ChangeVlans() | CreateVlan():
            return with_vlans(observed, action)
        case CreateBridge(spec=spec):
            require(spec.name not in observed.links, f"{spec.name} does not exist yet")
            addresses = tuple(AddressState(address, own=True) for address in spec.addresses)
            mark = bridge_mark(spec.name)
            index = _next_ifindex(observed)
            made = LinkState(
                index, spec.name, "bridge", True, spec.mtu, spec.mac, None, mark, GROUP, addresses, spec.stp
            )
            return _with_link(observed, made_bridge(observed, made, action.vlans))
        case ChangeAddresses(add=add, remove=remove):
            link = _link(observed, action.bridge, action.ifindex)
            require(is_own_bridge(link) or is_own_vlan(link), "addresses are set on own links only")
            require(all(a.own for a in link.addresses if a.address in remove), "only own addresses are removed")
            kept = tuple(a for a in link.addresses if a.address not in remove)
            return _with_link(observed, replace(link, addresses=kept + tuple(AddressState(a, own=True) for a in add)))
        case EnslavePort() | ReleasePort():
            return _with_port(observed, action)
        case ChangeLink():
            return _change_link(observed, action)
        case ChangeRate():
            return _change_rate(observed, action)
        case DeleteLink():
            return _delete_link(observed, action)


def _with_port(observed: Observed, action: EnslavePort | ReleasePort) -> Observed:
    port = _link(observed, action.port, action.port_ifindex)
    if isinstance(action, ReleasePort):
        if port.master != action.bridge_ifindex:
            return observed  # its bridge went first
        require((action.port, action.bridge) in observed.enslaved, "only a port that we enslaved is released")
        return replace(
            _with_link(observed, replace(port, master=None, vlans=None)),
            enslaved=observed.enslaved - {(action.port, action.bridge)},
            cards={place: index for place, index in observed.cards.items() if index != port.ifindex},
        )
    require(port.master in {None, action.bridge_ifindex}, f"{port.name} is in no other bridge")
    addressed = port.master is None and any(not a.link_local for a in port.addresses)
    require(not addressed, "a port with addresses is never enslaved")
    port = replace(port, master=action.bridge_ifindex, up=True, mtu=action.mtu or port.mtu)
    port = entered(observed, port, action.vlans)
    others = {place: index for place, index in observed.cards.items() if index != port.ifindex}
    return replace(
        _with_link(observed, port),
        enslaved=observed.enslaved | {(action.port, action.bridge)},
        cards={**others, (action.entry or action.port, action.bridge): port.ifindex},
    )


def _change_link(observed: Observed, action: ChangeLink) -> Observed:
    link = _link(observed, action.link, action.ifindex)
    change = action.change
    ours = _is_own(link) or link.name in {port for port, _ in observed.enslaved} or change.alias is not None
    # As a port, a link that a unit names for its NICs is set up, and no more; so is one that a VLAN link is on.
    is_named = action.resource == port_resource(link.name)
    is_named = is_named or any(is_own_vlan(one) and one.lower == link.ifindex for one in observed.links.values())
    is_set_up = change == LinkChange(up=True) and is_named
    require(ours or is_set_up or _hangs_on_guest(observed, link.name), f"{link.name} is ours to change")
    values = {
        name: value
        for name in ("up", "mtu", "mac", "alias", "name", "stp", "snooping", "isolated", "group_learning")
        if (value := getattr(change, name)) is not None
    }
    if change.master is not None:
        values |= {"master": change.master or None, "isolated": change.isolated or False}
        for name, nic in _nics_of(observed, link.alias):
            require_filters(observed, name, nic)
            require_own_vlans(nic, change.master or None, change.vlans)
    require(change.name is None or change.name not in observed.links, "a link is renamed to a free name only")
    changed = replace(link, **values)
    if change.master is not None:
        changed = entered(observed, changed, change.vlans)
    links = {name: one for name, one in observed.links.items() if name != action.link}
    vms = {name: _renamed_nics(state, action.link, changed.name) for name, state in observed.vms.items()}
    opened = frozenset(changed.name if name == action.link else name for name in observed.opened)
    return replace(observed, links={**links, changed.name: changed}, vms=vms, opened=opened)


def _renamed_nics(state: VmState, old: str, new: str) -> VmState:
    return replace(state, nics={i: replace(n, link=new) if n.link == old else n for i, n in state.nics.items()})


def _nics_of(observed: Observed, mark: str) -> list[tuple[str, NicSpec]]:
    """The NIC of a running guest whose tap has this mark."""
    nics = [(name, nic) for name, state in observed.vms.items() for nic in state.spec.nics]
    return [(name, nic) for name, nic in nics if tap_mark(name, nic.id) == mark]


def _hangs_on_guest(observed: Observed, link: str) -> bool:
    return any(nic.link == link for state in observed.vms.values() for nic in state.nics.values())


def _delete_link(observed: Observed, action: DeleteLink) -> Observed:
    if action.link not in observed.links and action.expect_alias == vlan_mark(action.link):
        return observed  # it went with the bridge that it was on
    link = _link(observed, action.link, action.ifindex)
    require(_is_own(link) and link.alias == action.expect_alias, f"only an own link is deleted, {link.name} is not")
    require(not _hangs_on_guest(observed, link.name), f"{link.name} hangs on a running guest")
    led_to = {one.ingress.redirect for one in observed.links.values() if one.ingress is not None}
    require(link.ifindex not in led_to, f"nothing is led to {link.name} any more")
    going = {link.ifindex, *(one.ifindex for one in vlan_links_on(link, observed.links))}
    above = {name for name, one in observed.links.items() if one.kind == "macvtap" and one.lower in going}
    plugged = {nic.link for state in observed.vms.values() if state.alive for nic in state.nics.values()}
    require(not above & plugged, f"no running guest is on {link.name}")
    links = {n: one for n, one in observed.links.items() if one.ifindex not in going and n not in above}
    freed = {
        n: replace(one, master=None, vlans=None) if one.master == link.ifindex else one for n, one in links.items()
    }
    seen = without_routes(without_places(observed, action.link), action.link)
    return replace(
        seen,
        links=freed,
        opened=observed.opened - {action.link, *above},
        enslaved=frozenset(e for e in observed.enslaved if e[1] != action.link),
        cards={place: index for place, index in observed.cards.items() if place[1] != action.link},
    )


def _change_rate(observed: Observed, action: ChangeRate) -> Observed:
    tap = _link(observed, action.link, action.ifindex)
    require(tap.alias == action.expect_alias == tap_mark(action.vm, action.nic), f"{tap.name} is the NIC's own tap")
    if action.rate_in_bps is not None:
        require(tap.root is None or tap.root.own, f"no foreign discipline of {tap.name} is replaced")
        require(action.rate_in_bps or tap.root is not None, f"{tap.name} has a limit to take away")
        tap = replace(tap, root=_bucket(action.rate_in_bps, action.mtu) if action.rate_in_bps else None)
    if action.rate_out_bps is not None:
        return _change_rate_out(observed, action, tap)
    return _with_link(observed, tap)


def _bucket(rate_bps: int, mtu: int) -> QdiscState:
    return QdiscState("tbf", own=True, shape=shape_of(rate_bps, mtu))


def _change_rate_out(observed: Observed, action: ChangeRate, tap: LinkState) -> Observed:
    name, ingress = derived_ifb(action.vm, action.nic), tap.ingress or IngressState("ingress")
    ifb = observed.links.get(name)
    clear = ingress.redirect is not None or (ingress.kind == "ingress" and not ingress.foreign)
    require(clear, f"filters of {tap.name} are ours alone, or ours are among them")
    if not action.rate_out_bps:
        left = replace(ingress, redirect=None) if ingress.foreign or ingress.kind != "ingress" else None
        seen = _with_link(observed, replace(tap, ingress=left))
        gone = ifb is not None and is_own_ifb(ifb)
        return replace(seen, links={n: one for n, one in seen.links.items() if n != name}) if gone else seen
    require(ifb is None or is_own_ifb(ifb), f"{name} is free or ours")
    ifindex = ifb.ifindex if ifb is not None else _next_ifindex(observed)
    root, mark = _bucket(action.rate_out_bps, action.mtu), ifb_mark(action.vm, action.nic)
    made = LinkState(ifindex, name, "ifb", True, alias=mark, group=GROUP, root=root)
    return _with_link(_with_link(observed, made), replace(tap, ingress=replace(ingress, redirect=ifindex)))
