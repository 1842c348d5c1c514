"""The series of guests: there with them, at zero, absent or gone as they are, drawn anew only where they changed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from agent.core.measures import (
    BLOCK_OPERATIONS,
    LATENCY_BOUNDS_S,
    REACH_BOUNDS_S,
    DiskMeasure,
    GuestMeasure,
    Histogram,
    JobMeasure,
    ReachMeasure,
)
from agent.telemetry.catalogue import CATALOGUE
from agent.telemetry.exposition import Form
from agent.telemetry.forwards import ForwardSample
from agent.telemetry.guest_series import MEASURED
from agent.telemetry.metrics import AHEAD_S, Metrics
from agent.telemetry.snapshot import NicSample, Snapshot, VmSample
from tests.exposition import Series, openmetrics_families, samples_of, text_families, value


@dataclass(frozen=True)
class Counts:
    rx_bytes: int = 1
    tx_bytes: int = 2
    rx_packets: int = 3
    tx_packets: int = 4
    rx_errors: int = 5
    tx_errors: int = 6
    rx_dropped: int = 7
    tx_dropped: int = 8


LATENCY = Histogram(LATENCY_BOUNDS_S, (1, *(0,) * 12, 2, 3), 31.5)
REACH = Histogram(REACH_BOUNDS_S, (4, *(0,) * 11), 0.0003)
WEB = VmSample("web", "u-web", "q35", "tcg", "running", "running", 0, 0, 1000.0, True, disks=("root",))
OFF = replace(WEB, name="off", state="stopped", started_s=None, qmp_connected=False)
DISK = DiskMeasure(
    "root",
    read_bytes=4096,
    written_bytes=8192,
    operations=dict.fromkeys(BLOCK_OPERATIONS, 6),
    errors=dict.fromkeys(BLOCK_OPERATIONS, 1),
    io_time_s=dict.fromkeys(BLOCK_OPERATIONS, 31.5),
    latency=dict.fromkeys(BLOCK_OPERATIONS, LATENCY),
    capacity_bytes=1 << 30,
    allocated_bytes=1 << 20,
)
LOOK = GuestMeasure(
    "web",
    at_s=5.0,
    cpu_s={"user": 1.5, "system": 0.5, "guest": 1.0},
    vcpus=2,
    vcpu_delay_s=0.25,
    resident_bytes=200 << 20,
    balloon_bytes=512 << 20,
    guest_memory_bytes={"free": 100, "available": 200, "total": 300},
    pressure_s={"cpu": 0.1, "memory": 0.0, "io": 0.2},
    disks=(DISK,),
    jobs=(JobMeasure("root", "mirror-root", 0.5),),
    reach=(ReachMeasure("lan", learnt=True, seconds=REACH, unanswered=2),),
)
SNAPSHOT = Snapshot(
    vms=(WEB, OFF),
    nics=(
        NicSample("web", "lan", "web-lan", True, True, Counts()),
        NicSample("off", "lan", "off-lan", False, None, None),
    ),
    forwards=(ForwardSample("web", "80", "tcp", True),),
    filtered={("web", "lan", "mac"): 3},
    measures={"web": LOOK},
)


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics(version="0.1.0", qemu="7.2.0", started_s=1.0, clock_s=lambda: 10.0)
    made.publish(SNAPSHOT)
    return made


def series(metrics: Metrics) -> Series:
    found = samples_of(text_families(metrics.render()))
    assert found == samples_of(openmetrics_families(metrics.render(Form(openmetrics=True))))
    return found


def names_of(found: Series, vm: str) -> set[str]:
    """The metrics of which a guest has series."""
    by_sample = {sample: metric.short for metric in CATALOGUE for sample in metric.samples}
    return {by_sample[name] for name, labels in found if ("vm", vm) in labels}


def test_a_look_is_shown_as_it_was(metrics: Metrics) -> None:
    found = series(metrics)
    root = {"vm": "web", "disk": "root"}
    assert value(found, "vm_cpu_seconds_total", vm="web", mode="user") == 1.5
    assert value(found, "vm_vcpus", vm="web") == 2
    assert value(found, "vm_vcpu_delay_seconds_total", vm="web") == 0.25
    assert value(found, "vm_pressure_seconds_total", vm="web", resource="io") == 0.2
    assert value(found, "vm_memory_resident_bytes", vm="web") == 200 << 20
    assert value(found, "vm_memory_balloon_bytes", vm="web") == 512 << 20
    assert value(found, "vm_guest_memory_available_bytes", vm="web") == 200
    assert value(found, "block_read_bytes_total", **root) == 4096
    assert value(found, "block_written_bytes_total", **root) == 8192
    assert value(found, "block_operations_total", **root, op="flush") == 6
    assert value(found, "block_errors_total", **root, op="write") == 1
    assert value(found, "block_io_time_seconds_total", **root, op="read") == 31.5
    assert value(found, "block_latency_seconds_bucket", **root, op="read", le="2e-05") == 1
    assert value(found, "block_latency_seconds_bucket", **root, op="read", le="5.0") == 3
    assert value(found, "block_latency_seconds_bucket", **root, op="read", le="+Inf") == 6
    assert value(found, "block_latency_seconds_sum", **root, op="read") == 31.5
    assert value(found, "block_capacity_bytes", **root) == 1 << 30
    assert value(found, "block_allocated_bytes", **root) == 1 << 20
    assert value(found, "block_job_progress_ratio", **root, job="mirror-root") == 0.5
    assert value(found, "nic_learnt", vm="web", nic="lan") == 1
    assert value(found, "nic_reach_seconds_count", vm="web", nic="lan") == 4
    assert value(found, "nic_reach_unanswered_total", vm="web", nic="lan") == 2
    assert value(found, "vm_stale", vm="web") == 0


def test_what_cannot_be_measured_has_no_series(metrics: Metrics) -> None:
    bare = GuestMeasure("web", 6.0, reach=(ReachMeasure("lan"),))
    metrics.publish(replace(SNAPSHOT, measures={"web": bare}))
    assert not names_of(series(metrics), "web") & MEASURED


def test_a_guest_that_does_not_run_has_its_counters_at_zero(metrics: Metrics) -> None:
    found = series(metrics)
    root = {"vm": "off", "disk": "root"}
    assert names_of(found, "off") & MEASURED == {
        *("vm_cpu_seconds_total", "vm_vcpu_delay_seconds_total", "block_read_bytes_total", "block_written_bytes_total"),
        *("block_operations_total", "block_errors_total", "block_io_time_seconds_total", "block_latency_seconds"),
    }
    for op in BLOCK_OPERATIONS:
        assert value(found, "block_operations_total", **root, op=op) == 0
        assert value(found, "block_latency_seconds_bucket", **root, op=op, le="+Inf") == 0
    assert value(found, "vm_exits_total", vm="off", reason="oom") == 0
    assert value(found, "qmp_reconnects_total", vm="off") == 0
    assert value(found, "filtered_packets_total", vm="off", nic="lan", reason="deny") == 0
    assert value(found, "vm_stale", vm="off") == 0
    assert {(name, labels) for name, labels in found if ("vm", "web") in labels and "latency" in name} == {
        (name, labels - {("vm", "off")} | {("vm", "web")})
        for name, labels in found
        if ("vm", "off") in labels and "latency" in name
    }


def test_a_silent_guest_keeps_its_state_and_loses_what_is_measured(metrics: Metrics) -> None:
    metrics.publish(replace(SNAPSHOT, measures={}))
    found = series(metrics)
    assert not names_of(found, "web") & MEASURED
    assert value(found, "vm_stale", vm="web") == 1
    assert value(found, "vm_state", vm="web", state="running") == 1
    assert value(found, "nic_receive_bytes_total", vm="web", nic="lan") == 2
    assert value(found, "vm_cpu_seconds_total", vm="off", mode="guest") == 0
    metrics.publish(SNAPSHOT)
    assert names_of(series(metrics), "web") >= MEASURED


def test_a_look_of_before_its_end_is_not_shown_after_it(metrics: Metrics) -> None:
    metrics.publish(replace(SNAPSHOT, vms=(replace(WEB, started_s=None, state="stopped"), OFF)))
    assert value(series(metrics), "block_read_bytes_total", vm="web", disk="root") == 0


def test_all_series_of_a_guest_vanish_with_it(metrics: Metrics) -> None:
    metrics.vm_exited("web", "crash")
    metrics.qmp_reconnected("web")
    assert names_of(series(metrics), "web")
    gone = Snapshot(vms=(OFF,), nics=SNAPSHOT.nics, filtered=SNAPSHOT.filtered, measures=SNAPSHOT.measures)
    metrics.publish(gone)
    assert not [name for name, labels in series(metrics) if "web" in dict(labels).values()]
    metrics.publish(SNAPSHOT)
    assert value(series(metrics), "vm_exits_total", vm="web", reason="crash") == 0


def test_a_disk_s_series_vanish_with_it(metrics: Metrics) -> None:
    assert any(("disk", "root") in labels and ("vm", "web") in labels for _, labels in series(metrics))
    metrics.publish(replace(SNAPSHOT, measures={"web": replace(LOOK, disks=(), jobs=())}))
    assert not any(("disk", "root") in labels and ("vm", "web") in labels for _, labels in series(metrics))


def test_only_what_changed_is_drawn_again(metrics: Metrics) -> None:
    metrics.render()
    first = metrics.drawn
    metrics.render(Form(openmetrics=True, gzip=True))
    metrics.publish(replace(SNAPSHOT, vms=(replace(WEB), replace(OFF)), filtered=dict(SNAPSHOT.filtered)))
    metrics.render()
    assert metrics.drawn == first
    metrics.publish(replace(SNAPSHOT, measures={"web": replace(LOOK, at_s=15.0, vcpus=3)}))
    assert value(series(metrics), "vm_vcpus", vm="web") == 3
    assert metrics.drawn == first + 1
    metrics.vm_exited("off", "crash")
    assert value(series(metrics), "vm_exits_total", vm="off", reason="crash") == 1
    assert metrics.drawn == first + 2


def test_changes_are_drawn_ahead_for_who_scrapes_and_for_nobody_else() -> None:
    now_s = 0.0
    metrics = Metrics(version="0.1.0", qemu="", started_s=1.0, clock_s=lambda: now_s)
    metrics.publish(SNAPSHOT)
    metrics.draw_ahead()
    assert metrics.drawn == 0
    metrics.render()
    first = metrics.drawn
    metrics.publish(replace(SNAPSHOT, measures={"web": replace(LOOK, at_s=15.0)}))
    metrics.draw_ahead()
    assert metrics.drawn == first + 1
    metrics.render()
    assert metrics.drawn == first + 1
    now_s = AHEAD_S
    metrics.publish(SNAPSHOT)
    metrics.draw_ahead()
    assert metrics.drawn == first + 1


def test_ages_go_on_while_nothing_is_published() -> None:
    now_s = 10.0
    metrics = Metrics(version="0.1.0", qemu="", started_s=1.0, clock_s=lambda: now_s)
    metrics.looked("links", 4.0)
    assert value(series(metrics), "snapshot_age_seconds", source="links") == 6
    now_s = 70.0
    assert value(series(metrics), "snapshot_age_seconds", source="links") == 66


def test_a_mistake_in_what_is_shown_of_one_guest_costs_no_other_its_series(metrics: Metrics) -> None:
    torn = replace(LOOK, vm="off", disks=(replace(DISK, io_time_s={"read": "none"}),))  # type: ignore[dict-item]
    on = replace(OFF, started_s=5.0)
    metrics.publish(replace(SNAPSHOT, vms=(WEB, on), measures={"web": LOOK, "off": torn}))
    found = series(metrics)
    assert names_of(found, "web") >= MEASURED - {"vm_pressure_seconds_total"}
    assert not names_of(found, "off") & {"block_io_time_seconds_total", "vm_cpu_seconds_total"}
    assert value(found, "vm_info", vm="off", uuid=on.uuid, machine=on.machine, accel=on.accel) == 1
