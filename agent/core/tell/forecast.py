"""What the agent would do from here to settled: the planner, iterated over the model host, with its waits.

Every action is taken to succeed, and guests to run on once they run. Times are seconds of CLOCK_BOOTTIME.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from agent.core.actions import Action, LaunchVm, StopVm, key_of, kind_of
from agent.core.conditions import Condition
from agent.core.desired import Desired
from agent.core.edits.digest import PendingChange
from agent.core.edits.pending import pending_json, pending_of
from agent.core.model.host import apply
from agent.core.observed import Observed
from agent.core.planner.approval import WINDOW_S, Approval, approval_key
from agent.core.planner.policy import next_start_s
from agent.core.planning import plan
from agent.core.reasons import Disruption
from agent.core.tell.describe import describe

MAX_ACTIONS = 20_000
"""A thousand guests from nothing are some five thousand; beyond this a planner goes round in circles."""

AT_ONCE = 1_000_000
"""Starts are limited to spare the host, which changes when they happen and not which."""

ROUNDING_S = 0.001
"""What a sum of times may be short of."""

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Step:
    """One action to come: `after_s` from now at the earliest, for the reason `waits_for`; or `under_way` already.

    `disruption` is what the guest's users notice in the end: a stop that is followed by a start is a restart.
    """

    action: Action
    disruption: Disruption
    after_s: float = 0.0
    waits_for: str = ""
    under_way: bool = False


@dataclass(frozen=True, slots=True)
class Forecast:
    """The steps in an order that works, and what is left when nothing more happens by itself.

    `complete` False: it was broken off after `MAX_ACTIONS`. `pending` are changes that wait for a guest's restart,
    `stop_timeouts_s` how long each of those guests may take to stop.
    """

    steps: tuple[Step, ...] = ()
    conditions: tuple[Condition, ...] = ()
    approval: Approval | None = None
    pending: Mapping[str, tuple[PendingChange, ...]] | None = None
    complete: bool = True
    stop_timeouts_s: Mapping[str, float] = field(default_factory=dict)


def forecast(desired: Desired, observed: Observed, now_s: float) -> Forecast:
    """All actions from `observed` to the fixed point of the planner, through every wait that is known of now.

    Ends always: only known instants are waited for, each once. What nothing rings for, as a disk that somebody may
    bring back, is not waited for; it is among the conditions. Raises `PreconditionError` for a planner that errs.
    """
    busy = frozenset(observed.in_flight.values())
    observed = _without_flight(observed)
    steps: list[Step] = []
    waits: Mapping[str, str] = {}
    at_s = now_s
    while True:
        seen = plan(desired, observed, at_s)
        for action in seen.actions:
            waits_for = waits.get(action.resource, "")
            steps.append(Step(action, action.disruption, at_s - now_s, waits_for, key_of(action) in busy))
            observed = apply(observed, action, at_s)
        later = [] if seen.actions else [instant for instant in _instants(observed) if instant > at_s]
        complete = len(steps) <= MAX_ACTIONS
        if not complete or not (seen.actions or later):
            pending = _pending(desired, observed)
            timeouts_s = {name: observed.vms[name].spec.stop_timeout_s for name in pending}
            return Forecast(_told(steps), seen.conditions, seen.approval, pending, complete, timeouts_s)
        if later:
            waits = {c.resource: f"{c.type}: {c.message}" for c in seen.conditions}
            at_s = min(later)
        else:
            waits = {}


def _without_flight(observed: Observed) -> Observed:
    """The world without what is under way: it is planned again, and told as under way.

    A stop that has begun was allowed, and must not ask again. In the model any number of guests may start at once.
    """
    stopping = {
        approval_key(state)
        for name, state in observed.vms.items()
        if observed.in_flight.get(f"vm/{name}", "").startswith("stop-vm")
    }
    host = replace(observed.host, start_slots=AT_ONCE)
    return replace(observed, in_flight={}, approved=observed.approved | stopping, host=host)


def _instants(observed: Observed) -> Sequence[float]:
    """When the mere passing of time lets the planner do more: tries that are due, starts, a stop that is forgotten."""
    tries = [one.not_before_s for one in observed.attempts.values() if one.not_before_s is not None]
    ends = {**observed.ends, **{name: state.ends for name, state in observed.services.items()}}
    starts = [next_start_s(name, row, observed.host.boot_id) for name, row in ends.items()]
    words = [one.deadline_s for one in observed.moves.values() if one.deadline_s is not None]
    return [*tries, *starts, *words, *(at_s + WINDOW_S + ROUNDING_S for at_s in observed.stops_at_s)]


def _told(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps with the stop of each guest that is started again as what it is, a restart."""
    launched: set[str] = set()
    found: list[Step] = []
    for step in reversed(steps):
        match step.action:
            case LaunchVm(spec=spec):
                launched.add(spec.uuid)
            case StopVm(uuid=uuid) if uuid in launched:
                step = replace(step, disruption=Disruption.RESTART)  # noqa: PLW2901 - the same step, told better
            case _:
                pass
        found.append(step)
    return tuple(reversed(found))


def _pending(desired: Desired, observed: Observed) -> Mapping[str, tuple[PendingChange, ...]]:
    pairs = ((name, state, desired.vms.get(name)) for name, state in sorted(observed.vms.items()) if state.alive)
    found = {name: pending_of(state, wanted) for name, state, wanted in pairs if wanted is not None}
    return {name: changes for name, changes in found.items() if changes}


def forecast_json(found: Forecast) -> dict[str, object]:
    """A forecast as the answer of `vmhost plan --json`; its keys are a promise to scripts."""
    return {
        "complete": found.complete,
        "actions": [_step_json(step) for step in found.steps],
        "conditions": [
            {"type": c.type, "reason": c.reason, "message": c.message, "resource": c.resource} for c in found.conditions
        ],
        "pending": [
            {"vm": name, **change}
            for name, changes in (found.pending or {}).items()
            for change in pending_json(changes, found.stop_timeouts_s.get(name, 0.0))
        ],
        "approvals": [{"id": found.approval.id, "guests": list(found.approval.guests)}] if found.approval else [],
    }


def _step_json(step: Step) -> Json:
    return {
        "action": kind_of(step.action),
        "resource": step.action.resource,
        "reason": str(step.action.reason),
        "disruption": str(step.disruption),
        "text": describe(step.action),
        "after_s": round(step.after_s, 3),
        "waits_for": step.waits_for,
        "under_way": step.under_way,
    }
