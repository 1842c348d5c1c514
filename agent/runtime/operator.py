"""What the operator can ask of the running agent; the control socket speaks to this."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from agent.core.conditions import Condition
from agent.core.edits.digest import PendingChange
from agent.core.edits.pending import pending_of
from agent.core.marks import tap_resource, vm_resource
from agent.core.memory import with_hold, with_intent, without_refusal
from agent.core.observed import Hold, Intent
from agent.core.planner.obstacles import Obstacle, obstacle, refused_message
from agent.core.planner.room import Room
from agent.core.tell.notifications import Key, Trouble, troubles_of
from agent.core.tell.status import AgentFacts, StatusInputs, status
from agent.core.tell.vm_display import is_paused_as_asked, is_running_as_asked
from agent.core.text import printable
from agent.runtime.chronicle import Chronicle
from agent.runtime.clock import now_s
from agent.runtime.control import RefusedError, UnknownNameError, Verb, WaitFor, WaitResult
from agent.runtime.doctor import Doctor
from agent.runtime.explain import Explainer
from agent.runtime.keeper import Keeper
from agent.runtime.reconcile import Pass, Reconciler
from agent.runtime.units import Units
from agent.runtime.uplinks import Uplinks
from agent.runtime.watching import Watching
from agent.telemetry.journal import Event

LOOK_S = 5.0
"""How long a restart waits for a look at what an edit needs: a file system may hang."""

END_S = 7.0
"""What QEMUs that do not even quit any more take until they are killed (`Guest.quit`), with some room."""


class Operator:
    """Implements `AgentApi`. `look_at_all` reads units and links anew, for a settled state to believe; `hurry` gives
    the guests that are being stopped no more time than until an instant."""

    def __init__(
        self,
        facts: AgentFacts,
        reconciler: Reconciler,
        units: Units,
        keeper: Keeper,
        chronicle: Chronicle,
        look_at_all: Callable[[], Awaitable[None]],
        hurry: Callable[[float], None],
        doctor: Doctor,
        watching: Watching,
        uplinks: Uplinks,
    ) -> None:
        self._facts = facts
        self._reconciler = reconciler
        self._units = units
        self._keeper = keeper
        self._chronicle = chronicle
        self._look_at_all = look_at_all
        self._hurry = hurry
        self._doctor = doctor
        self._watching = watching
        self._uplinks = uplinks
        self._problems: dict[str, str] = {}
        self._explainer = Explainer(self.inputs, reconciler, units, keeper, chronicle.journal)

    def note_problem(self, type_: str, message: str) -> None:
        """Show a problem of the agent itself, that will not go away by itself, in its status."""
        self._problems[type_] = message

    def inputs(self) -> StatusInputs:
        """All that status and metrics are made of, as of the latest pass."""
        seen = self._reconciler.last
        return StatusInputs(
            agent=replace(self._facts, settled=self._reconciler.is_settled),
            files=self._units.files,
            desired=seen.desired,
            observed=replace(seen.observed, in_flight=dict(self._reconciler.in_flight)),
            plan=seen.plan,
            conditions=[
                *self._own_conditions(),
                *((c, self._since(c)) for c in seen.plan.conditions),
                *self._doctor.conditions(),
            ],
            pending=pending(seen),
            restarts=self._keeper.memory.restarts,
        )

    def troubles(self) -> tuple[Mapping[Key, Trouble], bool]:
        """What is worth a notification as of the latest pass, and whether that pass knew all units."""
        seen = self._reconciler.last
        conditions = [*(condition for condition, _ in self._own_conditions()), *seen.plan.conditions]
        return troubles_of(conditions, seen.plan.approval, self._units.files), seen.desired.complete

    @property
    def pass_number(self) -> int:
        """How many passes there were."""
        return self._reconciler.last.number

    def status(self) -> Mapping[str, object]:
        """The present status."""
        return status(self.inputs())

    def _since(self, condition: Condition) -> str:
        return self._chronicle.since.get((condition.resource, condition.type, condition.reason), "")

    def _own_conditions(self) -> list[tuple[Condition, str]]:
        """What ails the agent itself: it belongs to no guest and no bridge."""
        found = {"UnitsUnavailable": self._units.problem, "StateNotSaved": self._unsaved(), **self._problems}
        return [
            (Condition("agent", type_, type_, problem), self._facts.started)
            for type_, problem in found.items()
            if problem
        ]

    def _unsaved(self) -> str:
        return self._keeper.problem or self._units.unsaved

    async def events(self, since: int, *, follow: bool) -> AsyncIterator[Event]:
        """The kept events after number `since`, with `follow` also those to come."""
        if follow:
            async for event in self._chronicle.journal.follow(since):
                yield event
        else:
            for event in self._chronicle.journal.since(since):
                yield event

    async def wait(self, what: WaitFor, name: str | None, timeout_s: float | None) -> WaitResult:
        """Return when `what` is true, or what is missing after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                if what in {"settled", "in-sync"}:
                    await self._wait_settled(in_sync=what == "in-sync")
                else:
                    await self._until(lambda seen: HOLDS[what](seen, name or ""))
        except TimeoutError:
            return WaitResult(False, self._missing(what, name))
        return WaitResult(True, f"{name} is {what}" if name else str(what))

    async def _wait_settled(self, *, in_sync: bool) -> None:
        """Settled counts only after a full look and a reread that were made for this question."""
        while True:
            await self._until(lambda seen: self._is_as_asked(seen, in_sync=in_sync))
            await self._look_at_all()
            if self._is_as_asked(await self._reconciler.next_pass(), in_sync=in_sync):
                return

    def _is_as_asked(self, seen: Pass, *, in_sync: bool) -> bool:
        if not self._reconciler.is_settled:
            return False
        return not in_sync or not self._out_of_sync(seen)

    def _out_of_sync(self, seen: Pass) -> list[str]:
        """What keeps the host from being as the units say: also what is held, pending or waited for."""
        files = [file.path for file in self._units.files if file.state != "valid"]
        held = [condition.resource for condition in seen.plan.conditions if condition.type == "Held"]
        return sorted({*files, *held, *seen.plan.deviating, *(vm_resource(name) for name in pending(seen))})

    async def _until(self, holds: Callable[[Pass], bool]) -> None:
        seen = await self._reconciler.next_pass()
        while not holds(seen):
            seen = await self._reconciler.following_pass()

    def _missing(self, what: WaitFor, name: str | None) -> str:
        seen = self._reconciler.last
        if what == "in-sync" and self._reconciler.is_settled:
            return f"not in sync: {', '.join(self._out_of_sync(seen))}; `vmhost status` says why"
        if what in {"settled", "in-sync"}:
            busy = sorted({*self._reconciler.in_flight, *seen.plan.awaited, *(a.resource for a in seen.plan.actions)})
            return f"not settled: {', '.join(busy)}"
        if name not in seen.desired.vms and name not in seen.observed.vms:
            return f"{name}: no unit names this guest"
        reasons = [c.message for c in seen.plan.conditions if c.resource.startswith(vm_resource(name or ""))]
        return f"{name} is not {what}" + (f": {'; '.join(reasons)}" if reasons else "")

    async def intent(self, verb: Verb, name: str, by: str) -> str:
        """Note what is asked of a guest, durably."""
        self._refuse_unknown(name)
        self._refuse_in_vain(verb, name)
        if verb == "restart":
            await self._refuse_unstartable(name)
        wanted = self._reconciler.last.desired.vms.get(name)
        forgiven = wanted.uuid if wanted is not None and verb in {"start", "restart"} else ""
        await self._keeper.update(lambda memory: without_refusal(with_intent(memory, name, verb), forgiven))
        self._chronicle.journal.record(vm_resource(name), "intent", f"{verb} of {name} asked for by {by}")
        await self._reconciler.next_pass()
        return f"{name} is released" if verb == "release" else f"{verb} of {name} is under way"

    async def hold(self, name: str, uid: int, reason: str, by: str) -> str:
        """Note that a user wants a guest left alone, durably."""
        self._refuse_unknown(name)
        hold = Hold(uid, datetime.now(UTC).isoformat(timespec="seconds"), printable(reason))
        await self._keeper.update(lambda memory: with_hold(memory, name, hold))
        why = f" ({hold.reason})" if hold.reason else ""
        self._chronicle.journal.record(vm_resource(name), "intent", f"hold of {name} asked for by {by}{why}")
        await self._reconciler.next_pass()
        return f"{name} is held; `vmhost release {name}` ends that"

    def _refuse_unknown(self, name: str) -> None:
        held = (one for one, intent in self._keeper.memory.intents.items() if intent.hold is not None)
        known = {*self._reconciler.last.desired.vms, *self._reconciler.last.observed.vms, *held}
        if name not in known:
            raise UnknownNameError("vm", name, sorted(known))

    def _refuse_in_vain(self, verb: Verb, name: str) -> None:
        """Refuse what could not come true, each with what would help."""
        seen = self._reconciler.last
        intent = self._keeper.memory.intents.get(name, Intent())
        if verb == "release":
            if intent.hold is None:
                raise RefusedError(f"nobody holds {name}")
            return
        if intent.hold is not None:
            raise RefusedError(f"uid {intent.hold.uid} holds {name}; `vmhost release {name}` first")
        if verb in {"start", "restart", "reset"} and name not in seen.desired.vms:
            raise RefusedError(f"no valid unit names {name} any more; it can be stopped, or its unit put back")
        if verb in {"reset", "pause", "resume"} and name not in seen.observed.vms:
            raise RefusedError(f"{name} does not run; `vmhost start {name}` starts it")
        if verb == "reset" and intent.paused:
            raise RefusedError(f"{name} is paused; `vmhost resume {name}` first")
        if verb in {"pause", "resume"} and intent.stopped:
            raise RefusedError(f"{name} is stopped; `vmhost start {name}` starts it")

    async def _refuse_unstartable(self, name: str) -> None:
        """Refuse to end a guest that could not be started again as its unit says; one that does not run is no worse."""
        found = _obstacle(await self._reconciler.next_pass(), name)
        try:
            async with asyncio.timeout(LOOK_S):
                if found is not None:  # an older look may be over: a file that was just put there counts
                    await self._look_at_all()
                    found = _obstacle(await self._reconciler.next_pass(), name)
                while found is not None and not found.known:
                    found = _obstacle(await self._reconciler.following_pass(), name)
        except TimeoutError:
            pass
        if found is not None:
            raise RefusedError(refused_message(name, found))

    def moves(self) -> Mapping[str, object]:
        """All moves of uplinks that there is a journal of."""
        return {"moves": self._uplinks.moves_json()}

    async def confirm(self, bridge: str | None, by: str) -> str:
        """Keep a move that waits for its operator's word; without a bridge, the only one that does."""
        waiting = self._uplinks.waiting()
        known = [*self._reconciler.last.desired.bridges, *self._uplinks.moves()]
        if bridge is not None and bridge not in known:
            raise UnknownNameError("bridge", bridge, known)
        if not waiting or (bridge is not None and bridge not in waiting):
            raise RefusedError(self._uplinks.why_not_waiting(bridge))
        if bridge is None and len(waiting) > 1:
            raise RefusedError(f"several moves wait for a word; say which: vmhost confirm {' | '.join(waiting)}")
        name = bridge or waiting[0]
        await self._uplinks.confirm(name)
        self._chronicle.journal.record(f"bridge/{name}", "move-confirmed", f"the move to {name} was confirmed by {by}")
        await self._reconciler.next_pass()
        return f"{name} keeps what it carries"

    async def approve(self, identity: str, by: str) -> str:
        """Allow exactly the stops that a question is about."""
        approval = self._reconciler.last.plan.approval
        if approval is None or approval.id != identity:
            known = [approval.id] if approval else []
            raise UnknownNameError("approval", identity, known)
        await self._keeper.update(lambda memory: replace(memory, approved=memory.approved | approval.keys))
        guests = ", ".join(approval.guests)
        self._chronicle.journal.record("agent", "approved", f"stop of {guests} approved by {by}")
        await self._reconciler.next_pass()
        return f"stopping {guests}"

    async def set_down(self, by: str, *, down: bool, budget_s: float | None = None) -> str:
        """Stop all guests in order and start none, or let them start again; held until the host's next boot."""
        wanted = self._reconciler.last.observed.host.boot_id if down else ""
        by_s = now_s() + patience_s(budget_s) if down and budget_s is not None else None
        before = self._keeper.memory
        if before.down_in != wanted or before.down_by_s != by_s:
            await self._keeper.update(lambda memory: replace(memory, down_in=wanted, down_by_s=by_s))
        if by_s is not None:
            self._hurry(by_s)
        if before.down_in != wanted:
            within = "" if budget_s is None else f" within {budget_s:g} s"
            said = f"all guests are to stop{within}, and none is to start" if down else "guests are to run again"
            self._chronicle.journal.record("agent", "down" if down else "up", f"{said}: asked for by {by}")
        await self._reconciler.next_pass()
        return "guests are being stopped" if down else "guests are started as their units say"

    async def plan(self, files: Mapping[str, bytes | None]) -> Mapping[str, object]:
        """What would be done from here to settled, with these unit files in place."""
        return await self._explainer.plan(files)

    async def why(self, name: str) -> Mapping[str, object]:
        """The chain of reasons for what a name stands for."""
        return await self._explainer.why(name)

    async def show(self, name: str) -> Mapping[str, object]:
        """What a name stands for in its unit, last good and as it runs."""
        return await self._explainer.show(name)

    async def doctor(self) -> Mapping[str, object]:
        """What will break guests though our state is right."""
        return await self._doctor.examine()

    async def measures(self, max_age_s: float) -> str:
        """The counters of all guests, as JSON."""
        return await self._watching.measures(self.inputs, max_age_s)


def patience_s(budget_s: float) -> float:
    """How long guests may take to shut themselves down, so that ending the rest fits into the budget as well."""
    return budget_s - min(END_S, budget_s / 4)


def pending(seen: Pass) -> Mapping[str, tuple[PendingChange, ...]]:
    """What waits for a restart, by guest; recomputed from what is wanted and what was launched, never remembered."""
    found: dict[str, tuple[PendingChange, ...]] = {}
    for name, state in seen.observed.vms.items():
        wanted = seen.desired.vms.get(name)
        if wanted is not None and state.alive:
            changes = pending_of(state, wanted)
            if changes:
                found[name] = changes
    return found


def _obstacle(seen: Pass, name: str) -> Obstacle | None:
    """What a guest that runs would not find if it were started anew."""
    state, wanted = seen.observed.vms.get(name), seen.desired.vms.get(name)
    if state is None or wanted is None or not state.alive or not wanted.enabled:
        return None
    return obstacle(wanted, state, seen.observed, Room(seen.desired.vms, seen.observed))


def _is_running(seen: Pass, name: str) -> bool:
    intent = seen.observed.intents.get(name, Intent())
    return is_running_as_asked(seen.observed.vms.get(name), intent)


def _is_stopped(seen: Pass, name: str) -> bool:
    """Whether nothing of a guest runs, and nothing is about to."""
    resource = vm_resource(name)
    absent = name not in seen.observed.vms or not seen.observed.vms[name].alive
    return absent and resource not in seen.plan.deviating and resource not in seen.observed.in_flight


def _is_paused(seen: Pass, name: str) -> bool:
    return is_paused_as_asked(seen.observed.vms.get(name), seen.observed.intents.get(name, Intent()))


def _is_held(seen: Pass, name: str) -> bool:
    """Whether a guest is held, and nothing that was begun before is still being done to it or to what it has."""
    intent, resource = seen.observed.intents.get(name, Intent()), vm_resource(name)
    ours = (resource, f"{resource}/", tap_resource(name, ""))
    busy = any(one == resource or one.startswith(ours[1:]) for one in seen.observed.in_flight)
    return intent.hold is not None and not busy


HOLDS: Mapping[str, Callable[[Pass, str], bool]] = {
    "running": _is_running,
    "stopped": _is_stopped,
    "paused": _is_paused,
    "held": _is_held,
}
"""What can be waited for of one guest."""
