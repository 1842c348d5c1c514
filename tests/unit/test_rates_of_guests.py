"""What a guest does in a second, from two looks at its counters."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agent.core.measures import DiskMeasure, GuestMeasure, Histogram, never_less
from agent.core.tell.looks import GuestLook, NicCount, parse_look
from agent.core.tell.rates import GuestRates, between, quantile, rates, total

BOUNDS = (0.001, 0.002, 0.01)


def histogram(*counts: int) -> Histogram:
    return Histogram(BOUNDS, counts, 0.0)


def disk(name: str, operations: int, read_bytes: int, *counts: int) -> DiskMeasure:
    every = {"read": operations, "write": operations * 2, "flush": 0}
    return DiskMeasure(name, read_bytes, read_bytes * 2, every, latency={"read": histogram(*counts)})


def look(at_s: float, cpu_s: float, *disks: DiskMeasure, pid: int = 7, received: int = 0) -> GuestLook:
    cpu = {"user": cpu_s / 2, "system": cpu_s / 4, "guest": cpu_s / 2}
    measure = GuestMeasure("web", at_s, cpu, resident_bytes=1 << 20, disks=disks)
    return GuestLook("web", "running", pid, measure, (NicCount("lan", received, received // 2),), at_s + 0.5)


def test_two_looks() -> None:
    before = look(10.0, 4.0, disk("root", 100, 4096, 100, 0, 0, 0), disk("data", 0, 0, 0, 0, 0, 0), received=1000)
    after = look(12.0, 6.0, disk("root", 150, 8192, 150, 0, 0, 0), disk("data", 50, 0, 48, 0, 2, 0), received=5000)
    assert rates(before, after) == GuestRates(
        "web",
        "running",
        cpu_ratio=1.25,
        memory_bytes=1 << 20,
        reads_per_s=50.0,
        writes_per_s=100.0,
        flushes_per_s=0.0,
        read_p99_s=0.006,  # the 99th of a hundred, half way through the two of the third bin
        read_bytes_per_s=2048.0,
        written_bytes_per_s=4096.0,
        received_bytes_per_s=2000.0,
        sent_bytes_per_s=1000.0,
    )


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(None, id="nothing before"),
        pytest.param(look(10.0, 9.0, pid=6), id="another QEMU"),
        pytest.param(replace(look(10.0, 0.0), measure=None, nics=()), id="silent before"),
        pytest.param(look(12.0, 6.0), id="the same look again"),
    ],
)
def test_no_rates(before: GuestLook | None) -> None:
    found = rates(before, look(12.0, 6.0, disk("root", 1, 1, 1, 0, 0, 0)))
    assert found == GuestRates("web", "running", memory_bytes=1 << 20)


def test_counters_that_went_back_give_nothing_and_the_others_go_on() -> None:
    before = look(10.0, 4.0, disk("root", 100, 4096, 5, 0, 0, 0), received=1000)
    after = look(12.0, 6.0, disk("root", 3, 4096, 3, 0, 0, 0), received=10)
    found = rates(before, after)
    assert (found.reads_per_s, found.writes_per_s, found.read_p99_s) == (None, None, None)
    assert (found.received_bytes_per_s, found.sent_bytes_per_s) == (None, None)
    assert (found.cpu_ratio, found.read_bytes_per_s) == (1.25, 0.0)


def test_a_disk_that_is_plugged_in_between_counts_from_its_second_look_on() -> None:
    root = disk("root", 100, 4096, 5, 0, 0, 0)
    found = rates(look(10.0, 4.0, root), look(12.0, 6.0, root, disk("new", 1000, 1 << 20, 1000, 0, 0, 0)))
    assert (found.reads_per_s, found.read_p99_s) == (0.0, None)


def test_no_processor_time_is_no_zero() -> None:
    before, after = look(10.0, 4.0), look(12.0, 6.0)
    assert after.measure is not None
    assert rates(before, replace(after, measure=replace(after.measure, cpu_s={}))).cpu_ratio is None


@pytest.mark.parametrize(
    ("counts", "q", "value"),
    [
        ((0, 0, 0, 0), 0.99, None),
        ((100, 0, 0, 0), 0.5, 0.0005),  # the first bin begins at zero
        ((0, 100, 0, 0), 0.5, 0.0015),
        ((50, 50, 0, 0), 0.5, 0.001),
        ((50, 0, 50, 0), 0.75, 0.006),
        ((0, 0, 0, 10), 0.99, 0.01),  # the bin without an upper bound
        ((99, 0, 0, 1), 0.99, 0.001),
        ((90, 0, 0, 10), 0.99, 0.01),
    ],
)
def test_quantiles_are_those_of_prometheus(counts: tuple[int, ...], q: float, value: float | None) -> None:
    assert quantile(histogram(*counts), q) == (None if value is None else pytest.approx(value))


def test_histograms_with_other_bins_are_not_mixed() -> None:
    other = Histogram((1.0,), (1, 0), 0.0)
    assert between(other, histogram(1, 1, 1, 1)) is None
    assert total([other, histogram(1, 1, 1, 1)]) is None
    assert total([]) is None


def test_a_look_there_and_back() -> None:
    there = look(10.0, 4.0, disk("root", 100, 4096, 5, 0, 0, 0), received=1000)
    assert parse_look(json.loads(json.dumps(there.as_json()))) == there
    silent = GuestLook("db", "stopped")
    assert parse_look(json.loads(json.dumps(silent.as_json()))) == silent


@pytest.mark.parametrize("data", [{}, {"name": "web", "measure": 3}, {**look(1.0, 1.0).as_json(), "nics": [1]}])
def test_no_look(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no look at a guest"):
        parse_look(data)


def test_time_that_the_kernel_reckons_anew_never_runs_backwards() -> None:
    # A guest's time is counted in ticks, user time is scaled to what was measured: their difference trembles.
    before = {"user": 1000.05, "system": 7.0, "guest": 50.0}
    assert never_less(before, {"user": 999.98, "system": 7.5, "guest": 60.25}) == {
        "user": 1000.05, "system": 7.5, "guest": 60.25,
    }  # fmt: skip
    assert never_less({}, before) == before
