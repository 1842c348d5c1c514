"""The dashboard of one guest: what it does, how fast its disks answer, and what became of it."""

from __future__ import annotations

from dashboards.common import AGENT_STARTS, GUEST_STARTS, INSTANCE, ONE_VM
from dashboards.model import Dashboard, Panel, Query, Row
from dashboards.panels import heatmap, lines, number, state, table, timeline, words
from dashboards.promql import heat, increase, mean, of_guest, on_host, quantile, rate, state_code, total

LATENCY = of_guest("block_latency_seconds_bucket")
OPERATIONS = ("read", "write", "flush")


def _now() -> Row:
    started = of_guest("vm_start_time_seconds")
    return Row(
        "Now",
        (
            state("State", "What the guest is at present.", Query(state_code(of_guest("vm_state")))),
            number("Runs for", "Since its QEMU was launched.", "s", Query(f"max(time() - {started})")),
            number(
                "Restarts",
                "Launches that answered an end of the guest, since the agent began to count.",
                "short",
                Query(f"sum({of_guest('vm_restarts_total')})"),
            ),
            number(
                "Pending changes",
                "Edits of its unit that wait for the guest's next start; `vmhost status NAME` lists them.",
                "short",
                Query(f"sum({of_guest('vm_pending_changes')})"),
                bad_from=1,
            ),
            number(
                "As its unit says",
                "1 where the guest is as its unit says, with nothing pending; `vmhost why NAME` says what it lacks.",
                "bool_yes_no",
                Query("min(" + on_host("resource_in_sync", 'kind="vm"', 'name=~"$vm"') + ")"),
            ),
            words("Machine", "The kind of machine that QEMU shows the guest.", Query(of_guest("vm_info")), "machine"),
            timeline(
                "State over time",
                "Each state that the guest was in, as `vmhost status` names it.",
                Query(state_code(of_guest("vm_state")), "{{vm}}"),
                height=5,
            ),
        ),
    )


def _load() -> Row:
    return Row(
        "CPU and memory",
        (
            lines(
                "CPU",
                "Host CPUs that the guest's QEMU uses: guest is the guest's own code, system and user are QEMU's"
                " work for it.",
                "none",
                Query(total(rate(of_guest("vm_cpu_seconds_total")), "mode"), "{{mode}}"),
                Query(f"max({of_guest('vm_vcpus')})", "virtual CPUs"),
            ),
            lines(
                "CPU delay",
                "How long its virtual CPUs were ready and waited for a host CPU, as a share of one CPU: what a"
                " guest calls steal.",
                "percentunit",
                Query(total(rate(of_guest("vm_vcpu_delay_seconds_total")), "vm"), "{{vm}}"),
            ),
            lines(
                "Pressure",
                "The share of time in which something in the guest's control group stood still for want of CPU,"
                " memory or I/O.",
                "percentunit",
                Query(total(rate(of_guest("vm_pressure_seconds_total")), "resource"), "{{resource}}"),
            ),
            lines(
                "Memory on the host",
                "Resident: what its QEMU takes of the host. Balloon: what the guest may use at present.",
                "bytes",
                Query(f"sum({of_guest('vm_memory_resident_bytes')})", "resident"),
                Query(f"sum({of_guest('vm_memory_balloon_bytes')})", "balloon"),
                width=12,
            ),
            lines(
                "Memory in the guest",
                "As the guest's own balloon driver tells it; nothing where it has none.",
                "bytes",
                *(
                    Query(f"sum({of_guest(f'vm_guest_memory_{what}_bytes')})", what)
                    for what in ("total", "available", "free")
                ),
                width=12,
            ),
        ),
    )


def _latency() -> Row:
    maps = (
        heatmap(
            f"{operation.capitalize()} latency",
            f"How long QEMU took for each {operation}, over all disks of the guest; darker is more often.",
            heat(of_guest("block_latency_seconds_bucket", f'op="{operation}"')),
        )
        for operation in OPERATIONS
    )
    by = ("disk", "op")
    return Row(
        "Disk latency",
        (
            *maps,
            lines(
                "p50",
                "Half of the operations took no longer. A gap: there was no such operation.",
                "s",
                Query(quantile(0.5, LATENCY, *by), "{{disk}} {{op}}"),
                points=True,
            ),
            lines(
                "p99",
                "All but one of a hundred operations took no longer. A gap: there was no such operation.",
                "s",
                Query(quantile(0.99, LATENCY, *by), "{{disk}} {{op}}"),
                points=True,
            ),
            lines(
                "Mean",
                "What an operation took on average. A gap: there was no such operation.",
                "s",
                Query(mean(of_guest("block_latency_seconds"), *by), "{{disk}} {{op}}"),
                points=True,
            ),
        ),
    )


def _disks() -> Row:
    return Row(
        "Disks",
        (
            lines(
                "IOPS",
                "Operations each second that the guest asked its disks for.",
                "iops",
                Query(total(rate(of_guest("block_operations_total")), "disk", "op"), "{{disk}} {{op}}"),
            ),
            lines(
                "Throughput",
                "Bytes each second that the guest read and wrote.",
                "Bps",
                Query(total(rate(of_guest("block_read_bytes_total")), "disk"), "{{disk}} read"),
                Query(total(rate(of_guest("block_written_bytes_total")), "disk"), "{{disk}} written"),
            ),
            lines(
                "Operations under way",
                "How many operations were under way on average: the time that they took, by the time that passed.",
                "none",
                Query(total(rate(of_guest("block_io_time_seconds_total")), "disk", "op"), "{{disk}} {{op}}"),
            ),
            lines(
                "Errors",
                "Operations that failed; `journalctl -u vmhost-vm-NAME` and the host's kernel log say why.",
                "short",
                Query(total(increase(of_guest("block_errors_total")), "disk", "op"), "{{disk}} {{op}}"),
            ),
            lines(
                "Size",
                "Capacity is what the guest sees, allocated what the image takes on the host.",
                "bytes",
                Query(total(of_guest("block_capacity_bytes"), "disk"), "{{disk}} capacity"),
                Query(total(of_guest("block_allocated_bytes"), "disk"), "{{disk}} allocated"),
            ),
            lines(
                "Block jobs",
                "How much of a job, such as a mirror, is done. Empty while there is none.",
                "percentunit",
                Query(of_guest("block_job_progress_ratio"), "{{disk}} {{job}}"),
            ),
        ),
    )


def _network() -> Row:
    return Row(
        "Network",
        (
            _nic("Traffic", "Bytes each second, as the guest counts: it receives what its tap sends.", "Bps", "bytes"),
            _nic("Packets", "Packets each second, as the guest counts.", "pps", "packets"),
            lines(
                "Lost",
                "Packets each second that were dropped for want of room or were faulty; filtered ones are beside.",
                "pps",
                *(
                    Query(total(rate(of_guest(f"nic_{way}_{what}_total")), "nic"), f"{{{{nic}}}} {way} {what}")
                    for way in ("receive", "transmit")
                    for what in ("drops", "errors")
                ),
            ),
            lines(
                "Filtered",
                "Packets each second of the guest, or for it, that its filters dropped, by reason.",
                "pps",
                Query(total(rate(of_guest("filtered_packets_total")), "nic", "reason"), "{{nic}} {{reason}}"),
            ),
            lines(
                "Reach",
                "How soon the guest answers ARP or neighbour discovery: p50 and p99.",
                "s",
                *(
                    Query(quantile(share, of_guest("nic_reach_seconds_bucket"), "nic"), f"{{{{nic}}}} p{share * 100:g}")
                    for share in (0.5, 0.99)
                ),
                points=True,
            ),
            lines(
                "Connected",
                "1 where frames can pass between a NIC and its bridge, its tap is up, and its bridge has learnt"
                " its MAC.",
                "none",
                Query(total(of_guest("nic_attached"), "nic"), "{{nic}} attached"),
                Query(total(of_guest("nic_up"), "nic"), "{{nic}} up"),
                Query(total(of_guest("nic_learnt"), "nic"), "{{nic}} learnt"),
            ),
        ),
    )


def _nic(title: str, description: str, unit: str, what: str) -> Panel:
    queries = (
        Query(total(rate(of_guest(f"nic_{way}_{what}_total")), "nic"), f"{{{{nic}}}} {word}")
        for way, word in (("receive", "received"), ("transmit", "sent"))
    )
    return lines(title, description, unit, *queries)


def _history() -> Row:
    return Row(
        "What became of it",
        (
            lines(
                "Ends",
                "Ends of the guest by reason: its own poweroff or reset, its host, a panic, a crash, no memory,"
                " a kill.",
                "short",
                Query(total(increase(of_guest("vm_exits_total")), "reason"), "{{reason}}"),
            ),
            lines(
                "Monitor",
                "1 while the agent is connected to QEMU's monitor, and connections that had to be made anew.",
                "short",
                Query(f"sum({of_guest('qmp_connected')})", "connected"),
                Query(f"sum({increase(of_guest('qmp_reconnects_total'))})", "made anew"),
            ),
            table(
                "Conditions",
                "What stands in the guest's way or is worth knowing; `vmhost why NAME` has the words.",
                {"present": (total(on_host("conditions", 'kind=~"vm|tap"', 'name=~"$vm(/.*)?"'), "type"), "short")},
                hidden=("present",),
                width=8,
                height=8,
            ),
        ),
    )


DASHBOARD = Dashboard(
    name="guest",
    title="vmhost: Guest",
    description="One guest: state, CPU, memory, disks with their latency, network, and what became of it.",
    variables=(INSTANCE, ONE_VM),
    annotations=(GUEST_STARTS, AGENT_STARTS),
    rows=(_now(), _latency(), _load(), _disks(), _network(), _history()),
)
