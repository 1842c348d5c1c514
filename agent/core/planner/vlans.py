"""The frontier for VLANs of bridges: which bridges heed them, and what their ports and taps carry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agent.core.desired import BridgeSpec, Desired, NicSpec, VmSpec
from agent.core.marks import (
    GROUP,
    is_own_bridge,
    is_own_vlan,
    tap_mark,
    tap_resource,
    vlans_resource,
)
from agent.core.observed import LinkState, Observed
from agent.core.planner.draft import Draft
from agent.core.planner.ports import Ports
from agent.core.reasons import Reason
from agent.core.vlan_actions import ChangeVlans, PortSetting
from agent.core.vlans import (
    AWARE,
    PLAIN,
    UNTAGGED_PORT,
    PortVlans,
    VlanWish,
    is_tagged,
    nic_vlans,
    own_vlans,
    reaches_untagged,
    uplink_vlans,
)

NO_VLANS = "this kernel's bridges know no VLANs (CONFIG_BRIDGE_VLAN_FILTERING)"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tap is to be: in the bridge of this ifindex, or in none for now (None), with these VLANs.

    `barred`: in none as long as this kernel runs.
    """

    bridge: int | None = None
    vlans: PortVlans | None = None
    barred: bool = False


def vlan_wishes(
    desired: Desired, observed: Observed, bridges: Mapping[str, BridgeSpec], specs: Mapping[str, VmSpec]
) -> Mapping[str, VlanWish]:
    """The bridges that are to heed VLANs: those with a NIC or a link of the host in one, also of a stopped guest."""
    links = {name: [one.id for one in bridge.vlans] for name, bridge in bridges.items() if bridge.vlans}
    for vlan in desired.vlans.values():
        if vlan.link in bridges:
            links.setdefault(vlan.link, []).append(vlan.id)
    tagged: dict[str, list[NicSpec]] = {}
    for nic in _all_nics(desired, observed, specs):
        if nic.vlan is not None or nic.trunk:
            tagged.setdefault(nic.bridge, []).append(nic)
    names = [name for name in bridges if name in links or name in tagged]
    for link in observed.links.values():
        if link.kind == "vlan" and link.vlan_id is not None and not is_own_vlan(link):
            lower = next((name for name in names if _index(observed, name) == link.lower), None)
            if lower is not None:  # somebody else's, which worked as long as the bridge heeded none
                links.setdefault(lower, []).append(link.vlan_id)
    return {
        name: VlanWish(uplink_vlans(tagged.get(name, ()), links.get(name, ())), own_vlans(links.get(name, ())))
        for name in names
    }


def _index(observed: Observed, name: str) -> int:
    link = observed.links.get(name)
    return link.ifindex if link is not None else 0


def _all_nics(desired: Desired, observed: Observed, specs: Mapping[str, VmSpec]) -> Iterator[NicSpec]:
    for wanted in (desired.vms, specs):
        for spec in wanted.values():
            yield from spec.nics
    for state in observed.vms.values():
        if state.alive:
            yield from state.spec.nics
            yield from state.leaving_nics


def place_of(draft: Draft, nic: NicSpec) -> Place:
    """Where the tap of a NIC is to be now.

    No tap comes into a bridge that is to heed VLANs before it does: it would reach what it must not. Where the kernel
    knows none, NICs without are in the bridge as ever, and the others are connected to nothing.
    """
    link = draft.observed.links.get(nic.bridge)
    if link is None or not is_own_bridge(link):
        return Place()
    if nic.bridge not in draft.vlans:
        return Place(link.ifindex, _untagged_in(link))
    if link.bridging is None:
        return Place(barred=True) if is_tagged(nic) else Place(link.ifindex)
    return Place(link.ifindex, nic_vlans(nic)) if link.bridging == AWARE else Place()


def carries_its_own(place: Place, tap: LinkState) -> bool:
    """Whether a tap that is where it is to be has the VLANs of its NIC, as far as is known: a guest starts with them.

    It may have had others when its guest last ran; its bridge's own resource sets them.
    """
    return place.vlans is None or tap.master != place.bridge or tap.vlans in (None, place.vlans)


def _untagged_in(bridge: LinkState) -> PortVlans | None:
    """What a port gets in a bridge that nothing asks to heed VLANs: one that still does gives its ports none."""
    return UNTAGGED_PORT if bridge.bridging == AWARE else None


def uplink_place(draft: Draft, bridge: LinkState) -> Place:
    """Where a card of a bridge is to be now: it waits as a tap does."""
    wish = draft.vlans.get(bridge.name)
    if wish is None or bridge.bridging is None:
        return Place(bridge.ifindex, _untagged_in(bridge))
    return Place(bridge.ifindex, wish.uplink) if bridge.bridging == AWARE else Place()


def plan_bridge_vlans(
    draft: Draft, bridges: Mapping[str, BridgeSpec], specs: Mapping[str, VmSpec], ports: Ports
) -> None:
    """Plan what bridges and their ports carry, each bridge with all of its ports one resource."""
    tagged: list[tuple[str, NicSpec]] = []
    taps: dict[int, list[tuple[LinkState, NicSpec]]] = {}
    aware = any(link is not None and link.bridging == AWARE for link in map(draft.observed.links.get, bridges))
    if draft.vlans or aware:
        for name, nic, link in _taps(draft.observed, specs):
            if nic.bridge in draft.vlans and is_tagged(nic):
                tagged.append((name, nic))
            if link is not None and link.master is not None:
                taps.setdefault(link.master, []).append((link, nic))
    for name, spec in bridges.items():
        link = draft.observed.links.get(name)
        if link is None or not is_own_bridge(link):
            continue
        wish = draft.vlans.get(name)
        members = [one for one in taps.get(link.ifindex, ()) if one[1].bridge == name]
        if wish is None:
            _plan_plain(draft, spec, link, _cards(link, ports), members)
        elif link.bridging is not None:
            _plan_aware(draft, link, wish, _cards(link, ports), members)
    _tell_unsupported(draft, tagged)
    _tell_unserved(draft, bridges, tagged)


def _taps(observed: Observed, specs: Mapping[str, VmSpec]) -> Iterator[tuple[str, NicSpec, LinkState | None]]:
    """Every NIC with its guest, and its tap where that is ours."""
    for name, state in observed.vms.items():
        for nic in (*state.spec.nics, *state.leaving_nics):
            seen = state.nics.get(nic.id)
            link = observed.links.get((seen.link if seen is not None else None) or nic.tap)
            yield name, nic, link if link is not None and link.alias == tap_mark(name, nic.id) else None
    for name, spec in specs.items():
        for nic in spec.nics if name not in observed.vms else ():
            link = observed.links.get(nic.tap)
            yield name, nic, link if link is not None and link.alias == tap_mark(name, nic.id) else None


def _cards(bridge: LinkState, ports: Ports) -> list[LinkState]:
    """The ports that a bridge's unit names, as far as they are in it."""
    return [link for link in ports.of(bridge.name).values() if link.master == bridge.ifindex]


def _plan_aware(
    draft: Draft, bridge: LinkState, wish: VlanWish, cards: list[LinkState], taps: list[tuple[LinkState, NicSpec]]
) -> None:
    wanted = [(bridge, wish.own), *((link, wish.uplink) for link in cards)]
    wanted += [(link, nic_vlans(nic)) for link, nic in taps]
    if bridge.bridging != AWARE:
        resource = vlans_resource(bridge.name)
        known = {link.ifindex for link, _ in wanted}
        wanted += [(link, PortVlans()) for link in _leaving(draft.observed, bridge) if link.ifindex not in known]
        settings = tuple(PortSetting(link.name, link.ifindex, vlans) for link, vlans in wanted)
        draft.propose(ChangeVlans(resource, Reason.SETTINGS, bridge.name, bridge.ifindex, AWARE, settings))
        return
    _set_differing(draft, bridge, wanted)


def _set_differing(draft: Draft, bridge: LinkState, wanted: list[tuple[LinkState, PortVlans]]) -> None:
    """Plan what ports of a bridge that heeds VLANs are to carry, as far as they do not yet."""
    differing = tuple(
        PortSetting(link.name, link.ifindex, vlans)
        for link, vlans in wanted
        if link.vlans is not None and link.vlans != vlans
    )
    if differing:
        resource = vlans_resource(bridge.name)
        draft.propose(ChangeVlans(resource, Reason.VLAN, bridge.name, bridge.ifindex, AWARE, differing))


def _leaving(observed: Observed, bridge: LinkState) -> list[LinkState]:
    """Ports that we put into a bridge once; what is still there and is not to be there carries nothing."""
    ours = {port for port, _ in observed.enslaved}
    ports = [one for one in observed.links.values() if one.master == bridge.ifindex]
    return [one for one in ports if one.name in ours or one.alias.startswith("vmhost:tap/")]


def _plan_plain(
    draft: Draft, spec: BridgeSpec, bridge: LinkState, cards: list[LinkState], own: list[tuple[LinkState, NicSpec]]
) -> None:
    """A bridge of ours that heeds VLANs as only we have it do heeds none once nothing asks for it any more.

    Not before a tap has left that is still to go elsewhere. One that was adopted may have heeded them before; of that
    only the taps of its `own` NICs are ours to set.
    """
    seen, links = bridge.bridging, draft.observed.links
    if seen is None or not seen.filtering or seen.default_pvid != AWARE.default_pvid:
        return
    if bridge.group != GROUP:
        message = f"{spec.name} heeds VLANs, which no unit asks for: it was adopted, and is left so"
        mend = f"`ip link set {spec.name} type bridge vlan_filtering 0 vlan_default_pvid 1` ends that"
        draft.tell(vlans_resource(spec.name), "VlansLeft", f"{message}; {mend}", deviates=False)
        if seen == AWARE:
            _set_differing(draft, bridge, [(link, nic_vlans(nic)) for link, nic in own])
        return
    homes = {
        tap_mark(name, nic.id): nic.bridge
        for name, state in draft.observed.vms.items()
        for nic in (*state.spec.nics, *state.leaving_nics)
    }
    taps = [one for one in links.values() if one.master == bridge.ifindex and one.alias.startswith("vmhost:tap/")]
    if any(homes.get(tap.alias, spec.name) != spec.name for tap in taps):
        draft.tell_deviating(vlans_resource(spec.name))
        return
    settings = tuple(PortSetting(one.name, one.ifindex, UNTAGGED_PORT) for one in (bridge, *taps, *cards))
    resource = vlans_resource(spec.name)
    draft.propose(ChangeVlans(resource, Reason.UNWANTED, spec.name, bridge.ifindex, PLAIN, settings))


def _tell_unsupported(draft: Draft, tagged: list[tuple[str, NicSpec]]) -> None:
    for name, nic in tagged:
        if place_of(draft, nic).barred:
            message = f"{NO_VLANS}: {nic.id} of {name} is connected to nothing until it runs one that has them"
            draft.tell(tap_resource(name, nic.id), "VlanUnsupported", message)


def _tell_unserved(draft: Draft, bridges: Mapping[str, BridgeSpec], tagged: list[tuple[str, NicSpec]]) -> None:
    """What the host serves on a bridge it serves in the network without tags only."""
    for name, nic in tagged:
        bridge = bridges.get(nic.bridge)
        if bridge is None or reaches_untagged(nic):
            continue
        asked = {"dhcp": bridge.dhcp, "dns": bridge.dns, "nat": bridge.nat, "ipv6": bridge.ipv6}
        served = [key for key, value in asked.items() if value]
        if served:
            what = " and ".join(part for part in (", ".join(served[:-1]), served[-1]) if part)
            message = (
                f"{what} of {bridge.name} {'is' if len(served) == 1 else 'are'} for its network without tags, and "
                f"{nic.id} of {name} is in a VLAN: it gets nothing of that; have a guest serve the VLAN, "
                f"or make a bridge with a [vlan.NAME] as its port"
            )
            draft.tell(tap_resource(name, nic.id), "VlanNotServed", message, deviates=False)
