"""The metrics of the agent itself: its units, passes, actions, and its talks with the kernel and with QEMU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import get_args

from agent.core.actions import Action, kind_name
from agent.telemetry.metric import counter, gauge, histogram

FAST = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""From 1 ms, what healing a tap takes, to a minute, what a guest's graceful end takes."""

INSTANT = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


def each(words: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Words as the values of a single label."""
    return tuple((word,) for word in words)


DOORBELL_SOURCES = (
    "budget",
    "disk",
    "doctor",
    "exit",
    "file",
    "filters",
    "firewall",
    "forwarding",
    "ipv6-neighbours",
    "ipv6-routes",
    "leases",
    "limits",
    "netlink",
    "outcome",
    "ports",
    "probe",
    "qmp",
    "question",
    "routes",
    "service",
    "timer",
    "units",
)
"""Who rings for a pass."""

ACTION_KINDS = sorted(kind_name(kind) for kind in get_args(Action))
OUTCOMES = ("done", "failed", "unknown")

REPAIRS: Mapping[str, str] = {
    "bridge": "address down mac missing mtu settings unmarked vlan",
    "filters": "element missing settings",
    "firewall": "element missing settings",
    "forwarding": "settings",
    "ipv6": "missing settings",
    "port": "detached down mtu",
    "service": "exited settings",
    "tap": "detached down missing mtu rate renamed settings unmarked",
    "vlan": "address down missing settings unmarked",
    "vm": "exited missing renamed settings space",
}
"""What of a kind of resource can be hurt, in the words of `core.reasons`."""

REPAIR_PAIRS = tuple((kind, reason) for kind, reasons in REPAIRS.items() for reason in reasons.split())

COMMANDS = (
    "add-fd",
    "block-latency-histogram-set",
    "block_resize",
    "blockdev-add",
    "blockdev-close-tray",
    "blockdev-del",
    "blockdev-open-tray",
    "cont",
    "device_add",
    "device_del",
    "getfd",
    "netdev_add",
    "netdev_del",
    "qom-get",
    "qom-list",
    "qom-set",
    "query-balloon",
    "query-block",
    "query-block-jobs",
    "query-blockstats",
    "query-cpus-fast",
    "query-fdsets",
    "query-hotpluggable-cpus",
    "query-named-block-nodes",
    "query-status",
    "quit",
    "remove-fd",
    "set-action",
    "stop",
    "system_powerdown",
    "system_reset",
    "x-query-virtio-status",
)
"""What QEMU is told and asked; others appear when they are first used."""

EVENTS = (
    "ACPI_DEVICE_OST",
    "BALLOON_CHANGE",
    "BLOCK_IO_ERROR",
    "DEVICE_DELETED",
    "DEVICE_TRAY_MOVED",
    "GUEST_CRASHLOADED",
    "GUEST_PANICKED",
    "NIC_RX_FILTER_CHANGED",
    "POWERDOWN",
    "RESET",
    "RESUME",
    "RTC_CHANGE",
    "SHUTDOWN",
    "STOP",
    "SUSPEND",
    "WAKEUP",
    "WATCHDOG",
)
"""QAPI's events that these guests give cause for; others appear when they first come, up to a bound (`Metrics`)."""

NETLINK_TYPES = [f"{of}{what}" for of in ("del", "new") for what in ("addr", "link", "qdisc", "tfilter", "vlan")]

AGENT = (
    gauge("build_info", "python qemu version", "What runs: always 1.", "the package, `qemu-system-x86_64 --version`"),
    gauge("start_time_seconds", "", "When the agent started, Unix time.", "the agent's clock"),
    histogram("event_loop_lag_seconds", "", "How late the event loop was.", "a sleep of one second", INSTANT, ((),)),
    gauge(
        "snapshot_age_seconds",
        "source",
        "How old what is known is: links (full looks), units, guests (the oldest look), traffic, filters.",
        "the agent's clock",
    ),
    counter(
        "notifications_total",
        "result",
        "Notifications of people, by what became of them.",
        "hooks and the webhook",
        each(("delivered", "failed", "held_back")),
    ),
    gauge(
        "conditions",
        "kind name type",
        "What stands in a resource's way or is worth knowing, findings included.",
        "the latest pass",
    ),
    gauge(
        "findings",
        "finding resource",
        "What was found to break guests though our state is right.",
        "`vmhost doctor`",
    ),
)

UNITS = (
    gauge("units", "state", "Unit files by state.", "the unit directory"),
    gauge("resources", "kind state", "Resources by kind and state.", "the latest pass"),
    gauge("resource_in_sync", "kind name", "Whether a resource is as its unit says.", "the latest pass"),
    gauge("units_last_reload_successful", "", "Whether every unit was valid at the last one.", "the unit directory"),
    gauge(
        "units_last_reload_success_timestamp_seconds",
        "",
        "When every unit was valid last, Unix time.",
        "the unit directory",
    ),
    counter(
        "unit_reloads_total",
        "result",
        "Readings of the unit directory.",
        "the unit directory",
        each(("success", "failure")),
    ),
)

PASSES = (
    counter("passes_total", "result", "Passes of the reconciler.", "the reconciler", each(("success", "failure"))),
    histogram("pass_duration_seconds", "", "How long a pass took.", "the reconciler", INSTANT, ((),)),
    gauge("pass_last_success_timestamp_seconds", "", "When a pass last succeeded, Unix time.", "the reconciler"),
    counter("doorbell_rings_total", "source", "What rang for a pass.", "the doorbell", each(DOORBELL_SOURCES)),
    histogram(
        "convergence_seconds",
        "cause",
        "From an edit or fault seen until all is settled.",
        "the reconciler",
        FAST,
        each(("edit", "fault")),
    ),
)

ACTIONS = (
    counter(
        "actions_total",
        "kind outcome",
        "Actions carried out.",
        "the reconciler",
        tuple(product(ACTION_KINDS, OUTCOMES)),
    ),
    histogram(
        "action_duration_seconds", "kind", "How long an action took.", "the reconciler", FAST, each(ACTION_KINDS)
    ),
    gauge("actions_in_flight", "", "Actions under way.", "the reconciler"),
    counter(
        "repairs_total", "kind reason", "Hurt resources that are well again.", "the reconciler's ledger", REPAIR_PAIRS
    ),
    histogram(
        "repair_duration_seconds",
        "kind reason",
        "From a hurt seen until it is mended.",
        "the reconciler's ledger",
        FAST,
        REPAIR_PAIRS,
    ),
)

NETLINK = (
    counter("netlink_events_total", "type", "Messages that the kernel sent unasked.", "rtnetlink", each(NETLINK_TYPES)),
    counter("netlink_overflows_total", "", "Times that such messages were lost.", "rtnetlink, ENOBUFS", ((),)),
    counter(
        "netlink_errors_total",
        "errno",
        "Requests that the kernel refused.",
        "rtnetlink, NLMSG_ERROR",
        each(("EBUSY", "EEXIST", "EINVAL", "ENODEV", "ENOENT", "EOPNOTSUPP", "EPERM")),
    ),
)

MONITORS = (
    gauge("qmp_connected", "vm", "Whether the agent is connected to a guest's monitor.", "the monitor's socket"),
    counter("qmp_reconnects_total", "vm", "Monitor connections made anew.", "the monitor's socket"),
    histogram(
        "qmp_command_duration_seconds",
        "command",
        "How long QEMU took to answer.",
        "the monitor",
        INSTANT,
        each(COMMANDS),
    ),
    counter(
        "qmp_command_errors_total",
        "class command",
        "Commands that did not succeed, by QMP's class or our own (QemuSilent, …); `other` beyond sixteen more.",
        "the monitor",
        tuple(product(("GenericError", "QemuSilent"), COMMANDS)),
    ),
    counter(
        "qmp_events_total",
        "event",
        "Events that QEMU sent; those that no QEMU of today has are `other` beyond the first sixteen.",
        "the monitor",
        each(EVENTS),
    ),
)
