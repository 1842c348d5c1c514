"""Which stops that the units ask for may happen, and which wait for a person.

Removing or disabling the units of more running guests than `max_disruption` within a minute is more often a slip
(`rm *.toml`) than a wish, so it waits for `vmhost approve ID`, where the id is that of exactly this set of guests.
A restart that an edit asks for (`apply = "restart"`) counts as a stop, so that no mass edit restarts them all at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from agent.core.desired import Desired
from agent.core.edits.pending import asks_to_restart
from agent.core.marks import vm_resource
from agent.core.observed import Observed, VmState
from agent.core.planner.room import Room

WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Approval:
    """A question to the operator. `keys` name each guest with its uuid: that, and nothing else, is what is approved."""

    id: str
    guests: tuple[str, ...]
    keys: frozenset[str]


@dataclass(frozen=True, slots=True)
class Stops:
    """The guests that may be stopped now because of their units, those that wait, and what they wait for."""

    allowed: frozenset[str]
    waiting: frozenset[str]
    approval: Approval | None
    wake_at_s: float | None


def approval_key(state: VmState) -> str:
    """How a guest is named in an approval."""
    return f"{state.spec.name}/{state.spec.uuid}"


def still_asked(approved: frozenset[str], desired: Desired, observed: Observed) -> frozenset[str]:
    """The approvals that are still about something: of a guest that is wanted again, or gone, none is left."""
    room = Room(desired.vms, observed)
    asked = (observed.vms[name] for name in observed.vms if _asks_to_stop(name, desired, observed, room))
    busy = (state for state in observed.vms.values() if vm_resource(state.spec.name) in observed.in_flight)
    return approved & {approval_key(state) for state in (*asked, *busy)}


def is_unit_gone(name: str, state: VmState, desired: Desired) -> bool:
    """Whether no unit wants a guest any more, by name or uuid, and no invalid file may still want it."""
    if not desired.complete or name in desired.vms or state.spec.file in desired.unresolved_files:
        return False
    if {name, state.spec.uuid} & desired.unresolved_guests.keys():
        return False
    return all(spec.uuid != state.spec.uuid for spec in desired.vms.values())


def unit_stops(desired: Desired, observed: Observed, now_s: float, held: Collection[str] = ()) -> Stops:
    """Sort the stops that the units ask for into those allowed now and those that wait for an approval.

    Of guests that their operator holds, none is asked for.
    """
    room = Room(desired.vms, observed)
    asked = [name for name in sorted(observed.vms) if name not in held and _asks_to_stop(name, desired, observed, room)]
    approved = [name for name in asked if approval_key(observed.vms[name]) in observed.approved]
    rest = [name for name in asked if name not in approved]
    recent = [at_s for at_s in observed.stops_at_s if at_s > now_s - WINDOW_S]
    if len(rest) + len(recent) <= observed.max_disruption or not rest:
        return Stops(frozenset(asked), frozenset(), None, None)
    wake_at_s = min(recent) + WINDOW_S if recent else None
    return Stops(frozenset(approved), frozenset(rest), _question(observed, rest), wake_at_s)


def _asks_to_stop(name: str, desired: Desired, observed: Observed, room: Room) -> bool:
    state, spec = observed.vms[name], desired.vms.get(name)
    if spec is not None and spec.enabled and not asks_to_restart(state, spec, observed, room):
        return False
    if not state.alive or state.stopping or _is_stopping(state, observed):
        return False
    intent = observed.intents.get(name)
    if intent is not None and intent.stopped:
        return False
    return spec is not None or is_unit_gone(name, state, desired)


def _is_stopping(state: VmState, observed: Observed) -> bool:
    return observed.in_flight.get(vm_resource(state.spec.name), "").startswith("stop-vm")


def _question(observed: Observed, names: Iterable[str]) -> Approval:
    keys = frozenset(approval_key(observed.vms[name]) for name in names)
    digest = hashlib.sha256("\0".join(sorted(keys)).encode()).hexdigest()
    return Approval(digest[:8], tuple(names), keys)
