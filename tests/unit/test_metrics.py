"""What a scrape gives: the promised names, and series that vanish with their guest."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from agent.core.conditions import Condition
from agent.core.desired import Desired
from agent.core.observed import Observed
from agent.core.tell.status import AgentFacts, StatusInputs
from agent.telemetry.catalogue import CATALOGUE
from agent.telemetry.catalogue_guests import DISKS, NICS, USAGE
from agent.telemetry.exposition import Form
from agent.telemetry.metrics import Metrics
from agent.telemetry.snapshot import NetlinkTotals, Readings, Snapshot, snapshot_of, with_readings
from tests.exposition import Series, openmetrics_families, samples_of, text_families, value
from tests.unit.test_status import BRIDGE, LINKS, RUNNING, WEB, Change, File

PROMISED = re.findall(
    r"\w+",
    """
build_info start_time_seconds units resources units_last_reload_successful
units_last_reload_success_timestamp_seconds unit_reloads_total pass_duration_seconds passes_total
pass_last_success_timestamp_seconds doorbell_rings_total actions_total action_duration_seconds actions_in_flight
convergence_seconds resource_in_sync repairs_total repair_duration_seconds netlink_events_total
netlink_overflows_total netlink_errors_total qmp_connected qmp_reconnects_total qmp_command_duration_seconds
qmp_command_errors_total qmp_events_total event_loop_lag_seconds snapshot_age_seconds vm_info vm_state
vm_desired_state vm_pending_changes vm_start_time_seconds vm_restarts_total vm_exits_total vm_boot_duration_seconds
vm_cpu_seconds_total vm_vcpus vm_vcpu_delay_seconds_total vm_memory_resident_bytes vm_memory_balloon_bytes
vm_guest_memory_free_bytes vm_guest_memory_available_bytes vm_guest_memory_total_bytes vm_pressure_seconds_total
block_read_bytes_total block_written_bytes_total block_operations_total block_errors_total
block_io_time_seconds_total block_latency_seconds block_capacity_bytes block_allocated_bytes
block_job_progress_ratio nic_up nic_attached nic_reach_seconds nic_learnt bridge_up bridge_ports
nic_receive_bytes_total nic_receive_packets_total nic_receive_errors_total nic_receive_drops_total
nic_transmit_bytes_total nic_transmit_packets_total nic_transmit_errors_total nic_transmit_drops_total
filtered_packets_total forward_up dhcp_leases dhcp_pool_size service_restarts_total service_up findings vm_held
notifications_total conditions
""",
)


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


OPENMETRICS = Form(openmetrics=True)

AGENT = AgentFacts("0.1.0", 7, "2026-01-01T00:00:00Z", settled=True)
INPUTS = StatusInputs(
    AGENT,
    files=[File("/u/web.toml", "valid"), File("/u/bad.toml", "invalid")],
    desired=Desired({"br-lan": BRIDGE}, {"web": WEB}),
    observed=Observed(links=LINKS, vms={"web": RUNNING}, in_flight={"port/eth1": "enslave-port port/eth1"}),
    pending={"web": [Change("memory", "512M", "1G")]},
    restarts={"web": 2},
)
READINGS = Readings(
    traffic={"web-lan": Counts()},
    started_s={"web": 1000.0},
    qmp_connected=frozenset({"web"}),
    netlink=NetlinkTotals({"RTM_NEWLINK": 9}, 1, {"EBUSY": 2}),
)


def busy_metrics() -> Metrics:
    metrics = Metrics(version="0.1.0", qemu="7.2.0", started_s=1.0)
    metrics.units_reloaded(success=True, at_s=5.0)
    metrics.pass_finished(0.002, "success", 6.0)
    metrics.rung("netlink")
    metrics.converged("fault", 0.02)
    metrics.action_finished("arm-tap", "done", 0.001)
    metrics.repaired("tap", "missing", 0.0092)
    metrics.qmp_answered("query-status", 0.0004)
    metrics.qmp_refused("cont", "GenericError")
    metrics.qmp_event_seen("RESUME")
    metrics.qmp_reconnected("web")
    metrics.vm_exited("web", "crash")
    metrics.vm_booted(1.5)
    metrics.loop_lagged(0.001)
    metrics.notified("delivered")
    metrics.publish(snapshot_of(INPUTS, READINGS))
    return metrics


def series(metrics: Metrics) -> Series:
    return samples_of(text_families(metrics.render()))


def test_every_promised_name_is_in_the_catalogue() -> None:
    assert {f"vmhost_{name}" for name in PROMISED} <= {metric.name for metric in CATALOGUE}


def test_nothing_is_exported_that_the_catalogue_lacks_and_all_of_it_is_announced() -> None:
    for families in (text_families(busy_metrics().render()), openmetrics_families(busy_metrics().render(OPENMETRICS))):
        by_name = {(f.name if f.type != "counter" else f"{f.name}_total"): f for f in families}
        assert by_name.keys() == {metric.name for metric in CATALOGUE}
        for metric in CATALOGUE:
            family = by_name[metric.name]
            assert (family.type, family.documentation) == (metric.type, metric.help)
            for sample in family.samples:
                assert sample.name in metric.samples
                assert tuple(sorted(sample.labels.keys() - {"le"})) == metric.labels


def test_units_are_told_in_openmetrics() -> None:
    found = {family.name: family.unit for family in openmetrics_families(busy_metrics().render(OPENMETRICS))}
    assert found["vmhost_vm_cpu_seconds"] == "seconds"
    assert found["vmhost_block_job_progress_ratio"] == "ratio"
    assert found["vmhost_units"] == ""


def test_all_that_is_known_beforehand_is_there_at_zero() -> None:
    found = series(Metrics(version="0.1.0", qemu="", started_s=1.0))
    for metric in CATALOGUE:
        for labels in metric.known:
            name = metric.samples[-1].removeprefix("vmhost_")
            assert value(found, name, **dict(zip(metric.labels, labels, strict=True))) == 0
    assert {metric.short for metric in CATALOGUE if metric.type == "counter" and not metric.known} == {
        *("vm_restarts_total", "vm_exits_total", "qmp_reconnects_total", "service_restarts_total"),
        *("filtered_packets_total", "nic_reach_unanswered_total", "vm_pressure_seconds_total"),
        *(metric.short for metric in (*DISKS, *NICS, *USAGE) if metric.type == "counter"),
    }  # of what comes and goes: they are there as soon as their guest or service is


def test_values_are_what_was_seen() -> None:
    found = series(busy_metrics())
    assert value(found, "vm_state", vm="web", state="running") == 1
    assert value(found, "vm_state", vm="web", state="crash-loop") == 0
    assert value(found, "vm_desired_state", vm="web", state="running") == 1
    assert value(found, "vm_info", vm="web", uuid="u-web", machine="q35", accel="tcg") == 1
    assert value(found, "vm_pending_changes", vm="web") == 1
    assert value(found, "vm_start_time_seconds", vm="web") == 1000
    assert value(found, "vm_restarts_total", vm="web") == 2
    assert value(found, "units", state="invalid") == 1
    assert value(found, "units", state="held") == 0
    assert value(found, "resources", kind="vm", state="running") == 1
    assert value(found, "resource_in_sync", kind="vm", name="web") == 0
    assert value(found, "resource_in_sync", kind="tap", name="web/lan") == 1
    assert value(found, "bridge_ports", bridge="br-lan") == 1
    assert value(found, "actions_in_flight") == 1
    assert value(found, "netlink_events_total", type="RTM_NEWLINK") == 9
    assert value(found, "netlink_overflows_total") == 1
    assert value(found, "notifications_total", result="delivered") == 1
    assert value(found, "notifications_total", result="failed") == 0
    assert value(found, "repair_duration_seconds_bucket", kind="tap", reason="missing", le="0.016") == 1
    assert value(found, "repair_duration_seconds_bucket", kind="tap", reason="missing", le="0.008") == 0


def test_conditions_are_counted_and_that_of_an_alert_is_there_at_zero() -> None:
    full = Condition("vm/web", "PausedOnIoError", "NoSpace", "no space")
    lost = [Condition("tap/web/lan", "TapLost", reason, "lost") for reason in ("Replug", "Restart")]
    metrics = busy_metrics()
    zero = value(series(metrics), "conditions", kind="vm", name="web", type="PausedOnIoError")
    inputs = replace(INPUTS, conditions=[(one, "2026-01-01T00:00:00Z") for one in (full, *lost)])
    metrics.publish(snapshot_of(inputs, READINGS))
    found = series(metrics)
    assert (zero, value(found, "conditions", kind="vm", name="web", type="PausedOnIoError")) == (0, 1)
    assert value(found, "conditions", kind="tap", name="web/lan", type="TapLost") == 2


def test_traffic_is_in_the_guest_s_sense() -> None:
    found = series(busy_metrics())
    assert value(found, "nic_receive_bytes_total", vm="web", nic="lan") == 2
    assert value(found, "nic_transmit_bytes_total", vm="web", nic="lan") == 1
    assert value(found, "nic_receive_drops_total", vm="web", nic="lan") == 8
    assert value(found, "nic_transmit_drops_total", vm="web", nic="lan") == 7


def test_a_guest_s_series_vanish_with_it_and_count_anew() -> None:
    metrics = busy_metrics()
    metrics.publish(Snapshot())
    assert not [name for name, labels in series(metrics) if "web" in dict(labels).values()]
    metrics.vm_exited("web", "crash")
    metrics.publish(snapshot_of(INPUTS, READINGS))
    assert value(series(metrics), "vm_exits_total", vm="web", reason="crash") == 1


def test_what_was_not_seen_has_no_series() -> None:
    metrics = Metrics(version="0.1.0", qemu="", started_s=1.0)
    unseen = replace(INPUTS, observed=Observed(links=LINKS, vms={"web": replace(RUNNING, nics={})}))
    metrics.publish(snapshot_of(unseen, Readings()))
    names = {name for name, _ in series(metrics)}
    assert not names & {"vmhost_nic_attached", "vmhost_vm_start_time_seconds", "vmhost_nic_receive_bytes_total"}


def test_newer_traffic_changes_nothing_else() -> None:
    metrics, before = busy_metrics(), series(busy_metrics())
    snapshot = snapshot_of(INPUTS, READINGS)
    metrics.publish(with_readings(snapshot, replace(READINGS, traffic={"web-lan": Counts(tx_bytes=200)})))
    after = series(metrics)
    changed = {key for key in before if before[key] != after[key] and "timestamp" not in key[0]}
    assert {name for name, _ in changed} == {"vmhost_nic_receive_bytes_total"}
    assert value(after, "nic_receive_bytes_total", vm="web", nic="lan") == 200
