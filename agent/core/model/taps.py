"""What the actions on taps make of the model host."""

from __future__ import annotations

from dataclasses import replace

from agent.core.device_actions import ArmTap, ReplugNic
from agent.core.marks import tap_mark
from agent.core.model.filters import require_filters
from agent.core.model.vlans import entered, require_own_vlans
from agent.core.observed import LinkState, NicBackend, NicState, Observed
from agent.core.preconditions import require


def _with_link(observed: Observed, link: LinkState) -> Observed:
    return replace(observed, links={**observed.links, link.name: link})


def with_tap(observed: Observed, action: ArmTap | ReplugNic) -> Observed:
    """The world after a NIC's tap was made, or made anew beneath a running guest."""
    present = observed.links.get(action.nic.tap)
    mark = tap_mark(action.vm, action.nic.id)
    require(present is None or present.alias == mark, f"{action.nic.tap} is free or ours")
    index = present.ifindex if present else 1 + max((link.ifindex for link in observed.links.values()), default=0)
    if action.nic.direct:
        seen = _with_macvtap(observed, action, index)
    else:
        require_filters(observed, action.vm, action.nic)
        nic, bridge = action.nic, action.bridge_ifindex
        link = LinkState(index, nic.tap, "tun", True, nic.mtu, nic.mac, bridge, mark, multi_queue=nic.queues > 1)
        require_own_vlans(nic, bridge, action.vlans)
        link = entered(observed, replace(link, isolated=nic.isolated and bridge is not None), action.vlans)
        seen = _with_link(observed, link)
    if isinstance(action, ArmTap) and not action.running:
        return seen
    state = observed.vms[action.vm]
    require(state.alive, "only a running guest's descriptor is re-armed")
    require(
        isinstance(action, ReplugNic) or not (action.nic.direct or action.nic.id in state.vhosts),
        "neither a macvtap nor what vhost-net holds is re-armed",
    )
    nics = {**state.nics, action.nic.id: NicState(NicBackend.ATTACHED, action.nic.tap)}
    return replace(seen, vms={**observed.vms, action.vm: replace(state, nics=nics)})


def _with_macvtap(observed: Observed, action: ArmTap | ReplugNic, index: int) -> Observed:
    nic = action.nic
    lower = observed.links.get(nic.direct)
    require(nic.tap not in observed.links, f"{nic.tap} is made once")
    require(lower is not None and lower.ifindex == action.lower_ifindex, f"{nic.direct} is there")
    require(lower is not None and lower.master is None, f"{nic.direct} is no port")
    mtu, mark = min(nic.mtu, lower.mtu if lower is not None else nic.mtu), tap_mark(action.vm, nic.id)
    link = LinkState(index, nic.tap, "macvtap", True, mtu, nic.mac, None, mark, lower=action.lower_ifindex)
    return replace(_with_link(observed, link), opened=observed.opened | {nic.tap})
