"""The model host's VLANs, and its proof that no port ever carries, or is given by its bridge, what is not its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from agent.core.desired import NicSpec
from agent.core.marks import GROUP, is_own_bridge, tap_mark, vlan_mark
from agent.core.observed import AddressState, LinkState, Observed
from agent.core.preconditions import require
from agent.core.vlan_actions import ChangeVlans, CreateVlan
from agent.core.vlans import AWARE, PLAIN, UNTAGGED_PORT, BridgeVlans, PortVlans, is_tagged, nic_vlans


def made_bridge(observed: Observed, link: LinkState, vlans: PortVlans | None) -> LinkState:
    """A bridge that was just made: with VLANs where it was asked for them and the kernel has them."""
    if not observed.host.bridge_vlans:
        return link
    return replace(link, bridging=PLAIN if vlans is None else AWARE, vlans=vlans)


def _bridge_of(observed: Observed, ifindex: int | None) -> LinkState | None:
    return next((one for one in observed.links.values() if one.ifindex == ifindex and one.kind == "bridge"), None)


def entered(observed: Observed, port: LinkState, vlans: PortVlans | None) -> LinkState:
    """A port that was just put into a bridge; PreconditionError unless that heeds VLANs where it has some of its own.

    What it is not given by the action its bridge gives it: `default_pvid`. The network without tags is no VLAN of its
    own: a bridge that ceased to heed any a moment ago gives that to each port.
    """
    bridge = _bridge_of(observed, port.master)
    bridging = bridge.bridging if bridge is not None else None
    if vlans is not None and (bridging, vlans) != (PLAIN, UNTAGGED_PORT):
        require(bridging == AWARE, f"the bridge of {port.name} heeds VLANs before the port is in it")
    if bridging is None or not bridging.filtering:
        return replace(port, vlans=None)
    given = UNTAGGED_PORT if bridging.default_pvid else PortVlans()
    return replace(port, vlans=given if vlans is None else vlans)


def require_own_vlans(nic: NicSpec, bridge_ifindex: int | None, vlans: PortVlans | None) -> None:
    """PreconditionError if the tap of a NIC comes into a bridge with anything but the VLANs of its NIC."""
    if bridge_ifindex is None:
        return
    require(vlans == nic_vlans(nic) if is_tagged(nic) else vlans in (None, nic_vlans(nic)), f"{nic.tap} has its VLANs")


def with_vlans(observed: Observed, action: ChangeVlans | CreateVlan) -> Observed:
    """The world after VLANs were set, or a VLAN link was made."""
    return _created(observed, action) if isinstance(action, CreateVlan) else _changed(observed, action)


def _created(observed: Observed, action: CreateVlan) -> Observed:
    spec, links = action.spec, observed.links
    lower = links.get(spec.link)
    require(spec.name not in links, f"{spec.name} does not exist yet")
    require(lower is not None and lower.ifindex == action.lower_ifindex, f"{spec.link} is there")
    require(lower is not None and lower.master is None, f"{spec.link} is no port: its bridge would lose that VLAN")
    index = 1 + max((link.ifindex for link in links.values()), default=0)
    addresses = tuple(AddressState(address, own=True) for address in spec.addresses)
    up = lower is not None and lower.up
    made = LinkState(index, spec.name, "vlan", up, alias=vlan_mark(spec.name), group=GROUP, addresses=addresses)
    made = replace(made, vlan_id=spec.id, lower=action.lower_ifindex)
    return replace(observed, links={**links, spec.name: made})


def _changed(observed: Observed, action: ChangeVlans) -> Observed:
    bridge = observed.links[action.bridge]
    require(bridge.ifindex == action.ifindex and is_own_bridge(bridge), f"{action.bridge} is our bridge")
    require(bridge.bridging is not None, f"{action.bridge} can heed VLANs")
    seen = bridge.bridging or PLAIN
    wanted = {port.ifindex: port.vlans for port in action.ports}
    if action.setting.filtering and action.setting != seen:
        members = [one for one in observed.links.values() if one.master == bridge.ifindex or one is bridge]
        _require_all_ours(observed, members, wanted)
    if not action.setting.filtering:
        for nic in _nics_in(observed, bridge):
            require(not is_tagged(nic), f"{nic.tap} is in a VLAN: its bridge goes on heeding them")
    links = dict(observed.links)
    for name, link in observed.links.items():
        if bridge.ifindex in {link.ifindex, link.master}:
            links[name] = _carrying(link, wanted.get(link.ifindex), action.setting)
    return replace(observed, links={**links, bridge.name: replace(links[bridge.name], bridging=action.setting)})


def _carrying(link: LinkState, wanted: PortVlans | None, setting: BridgeVlans) -> LinkState:
    if not setting.filtering:
        return replace(link, vlans=None)
    return replace(link, vlans=wanted or link.vlans or UNTAGGED_PORT)


def _require_all_ours(observed: Observed, members: Iterable[LinkState], wanted: dict[int, PortVlans]) -> None:
    """Whoever changes how a bridge treats tags says what each port of ours carries from that moment on."""
    ports = {port for port, _ in observed.enslaved}
    for link in members:
        ours = link.kind == "bridge" or link.alias.startswith("vmhost:tap/") or link.name in ports
        require(not ours or link.ifindex in wanted, f"{link.name} is told what it carries")


def _nics_in(observed: Observed, bridge: LinkState) -> list[NicSpec]:
    """The NICs of running guests whose taps are in a bridge; nobody sends by the tap of one that has ended."""
    found = [(name, nic) for name, state in observed.vms.items() if state.alive for nic in state.spec.nics]
    taps = {link.alias for link in observed.links.values() if link.master == bridge.ifindex}
    return [nic for name, nic in found if tap_mark(name, nic.id) in taps]
