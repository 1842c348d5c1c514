"""The planner: from what is wanted and what is seen to the actions that may be done now.

`plan` is pure and total. It returns the frontier: the actions whose preconditions hold, any of which may run at once.
Nothing is remembered between two calls but what `Observed` carries, so an interrupted plan is simply made again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from agent.core.desired import BridgeSpec, Desired, VmSpec
from agent.core.marks import bridge_resource, vm_resource
from agent.core.observed import Observed, VmState
from agent.core.planner.approval import Approval, Stops, is_unit_gone, unit_stops
from agent.core.planner.bridges import plan_bridge, plan_ports, plan_unwanted_bridges
from agent.core.planner.down import plan_down
from agent.core.planner.draft import Draft, Plan
from agent.core.planner.fallback import starts_of
from agent.core.planner.filters import plan_filters
from agent.core.planner.firewall import plan_firewall, publishing_guests
from agent.core.planner.held import held_guests, plan_held, tell_held
from agent.core.planner.ipv6 import plan_ipv6
from agent.core.planner.macs import tell_taken_macs
from agent.core.planner.ports import find_ports
from agent.core.planner.rates import plan_unwanted_ifbs
from agent.core.planner.room import Room
from agent.core.planner.routes import plan_routes
from agent.core.planner.services import plan_services
from agent.core.planner.taps import plan_unwanted_taps
from agent.core.planner.vlan_links import plan_vlan_links
from agent.core.planner.vlans import plan_bridge_vlans, vlan_wishes
from agent.core.planner.vms import plan_kept, plan_leftover, plan_rename, plan_vm
from agent.core.text import counted


@dataclass(frozen=True, slots=True)
class Wanted:
    """Whom the pass serves: guests by their units, guests left as they are, those to rename and those to end.

    `held` are those that their operator holds, and that are not to be renamed.
    `elsewhere`: the present name of each wanted guest that runs under another one and cannot be renamed yet.
    """

    vms: Mapping[str, VmSpec]
    kept: Mapping[str, str]
    renamed: Mapping[str, str]
    leftover: tuple[str, ...]
    elsewhere: Mapping[str, str]
    held: tuple[str, ...] = ()


def plan(desired: Desired, observed: Observed, now_s: float) -> Plan:
    """The actions that lead from `observed` towards `desired`, with what stands in the way and when to look again.

    `now_s` is CLOCK_BOOTTIME in seconds. Never raises; the same inputs give the same plan.
    """
    draft = Draft(observed, now_s, Room(desired.vms, observed), desired.vms)
    held = held_guests(desired, observed)
    stops = unit_stops(desired, observed, now_s, held)
    draft.wake_at(stops.wake_at_s)
    wanted = sort_guests(desired, observed, stops, held)
    starts = starts_of(desired.vms, observed.refused)
    bridges = needed_bridges(desired, observed, wanted, starts)
    draft.vlans = vlan_wishes(desired, observed, bridges, starts)
    for name, bridge in bridges.items():
        plan_bridge(draft, bridge)
        if name not in desired.bridges:
            message = f"no unit wants {name} any more, but guests use it; it stays on its last spec until they are gone"
            draft.tell(bridge_resource(name), "StillNeeded", message)
    ports = find_ports(bridges, observed)
    plan_bridge_vlans(draft, bridges, starts, ports)
    plan_vlan_links(draft, desired, bridges, ports)
    plan_services(draft, desired, bridges, held)
    for name, hold in held.items():
        tell_held(draft, name, hold)
    plan_filters(draft, bridges, starts, ports, complete=desired.complete)
    plan_ports(draft, bridges, ports)
    tell_taken_macs(draft, bridges, starts, ports)
    if observed.host.down:
        plan_down(draft, desired.vms)
    else:
        _plan_guests(draft, wanted, stops)
    routed = publishing_guests(desired, observed, held)
    plan_firewall(draft, desired, bridges, routed)
    plan_ipv6(draft, desired, bridges, routed)
    if desired.complete:
        plan_unwanted_taps(draft, [desired.vms, starts], held)
        plan_unwanted_ifbs(draft, starts, held)
        plan_unwanted_bridges(draft, bridges)
    plan_routes(draft, bridges, complete=desired.complete)
    return draft.finish(stops.approval)


def _plan_guests(draft: Draft, wanted: Wanted, stops: Stops) -> None:
    vms = draft.observed.vms
    for name, why in wanted.kept.items():
        draft.tell(vm_resource(name), "Held", why, reason=_held_reason(name, stops), deviates=False)
        plan_kept(draft, name, vms[name])
    for name in wanted.held:
        plan_held(draft, name)
    for name, new_name in wanted.renamed.items():
        plan_rename(draft, name, vms[name], new_name)
    for name in wanted.leftover:
        plan_leftover(draft, name, vms[name])
    for name, present in wanted.elsewhere.items():
        message = f"its guest, by its uuid, still runs as {present}; `vmhost why {present}` says what it waits for"
        draft.tell(vm_resource(name), "Waiting", message)
    for name, spec in wanted.vms.items():
        plan_vm(draft, spec, _approval_message(stops.approval) if name in stops.waiting else "")


def sort_guests(desired: Desired, observed: Observed, stops: Stops, held: Collection[str] = ()) -> Wanted:
    """Sort all guests, wanted or seen, by what is to become of them; one that waits for a mere restart lives on."""
    waiting = {name for name in stops.waiting if name not in desired.vms or not desired.vms[name].enabled}
    kept: dict[str, str] = {name: _approval_message(stops.approval) for name in observed.vms if name in waiting}
    renamed: dict[str, str] = {}
    leftover: list[str] = []
    for name, state in observed.vms.items():
        wanted = desired.vms.get(name)
        if name in waiting or (wanted is not None and wanted.uuid == state.spec.uuid):
            continue
        new_name = _new_name(desired, observed, state)
        if new_name is not None:
            renamed[name] = new_name
        elif name in held or wanted is not None:
            continue
        elif is_unit_gone(name, state, desired):
            leftover.append(name)
        else:
            kept[name] = _kept_message(desired, state)
    left = tuple(name for name in held if name not in renamed)
    blocked = {*kept, *renamed, *renamed.values(), *left}
    present = {state.spec.uuid: name for name, state in observed.vms.items()}
    rest = {n: s for n, s in desired.vms.items() if n not in blocked}
    elsewhere = {n: present[s.uuid] for n, s in rest.items() if s.uuid in present and n not in observed.vms}
    vms = {n: s for n, s in rest.items() if n not in elsewhere} if elsewhere else rest
    return Wanted(vms, kept, renamed, tuple(leftover), elsewhere, left)


def _new_name(desired: Desired, observed: Observed, state: VmState) -> str | None:
    """The name under which a unit wants a guest now that runs under another one, by its uuid."""
    names = (name for name, spec in desired.vms.items() if spec.uuid == state.spec.uuid)
    return next((name for name in names if name not in observed.vms), None)


def _approval_message(approval: Approval | None) -> str:
    number = len(approval.guests) if approval else 0
    identity = approval.id if approval else ""
    stops = f"{counted(number, 'guest')} would stop at once"
    return f"its end was not asked for alone: {stops}; `vmhost approve {identity}` allows it"


def _kept_message(desired: Desired, state: VmState) -> str:
    if not desired.complete:
        return "the unit directory could not be read yet; the guest stays as it is until it is"
    named = desired.unresolved_guests
    file = named.get(state.spec.name) or named.get(state.spec.uuid)
    taken = next((name for name, spec in desired.vms.items() if spec.uuid == state.spec.uuid), None)
    if taken is not None:
        return f"it is to be called {taken}, as another guest still is; it stays as it is until that one is gone"
    if file is not None:
        return f"{file} names it and has mistakes; mend it, the guest stays as it is until then"
    return f"{state.spec.file} has no valid version; mend it, the guest stays as it is until then"


def _held_reason(name: str, stops: Stops) -> str:
    return "ApprovalNeeded" if name in stops.waiting else "UnitInvalid"


def needed_bridges(
    desired: Desired, observed: Observed, wanted: Wanted, starts: Mapping[str, VmSpec]
) -> Mapping[str, BridgeSpec]:
    """The wanted bridges, and those that no unit names any more but that a guest still hangs on, or will again."""
    used = {nic.bridge for name in wanted.vms for nic in starts[name].nics}
    used |= {nic.bridge for state in observed.vms.values() if state.alive for nic in state.spec.nics}
    used |= {nic.bridge for name in wanted.held if name in desired.vms for nic in desired.vms[name].nics}
    retained = {name: desired.retained[name] for name in sorted(used) if name in desired.retained}
    return {**retained, **desired.bridges}
