"""What a snapshot shows of the host, as lines of metrics: units, resources, bridges, services; not of guests."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agent.telemetry.catalogue import METRICS
from agent.telemetry.exposition import encoded, line
from agent.telemetry.snapshot import Snapshot

UNIT_STATES = ("valid", "invalid", "held")

Samples = Mapping[tuple[str, ...], float]

FAMILIES: Mapping[str, Callable[[Snapshot], Samples]] = {
    "units": lambda s: {(state,): s.units.get(state, 0) for state in UNIT_STATES},
    "resources": lambda s: dict(sorted(s.resources.items())),
    "resource_in_sync": lambda s: dict(sorted(s.in_sync.items())),
    "actions_in_flight": lambda s: {(): s.actions_in_flight},
    "conditions": lambda s: dict(sorted(s.conditions.items())),
    "findings": lambda s: dict(sorted(s.findings.items())),
    "bridge_up": lambda s: {(one.name,): one.up for one in s.bridges},
    "bridge_ports": lambda s: {(one.name,): one.ports for one in s.bridges},
    "dhcp_leases": lambda s: {(one.bridge,): one.leases for one in s.pools},
    "dhcp_pool_size": lambda s: {(one.bridge,): one.size for one in s.pools},
    "service_up": lambda s: {(one.name,): one.up for one in s.services},
    "service_restarts_total": lambda s: {(one.name,): one.restarts for one in s.services},
    "netlink_events_total": lambda s: {(name,): count for name, count in sorted(s.netlink.events.items())},
    "netlink_overflows_total": lambda s: {(): s.netlink.overflows},
    "netlink_errors_total": lambda s: {(name,): count for name, count in sorted(s.netlink.errors.items())},
}


def world_lines(snapshot: Snapshot) -> dict[str, list[bytes]]:
    """All lines, by short name of their metric; what the catalogue knows beforehand is there at zero."""
    found: dict[str, list[bytes]] = {}
    for name, samples_of in FAMILIES.items():
        metric = METRICS[name]
        samples = dict.fromkeys(metric.known, 0.0) | dict(samples_of(snapshot))
        found[name] = [encoded(line(metric, labels, value) for labels, value in samples.items())]
    return found
