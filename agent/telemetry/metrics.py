"""The metrics of the agent: what happened is counted by the methods here, the rest is drawn from the latest snapshot.

A guest's series vanish with it. Methods are called by the event loop and wait for nothing; `render` is for a thread.
All times are in seconds.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from agent.telemetry.catalogue import METRICS
from agent.telemetry.catalogue_agent import EVENTS
from agent.telemetry.counting import Counted
from agent.telemetry.exposition import TEXT, Form, encoded, exposition, line
from agent.telemetry.families import World
from agent.telemetry.guest_series import NO_COUNTS, GuestCounts, GuestSeries
from agent.telemetry.snapshot import Snapshot

COUNTED = (
    "build_info",
    "start_time_seconds",
    "notifications_total",
    "units_last_reload_successful",
    "units_last_reload_success_timestamp_seconds",
    "unit_reloads_total",
    "passes_total",
    "pass_last_success_timestamp_seconds",
    "doorbell_rings_total",
    "actions_total",
    "repairs_total",
    "qmp_command_errors_total",
    "qmp_events_total",
    "event_loop_lag_seconds",
    "pass_duration_seconds",
    "convergence_seconds",
    "action_duration_seconds",
    "repair_duration_seconds",
    "qmp_command_duration_seconds",
    "vm_boot_duration_seconds",
)
"""What is counted here, other than by guest."""

AHEAD_S = 60.0
"""Who scraped within this time will scrape again."""


MOST_UNFORESEEN = 16
"""Words of QEMUs that get series of their own beside those that the catalogue knows. A QEMU that is not itself any
more may invent words without end, and a series is there for as long as the agent is."""

MOST_LETTERS = 64
OTHER = "other"


class _Words:
    """Words of a label that QEMUs choose."""

    def __init__(self, known: Iterable[str]) -> None:
        self._words = set(known)
        self._most = len(self._words) + MOST_UNFORESEEN

    def bounded(self, word: str) -> str:
        """The word as it is counted: itself, `OTHER` if it is too long, or one too many."""
        if word not in self._words:
            if len(self._words) >= self._most or len(word) > MOST_LETTERS:
                return OTHER
            self._words.add(word)
        return word


class Metrics:
    """All metrics of the catalogue. Methods never raise and may be called at any rate."""

    def __init__(
        self, *, version: str, qemu: str, started_s: float, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        """`qemu` is its version, empty when there is none; `started_s` is Unix time, `clock_s` tells ages."""
        self._clock_s = clock_s
        self._counted = Counted(tuple(METRICS[name] for name in COUNTED))
        self._events = _Words(EVENTS)
        self._classes = _Words(("GenericError", "QemuSilent"))
        self._looked_s: dict[str, float] = {}
        self._guests: dict[str, GuestCounts] = {}
        self._snapshot = Snapshot()
        self._series = GuestSeries()
        self._world = World()
        self._rendering = threading.Lock()
        self._rendered_s: float | None = None
        self._counted.set("build_info", 1, platform.python_version(), qemu, version)
        self._counted.set("start_time_seconds", started_s)

    @property
    def drawn(self) -> int:
        """How often text was made of a guest's inputs."""
        return self._series.drawn

    def render(self, form: Form = TEXT) -> bytes:
        """The exposition in a form. Takes milliseconds at 1,000 guests; for a thread, of which others wait their turn.

        What is published or counted meanwhile waits for nothing, and is in this rendering or in the next one.
        """
        self._rendered_s = self._clock_s()
        with self._rendering:
            snapshot = self._snapshot
            blocks = self._series.blocks(snapshot, self._guests.copy())
            blocks |= self._world.blocks(snapshot)
            blocks["snapshot_age_seconds"] = [encoded(self._ages())]
            blocks |= self._counted.blocks()
        return exposition(blocks, form)

    def draw_ahead(self) -> None:
        """Make the text of guests that changed, if somebody scrapes, so that the next scrape need not; for a thread."""
        if self._rendered_s is not None and self._clock_s() - self._rendered_s < AHEAD_S:
            with self._rendering:
                self._series.draw(self._snapshot, self._guests.copy())

    def _ages(self) -> list[str]:
        now_s, metric = self._clock_s(), METRICS["snapshot_age_seconds"]
        return [line(metric, (name,), max(0.0, now_s - at_s)) for name, at_s in sorted(self._looked_s.copy().items())]

    def publish(self, snapshot: Snapshot) -> None:
        """Show another snapshot from now on; series of guests that it has no more are dropped, counters too."""
        present = {vm.name for vm in snapshot.vms}
        for gone in self._guests.keys() - present:
            del self._guests[gone]
        self._snapshot = snapshot

    def looked(self, source: str, at_s: float) -> None:
        """What a source is known of is as of then, by the clock that was given."""
        self._looked_s[source] = at_s

    def units_reloaded(self, *, success: bool, at_s: float) -> None:
        """The unit directory was read and resolved; `success`: every file of it is valid. `at_s` is Unix time."""
        self._counted.add("unit_reloads_total", "success" if success else "failure")
        self._counted.set("units_last_reload_successful", success)
        if success:
            self._counted.set("units_last_reload_success_timestamp_seconds", at_s)

    def pass_finished(self, seconds: float, result: str, at_s: float) -> None:
        """A pass ended as `success` or `failure` after `seconds`; `at_s` is Unix time."""
        self._counted.add("passes_total", result)
        self._counted.observe("pass_duration_seconds", seconds)
        if result == "success":
            self._counted.set("pass_last_success_timestamp_seconds", at_s)

    def rung(self, source: str, times: int = 1) -> None:
        """The doorbell was rung by a source: `netlink`, `units`, `qmp`, `timer`, …."""
        self._counted.add("doorbell_rings_total", source, amount=times)

    def converged(self, cause: str, seconds: float) -> None:
        """All is settled again, so long after an `edit` or a `fault` was seen."""
        self._counted.observe("convergence_seconds", seconds, cause)

    def action_finished(self, kind: str, outcome: str, seconds: float) -> None:
        """An action ended as `done`, `failed` or `unknown`."""
        self._counted.add("actions_total", kind, outcome)
        self._counted.observe("action_duration_seconds", seconds, kind)

    def repaired(self, kind: str, reason: str, seconds: float) -> None:
        """A resource of a kind (`tap`, `bridge`, `vm`, `port`) is well again, so long after its hurt was seen."""
        self._counted.add("repairs_total", kind, reason)
        self._counted.observe("repair_duration_seconds", seconds, kind, reason)

    def qmp_answered(self, command: str, seconds: float) -> None:
        """QEMU answered a command."""
        self._counted.observe("qmp_command_duration_seconds", seconds, command)

    def qmp_refused(self, command: str, error_class: str) -> None:
        """A command did not succeed; `error_class` is QEMU's own (`GenericError`, …), or a reason of ours."""
        self._counted.add("qmp_command_errors_total", self._classes.bounded(error_class), command)

    def qmp_event_seen(self, event: str) -> None:
        """QEMU sent an event."""
        self._counted.add("qmp_events_total", self._events.bounded(event))

    def qmp_reconnected(self, vm: str) -> None:
        """The agent's monitor connection of a guest was lost and is there again."""
        counts = self._guests.get(vm, NO_COUNTS)
        self._guests[vm] = replace(counts, reconnects=counts.reconnects + 1)

    def vm_exited(self, vm: str, reason: str) -> None:
        """A guest ended, or reset itself, for one of `EXIT_REASONS`."""
        counts = self._guests.get(vm, NO_COUNTS)
        exits = dict(counts.exits or {})
        exits[reason] = exits.get(reason, 0) + 1
        self._guests[vm] = replace(counts, exits=exits)

    def vm_booted(self, seconds: float) -> None:
        """A guest runs, so long after its launch began."""
        self._counted.observe("vm_boot_duration_seconds", seconds)

    def notified(self, result: str) -> None:
        """A hook was told of a notification (`delivered`, `failed`), or one was summed up in another (`held_back`)."""
        self._counted.add("notifications_total", result)

    def loop_lagged(self, seconds: float) -> None:
        """The event loop was late by so much."""
        self._counted.observe("event_loop_lag_seconds", seconds)
