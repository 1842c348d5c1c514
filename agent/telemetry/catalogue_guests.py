"""The metrics of guests, their disks and NICs, and of what they are attached to."""

from __future__ import annotations

from agent.core.measures import LATENCY_BOUNDS_S, REACH_BOUNDS_S
from agent.core.routing.filters_ingress import Dropped
from agent.telemetry.metric import counter, gauge, histogram

BOOT = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0, 60.0, 120.0)

EXIT_REASONS = ("crash", "guest_reset", "guest_shutdown", "host", "killed", "oom", "panic", "watchdog")
DROP_REASONS = tuple(sorted(reason.value for reason in Dropped))
CPU_MODES = ("guest", "system", "user")

GUESTS = (
    gauge("vm_info", "accel machine uuid vm", "A guest: always 1.", "its unit, or what it was launched with"),
    gauge("vm_state", "state vm", "The state of a guest: 1 for the present one.", "QMP query-status, pidfd"),
    gauge("vm_desired_state", "state vm", "What a guest is to be: 1 for that state.", "its unit and its operator"),
    gauge(
        "vm_held",
        "reason vm",
        "A guest that is left as it is: 1, with the reason; without a series it is not.",
        "the latest pass",
    ),
    gauge("vm_pending_changes", "vm", "Changes that wait for a restart of the guest.", "the latest pass"),
    gauge("vm_start_time_seconds", "vm", "When a guest was launched, Unix time.", "its process"),
    counter("vm_restarts_total", "vm", "Launches that answered an end of the guest.", "the agent's memory"),
    counter("vm_exits_total", "reason vm", "Ends of a guest, its own resets included.", "pidfd, QMP SHUTDOWN"),
    histogram(
        "vm_boot_duration_seconds", "", "From launch to running.", "the reconciler, QMP query-status", BOOT, ((),)
    ),
    gauge(
        "vm_stale",
        "vm",
        "Whether a guest that runs has not answered the last looks; what is measured of it is missing then.",
        "the age of its last look",
    ),
)

USAGE = (
    counter("vm_cpu_seconds_total", "mode vm", "Processor time of a guest's QEMU, by mode.", "/proc/PID/stat"),
    gauge("vm_vcpus", "vm", "Processors that a guest has.", "QMP query-cpus-fast"),
    counter(
        "vm_vcpu_delay_seconds_total",
        "vm",
        "Time that a guest's processors waited for one of the host's.",
        "/proc/PID/task/TID/schedstat",
    ),
    counter(
        "vm_pressure_seconds_total",
        "resource vm",
        "Time that some task of a guest's QEMU stood still for want of cpu, memory or io.",
        "cgroup v2 cpu.pressure, memory.pressure, io.pressure",
    ),
    gauge("vm_memory_resident_bytes", "vm", "Memory of the host that a guest's QEMU holds.", "/proc/PID/status"),
    gauge("vm_memory_balloon_bytes", "vm", "Memory that a guest's balloon leaves to it.", "QMP query-balloon"),
    gauge("vm_guest_memory_free_bytes", "vm", "Unused memory, as the guest counts.", "virtio-balloon guest-stats"),
    gauge(
        "vm_guest_memory_available_bytes",
        "vm",
        "Memory to be had without swapping, as the guest counts.",
        "virtio-balloon guest-stats",
    ),
    gauge("vm_guest_memory_total_bytes", "vm", "All memory, as the guest counts.", "virtio-balloon guest-stats"),
)

DISKS = (
    counter("block_read_bytes_total", "disk vm", "Bytes that a guest read.", "QMP query-blockstats"),
    counter("block_written_bytes_total", "disk vm", "Bytes that a guest wrote.", "QMP query-blockstats"),
    counter("block_operations_total", "disk op vm", "Operations of a disk that ended well.", "QMP query-blockstats"),
    counter("block_errors_total", "disk op vm", "Operations of a disk that failed.", "QMP query-blockstats"),
    counter(
        "block_io_time_seconds_total",
        "disk op vm",
        "Time that operations took, added up.",
        "QMP query-blockstats",
    ),
    histogram(
        "block_latency_seconds",
        "disk op vm",
        "How long an operation of a disk took, from QEMU's device to its answer.",
        "QMP block-latency-histogram-set, query-blockstats",
        LATENCY_BOUNDS_S,
    ),
    gauge("block_capacity_bytes", "disk vm", "The size of a disk as its guest sees it.", "QMP query-block"),
    gauge("block_allocated_bytes", "disk vm", "What a disk's image takes on the host.", "QMP query-block"),
    gauge("block_job_progress_ratio", "disk job vm", "How much of a block job is done.", "QMP query-block-jobs"),
)

_TAP = "rtnetlink IFLA_STATS64 of its tap"

NICS = (
    *(
        counter(f"nic_{direction}_{what}_total", "nic vm", f"{what.capitalize()} that the guest {verb}.", _TAP)
        for direction, verb in (("receive", "received"), ("transmit", "sent"))
        for what in ("bytes", "packets", "errors", "drops")
    ),
    gauge("nic_up", "nic vm", "Whether a NIC's tap is up.", "rtnetlink"),
    gauge("nic_attached", "nic vm", "Whether frames can pass between a NIC and its bridge.", "rtnetlink, TUNGETIFF"),
    gauge(
        "nic_learnt",
        "nic vm",
        "Whether the bridge has learnt the guest's MAC at its own tap; no series before it has sent anything.",
        "rtnetlink, the bridge's FDB",
    ),
    histogram(
        "nic_reach_seconds",
        "nic vm",
        "How long a guest took to answer ARP or neighbour discovery.",
        "the kernel's neighbour table",
        REACH_BOUNDS_S,
    ),
    counter(
        "nic_reach_unanswered_total",
        "nic vm",
        "Such questions that the guest did not answer within a second.",
        "the kernel's neighbour table",
    ),
    counter(
        "filtered_packets_total", "nic reason vm", "Packets of a NIC, or for it, that filters dropped.", "nftables"
    ),
)

NETWORK = (
    gauge("bridge_up", "bridge", "Whether a bridge is up.", "rtnetlink"),
    gauge("bridge_ports", "bridge", "Links that are enslaved to a bridge.", "rtnetlink"),
    gauge("forward_up", "port proto vm", "Whether a published port leads to its guest.", "nftables, haproxy"),
    gauge("dhcp_leases", "bridge", "Leases that a bridge's DHCP server has given.", "dnsmasq's leases"),
    gauge(
        "dhcp_pool_size",
        "bridge",
        "Addresses that a bridge's DHCP server has to give, static ones included.",
        "its unit",
    ),
    gauge("service_up", "service", "Whether a supervised program runs.", "pidfd, systemd"),
    counter(
        "service_restarts_total", "service", "Starts that answered an end of a supervised program.", "the supervisor"
    ),
)
