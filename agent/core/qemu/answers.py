"""What a running QEMU answers about a guest's disks, jobs and memory, as measures (QAPI: block-core.json, misc.json).

A QEMU that is not itself any more may answer anything: what is not as QAPI has it raises KeyError, TypeError,
ValueError or AttributeError, and nothing of the answer is used. So is a number that fits no counter of QEMU's: JSON has
numbers that no float holds (10**400), and Python reads infinity where the standard has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agent.core.desired import DiskSpec
from agent.core.measures import BLOCK_OPERATIONS, LATENCY_BOUNDS_S, DiskMeasure, Histogram, JobMeasure
from agent.core.qemu.argv import disk_node

LATENCY_BOUNDS_NS = tuple(round(bound * 1e9) for bound in LATENCY_BOUNDS_S)

_QAPI_NAMES = dict(zip(BLOCK_OPERATIONS, ("rd", "wr", "flush"), strict=True))
_PERIPHERAL, _VIRTIO = "/machine/peripheral/", "/virtio-backend"
_MOST = _UNKNOWN = (1 << 64) - 1
"""The most that QAPI's numbers hold, and what the balloon has of a statistic that its guest did not tell
(virtio-balloon.c: reset_stats)."""

_MOST_CPUS = 4096
"""More than any machine type has (q35: 288, with later QEMUs 4096); each is a file that is read at each look."""

_JOBS = {"backup", "commit", "mirror", "stream"}
"""QAPI, JobType, as far as a disk has them."""

_GUEST_MEMORY = {"free": "stat-free-memory", "available": "stat-available-memory", "total": "stat-total-memory"}

NOT_AN_ANSWER = (KeyError, TypeError, ValueError, AttributeError)
"""What an answer raises that is not as QAPI has it."""

Answer = Mapping[str, Any]
Sizes = tuple[int | None, int | None]
"""What a guest sees of a disk, and what it takes on the host, in bytes."""

Sums = Mapping[str, int]
"""By operation: time in nanoseconds."""


def by_disk(disks: Iterable[DiskSpec], answer: Iterable[Answer]) -> Mapping[str, Answer]:
    """The entries of `query-blockstats` or `query-block` that are about these disks, by the disk's id.

    A virtio disk is told by its backend's QOM path, a drive by its device's id.
    """
    ids = {disk_node(disk.id): disk.id for disk in disks}
    found = {}
    for entry in answer:
        device = str(entry.get("qdev", "")).removeprefix(_PERIPHERAL).removesuffix(_VIRTIO)
        if device in ids:
            found[ids[device]] = entry
    return found


def lacks_latency(entry: Answer) -> bool:
    """Whether QEMU does not count a disk's latencies, or not by our bounds."""
    return any(_bounds(entry, name) != list(LATENCY_BOUNDS_NS) for name in _QAPI_NAMES.values())


def latency_setting(entry: Answer) -> Mapping[str, object]:
    """The arguments of `block-latency-histogram-set` for the disk of an entry; what was counted before is lost."""
    return {"id": entry["qdev"], "boundaries": list(LATENCY_BOUNDS_NS)}


def time_sums(entry: Answer) -> Sums:
    """How long all operations took since the disk was plugged."""
    return {operation: _count(entry["stats"][f"{name}_total_time_ns"]) for operation, name in _QAPI_NAMES.items()}


def disk_measure(disk: str, entry: Answer, sizes: Sizes, counted_from: Sums) -> DiskMeasure:
    """A disk by its entry in `query-blockstats`.

    `counted_from`: the sums at the time from which on latencies are counted, where that is not the beginning; QEMU
    counts time from the beginning in any case. A sum that is less than that belongs to a disk plugged anew.
    """
    stats, sums = entry["stats"], time_sums(entry)
    latency = {}
    for operation, name in _QAPI_NAMES.items():
        if _bounds(entry, name) == list(LATENCY_BOUNDS_NS):
            since = counted_from.get(operation, 0)
            took_ns = sums[operation] - since if sums[operation] >= since else sums[operation]
            bins = _bins(stats[f"{name}_latency_histogram"])
            latency[operation] = Histogram(LATENCY_BOUNDS_S, bins, took_ns / 1e9)
    return DiskMeasure(
        disk=disk,
        read_bytes=_count(stats["rd_bytes"]),
        written_bytes=_count(stats["wr_bytes"]),
        operations={operation: _count(stats[f"{name}_operations"]) for operation, name in _QAPI_NAMES.items()},
        errors={operation: _count(stats[f"failed_{name}_operations"]) for operation, name in _QAPI_NAMES.items()},
        io_time_s={operation: took_ns / 1e9 for operation, took_ns in sums.items()},
        latency=latency,
        capacity_bytes=sizes[0],
        allocated_bytes=sizes[1],
    )


def _bounds(entry: Answer, name: str) -> list[int] | None:
    histogram = entry["stats"].get(f"{name}_latency_histogram")
    return None if histogram is None else list(histogram["boundaries"])


def disk_sizes(entry: Answer) -> Sizes:
    """A disk's sizes by its entry in `query-block`; of an empty drive there is nothing to tell."""
    image = entry.get("inserted", {}).get("image", {})
    return _number(image.get("virtual-size")), _number(image.get("actual-size"))


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _MOST:
        raise ValueError(f"{str(value)[:40]} is no count")
    return value


def _bins(histogram: Answer) -> tuple[int, ...]:
    bins = histogram["bins"]
    if len(bins) != len(LATENCY_BOUNDS_NS) + 1:
        raise ValueError(f"{len(bins)} are no bins for {len(LATENCY_BOUNDS_NS)} bounds")
    return tuple(map(_count, bins))


def _number(value: object) -> int | None:
    try:
        return _count(value)
    except ValueError:
        return None


def job_measures(disks: Iterable[DiskSpec], answer: Iterable[Answer]) -> tuple[JobMeasure, ...]:
    """The block jobs that `query-block-jobs` tells, each of the disk whose name its own one bears, else of no disk.

    Of several that are of one disk and one type, the one that is behind: they would be one series with two values.
    """
    nodes = {disk_node(disk.id): disk.id for disk in disks}
    jobs: dict[tuple[str, str], float] = {}
    for one in answer:
        name, length, done = str(one["device"]), _count(one["len"]), _count(one["offset"])
        # The longest: the name of disk-data is within that of disk-data2.
        owner = max((node for node in nodes if node in name), key=len, default="")
        key = nodes.get(owner, ""), one["type"] if one["type"] in _JOBS else "other"
        jobs[key] = min(jobs.get(key, 1.0), done / length if length > 0 else 0.0)
    return tuple(JobMeasure(disk, job, progress) for (disk, job), progress in jobs.items())


def guest_memory(answer: Answer, now_s: float, old_after_s: float) -> Mapping[str, int]:
    """What the guest's driver told of its memory (property `guest-stats` of a balloon), in bytes by what it is.

    Nothing where it told nothing, or nothing lately. `now_s`: Unix time.
    """
    if not now_s - old_after_s < _count(answer["last-update"]):
        return {}
    stats = answer["stats"]
    return {what: _count(stats[name]) for what, name in _GUEST_MEMORY.items() if stats.get(name, _UNKNOWN) != _UNKNOWN}


def balloon_bytes(answer: Answer) -> int:
    """The memory that a guest has, by `query-balloon`."""
    return _count(answer["actual"])


def cpu_threads(answer: Iterable[Answer]) -> tuple[int, ...]:
    """The threads that `query-cpus-fast` tells; with TCG several CPUs may share one."""
    threads = tuple(_count(one["thread-id"]) for one in answer)
    if len(threads) > _MOST_CPUS:
        raise ValueError(f"{len(threads)} are no CPUs of a guest")
    return threads
