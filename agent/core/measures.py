"""What a look at a running guest found of its I/O, time and memory: counters since its QEMU was launched.

Whoever looks makes one value a guest and replaces it as a whole, so that whoever shows it never waits and never sees
half of a look. What could not be learnt is None, or is absent from its mapping; it is never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

BLOCK_OPERATIONS = ("read", "write", "flush")
"""What a disk is asked for, in QEMU's terms (QAPI, BlockDeviceStats)."""

LATENCY_BOUNDS_S = (
    0.00002,
    0.00005,
    0.0001,
    0.0002,
    0.0005,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.5,
    5.0,
)
"""From 20 µs, what a drive's own cache takes, to 5 s, what a guest's kernel begins to complain of."""

REACH_BOUNDS_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)
"""From 100 µs, what a guest on an idle host takes to answer ARP, to a second, after which it counts as unanswered."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Durations by bin. `counts` has one number more than there are bounds: of those above the last one; in seconds."""

    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]
    sum_s: float


@dataclass(frozen=True, slots=True)
class DiskMeasure:
    """A disk. Mappings are by operation, one of `BLOCK_OPERATIONS`; no latency where QEMU does not count it (yet).

    `capacity_bytes` is what the guest sees, `allocated_bytes` what the image takes on the host.
    """

    disk: str
    read_bytes: int = 0
    written_bytes: int = 0
    operations: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    io_time_s: Mapping[str, float] = field(default_factory=dict)
    latency: Mapping[str, Histogram] = field(default_factory=dict)
    capacity_bytes: int | None = None
    allocated_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class JobMeasure:
    """A block job, such as a mirror: how much of it is done, from 0 to 1."""

    disk: str
    job: str
    progress: float


@dataclass(frozen=True, slots=True)
class ReachMeasure:
    """The canary of a NIC: whether its bridge has learnt the guest's MAC at its port, and how soon ARP or ND answer.

    `learnt` is None where there is no bridge to look at, or the guest has sent nothing yet; `unanswered` counts probes
    that nobody answered within the last bound.
    """

    nic: str
    learnt: bool | None = None
    seconds: Histogram | None = None
    unanswered: int = 0


@dataclass(frozen=True, slots=True)
class GuestMeasure:
    """A guest at the time of a look (`at_s`, the agent's monotonic clock, in seconds).

    `cpu_s` by mode: `user`, `system`, `guest`; `pressure_s` by resource: `cpu`, `memory`, `io` (cgroup v2, PSI), empty
    where its QEMU has no control group of its own; `guest_memory_bytes` by what: `free`, `available`, `total`, told by
    the guest's own balloon driver.
    """

    vm: str
    at_s: float
    cpu_s: Mapping[str, float] = field(default_factory=dict)
    vcpus: int | None = None
    vcpu_delay_s: float | None = None
    resident_bytes: int | None = None
    balloon_bytes: int | None = None
    guest_memory_bytes: Mapping[str, int] = field(default_factory=dict)
    pressure_s: Mapping[str, float] = field(default_factory=dict)
    disks: tuple[DiskMeasure, ...] = ()
    jobs: tuple[JobMeasure, ...] = ()
    reach: tuple[ReachMeasure, ...] = ()


def never_less(before: Mapping[str, float], after: Mapping[str, float]) -> Mapping[str, float]:
    """Counters of one process as they are now, none of them less than it was: less would be taken for a new beginning.

    Linux counts a guest's time in ticks and scales user time to what was measured (kernel/sched/cputime.c:
    cputime_adjust), so that user time without the guest's is less at times than it was, by some ticks.
    """
    return {name: max(before.get(name, 0.0), value) for name, value in after.items()}
