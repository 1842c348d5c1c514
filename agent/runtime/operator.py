"""What the operator can ask of the running agent; the control socket speaks to this."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace

from agent.core.conditions import Condition
from agent.core.digest import PendingChange, pending_changes
from agent.core.marks import vm_resource
from agent.core.memory import with_intent
from agent.core.observed import Intent
from agent.core.status import AgentFacts, StatusInputs, status
from agent.core.vm_display import is_running_as_asked
from agent.runtime.chronicle import Chronicle
from agent.runtime.control import RefusedError, UnknownNameError, Verb, WaitFor, WaitResult
from agent.runtime.explain import Explainer
from agent.runtime.keeper import Keeper
from agent.runtime.reconcile import Pass, Reconciler
from agent.runtime.units import Units
from agent.telemetry.journal import Event


class Operator:
    """Implements `AgentApi`. `look_at_all` reads units and links anew, for a settled state to believe."""

    def __init__(
        self,
        facts: AgentFacts,
        reconciler: Reconciler,
        units: Units,
        keeper: Keeper,
        chronicle: Chronicle,
        look_at_all: Callable[[], Awaitable[None]],
    ) -> None:
        self._facts = facts
        self._reconciler = reconciler
        self._units = units
        self._keeper = keeper
        self._chronicle = chronicle
        self._look_at_all = look_at_all
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
            conditions=[*self._own_conditions(), *((c, self._since(c)) for c in seen.plan.conditions)],
            pending=pending(seen),
            restarts=self._keeper.memory.restarts,
        )

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
                    holds = _is_running if what == "running" else _is_stopped
                    await self._until(lambda seen: holds(seen, name or ""))
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

    async def intent(self, verb: Verb, name: str) -> str:
        """Note what is asked of a guest, durably."""
        known = {*self._reconciler.last.desired.vms, *self._reconciler.last.observed.vms}
        if name not in known:
            raise UnknownNameError("vm", name, sorted(known))
        if verb != "stop" and name not in self._reconciler.last.desired.vms:
            raise RefusedError(f"no valid unit names {name} any more; it can be stopped, or its unit put back")
        if verb == "reset" and name not in self._reconciler.last.observed.vms:
            raise RefusedError(f"{name} does not run; `vmhost start {name}` starts it")
        await self._keeper.update(lambda memory: with_intent(memory, name, verb))
        self._chronicle.journal.record(vm_resource(name), "intent", f"the operator asked for {verb} of {name}")
        await self._reconciler.next_pass()
        return f"{verb} of {name} is under way"

    async def approve(self, identity: str) -> str:
        """Allow exactly the stops that a question is about."""
        approval = self._reconciler.last.plan.approval
        if approval is None or approval.id != identity:
            known = [approval.id] if approval else []
            raise UnknownNameError("approval", identity, known)
        await self._keeper.update(lambda memory: replace(memory, approved=memory.approved | approval.keys))
        guests = ", ".join(approval.guests)
        self._chronicle.journal.record("agent", "approved", f"the operator approved the stop of {guests}")
        await self._reconciler.next_pass()
        return f"stopping {guests}"

    async def set_down(self, *, down: bool) -> str:
        """Stop all guests in order and start none, or let them start again; held until the host's next boot."""
        wanted = self._reconciler.last.observed.host.boot_id if down else ""
        if self._keeper.memory.down_in != wanted:
            await self._keeper.update(lambda memory: replace(memory, down_in=wanted))
            said = "all guests are to stop, and none is to start" if down else "guests are to run again"
            self._chronicle.journal.record("agent", "down" if down else "up", said)
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


def pending(seen: Pass) -> Mapping[str, tuple[PendingChange, ...]]:
    """What waits for a restart, by guest; recomputed from what is wanted and what was launched, never remembered."""
    found: dict[str, tuple[PendingChange, ...]] = {}
    for name, state in seen.observed.vms.items():
        wanted = seen.desired.vms.get(name)
        if wanted is not None and state.alive and wanted != state.spec:
            changes = pending_changes(state.spec, wanted)
            if changes:
                found[name] = changes
    return found


def _is_running(seen: Pass, name: str) -> bool:
    intent = seen.observed.intents.get(name, Intent())
    return is_running_as_asked(seen.observed.vms.get(name), intent)


def _is_stopped(seen: Pass, name: str) -> bool:
    """Whether nothing of a guest runs, and nothing is about to."""
    resource = vm_resource(name)
    absent = name not in seen.observed.vms or not seen.observed.vms[name].alive
    return absent and resource not in seen.plan.deviating and resource not in seen.observed.in_flight
