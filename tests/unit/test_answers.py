"""QEMU's answers as measures: what they say, what they leave out, and what is no answer at all."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest

from agent.core.desired import DiskSpec
from agent.core.measures import BLOCK_OPERATIONS, LATENCY_BOUNDS_S, JobMeasure
from agent.core.qemu.answers import (
    LATENCY_BOUNDS_NS,
    balloon_bytes,
    by_disk,
    cpu_threads,
    disk_measure,
    disk_sizes,
    guest_memory,
    job_measures,
    lacks_latency,
    latency_setting,
    time_sums,
)

ROOT, CD = DiskSpec("root", "/d/web.qcow2", "qcow2", 1), DiskSpec("cd", "", "raw", 2, media="cdrom")
BINS = list(range(len(LATENCY_BOUNDS_NS) + 1))
STATS: dict[str, Any] = {
    "rd_bytes": 4096, "wr_bytes": 8192,
    "rd_operations": 1, "wr_operations": 2, "flush_operations": 3,
    "failed_rd_operations": 4, "failed_wr_operations": 5, "failed_flush_operations": 6,
    "rd_total_time_ns": 1_000_000_000, "wr_total_time_ns": 2_000_000_000, "flush_total_time_ns": 3_000_000_000,
    **{f"{op}_latency_histogram": {"boundaries": [*LATENCY_BOUNDS_NS], "bins": BINS} for op in ("rd", "wr", "flush")},
}  # fmt: skip
ENTRY: dict[str, Any] = {"qdev": "/machine/peripheral/disk-root/virtio-backend", "stats": STATS}


def without_histograms(*operations: str) -> dict[str, Any]:
    entry = copy.deepcopy(ENTRY)
    for operation in operations:
        del entry["stats"][f"{operation}_latency_histogram"]
    return entry


def test_each_disk_of_the_unit_has_its_entry_and_no_other_has() -> None:
    drive, foreign = {"qdev": "disk-cd", "stats": {}}, {"qdev": "/machine/peripheral/mine/virtio-backend"}
    found = by_disk((ROOT, CD), [ENTRY, drive, foreign, {"device": "floppy0"}])
    assert found == {"root": ENTRY, "cd": drive}


def test_a_disk_with_all_there_is() -> None:
    disk = disk_measure("root", ENTRY, (1 << 30, 1 << 20), {})
    assert (disk.disk, disk.read_bytes, disk.written_bytes) == ("root", 4096, 8192)
    assert disk.operations == {"read": 1, "write": 2, "flush": 3}
    assert disk.errors == {"read": 4, "write": 5, "flush": 6}
    assert disk.io_time_s == {"read": 1.0, "write": 2.0, "flush": 3.0}
    assert {op: (one.bounds_s, one.counts, one.sum_s) for op, one in disk.latency.items()} == {
        "read": (LATENCY_BOUNDS_S, tuple(BINS), 1.0),
        "write": (LATENCY_BOUNDS_S, tuple(BINS), 2.0),
        "flush": (LATENCY_BOUNDS_S, tuple(BINS), 3.0),
    }
    assert (disk.capacity_bytes, disk.allocated_bytes) == (1 << 30, 1 << 20)


def test_a_disk_counted_later_has_the_time_since_then_and_one_plugged_anew_all_of_it() -> None:
    later = {"read": 400_000_000, "write": 2_000_000_000, "flush": 3_000_000_001}
    latency = disk_measure("root", ENTRY, (None, None), later).latency
    assert {op: one.sum_s for op, one in latency.items()} == {"read": 0.6, "write": 0.0, "flush": 3.0}


def test_no_latency_where_qemu_counts_none_or_by_other_bounds() -> None:
    assert not lacks_latency(ENTRY)
    some = without_histograms("wr")
    assert lacks_latency(some)
    assert disk_measure("root", some, (None, None), {}).latency.keys() == {"read", "flush"}
    other = copy.deepcopy(ENTRY)
    other["stats"]["rd_latency_histogram"] = {"boundaries": [1, 2], "bins": [0, 0, 0]}
    assert lacks_latency(other)
    assert disk_measure("root", other, (None, None), {}).latency.keys() == {"write", "flush"}


def test_bounds_are_set_in_whole_nanoseconds_for_whatever_the_entry_is_about() -> None:
    assert latency_setting(ENTRY) == {"id": ENTRY["qdev"], "boundaries": list(LATENCY_BOUNDS_NS)}
    assert LATENCY_BOUNDS_NS[0] == 20_000
    assert [bound / 1e9 for bound in LATENCY_BOUNDS_NS] == list(LATENCY_BOUNDS_S)
    assert time_sums(ENTRY) == {op: (at + 1) * 10**9 for at, op in enumerate(BLOCK_OPERATIONS)}


@pytest.mark.parametrize("answer", [{}, {"stats": None}, {"stats": {"rd_bytes": "many"}}, {"stats": []}])
def test_what_is_no_answer_is_no_measure(answer: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        disk_measure("root", answer, (None, None), {})


@pytest.mark.parametrize("number", [math.inf, math.nan, 1 << 64, 10**400, -1, 0.5, True, "7"])
def test_a_count_that_no_qemu_has_is_no_answer(number: object) -> None:
    # Each of them would end up in the exposition, whose makers know of no guest that lies.
    for key in ("rd_bytes", "flush_operations", "failed_wr_operations", "rd_total_time_ns"):
        with pytest.raises(ValueError, match="no count"):
            disk_measure("root", {"stats": {**STATS, key: number}}, (None, None), {})
    for answer in ({"len": number, "offset": 0}, {"len": 7, "offset": number}):
        with pytest.raises(ValueError, match="no count"):
            job_measures((), [{"type": "mirror", "device": "one", **answer}])
    with pytest.raises(ValueError, match="no count"):
        cpu_threads([{"thread-id": number}])
    with pytest.raises(ValueError, match="no count"):
        guest_memory({"last-update": number, "stats": {}}, 0.0, 60.0)
    with pytest.raises(ValueError, match="no count"):
        guest_memory({"last-update": 0, "stats": {"stat-free-memory": number}}, 0.0, 60.0)
    with pytest.raises(ValueError, match="no count"):
        balloon_bytes({"actual": number})
    assert disk_sizes({"inserted": {"image": {"virtual-size": number, "actual-size": 3}}}) == (None, 3)


@pytest.mark.parametrize("bins", [[], BINS[:-1], [*BINS, 1], [*BINS[:-1], 1 << 64]])
def test_a_histogram_has_a_bin_more_than_bounds(bins: list[int]) -> None:
    entry = copy.deepcopy(ENTRY)
    entry["stats"]["wr_latency_histogram"]["bins"] = bins
    with pytest.raises(ValueError, match=r"no bins|no count"):
        disk_measure("root", entry, (None, None), {})


def test_sizes_of_a_disk_and_none_of_an_empty_drive() -> None:
    assert disk_sizes({"inserted": {"image": {"virtual-size": 7, "actual-size": 3}}}) == (7, 3)
    assert disk_sizes({"qdev": "disk-cd", "tray_open": False}) == (None, None)


def test_jobs_are_told_of_their_disks() -> None:
    mirror = {"type": "mirror", "device": "mirror-disk-root", "len": 400, "offset": 100}
    fresh = {"type": "backup", "device": "by-hand", "len": 0, "offset": 0}
    assert job_measures((ROOT,), [mirror, fresh]) == (JobMeasure("root", "mirror", 0.25), JobMeasure("", "backup", 0.0))


def test_a_disk_whose_name_begins_anothers_has_not_its_jobs() -> None:
    job = {"type": "mirror", "device": "mirror-disk-root2", "len": 4, "offset": 1}
    both = ROOT, replace(ROOT, id="root2")
    assert job_measures(both, [job]) == job_measures(both[::-1], [job]) == (JobMeasure("root2", "mirror", 0.25),)


def test_jobs_that_would_be_one_series_are_one_and_their_types_are_qemus() -> None:
    jobs = [{"type": kind, "device": f"j{at}", "len": 4, "offset": at} for at, kind in enumerate(["mirror"] * 3)]
    assert job_measures((), jobs[::-1]) == (JobMeasure("", "mirror", 0.0),)
    assert job_measures((), [{**jobs[2], "type": "x" * 9999}]) == (JobMeasure("", "other", 0.5),)


def test_memory_is_what_the_guest_told_lately() -> None:
    unknown = 18446744073709551615
    stats = {"stat-free-memory": 5, "stat-available-memory": unknown, "stat-total-memory": 9, "stat-swap-in": 1}
    answer = {"last-update": 1000, "stats": stats}
    assert guest_memory(answer, 1059.0, 60.0) == {"free": 5, "total": 9}
    assert guest_memory(answer, 1060.0, 60.0) == {}
    assert guest_memory({"last-update": 0, "stats": stats}, 1059.0, 60.0) == {}


def test_threads_of_cpus() -> None:
    assert cpu_threads([{"thread-id": 7, "cpu-index": 0}, {"thread-id": 8, "cpu-index": 1}]) == (7, 8)


def test_so_many_cpus_has_no_guest() -> None:
    # Each would be a file that is opened while the loop waits.
    with pytest.raises(ValueError, match="no CPUs"):
        cpu_threads([{"thread-id": at} for at in range(100_000)])
