"""Tells what the reconciler and the guests do: to the journal for people, to the metrics for machines."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from agent.core.actions import Action, EndVm, LaunchVm, ReleaseVm, StopVm, kind_of
from agent.core.conditions import Condition
from agent.core.errors import UnitError
from agent.core.planner.repairs import Repair
from agent.core.tell.describe import describe
from agent.runtime.clock import now_s
from agent.runtime.reconcile import Pass
from agent.telemetry.journal import Journal, Level
from agent.telemetry.metrics import Metrics

ConditionKey = tuple[str, str, str]
"""Resource, type and reason: what makes a condition the same one in the next pass, though its words may change."""

RESET_ECHO_S = 1.0
"""QEMU tells of one reset twice."""


class Chronicle:
    """The witness of the reconciler and of all guests."""

    def __init__(self, journal: Journal, metrics: Metrics) -> None:
        self.journal = journal
        self.metrics = metrics
        self.since: dict[ConditionKey, str] = {}
        self.last_pass_s: float | None = None
        self._rings_told: dict[str, int] = {}
        self._launched_s: dict[str, float] = {}
        self._reset_s: dict[str, float] = {}
        self._unit_errors: frozenset[UnitError] = frozenset()
        self._unsettled_since_s: float | None = None
        self._cause = "edit"

    def edited(self) -> None:
        """The units changed: what follows is an edit's doing."""
        self._cause = "edit"
        self._unsettled_since_s = self._unsettled_since_s or now_s()

    def passed(self, seen: Pass, seconds: float) -> None:
        """Count a pass, tell of conditions that are new, and of the time until all is settled."""
        self.metrics.pass_finished(seconds, "success", time.time())
        self.last_pass_s = now_s()
        self._tell_conditions(seen.plan.conditions)
        busy = bool(seen.plan.actions or seen.observed.in_flight)
        if busy and self._unsettled_since_s is None:
            self._unsettled_since_s = seen.at_s
        if not busy and self._unsettled_since_s is not None:
            self.metrics.converged(self._cause, now_s() - self._unsettled_since_s)
            self._unsettled_since_s, self._cause = None, "fault"

    def tell_unit_errors(self, errors: Sequence[UnitError]) -> None:
        """Tell of mistakes in unit files that were not told before."""
        for error in errors:
            if error not in self._unit_errors:
                self.journal.record("units", "unit-error", str(error), level="warning")
        self._unit_errors = frozenset(errors)

    def _tell_conditions(self, conditions: tuple[Condition, ...]) -> None:
        present = {(c.resource, c.type, c.reason): c for c in conditions}
        for key, condition in present.items():
            if key not in self.since:
                self.since[key] = datetime.now(UTC).isoformat(timespec="milliseconds")
                message = f"{condition.type}: {condition.message}"
                self.journal.record(condition.resource, "condition", message, condition=condition.type)
        for key in self.since.keys() - present.keys():
            del self.since[key]
            self.journal.record(key[0], "condition-cleared", f"{key[1]} is over", condition=key[1])

    def started(self, action: Action) -> None:
        """Note when a guest's launch begins."""
        if isinstance(action, LaunchVm):
            self._launched_s[action.spec.name] = now_s()

    def ended(self, action: Action, outcome: str, seconds: float, message: str) -> None:
        """Tell of an action's outcome, with its time and, if it failed, why."""
        kind = kind_of(action)
        self.metrics.action_finished(kind, outcome, seconds)
        text = f"{describe(action)}: {outcome} in {seconds * 1000:.1f} ms" + (f": {message}" if message else "")
        level: Level = "info" if outcome == "done" else "warning"
        self.journal.record(
            action.resource, kind, text, level=level, reason=str(action.reason), outcome=outcome, seconds=seconds
        )
        if outcome == "done":
            self._count_guest(action)

    def _count_guest(self, action: Action) -> None:
        match action:
            case EndVm(vm=vm, exit_reason=reason):
                self.metrics.vm_exited(vm, reason)
            case StopVm(vm=vm):
                self.metrics.vm_exited(vm, "host")
            case ReleaseVm(vm=vm) if vm in self._launched_s:
                self.metrics.vm_booted(now_s() - self._launched_s.pop(vm))
            case _:
                pass

    def repaired(self, repair: Repair) -> None:
        """Tell of a hurt resource that is well again."""
        kind = repair.resource.partition("/")[0]
        self.metrics.repaired(kind, repair.reason, repair.took_s)
        text = f"repaired {repair.resource} ({repair.reason}) in {repair.took_s * 1000:.1f} ms"
        self.journal.record(repair.resource, "repaired", text, reason=str(repair.reason), seconds=repair.took_s)

    def heard(self, vm: str, event: str, data: Mapping[str, Any]) -> None:
        """Count a QMP event; a guest that resets itself has ended nothing, and is told all the same."""
        self.metrics.qmp_event_seen(event)
        if event == "WATCHDOG":
            self.journal.record(f"vm/{vm}", "watchdog", f"the watchdog of {vm} fired", level="warning")
        if event == "RESET" and data.get("reason") == "guest-reset":
            if now_s() - self._reset_s.get(vm, -RESET_ECHO_S) >= RESET_ECHO_S:
                self.metrics.vm_exited(vm, "guest_reset")
                self.journal.record(f"vm/{vm}", "guest-reset", f"{vm} reset itself")
            self._reset_s[vm] = now_s()

    def killed(self, vm: str, how: str) -> None:
        """Tell what killed a guest's QEMU, which the reason of its end is too coarse for."""
        self.journal.record(f"vm/{vm}", "killed", f"QEMU of {vm} was {how}", level="warning")

    def answered(self, command: str, seconds: float) -> None:
        """Time a QMP command."""
        self.metrics.qmp_answered(command, seconds)

    def refused(self, command: str, error_class: str) -> None:
        """Count a QMP command that did not succeed."""
        self.metrics.qmp_refused(command, error_class)

    def reconnected(self, vm: str) -> None:
        """Count a monitor connection that was lost and is there again."""
        self.metrics.qmp_reconnected(vm)

    def rang(self, rings: Mapping[str, int]) -> None:
        """Bring the metrics up to the doorbell's own count."""
        for source, count in rings.items():
            self.metrics.rung(source, count - self._rings_told.get(source, 0))
            self._rings_told[source] = count
