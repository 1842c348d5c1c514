"""A plan in the making: the one mutable thing in the core, alive only inside `plan`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from agent.core.actions import Action, key_of
from agent.core.conditions import Condition
from agent.core.desired import DiskSpec, VmSpec
from agent.core.edits.plugged import is_plugged
from agent.core.observed import Observed, Reach
from agent.core.planner.approval import Approval
from agent.core.planner.room import Room
from agent.core.vlans import VlanWish


@dataclass(frozen=True, slots=True)
class Plan:
    """What may be done now, in any order; what stands in the way; and when to look again without being rung.

    `deviating` are the resources that are not as their spec wants, also those whose action is under way or put off;
    `awaited` are those that were asked about and have not answered yet; `asked` are references (`core.references`) that
    somebody waits for, to be looked at until the next plan.
    """

    actions: tuple[Action, ...] = ()
    conditions: tuple[Condition, ...] = ()
    deviating: frozenset[str] = frozenset()
    awaited: frozenset[str] = frozenset()
    approval: Approval | None = None
    wake_at_s: float | None = None
    asked: frozenset[str] = frozenset()


def fingerprint(action: Action) -> str:
    """What an action would do exactly: another spec or another world gives another fingerprint, hence a fresh try."""
    return hashlib.sha256(repr(action).encode()).hexdigest()[:16]


class Draft:
    """Collects what one pass finds; it refuses a second action on a resource and one that is not due yet."""

    def __init__(self, observed: Observed, now_s: float, room: Room, wanted: Mapping[str, VmSpec]) -> None:
        self.observed = observed
        self.wanted = wanted
        self.room = room
        self.now_s = now_s
        self._actions: dict[str, Action] = {}
        self._conditions: list[Condition] = []
        self._deviating: set[str] = set()
        self._awaited: set[str] = set()
        self._asked: set[str] = set()
        self._gated: set[tuple[str, str]] = set()
        self.vlans: Mapping[str, VlanWish] = {}
        """The bridges that are to heed VLANs (`core.planner.vlans`)."""
        self.leaving: set[str] = set()
        """The links that are about to be deleted, to be made anew or for good: nothing is put on them."""
        self._wake_at_s: float | None = None

    @cached_property
    def plugged_disks(self) -> Mapping[str, Sequence[tuple[str, DiskSpec]]]:
        """The disks that running guests have, each with its guest, by the path of their file; made once asked for."""
        found: dict[str, list[tuple[str, DiskSpec]]] = {}
        for name, state in self.observed.vms.items():
            for disk in (*state.spec.disks, *state.leaving_disks) if state.alive else ():
                if is_plugged(state, disk):
                    found.setdefault(disk.path, []).append((name, disk))
        return found

    def propose(self, action: Action) -> bool:
        """Plan an action, unless its resource is busy or its last attempt forbids it; whether it was planned."""
        self._deviating.add(action.resource)
        if action.resource in self.observed.in_flight or action.resource in self._actions:
            return False
        if not self._is_due(action):
            return False
        self._actions[action.resource] = action
        return True

    def tell(
        self, resource: str, type_: str, message: str, *, reason: str | None = None, deviates: bool = True
    ) -> None:
        """Note a condition; `deviates` False for one that is no deviation from the spec."""
        self._conditions.append(Condition(resource, type_, reason or type_, message))
        if deviates:
            self._deviating.add(resource)

    def tell_deviating(self, resource: str) -> None:
        """Note that a resource is not as wanted, whatever keeps it so."""
        self._deviating.add(resource)

    def wait_for_answer(self, resource: str) -> None:
        """Note that a resource is just being looked at: nothing can be said of it, and nothing is settled yet."""
        self._awaited.add(resource)

    def ask(self, resource: str, reference: str) -> Reach:
        """Ask for a look at what a resource waits for; what is known of it so far."""
        self._asked.add(reference)
        reach = self.observed.reachable.get(reference)
        if reach is None:
            self.wake_at(self.now_s)  # only the next pass has it looked at
            reach = Reach(None, self.now_s)
        if reach.ok is None:
            self.wait_for_answer(resource)
        return reach

    def close_gate(self, nics: Iterable[tuple[str, str]]) -> None:
        """Note NICs, by guest and id, whose filters are not in place yet: their taps wait before their bridge."""
        self._gated.update(nics)

    def is_gated(self, vm: str, nic: str) -> bool:
        """Whether a NIC's filters are still to come."""
        return (vm, nic) in self._gated

    def close_port_gate(self, names: Iterable[str]) -> None:
        """Note links whose filters are not in place yet: they wait before their bridge, as taps do."""
        self._gated.update(("", name) for name in names)

    def is_port_gated(self, name: str) -> bool:
        """Whether the filters of a port are still to come."""
        return ("", name) in self._gated

    def is_planned(self, resource: str) -> bool:
        """Whether something is to be done to a resource now."""
        return resource in self._actions

    def wake_at(self, at_s: float | None) -> None:
        """Ask for a look at a time, in seconds of CLOCK_BOOTTIME."""
        if at_s is not None and (self._wake_at_s is None or at_s < self._wake_at_s):
            self._wake_at_s = at_s

    def count(self, kind: type[Action]) -> int:
        """How many actions of a kind are planned so far."""
        return sum(isinstance(action, kind) for action in self._actions.values())

    def finish(self, approval: Approval | None) -> Plan:
        """The plan, its conditions in a fixed order."""
        return Plan(
            tuple(self._actions.values()),
            tuple(sorted(dict.fromkeys(self._conditions), key=lambda c: (c.resource, c.type, c.message))),
            frozenset(self._deviating),
            frozenset(self._awaited),
            approval,
            self._wake_at_s,
            frozenset(self._asked),
        )

    def _is_due(self, action: Action) -> bool:
        attempt = self.observed.attempts.get(key_of(action))
        if attempt is None or attempt.fingerprint != fingerprint(action):
            return True
        if attempt.not_before_s is not None and attempt.not_before_s <= self.now_s:
            return True
        self.tell(action.resource, attempt.reason, attempt.message)
        self.wake_at(attempt.not_before_s)
        return False
