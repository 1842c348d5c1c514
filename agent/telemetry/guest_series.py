"""The series of guests, as text that is kept for each of them and made anew only where what it shows has changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from agent.core.measures import BLOCK_OPERATIONS, LATENCY_BOUNDS_S, GuestMeasure, Histogram
from agent.core.tell.vm_display import DisplayState
from agent.telemetry.catalogue import METRICS
from agent.telemetry.catalogue_guests import CPU_MODES, DISKS, DROP_REASONS, EXIT_REASONS, USAGE
from agent.telemetry.exposition import encoded, histogram_lines, line
from agent.telemetry.forwards import ForwardSample
from agent.telemetry.snapshot import NicSample, Snapshot, VmSample

log = structlog.get_logger("vmhost.metrics")

Sample = TypeVar("Sample", NicSample, ForwardSample)

NIC_COUNTERS = (
    ("nic_receive_bytes_total", "tx_bytes"),
    ("nic_receive_packets_total", "tx_packets"),
    ("nic_receive_errors_total", "tx_errors"),
    ("nic_receive_drops_total", "tx_dropped"),
    ("nic_transmit_bytes_total", "rx_bytes"),
    ("nic_transmit_packets_total", "rx_packets"),
    ("nic_transmit_errors_total", "rx_errors"),
    ("nic_transmit_drops_total", "rx_dropped"),
)
"""The guest's sense and the tap's: what the tap sends, its guest receives."""


def mirrored(field: str) -> str:
    """The counter of the other direction: a macvtap counts in the guest's sense (drivers/net/macvlan.c)."""
    return f"{'rx' if field.startswith('tx') else 'tx'}{field[2:]}"


NEVER = Histogram(LATENCY_BOUNDS_S, (0,) * (len(LATENCY_BOUNDS_S) + 1), 0.0)
NO_DROPS = dict.fromkeys(DROP_REASONS, 0)


@dataclass(frozen=True, slots=True)
class GuestCounts:
    """What the agent counted of a guest: monitor connections made anew, ends by reason."""

    reconnects: int = 0
    exits: Mapping[str, int] | None = None


NO_COUNTS = GuestCounts()


class Lines:
    """Collects lines by metric."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = defaultdict(list)

    def add(self, name: str, value: float | None, *labels: str) -> None:
        """A sample; None has none."""
        if value is not None:
            self._lines[name].append(line(METRICS[name], labels, value))

    def add_histogram(self, name: str, seen: Histogram, *labels: str) -> None:
        """The samples of a histogram."""
        self._lines[name].append(histogram_lines(METRICS[name], labels, seen))

    def blocks(self) -> Mapping[str, bytes]:
        """The lines of each metric that has any."""
        return {name: encoded(lines) for name, lines in self._lines.items()}


@dataclass(frozen=True, slots=True)
class NicInputs:
    """A guest's NICs, and what was dropped by NIC and reason."""

    nics: tuple[NicSample, ...]
    dropped: Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class UsageInputs:
    """A guest's disks, whether it runs, and the last look at it while it does."""

    disks: tuple[str, ...]
    runs: bool
    measure: GuestMeasure | None


def life_lines(lines: Lines, name: str, inputs: tuple[VmSample, bool]) -> None:
    """What is known of a guest without asking it; `inputs` with whether it is stale."""
    vm, stale = inputs
    lines.add("vm_info", 1, vm.accel, vm.machine, vm.uuid, name)
    for state in DisplayState:
        lines.add("vm_state", vm.state == state.value, state.value, name)
    for word in ("running", "stopped"):
        lines.add("vm_desired_state", vm.wanted == word, word, name)
    lines.add("vm_pending_changes", vm.pending, name)
    lines.add("vm_restarts_total", vm.restarts, name)
    lines.add("qmp_connected", vm.qmp_connected, name)
    lines.add("vm_stale", stale, name)
    lines.add("vm_start_time_seconds", vm.started_s, name)
    if vm.held:
        lines.add("vm_held", 1, vm.held, name)


def count_lines(lines: Lines, name: str, counts: GuestCounts) -> None:
    """What the agent counted of a guest; known reasons are there at zero."""
    lines.add("qmp_reconnects_total", counts.reconnects, name)
    exits = dict.fromkeys(EXIT_REASONS, 0) | dict(counts.exits or {})
    for reason, count in exits.items():
        lines.add("vm_exits_total", count, reason, name)


def nic_lines(lines: Lines, name: str, inputs: NicInputs) -> None:
    """A guest's NICs, as the host sees them."""
    for nic in inputs.nics:
        lines.add("nic_up", nic.up, nic.nic, name)
        lines.add("nic_attached", nic.attached, nic.nic, name)
        if nic.traffic is not None:
            for metric, field in NIC_COUNTERS:
                lines.add(metric, getattr(nic.traffic, mirrored(field) if nic.direct else field), nic.nic, name)
        dropped = {reason: count for (one, reason), count in inputs.dropped.items() if one == nic.nic}
        for reason, count in (NO_DROPS | dropped).items():
            lines.add("filtered_packets_total", count, nic.nic, reason, name)


def forward_lines(lines: Lines, name: str, forwards: tuple[ForwardSample, ...]) -> None:
    """A guest's published ports."""
    for one in forwards:
        lines.add("forward_up", one.up, one.port, one.proto, name)


def usage_lines(lines: Lines, name: str, inputs: UsageInputs) -> None:
    """What was measured of a guest. One that does not run has its counters at zero; one that is silent has nothing."""
    measure = inputs.measure
    if measure is not None:
        _process_lines(lines, name, measure)
        _disk_lines(lines, name, measure)
        _reach_lines(lines, name, measure)
    elif not inputs.runs:
        for mode in CPU_MODES:
            lines.add("vm_cpu_seconds_total", 0, mode, name)
        lines.add("vm_vcpu_delay_seconds_total", 0, name)
        for disk in inputs.disks:
            _idle_disk_lines(lines, name, disk)


def _process_lines(lines: Lines, name: str, measure: GuestMeasure) -> None:
    for mode, seconds in measure.cpu_s.items():
        lines.add("vm_cpu_seconds_total", seconds, mode, name)
    lines.add("vm_vcpus", measure.vcpus, name)
    lines.add("vm_vcpu_delay_seconds_total", measure.vcpu_delay_s, name)
    for resource, seconds in measure.pressure_s.items():
        lines.add("vm_pressure_seconds_total", seconds, resource, name)
    lines.add("vm_memory_resident_bytes", measure.resident_bytes, name)
    lines.add("vm_memory_balloon_bytes", measure.balloon_bytes, name)
    for what in ("free", "available", "total"):
        lines.add(f"vm_guest_memory_{what}_bytes", measure.guest_memory_bytes.get(what), name)


def _disk_lines(lines: Lines, name: str, measure: GuestMeasure) -> None:
    for disk in measure.disks:
        lines.add("block_read_bytes_total", disk.read_bytes, disk.disk, name)
        lines.add("block_written_bytes_total", disk.written_bytes, disk.disk, name)
        for op, count in disk.operations.items():
            lines.add("block_operations_total", count, disk.disk, op, name)
        for op, count in disk.errors.items():
            lines.add("block_errors_total", count, disk.disk, op, name)
        for op, seconds in disk.io_time_s.items():
            lines.add("block_io_time_seconds_total", seconds, disk.disk, op, name)
        for op, latency in disk.latency.items():
            lines.add_histogram("block_latency_seconds", latency, disk.disk, op, name)
        lines.add("block_capacity_bytes", disk.capacity_bytes, disk.disk, name)
        lines.add("block_allocated_bytes", disk.allocated_bytes, disk.disk, name)
    for job in measure.jobs:
        lines.add("block_job_progress_ratio", job.progress, job.disk, job.job, name)


def _idle_disk_lines(lines: Lines, name: str, disk: str) -> None:
    lines.add("block_read_bytes_total", 0, disk, name)
    lines.add("block_written_bytes_total", 0, disk, name)
    for op in BLOCK_OPERATIONS:
        for metric in ("block_operations_total", "block_errors_total", "block_io_time_seconds_total"):
            lines.add(metric, 0, disk, op, name)
        lines.add_histogram("block_latency_seconds", NEVER, disk, op, name)


def _reach_lines(lines: Lines, name: str, measure: GuestMeasure) -> None:
    for reach in measure.reach:
        lines.add("nic_learnt", reach.learnt, reach.nic, name)
        if reach.seconds is not None:
            lines.add_histogram("nic_reach_seconds", reach.seconds, reach.nic, name)
            lines.add("nic_reach_unanswered_total", reach.unanswered, reach.nic, name)


class _Kept:
    """The text of one kind of inputs, by guest."""

    def __init__(self, draw: Callable[[Lines, str, Any], None]) -> None:
        self._draw = draw
        self._kept: dict[str, tuple[object, Mapping[str, bytes]]] = {}
        self.drawn = 0

    def blocks(self, inputs: Mapping[str, object]) -> Iterable[Mapping[str, bytes]]:
        """The text of each of these guests; that of others is forgotten."""
        kept = {name: self._fresh(name, one) for name, one in inputs.items()}
        self._kept = kept
        return [blocks for _, blocks in kept.values()]

    def _fresh(self, name: str, inputs: object) -> tuple[object, Mapping[str, bytes]]:
        known = self._kept.get(name)
        if known is not None and known[0] == inputs:
            return known
        lines = Lines()
        try:
            self._draw(lines, name, inputs)
        except Exception:
            # A mistake of ours in what is shown of one guest costs it these series, and no other guest anything.
            log.exception("what is measured of a guest cannot be shown", vm=name)
            lines = Lines()
        self.drawn += 1
        return inputs, lines.blocks()


class GuestSeries:
    """The series of all guests. Used by one thread at a time."""

    def __init__(self) -> None:
        self._life = _Kept(life_lines)
        self._counts = _Kept(count_lines)
        self._nics = _Kept(nic_lines)
        self._forwards = _Kept(forward_lines)
        self._usage = _Kept(usage_lines)

    @property
    def drawn(self) -> int:
        """How often text was made of a guest's inputs."""
        return sum(one.drawn for one in (self._life, self._counts, self._nics, self._forwards, self._usage))

    def blocks(self, snapshot: Snapshot, counts: Mapping[str, GuestCounts]) -> dict[str, list[bytes]]:
        """All lines, by short name of their metric."""
        found: dict[str, list[bytes]] = defaultdict(list)
        for blocks in self.draw(snapshot, counts):
            for metric, text in blocks.items():
                found[metric].append(text)
        return found

    def draw(self, snapshot: Snapshot, counts: Mapping[str, GuestCounts]) -> Iterable[Mapping[str, bytes]]:
        """The lines of each guest and kind of inputs, by short name of their metric."""
        names = [vm.name for vm in snapshot.vms]
        return (
            *self._life.blocks({vm.name: (vm, is_stale(snapshot, vm)) for vm in snapshot.vms}),
            *self._counts.blocks({name: counts.get(name, NO_COUNTS) for name in names}),
            *self._nics.blocks(_nic_inputs(snapshot, names)),
            *self._forwards.blocks(_by_guest(snapshot.forwards, names)),
            *self._usage.blocks({vm.name: _usage_inputs(snapshot, vm) for vm in snapshot.vms}),
        )


MEASURED = frozenset(metric.short for metric in (*USAGE, *DISKS)) | {
    "nic_learnt",
    "nic_reach_seconds",
    "nic_reach_unanswered_total",
}
"""What a guest that is silent has no series of."""


def is_stale(snapshot: Snapshot, vm: VmSample) -> bool:
    """Whether a guest runs and no look at it is recent."""
    return vm.started_s is not None and vm.name not in snapshot.measures


def _usage_inputs(snapshot: Snapshot, vm: VmSample) -> UsageInputs:
    runs = vm.started_s is not None
    return UsageInputs(vm.disks, runs, snapshot.measures.get(vm.name) if runs else None)


def _nic_inputs(snapshot: Snapshot, names: Iterable[str]) -> Mapping[str, NicInputs]:
    dropped: dict[str, dict[tuple[str, str], int]] = defaultdict(dict)
    for (vm, nic, reason), count in snapshot.filtered.items():
        dropped[vm][nic, reason] = count
    return {name: NicInputs(nics, dropped.get(name, {})) for name, nics in _by_guest(snapshot.nics, names).items()}


def _by_guest(samples: Iterable[Sample], names: Iterable[str]) -> Mapping[str, tuple[Sample, ...]]:
    found: dict[str, list[Sample]] = {name: [] for name in names}
    for sample in samples:
        if sample.vm in found:
            found[sample.vm].append(sample)
    return {name: tuple(ones) for name, ones in found.items()}
