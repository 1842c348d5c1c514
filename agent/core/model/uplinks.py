"""What a move of an uplink makes of the model host."""

from __future__ import annotations

from dataclasses import replace

from agent.core.actions import MoveUplink, PutBackUplink
from agent.core.model.vlans import entered
from agent.core.observed import AddressState, LinkState, Observed
from agent.core.preconditions import require
from agent.core.uplinks.moves import ACTIVE, MoveState, Step, UplinkState


def with_uplinks(observed: Observed, action: MoveUplink | PutBackUplink, now_s: float) -> Observed:
    """The world after an action; each probe is taken to pass."""
    return _moved(observed, action, now_s) if isinstance(action, MoveUplink) else _put_back(observed, action)


def _moved(observed: Observed, action: MoveUplink, now_s: float) -> Observed:
    before, uplink = observed.moves.get(action.bridge), observed.uplinks.get(action.port, UplinkState())
    bridge, port = observed.links[action.bridge], observed.links[action.port]
    require(bridge.ifindex == action.bridge_ifindex, f"{action.bridge} is the bridge that was seen")
    require(port.master in {None, bridge.ifindex}, f"{action.port} is in no other bridge")
    require(not uplink.refusal, "what is refused is not moved")
    if action.again:
        kept = before is not None and (before.step is Step.KEPT or (before.step is Step.PUT_BACK and before.remade))
        require(kept, "only what was kept is brought there again")
    else:
        require(bool(uplink.carried), "a bare port is not moved")
        require(before is None or before.step not in ACTIVE or before.port == action.port, "one port for each bridge")
    carried = before.carried if action.again and before is not None else uplink.carried
    addresses = before.addresses if action.again and before is not None else uplink.addresses
    deadline_s = now_s + action.confirm_s if action.confirm_s else None
    step = Step.PROVEN if deadline_s is not None else Step.KEPT
    boot = observed.host.boot_id
    state = MoveState(action.bridge, action.port, step, "", deadline_s, "", action.digest, boot, port.mac, bridge.mac)
    entry = action.entry or action.port
    state = replace(
        state, carried=carried, addresses=addresses, ifindex=port.ifindex, entry=entry, remade=action.remade
    )
    taken = tuple(AddressState(one) for one in addresses if one not in {two.address for two in bridge.addresses})
    moved = replace(port, master=bridge.ifindex, up=True, mtu=action.mtu or port.mtu, addresses=())
    others = {place: index for place, index in observed.cards.items() if index != port.ifindex}
    links: dict[str, LinkState] = {
        **observed.links,
        port.name: entered(observed, moved, action.vlans),
        bridge.name: replace(bridge, mac=port.mac, addresses=(*bridge.addresses, *taken)),
    }
    return replace(
        observed,
        links=links,
        enslaved=observed.enslaved | {(port.name, bridge.name)},
        cards={**others, (action.entry or port.name, bridge.name): port.ifindex},
        moves={**observed.moves, bridge.name: state},
        uplinks={**observed.uplinks, port.name: UplinkState()},
    )


def _put_back(observed: Observed, action: PutBackUplink) -> Observed:
    move = observed.moves[action.bridge]
    require(move.step in ACTIVE, "what was put back is not put back again")
    require(action.forget or move.step is not Step.KEPT, "what is kept goes back only with its bridge")
    links, here = dict(observed.links), move.boot_id == observed.host.boot_id
    bridge, port = links.get(action.bridge), links.get(action.port)
    if bridge is not None and here:
        left = tuple(one for one in bridge.addresses if one.own or one.address not in move.addresses)
        links[bridge.name] = replace(bridge, addresses=left, mac=move.bridge_mac)
    if port is not None and here:
        links[port.name] = replace(port, master=None, vlans=None)
        links[port.name] = replace(links[port.name], addresses=tuple(AddressState(one) for one in move.addresses))
    others = {name: one for name, one in observed.moves.items() if name != action.bridge}
    over = replace(move, step=Step.PUT_BACK, why=action.why, deadline_s=None)
    return replace(
        observed,
        links=links,
        enslaved=observed.enslaved - {(action.port, action.bridge)},
        cards={place: index for place, index in observed.cards.items() if port is None or index != port.ifindex},
        moves=others if action.forget else {**others, action.bridge: over},
        uplinks={**observed.uplinks, action.port: UplinkState(move.carried, move.addresses, gateways=("",))},
    )
