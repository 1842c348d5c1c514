"""What a guest does in a second, from two looks at its counters.

A counter that went back was started anew with its QEMU, its disk or its tap: there is no rate then, until two looks of
the same run are there. Nothing is ever negative, and what cannot be told is None, never zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

from agent.core.measures import BLOCK_OPERATIONS, DiskMeasure, GuestMeasure, Histogram
from agent.core.tell.looks import GuestLook

P99 = 0.99


@dataclass(frozen=True, slots=True)
class GuestRates:
    """A guest between two looks. `cpu_ratio` 1.0 is one CPU of the host, taken by the whole QEMU.

    Operations, bytes and latencies are those of all its disks together, network bytes those of all its NICs, in the
    guest's sense. A latency is None where there was no such operation in between, or none is counted.
    """

    name: str
    state: str
    cpu_ratio: float | None = None
    memory_bytes: int | None = None
    reads_per_s: float | None = None
    writes_per_s: float | None = None
    flushes_per_s: float | None = None
    read_p99_s: float | None = None
    write_p99_s: float | None = None
    flush_p99_s: float | None = None
    read_bytes_per_s: float | None = None
    written_bytes_per_s: float | None = None
    received_bytes_per_s: float | None = None
    sent_bytes_per_s: float | None = None

    @property
    def operations_per_s(self) -> float | None:
        """Reads and writes. Flushes are none of them: their number says little of how busy a disk is."""
        if self.reads_per_s is None or self.writes_per_s is None:
            return None
        return self.reads_per_s + self.writes_per_s

    def as_json(self) -> dict[str, object]:
        """The rates as plain data."""
        return asdict(self)


def rates(before: GuestLook | None, after: GuestLook) -> GuestRates:
    """What the guest did between two looks. State and memory are those of the later look."""
    old = None if before is None or before.pid != after.pid else before
    measure = after.measure
    known = None if old is None else old.measure
    disks = _disk_rates(known, measure) if known is not None and measure is not None else {}
    received, sent = _network_rates(old, after)
    return GuestRates(
        after.name,
        after.state,
        cpu_ratio=_cpu_ratio(known, measure) if known is not None and measure is not None else None,
        memory_bytes=None if measure is None else measure.resident_bytes,
        received_bytes_per_s=received,
        sent_bytes_per_s=sent,
        **disks,
    )


def quantile(histogram: Histogram, q: float) -> float | None:
    """The value in seconds below which a share `q` of all durations lies; None without any.

    As Prometheus' histogram_quantile() has it: linear within a bin, the first of which begins at zero; what lies in
    the bin without an upper bound counts as the last bound, so that is the most there can be.
    """
    total = sum(histogram.counts)
    if not total:
        return None
    rank = q * total
    below = 0
    for index, count in enumerate(histogram.counts[:-1]):
        if count and below + count >= rank:
            lower = histogram.bounds_s[index - 1] if index else 0.0
            return lower + (histogram.bounds_s[index] - lower) * max(0.0, rank - below) / count
        below += count
    return histogram.bounds_s[-1]


def between(before: Histogram, after: Histogram) -> Histogram | None:
    """The durations that came in between; None where the counts were started anew, or have other bins."""
    if before.bounds_s != after.bounds_s or len(before.counts) != len(after.counts):
        return None
    counts = tuple(new - old for old, new in zip(before.counts, after.counts, strict=True))
    return None if min(counts) < 0 else Histogram(after.bounds_s, counts, max(0.0, after.sum_s - before.sum_s))


def total(histograms: list[Histogram]) -> Histogram | None:
    """The durations of all; None for none, or where one has other bins than the rest."""
    if len({one.bounds_s for one in histograms}) != 1:
        return None
    counts = tuple(map(sum, zip(*(one.counts for one in histograms), strict=True)))
    return Histogram(histograms[0].bounds_s, counts, sum(one.sum_s for one in histograms))


def _cpu_ratio(before: GuestMeasure, after: GuestMeasure) -> float | None:
    if not after.cpu_s or before.cpu_s.keys() != after.cpu_s.keys():
        return None
    return _rate(sum(before.cpu_s.values()), sum(after.cpu_s.values()), after.at_s - before.at_s)


def _disk_rates(before: GuestMeasure, after: GuestMeasure) -> Mapping[str, float | None]:
    """A disk that only one of the looks knows is left out: it was plugged, or left, in between."""
    old = {disk.disk: disk for disk in before.disks}
    pairs = [(old[disk.disk], disk) for disk in after.disks if disk.disk in old]
    elapsed_s = after.at_s - before.at_s

    def summed(count: Callable[[DiskMeasure], float | None]) -> float | None:
        return _sum(_rate(count(was), count(now), elapsed_s) for was, now in pairs)

    latency = {operation: _p99(pairs, operation) for operation in BLOCK_OPERATIONS}
    return {
        "reads_per_s": summed(lambda disk: disk.operations.get("read")),
        "writes_per_s": summed(lambda disk: disk.operations.get("write")),
        "flushes_per_s": summed(lambda disk: disk.operations.get("flush")),
        "read_bytes_per_s": summed(lambda disk: disk.read_bytes),
        "written_bytes_per_s": summed(lambda disk: disk.written_bytes),
        **{f"{operation}_p99_s": p99 for operation, p99 in latency.items()},
    }


def _p99(pairs: list[tuple[DiskMeasure, DiskMeasure]], operation: str) -> float | None:
    found = [
        between(was.latency[operation], now.latency[operation])
        for was, now in pairs
        if operation in was.latency and operation in now.latency
    ]
    together = total([one for one in found if one is not None])
    return None if together is None else quantile(together, P99)


def _network_rates(before: GuestLook | None, after: GuestLook) -> tuple[float | None, float | None]:
    if before is None:
        return None, None
    old = {nic.nic: nic for nic in before.nics}
    pairs = [(old[nic.nic], nic) for nic in after.nics if nic.nic in old]
    elapsed_s = after.nics_at_s - before.nics_at_s
    return (
        _sum(_rate(was.received_bytes, now.received_bytes, elapsed_s) for was, now in pairs),
        _sum(_rate(was.sent_bytes, now.sent_bytes, elapsed_s) for was, now in pairs),
    )


def _rate(before: float | None, after: float | None, elapsed_s: float) -> float | None:
    if before is None or after is None or elapsed_s <= 0 or after < before:
        return None
    return (after - before) / elapsed_s


def _sum(found: Iterable[float | None]) -> float | None:
    """None if any is unknown: a sum without it would be too small, and nobody would see it."""
    rates_ = list(found)
    known = [rate for rate in rates_ if rate is not None]
    return sum(known) if known and len(known) == len(rates_) else None
