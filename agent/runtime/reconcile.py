"""The reconciler: look, plan, start what may be done, and wait for the next ring.

The pass itself never waits for anything slow. Actions run as tasks, one for each resource at a time; each ends in an
outcome that rings the doorbell. An error that an action's own work raises, also a bug, stays with its resource.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from agent.core.actions import Action, LaunchVm, MoveUplink, StopVm, key_of
from agent.core.attempts import after_failure
from agent.core.desired import Desired
from agent.core.errors import ActionError, OutcomeUnknownError
from agent.core.observed import Attempt, Observed
from agent.core.planner.draft import Plan
from agent.core.planner.repairs import Ledger, Repair, look, with_actions
from agent.core.planning import plan
from agent.runtime.clock import now_s
from agent.runtime.doorbell import Doorbell
from agent.telemetry.scope import scope

log = structlog.get_logger("vmhost.reconcile")

ACTION_DEADLINE_S = 30.0
LAUNCH_DEADLINE_S = 90.0
STOP_GRACE_S = 30.0
"""What a stop may take beyond the guest's own `stop-timeout`, for `quit` and the kill."""


class Witness(Protocol):
    """Whoever wants to hear what the reconciler does: events and metrics."""

    def passed(self, seen: Pass, seconds: float) -> None:
        """A pass is over."""

    def started(self, action: Action) -> None:
        """An action begins."""

    def ended(self, action: Action, outcome: str, seconds: float, message: str) -> None:
        """An action ended as `done`, `failed` or `unknown`."""

    def repaired(self, repair: Repair) -> None:
        """A hurt resource is as it should be again."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass saw and decided."""

    number: int = 0
    desired: Desired = Desired()
    observed: Observed = Observed()
    plan: Plan = field(default_factory=Plan)
    at_s: float = 0.0


class Reconciler:
    """Runs passes until it is cancelled; `last` is the latest one."""

    def __init__(
        self,
        doorbell: Doorbell,
        observe: Callable[[], tuple[Desired, Observed]],
        execute: Callable[[Action], Awaitable[None]],
        witness: Witness,
    ) -> None:
        self._doorbell = doorbell
        self._observe = observe
        self._execute = execute
        self._witness = witness
        self._ledger = Ledger()
        self._awaiting: list[asyncio.Future[Pass]] = []
        self.in_flight: dict[str, str] = {}
        self.attempts: dict[str, Attempt] = {}
        self.last = Pass()

    async def run(self) -> None:
        """Pass after pass. Cancelling it cancels the actions under way; whatever they leave, the next agent finds."""
        async with asyncio.TaskGroup() as group:
            while True:
                wake_at_s = self._pass(group)
                await self._doorbell.wait(None if wake_at_s is None else max(0.0, wake_at_s - now_s()))

    async def next_pass(self) -> Pass:
        """Ring, and return a pass that began after this call."""
        self._doorbell.ring("question")
        return await self.following_pass()

    async def following_pass(self) -> Pass:
        """Wait for the next pass, whatever rings for it. A pass never pauses, so it began after this call."""
        awaited: asyncio.Future[Pass] = asyncio.get_running_loop().create_future()
        self._awaiting.append(awaited)
        return await awaited

    @property
    def is_settled(self) -> bool:
        """Whether the latest pass found nothing to do and nobody to wait for, and nothing is under way."""
        return not (self.last.plan.actions or self.last.plan.awaited or self.in_flight)

    def _pass(self, group: asyncio.TaskGroup) -> float | None:
        number = self.last.number + 1
        with scope(number):
            began = time.perf_counter()
            desired, observed = self._observe()
            at_s = now_s()
            decided = plan(desired, observed, at_s)
            self._ledger, repairs = look(self._ledger, decided, desired, observed, at_s)
            self._ledger = with_actions(self._ledger, decided.actions)
            for action in decided.actions:
                self.in_flight[action.resource] = key_of(action)
                group.create_task(self._carry_out(action, number), name=key_of(action))
            self.last = Pass(number, desired, observed, decided, at_s)
            for repair in repairs:
                self._witness.repaired(repair)
            self._witness.passed(self.last, time.perf_counter() - began)
        awaiting, self._awaiting = self._awaiting, []
        for future in awaiting:
            if not future.done():
                future.set_result(self.last)
        return decided.wake_at_s

    async def _carry_out(self, action: Action, pass_id: int) -> None:
        with scope(pass_id, action.resource):
            await self._try(action)
        self._doorbell.ring("outcome")

    async def _try(self, action: Action) -> None:
        key = key_of(action)
        began = time.perf_counter()
        self._witness.started(action)
        outcome, message = "done", ""
        try:
            async with asyncio.timeout(deadline_s(action)):
                await self._execute(action)
            self.attempts.pop(key, None)
        except TimeoutError:
            error = OutcomeUnknownError(f"no end after {deadline_s(action):g} s", reason="DeadlineExceeded")
            outcome, message = "unknown", self._note_failure(action, error)
        except ActionError as error:
            outcome = "unknown" if isinstance(error, OutcomeUnknownError) else "failed"
            message = self._note_failure(action, error)
        except Exception as error:
            log.exception("bug in an action", action=key)
            outcome = "failed"
            message = self._note_failure(
                action, ActionError(f"{type(error).__name__}: {error}", reason="InternalError")
            )
        finally:
            self.in_flight.pop(action.resource, None)
        self._witness.ended(action, outcome, time.perf_counter() - began, message)

    def _note_failure(self, action: Action, error: ActionError) -> str:
        key = key_of(action)
        self.attempts[key] = after_failure(action, error, self.attempts.get(key), now_s())
        return str(error)


def deadline_s(action: Action) -> float:
    """How long an action may take before its outcome counts as unknown."""
    if isinstance(action, StopVm):
        return action.timeout_s + STOP_GRACE_S
    if isinstance(action, MoveUplink):
        return action.probe_timeout_s + ACTION_DEADLINE_S
    return LAUNCH_DEADLINE_S if isinstance(action, LaunchVm) else ACTION_DEADLINE_S
