"""What a scrape costs among two hundred guests that are all looked at between two of them; without HTTP."""

from __future__ import annotations

import os
import random
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from agent.core.measures import (
    BLOCK_OPERATIONS,
    LATENCY_BOUNDS_S,
    REACH_BOUNDS_S,
    DiskMeasure,
    GuestMeasure,
    Histogram,
    ReachMeasure,
)
from agent.telemetry.exposition import GZIP_LEVEL, Form
from agent.telemetry.metrics import Metrics
from agent.telemetry.snapshot import NicSample, Snapshot, VmSample
from bench.figures import Figure

GUESTS = 200
SCRAPES = 50
PER_SECOND = 20
"""Each guest is looked at every ten seconds, one after the other."""

SECONDS = 15
"""Between two scrapes, as Prometheus' users mostly have it."""

GOAL_MS = 60.0
AGENT_PRIORITY = -10
"""What the agent has (nice(2)), which is not to wait for its guests."""


@dataclass(frozen=True)
class _Counts:
    """What the kernel counts on a tap."""

    rx_bytes: int
    tx_bytes: int
    rx_packets: int
    tx_packets: int
    rx_errors: int
    tx_errors: int
    rx_dropped: int
    tx_dropped: int


def render() -> Iterator[Figure]:
    """Scrapes with and without compression, while guests change, and the drawing between them."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, AGENT_PRIORITY)
    try:
        yield from _rendered()
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


def _rendered() -> Iterator[Figure]:
    metrics = Metrics(version="0", qemu="", started_s=0.0)
    snapshot = _snapshot()
    metrics.publish(snapshot)
    plain, megabytes = Form(openmetrics=True), len(metrics.render()) / 1e6
    looked, drawing = 0, list[float]()
    for form, name in ((plain, "plain"), (Form(openmetrics=True, gzip=True), "gzip")):
        spent, of_cpu, bare = list[float](), list[float](), list[float]()
        for _ in range(SCRAPES):
            for second in range(SECONDS):
                snapshot = _later(snapshot, looked, traffic=second % 10 == 0)
                looked += PER_SECOND
                metrics.publish(snapshot)
                if second < SECONDS - 1:
                    drawing.append(_ms(metrics.draw_ahead))
            began_s = time.thread_time()
            spent.append(_ms(partial(metrics.render, form)))
            of_cpu.append((time.thread_time() - began_s) * 1000)
            if form.gzip:
                bare.append(_ms(partial(zlib.compress, metrics.render(plain), GZIP_LEVEL)))
        what = f"a scrape of {GUESTS} guests, {megabytes:.1f} MB, {name}"
        yield Figure(what, "ms", spent, GOAL_MS, bare, "zlib alone" if bare else "", at_p99=True)
        yield Figure(f"{what}: processor time", "ms", of_cpu)
    yield Figure("text made anew in each second between scrapes", "ms", drawing)


def _ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def _snapshot() -> Snapshot:
    vms = tuple(
        VmSample(f"guest-{n}", f"u-{n}", "q35", "tcg", "running", "running", 0, 0, 1e9, True, "", ("root", "data"))
        for n in range(GUESTS)
    )
    return Snapshot(
        vms=vms,
        nics=tuple(NicSample(vm.name, "lan", f"{vm.name}-lan", True, True, _counts()) for vm in vms),
        in_sync={("vm", vm.name): True for vm in vms} | {("tap", f"{vm.name}/lan"): True for vm in vms},
        measures={vm.name: _measure(vm.name) for vm in vms},
    )


def _later(snapshot: Snapshot, looked: int, *, traffic: bool) -> Snapshot:
    """After a second, in which the next few guests were looked at."""
    names = [snapshot.vms[(looked + n) % GUESTS].name for n in range(PER_SECOND)]
    measures = {**snapshot.measures, **{name: replace(snapshot.measures[name], at_s=float(looked)) for name in names}}
    nics = tuple(replace(nic, traffic=_counts()) for nic in snapshot.nics) if traffic else snapshot.nics
    return replace(snapshot, measures=measures, nics=nics)


def _counts() -> _Counts:
    return _Counts(*(random.randrange(10**10) for _ in range(8)))


def _measure(name: str) -> GuestMeasure:
    return GuestMeasure(
        name,
        at_s=random.random(),
        cpu_s={mode: random.random() * 1e5 for mode in ("user", "system", "guest")},
        vcpus=2,
        vcpu_delay_s=random.random() * 100,
        resident_bytes=random.randrange(10**10),
        balloon_bytes=10**9,
        guest_memory_bytes={what: random.randrange(10**10) for what in ("free", "available", "total")},
        pressure_s={what: random.random() * 100 for what in ("cpu", "memory", "io")},
        disks=tuple(_disk(disk) for disk in ("root", "data")),
        reach=(ReachMeasure("lan", learnt=True, seconds=_histogram(REACH_BOUNDS_S)),),
    )


def _disk(name: str) -> DiskMeasure:
    return DiskMeasure(
        name,
        read_bytes=random.randrange(10**12),
        written_bytes=random.randrange(10**12),
        operations={op: random.randrange(10**8) for op in BLOCK_OPERATIONS},
        errors=dict.fromkeys(BLOCK_OPERATIONS, 0),
        io_time_s={op: random.random() * 1e4 for op in BLOCK_OPERATIONS},
        latency={op: _histogram(LATENCY_BOUNDS_S) for op in BLOCK_OPERATIONS},
        capacity_bytes=10**10,
        allocated_bytes=random.randrange(10**10),
    )


def _histogram(bounds_s: tuple[float, ...]) -> Histogram:
    return Histogram(bounds_s, tuple(random.randrange(10**6) for _ in (*bounds_s, 1)), random.random() * 1e4)
