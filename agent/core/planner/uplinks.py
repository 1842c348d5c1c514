"""The frontier for uplinks: when what a port carries is moved to its bridge, and when it goes back.

A move is proposed only of a port that was looked at, on which nothing refuses it, and for a bridge that has no other
move. What a journal says decides: a broken one is put back, one that waits for a word is put back at its deadline, one
that was put back is left alone until its unit changes, and one that is kept is made again, and tried again where that
was put back, by a move and never by merely enslaving the port, where the bridge lost what it carried (as at each boot
of the host).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from agent.core.actions import MoveUplink, PutBackUplink
from agent.core.desired import BridgeSpec
from agent.core.marks import bridge_resource, is_own_macvtap, port_resource
from agent.core.observed import LinkState
from agent.core.planner.direct import guests_on, once_stopped
from agent.core.planner.draft import Draft
from agent.core.planner.ports import find_port
from agent.core.planner.vlans import uplink_place
from agent.core.reasons import Reason
from agent.core.uplinks.carried import LEASED
from agent.core.uplinks.moves import ACTIVE, MoveState, Step, UplinkState, move_digest

BOOT_GRACE_S = 90.0
"""After a boot of the host: so long its own boot may take to address a port that had addresses before."""

RIDERS = frozenset({"macvtap", "macvlan", "ipvlan", "ipvtap"})
"""Kinds of links that take what comes to the link that they are on."""

BROKEN = "the agent was lost in the middle of it"


class _Uplink(NamedTuple):
    """A port as its unit calls it, and the link that it is."""

    entry: str
    link: LinkState


def with_moved_mac(draft: Draft, spec: BridgeSpec) -> BridgeSpec:
    """The spec with the MAC that the bridge has from its port, while a move is active or an action makes one."""
    move = draft.observed.moves.get(spec.name)
    if move is None or move.step not in ACTIVE or not move.mac:
        return spec
    bridge = draft.observed.links.get(spec.name)
    under_way = move.step in {Step.WRITTEN, Step.MOVED} or port_resource(move.port) in draft.observed.in_flight
    if under_way and bridge is not None:
        return replace(spec, mac=bridge.mac)  # whoever is at it, or puts it back, sets it
    return replace(spec, mac=move.mac)


def without_adopted(draft: Draft, spec: BridgeSpec) -> BridgeSpec:
    """The spec without addresses that its port still carries: they come with the move, and are never on both."""
    if not spec.adopt_addresses:
        return spec
    ports = (find_port(entry, draft.observed.links) for entry in spec.ports)
    adopted = [port for port in ports if port is not None and port.name in draft.observed.uplinks]
    held = {one.address for port in adopted for one in port.addresses}
    return replace(spec, addresses=tuple(one for one in spec.addresses if one not in held)) if held else spec


def is_in_move(draft: Draft, spec: BridgeSpec, bridge: LinkState, entry: str, port: LinkState) -> bool:
    """Plan what an unfinished move of this port asks for; whether there is nothing else to be done to the port."""
    observed = draft.observed
    resource = port_resource(port.name)
    if spec.name in observed.unreadable_moves and (spec.adopt_addresses or port.master == bridge.ifindex):
        draft.tell(bridge_resource(spec.name), "MoveUnreadable", observed.unreadable_moves[spec.name])
        return port.master != bridge.ifindex
    move = observed.moves.get(spec.name)
    if move is None or not _is_moved(draft, spec, move, entry, port):
        return False
    under_way = (observed.in_flight.get(one, "") for one in (resource, port_resource(move.port)))
    if any(one.startswith(("move-uplink", "put-back-uplink")) for one in under_way):
        draft.tell_deviating(resource)
        return True
    if move.step in {Step.WRITTEN, Step.MOVED}:
        draft.propose(PutBackUplink(resource, Reason.UNWANTED, spec.name, port.name, BROKEN))
        return True
    if move.step is Step.PROVEN:
        return _plan_unconfirmed(draft, move)
    if move.step is Step.KEPT or move.remade:  # put back, what is remade is tried again
        return _plan_kept(draft, spec, bridge, _Uplink(entry, port), move)
    return False


def _is_moved(draft: Draft, spec: BridgeSpec, move: MoveState, entry: str, port: LinkState) -> bool:
    """Whether a move is of this port, which may have another name by now; after a boot its entry tells, or its name."""
    same = _is_same_link(draft, move, port)
    if same is not None:
        return same
    return entry == move.entry if move.entry in spec.ports else port.name == move.port


def _is_same_link(draft: Draft, move: MoveState, port: LinkState) -> bool | None:
    """Whether a link is the one that was moved, by its number; None where no link has that any more."""
    observed = draft.observed
    if move.boot_id != observed.host.boot_id:
        return None
    known = any(link.ifindex == move.ifindex for link in observed.links.values())
    return port.ifindex == move.ifindex if known else None


def _plan_unconfirmed(draft: Draft, move: MoveState) -> bool:
    resource, deadline_s = port_resource(move.port), move.deadline_s or 0.0
    if move.boot_id != draft.observed.host.boot_id:
        why = "the host booted anew before it was confirmed"
        draft.propose(PutBackUplink(resource, Reason.UNWANTED, move.bridge, move.port, why))
        return True
    if draft.now_s >= deadline_s:
        why = "nobody confirmed it in time"
        draft.propose(PutBackUplink(resource, Reason.UNWANTED, move.bridge, move.port, why))
        return True
    draft.wake_at(deadline_s)
    message = (
        f"{move.bridge} carries what was on {move.port}, and it is put back unless somebody says it is well: "
        f"vmhost confirm {move.bridge}"
    )
    draft.tell(resource, "MoveUnconfirmed", message, deviates=False)
    return True


def _plan_kept(draft: Draft, spec: BridgeSpec, bridge: LinkState, named: _Uplink, move: MoveState) -> bool:
    """Make a move again whose result was lost: the host booted, or somebody deleted the bridge.

    One that was put back at that is tried again: whoever did not answer may boot later than the host.
    """
    port, present = named.link, {one.address for one in bridge.addresses}
    if not spec.adopt_addresses or (port.master == bridge.ifindex and present.issuperset(move.addresses)):
        return False
    resource = port_resource(port.name)
    uplink = draft.observed.uplinks.get(port.name)
    if uplink is None:
        draft.wait_for_answer(resource)
        return True
    waits = move.boot_id != draft.observed.host.boot_id and draft.now_s < BOOT_GRACE_S
    if waits and not {*uplink.carried} >= {*move.carried}:
        draft.wake_at(BOOT_GRACE_S)
        message = (
            f"{port.name} carried {', '.join(move.carried)} before this boot of the host; it is moved to "
            f"{spec.name} once the host's own boot has set that, or {BOOT_GRACE_S:g} s after the boot"
        )
        draft.tell(resource, "WaitingForAddresses", message)
        return True
    if uplink.carried:
        return _plan_move(draft, spec, bridge, named, uplink, remade=True)
    if move.addresses:
        if uplink.refusal:
            draft.tell(resource, "PortAddressed", uplink.refusal, reason=uplink.refusal_reason)
            return True
        _propose_move(draft, spec, bridge, named, remade=True, again=True)
        return True
    return False


def plan_uplink(draft: Draft, spec: BridgeSpec, bridge: LinkState, entry: str, port: LinkState) -> bool:
    """Plan the move of what a port carries; False for a port that carries nothing, which is simply enslaved."""
    resource = port_resource(port.name)
    uplink, move = draft.observed.uplinks.get(port.name), draft.observed.moves.get(spec.name)
    if uplink is None:
        draft.wait_for_answer(resource)
        return True
    if not uplink.carried:
        if uplink.refusal_reason != LEASED:
            return False
        draft.tell(resource, "PortAddressed", uplink.refusal, reason=LEASED)  # it is only just being leased one
        return True
    mine = move is not None and _is_moved(draft, spec, move, entry, port)
    if move is not None and mine and move.step is Step.PUT_BACK and move.digest == move_digest(spec):
        message = (
            f"{port.name} was put back at {move.since}: {move.why}; it is moved again once the table of {spec.name} "
            "changes, a longer probe-timeout or another probe for example"
        )
        draft.tell(resource, "MovePutBack", message)
        return True
    links = (find_port(entry, draft.observed.links) for entry in spec.ports)
    first = next((one.name for one in links if one is not None and _carries(draft, one.name)), port.name)
    taken = move.port if move is not None and move.step in ACTIVE and not mine else first
    if taken != port.name:
        message = (
            f"{port.name} carries {', '.join(uplink.carried)}, and {spec.name} has those of {taken}: one port's go to "
            f"one bridge; give {port.name} a bridge of its own, or take its addresses away"
        )
        draft.tell(resource, "PortAddressed", message)
        return True
    return _plan_move(draft, spec, bridge, _Uplink(entry, port), uplink)


def _carries(draft: Draft, port: str) -> bool:
    return bool(draft.observed.uplinks.get(port, UplinkState()).carried)


def _plan_move(
    draft: Draft, spec: BridgeSpec, bridge: LinkState, named: _Uplink, uplink: UplinkState, *, remade: bool = False
) -> bool:
    port, resource = named.link, port_resource(named.link.name)
    if uplink.rules:
        rules = ", ".join(uplink.rules)
        message = f"{rules} name{'s' if len(uplink.rules) == 1 else ''} {port.name} and stay as they are; "
        draft.tell(resource, "RulesNamePort", message + f"what they are for arrives by {spec.name}", deviates=False)
    if uplink.refusal:
        draft.tell(resource, "PortAddressed", uplink.refusal, reason=uplink.refusal_reason)
        return True
    if not (uplink.gateways or spec.probe or spec.confirm_s):
        message = (
            f"{port.name} carries {', '.join(uplink.carried)} and no route over a gateway, so nothing could prove that "
            f'a move works; name a host in probe = ["..."], or say how long it may wait for your word: confirm = "60s"'
        )
        draft.tell(resource, "PortAddressed", message, reason="NothingToProve")
        return True
    _propose_move(draft, spec, bridge, named, remade=remade)
    return True


def _propose_move(
    draft: Draft, spec: BridgeSpec, bridge: LinkState, named: _Uplink, *, remade: bool, again: bool = False
) -> None:
    """Behind its filters, and once its bridge heeds VLANs where it is to, as any port goes in."""
    port, place = named.link, uplink_place(draft, bridge)
    if _is_ridden(draft, spec, port):
        return
    if draft.is_port_gated(port.name) or place.bridge is None:
        draft.tell_deviating(port_resource(port.name))
        return
    move = MoveUplink(
        port_resource(port.name),
        Reason.MISSING if again else Reason.WANTED,
        spec.name,
        bridge.ifindex,
        port.name,
        port.ifindex,
        move_digest(spec),
        spec.probe,
        spec.probe_timeout_s,
        0.0 if remade else spec.confirm_s,
        spec.port_mtu,
        again,
        named.entry if named.entry != port.name else "",
        place.vlans,
        remade,
    )
    draft.propose(move)


def _is_ridden(draft: Draft, spec: BridgeSpec, port: LinkState) -> bool:
    """Tell of macvtaps and the like on a port: the kernel refuses to put it into a bridge as long as they are there.

    What comes to a link goes to one of them only (net/core/dev.c: netdev_rx_handler_register answers EBUSY).
    """
    links = draft.observed.links.values()
    riders = sorted(one.name for one in links if one.lower == port.ifindex and one.kind in RIDERS)
    if not riders:
        return False
    guests = guests_on(draft, port)
    strangers = [name for name in riders if not is_own_macvtap(draft.observed.links[name])]
    ways_out = [once_stopped(guests)] if guests else []
    ways_out += [f"once {name} is gone: `ip link del {name}`" for name in strangers]
    when = ", and ".join(ways_out) or "once it is gone"
    whose = f", of {', '.join(guests)}," if guests else ""
    message = f"{', '.join(riders)}{whose} {'is' if len(riders) == 1 else 'are'} on {port.name}, and the kernel gives"
    message += f" what comes there to that or to {spec.name}; {port.name} is moved {when}"
    draft.tell(port_resource(port.name), "PortAddressed", message, reason="PortBusy")
    return True


def gives_back(draft: Draft, bridge: str, port: LinkState | None, why: str) -> bool:
    """Plan that a bridge which goes, or loses its port, first gives back what it carries; whether it still does.

    `port` None: whichever it is. After another boot of the host there is nothing to give.
    """
    move = draft.observed.moves.get(bridge)
    if move is None or move.step not in ACTIVE or move.boot_id != draft.observed.host.boot_id:
        return False
    same = _is_same_link(draft, move, port) if port is not None else True
    if not same and (same is not None or port is None or port.name != move.port):
        return False
    draft.propose(PutBackUplink(port_resource(move.port), Reason.UNWANTED, bridge, move.port, why, forget=True))
    draft.tell_deviating(bridge_resource(bridge))
    return True
