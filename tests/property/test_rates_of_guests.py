"""Whatever counters do between two looks: rates are never negative and never of a restart's making."""

from __future__ import annotations

import math
from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from agent.core.measures import BLOCK_OPERATIONS, DiskMeasure, GuestMeasure, Histogram
from agent.core.tell.looks import GuestLook, NicCount
from agent.core.tell.rates import quantile, rates

BOUNDS = (0.001, 0.01, 0.1, 1.0)
COUNTS = st.integers(0, 10**6)
HISTOGRAMS = st.tuples(*[COUNTS] * (len(BOUNDS) + 1)).map(lambda counts: Histogram(BOUNDS, counts, 0.0))


@st.composite
def disks(draw: st.DrawFn, name: str) -> DiskMeasure:
    operations = st.fixed_dictionaries(dict.fromkeys(BLOCK_OPERATIONS, COUNTS))
    latency = st.dictionaries(st.sampled_from(BLOCK_OPERATIONS), HISTOGRAMS)
    return DiskMeasure(name, draw(COUNTS), draw(COUNTS), draw(operations), latency=draw(latency))


@st.composite
def looks(draw: st.DrawFn) -> GuestLook:
    at_s = draw(st.floats(0, 1e6))
    cpu = draw(st.dictionaries(st.sampled_from(("user", "system", "guest")), st.floats(0, 1e6)))
    held = [draw(disks(name)) for name in draw(st.sets(st.sampled_from(("root", "data"))))]
    measure = draw(st.none() | st.just(GuestMeasure("web", at_s, cpu, disks=tuple(held))))
    nics = tuple(NicCount(name, draw(COUNTS), draw(COUNTS)) for name in draw(st.sets(st.sampled_from(("lan", "wan")))))
    return GuestLook("web", "running", draw(st.sampled_from((None, 1, 2))), measure, nics, draw(st.floats(0, 1e6)))


@given(looks(), looks())
def test_never_negative_and_never_of_two_runs(before: GuestLook, after: GuestLook) -> None:
    found = rates(before, after)
    numbers = [value for key, value in asdict(found).items() if key not in {"name", "state"} and value is not None]
    assert all(number >= 0 for number in numbers)
    if before.pid != after.pid:
        assert not [number for number in numbers if number != found.memory_bytes]


@given(HISTOGRAMS, st.floats(0, 1), st.floats(0, 1))
def test_quantiles_lie_in_a_bin_that_has_something_and_grow(found: Histogram, p: float, q: float) -> None:
    low, high = quantile(found, min(p, q)), quantile(found, max(p, q))
    if low is None or high is None:
        assert not any(found.counts)
        return
    assert low <= high or math.isclose(low, high)
    edges = (0.0, *BOUNDS)
    bins = [(edges[i], edges[i + 1]) for i in range(len(BOUNDS)) if found.counts[i]]
    bins += [(BOUNDS[-1], BOUNDS[-1])] if found.counts[-1] else []
    assert any(lower - 1e-12 <= high <= upper + 1e-12 for lower, upper in bins)


@given(looks(), st.floats(0.5, 100), st.integers(0, 10**6), st.integers(0, 10**6))
def test_rates_times_time_are_what_was_added(before: GuestLook, elapsed_s: float, reads: int, received: int) -> None:
    if before.measure is None:
        return
    old = before.measure
    new = tuple(
        DiskMeasure(
            disk.disk, disk.read_bytes, disk.written_bytes, {**disk.operations, "read": disk.operations["read"] + reads}
        )
        for disk in old.disks
    )
    nics = tuple(NicCount(nic.nic, nic.received_bytes + received, nic.sent_bytes) for nic in before.nics)
    at_s = (old.at_s + elapsed_s, before.nics_at_s + elapsed_s)
    after = GuestLook("web", "running", before.pid, GuestMeasure("web", at_s[0], old.cpu_s, disks=new), nics, at_s[1])
    found = rates(before, after)
    if new:
        assert found.reads_per_s is not None
        assert math.isclose(found.reads_per_s * elapsed_s, reads * len(new), rel_tol=1e-6, abs_tol=1e-6)
    if nics:
        assert found.received_bytes_per_s is not None
        assert math.isclose(found.received_bytes_per_s * elapsed_s, received * len(nics), rel_tol=1e-6, abs_tol=1e-6)
        assert found.sent_bytes_per_s == 0
