"""The metrics of the agent; with `families`, which it draws on, the only module that knows the Prometheus client.

Gauges about the world come from the latest snapshot, so that a guest's series vanish with it. What happened is counted
by the methods here, which are named after it. All times are in seconds.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from typing import cast

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from agent.telemetry.families import world_families
from agent.telemetry.snapshot import Snapshot

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""The content type of what `Metrics.render` gives."""

FAST = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""From 1 ms, what healing a tap takes, to a minute, what a guest's graceful end takes."""

INSTANT = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
BOOT = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0, 60.0, 120.0)


class _World(Collector):
    """Renders the snapshot that is present when it is scraped."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()

    def collect(self) -> Iterable[Metric]:
        return world_families(self.snapshot)


class Metrics:
    """All metrics, in a registry of their own. Methods never raise and may be called at any rate."""

    def __init__(self, *, version: str, qemu: str, started_s: float) -> None:
        """`qemu` is its version, empty when there is none; `started_s` is Unix time."""
        cast(Callable[[], None], disable_created_metrics)()
        self._registry = CollectorRegistry()
        self._world = _World()
        self._vms: set[str] = set()
        build = self._gauge("build_info", "What runs: always 1.", "version", "python", "qemu")
        build.labels(version, platform.python_version(), qemu).set(1)
        self._gauge("start_time_seconds", "When the agent started, Unix time.").set(started_s)
        self._define_passes()
        self._define_actions()
        self._define_qmp()
        self._define_guests()
        self._registry.register(self._world)

    def render(self) -> bytes:
        """The exposition, of content type `CONTENT_TYPE`. Takes milliseconds at 1,000 guests; safe in a thread."""
        return generate_latest(self._registry)

    def publish(self, snapshot: Snapshot) -> None:
        """Show another snapshot from now on; series of guests that it has no more are dropped, counters too."""
        present = {vm.name for vm in snapshot.vms}
        for gone in self._vms - present:
            for counter in (self._vm_exits, self._qmp_reconnects):
                counter.remove_by_labels({"vm": gone})
        self._vms &= present
        self._world.snapshot = snapshot

    def units_reloaded(self, *, success: bool, at_s: float) -> None:
        """The unit directory was read and resolved; `success`: every file of it is valid. `at_s` is Unix time."""
        self._reloads.labels("success" if success else "failure").inc()
        self._last_reload.set(1 if success else 0)
        if success:
            self._last_reload_success.set(at_s)

    def pass_finished(self, seconds: float, result: str, at_s: float) -> None:
        """A pass ended as `success` or `failure` after `seconds`; `at_s` is Unix time."""
        self._passes.labels(result).inc()
        self._pass_duration.observe(seconds)
        if result == "success":
            self._last_pass.set(at_s)

    def rung(self, source: str) -> None:
        """The doorbell was rung by a source: `netlink`, `units`, `qmp`, `timer`, …."""
        self._rings.labels(source).inc()

    def converged(self, cause: str, seconds: float) -> None:
        """All is settled again, so long after an `edit` or a `fault` was seen."""
        self._convergence.labels(cause).observe(seconds)

    def action_finished(self, kind: str, outcome: str, seconds: float) -> None:
        """An action ended as `done`, `failed` or `unknown`."""
        self._actions.labels(kind, outcome).inc()
        self._action_duration.labels(kind).observe(seconds)

    def repaired(self, kind: str, reason: str, seconds: float) -> None:
        """A resource of a kind (`tap`, `bridge`, `vm`, `port`) is well again, so long after its hurt was seen."""
        self._repairs.labels(kind, reason).inc()
        self._repair_duration.labels(kind, reason).observe(seconds)

    def qmp_answered(self, command: str, seconds: float) -> None:
        """QEMU answered a command, be it with an error."""
        self._qmp_duration.labels(command).observe(seconds)

    def qmp_refused(self, command: str, error_class: str) -> None:
        """QEMU refused a command; `error_class` is its own (`GenericError`, …), or `timeout`."""
        self._qmp_errors.labels(command, error_class).inc()

    def qmp_event_seen(self, event: str) -> None:
        """QEMU sent an event."""
        self._qmp_events.labels(event).inc()

    def qmp_reconnected(self, vm: str) -> None:
        """The agent's monitor connection of a guest was lost and is there again."""
        self._vms.add(vm)
        self._qmp_reconnects.labels(vm).inc()

    def vm_exited(self, vm: str, reason: str) -> None:
        """A guest ended: guest_shutdown, guest_reset, host, panic, crash, oom or killed."""
        self._vms.add(vm)
        self._vm_exits.labels(vm, reason).inc()

    def vm_booted(self, seconds: float) -> None:
        """A guest runs, so long after its launch began."""
        self._boot_duration.observe(seconds)

    def notified(self, result: str) -> None:
        """A hook was told of a notification (`delivered`, `failed`), or one was summed up in another (`held_back`)."""
        self._notifications.labels(result).inc()

    def loop_lagged(self, seconds: float) -> None:
        """The event loop was late by so much."""
        self._loop_lag.observe(seconds)

    def _define_passes(self) -> None:
        self._reloads = self._counter("unit_reloads", "Readings of the unit directory.", "result")
        self._last_reload = self._gauge("units_last_reload_successful", "Whether every unit was valid at the last one.")
        self._last_reload_success = self._gauge(
            "units_last_reload_success_timestamp_seconds", "When every unit was valid last, Unix time."
        )
        self._passes = self._counter("passes", "Passes of the reconciler.", "result")
        self._pass_duration = self._histogram("pass_duration_seconds", "How long a pass took.", INSTANT)
        self._last_pass = self._gauge("pass_last_success_timestamp_seconds", "When a pass last succeeded, Unix time.")
        self._rings = self._counter("doorbell_rings", "What rang for a pass.", "source")
        self._convergence = self._histogram(
            "convergence_seconds", "From an edit or fault seen until all is settled.", FAST, "cause"
        )
        self._loop_lag = self._histogram("event_loop_lag_seconds", "How late the event loop was.", INSTANT)
        self._notifications = self._counter(
            "notifications", "Notifications of people, by what became of them.", "result"
        )
        for result in ("delivered", "failed", "held_back"):
            self._notifications.labels(result)
        for result in ("success", "failure"):
            self._reloads.labels(result)
            self._passes.labels(result)

    def _define_actions(self) -> None:
        self._actions = self._counter("actions", "Actions carried out.", "kind", "outcome")
        self._action_duration = self._histogram("action_duration_seconds", "How long an action took.", FAST, "kind")
        self._repairs = self._counter("repairs", "Hurt resources that are well again.", "kind", "reason")
        self._repair_duration = self._histogram(
            "repair_duration_seconds", "From a hurt seen until it is mended.", FAST, "kind", "reason"
        )

    def _define_qmp(self) -> None:
        self._qmp_reconnects = self._counter("qmp_reconnects", "Monitor connections made anew.", "vm")
        self._qmp_duration = self._histogram(
            "qmp_command_duration_seconds", "How long QEMU took to answer.", INSTANT, "command"
        )
        self._qmp_errors = self._counter("qmp_command_errors", "Commands that QEMU refused.", "command", "class")
        self._qmp_events = self._counter("qmp_events", "Events that QEMU sent.", "event")

    def _define_guests(self) -> None:
        self._vm_exits = self._counter("vm_exits", "Ends of a guest.", "vm", "reason")
        self._boot_duration = self._histogram("vm_boot_duration_seconds", "From launch to running.", BOOT)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"vmhost_{name}", text, labels, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"vmhost_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"vmhost_{name}", text, labels, registry=self._registry, buckets=buckets)
