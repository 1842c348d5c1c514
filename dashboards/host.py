"""The dashboard of hosts: all guests at a glance, what is wrong, and who takes how much."""

from __future__ import annotations

from dashboards.common import AGENT_STARTS, GUEST_STARTS, INSTANCE, VMS
from dashboards.model import Dashboard, Query, Row
from dashboards.panels import heatmap, lines, number, table, timeline
from dashboards.promql import heat, increase, of_guest, on_host, quantile, rate, state_code, total

ALERTS = 'ALERTS{instance=~"$instance", alertname=~"Vmhost.*"}'
GUEST = ("instance", "vm")
LATENCY = of_guest("block_latency_seconds_bucket")


def _now() -> Row:
    running = on_host("vm_state", 'state="running"')
    wanted = on_host("vm_desired_state", 'state="running"')
    bad_units = on_host("units", 'state=~"invalid|held"')
    return Row(
        "Now",
        (
            number("Guests that run", "Guests whose state is running.", "short", Query(f"sum({running})")),
            number(
                "Guests that should",
                "Guests that are to run and are in another state; the table below says which.",
                "short",
                Query(f"sum({wanted} - on (instance, vm) {running} > bool 0)"),
                bad_from=1,
            ),
            number(
                "Out of sync",
                "Bridges, guests, taps and services that are not as their units say, pending changes included.",
                "short",
                Query(f"sum({on_host('resource_in_sync')} == bool 0)"),
                bad_from=1,
            ),
            number(
                "Units with mistakes",
                "Files that are invalid, or whose resources are left on their last good version (held).",
                "short",
                Query(f"sum({bad_units})"),
                bad_from=1,
            ),
            number(
                "Guests not seen",
                "Guests that run and have not told of their disks and processors for half a minute: a QEMU that hangs.",
                "short",
                Query(f"sum({on_host('vm_stale')})"),
                bad_from=1,
            ),
            number(
                "Pending changes",
                "Edits that wait for a guest's next start.",
                "short",
                Query(f"sum({on_host('vm_pending_changes')})"),
            ),
            number(
                "Repairs in an hour",
                "Hurt resources that were mended within the last hour; many of one kind: something fights the agent.",
                "short",
                Query(f"sum(increase({on_host('repairs_total')}[1h]))"),
            ),
        ),
    )


def _guests() -> Row:
    moved = " + ".join(total(rate(of_guest(f"nic_{way}_bytes_total")), *GUEST) for way in ("receive", "transmit"))
    return Row(
        "Guests",
        (
            table(
                "Guests",
                "Each guest now; a click on its name leads to its own dashboard. p99: the slowest hundredth of"
                " disk operations.",
                {
                    "state": (state_code(of_guest("vm_state")), "state"),
                    "CPUs used": (total(rate(of_guest("vm_cpu_seconds_total")), *GUEST), "none"),
                    "memory": (total(of_guest("vm_memory_resident_bytes"), *GUEST), "bytes"),
                    "IOPS": (total(rate(of_guest("block_operations_total")), *GUEST), "iops"),
                    "disk p99": (quantile(0.99, LATENCY, *GUEST), "s"),
                    "network": (moved, "Bps"),
                    "pending": (total(of_guest("vm_pending_changes"), *GUEST), "short"),
                    "restarts": (total(of_guest("vm_restarts_total"), *GUEST), "short"),
                },
                links=True,
            ),
            timeline(
                "States",
                "Each guest's states over time.",
                Query(state_code(of_guest("vm_state")), "{{vm}}"),
                height=8,
            ),
        ),
    )


def _trouble() -> Row:
    return Row(
        "What is wrong",
        (
            table(
                "Alerts",
                "Alerts of alerts.yml that fire or are about to.",
                {
                    "active": (
                        total(ALERTS, "instance", "alertname", "alertstate", "vm"),
                        "short",
                    )
                },
                hidden=("active",),
                width=8,
            ),
            table(
                "Conditions",
                "What stands in the way of a resource or is worth knowing; `vmhost status` has the words.",
                {"present": (total(on_host("conditions"), "instance", "kind", "name", "type") + " > 0", "short")},
                hidden=("present",),
                width=8,
            ),
            lines(
                "Ends of guests",
                "Ends by reason. Guest_shutdown and host are asked for; panic, crash, oom and killed are not.",
                "short",
                Query(total(increase(of_guest("vm_exits_total")), "reason"), "{{reason}}"),
            ),
        ),
    )


def _load() -> Row:
    return Row(
        "CPU and memory",
        (
            lines(
                "CPU",
                "Host CPUs that each guest's QEMU uses.",
                "none",
                Query(total(rate(of_guest("vm_cpu_seconds_total")), *GUEST), "{{vm}}"),
                stacked=True,
            ),
            lines(
                "CPU delay",
                "How long virtual CPUs were ready and waited for a host CPU, by guest: rises when the host is"
                " overcommitted.",
                "percentunit",
                Query(total(rate(of_guest("vm_vcpu_delay_seconds_total")), *GUEST), "{{vm}}"),
            ),
            lines(
                "Memory",
                "What each guest's QEMU takes of the host.",
                "bytes",
                Query(total(of_guest("vm_memory_resident_bytes"), *GUEST), "{{vm}}"),
                stacked=True,
            ),
        ),
    )


def _disks() -> Row:
    return Row(
        "Disks",
        (
            lines(
                "IOPS",
                "Operations each second that guests asked their disks for.",
                "iops",
                Query(total(rate(of_guest("block_operations_total")), *GUEST), "{{vm}}"),
                stacked=True,
            ),
            lines(
                "Throughput",
                "Bytes each second that all chosen guests read and wrote.",
                "Bps",
                Query(f"sum({rate(of_guest('block_read_bytes_total'))})", "read"),
                Query(f"sum({rate(of_guest('block_written_bytes_total'))})", "written"),
            ),
            lines(
                "Slowest p99",
                "The ten guests whose slowest hundredth of disk operations takes longest.",
                "s",
                Query(f"topk(10, {quantile(0.99, LATENCY, *GUEST)})", "{{vm}}"),
                points=True,
            ),
            heatmap("Writes", "How long writes of all chosen guests take; darker is more often.", _heat("write")),
            heatmap("Reads", "How long reads of all chosen guests take; darker is more often.", _heat("read")),
            heatmap("Flushes", "How long flushes of all chosen guests take; darker is more often.", _heat("flush")),
        ),
    )


def _heat(operation: str) -> str:
    return heat(of_guest("block_latency_seconds_bucket", f'op="{operation}"'))


def _network() -> Row:
    return Row(
        "Network",
        (
            lines(
                "Received by guests",
                "Bytes each second.",
                "Bps",
                Query(total(rate(of_guest("nic_receive_bytes_total")), *GUEST), "{{vm}}"),
                width=12,
                stacked=True,
            ),
            lines(
                "Sent by guests",
                "Bytes each second.",
                "Bps",
                Query(total(rate(of_guest("nic_transmit_bytes_total")), *GUEST), "{{vm}}"),
                width=12,
                stacked=True,
            ),
        ),
    )


DASHBOARD = Dashboard(
    name="host",
    title="vmhost: Host",
    description="All guests of a host, or of several: states, what is wrong, and who takes how much.",
    variables=(INSTANCE, VMS),
    annotations=(GUEST_STARTS, AGENT_STARTS),
    rows=(_now(), _guests(), _trouble(), _load(), _disks(), _network()),
)
