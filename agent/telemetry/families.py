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


class World:
    """Their text, made anew only where it shows something else. Used by one thread at a time."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Samples, bytes]] = {}

    def blocks(self, snapshot: Snapshot) -> dict[str, list[bytes]]:
        """All lines, by short name of their metric; what the catalogue knows beforehand is there at zero."""
        return {name: [self._text(name, samples_of(snapshot))] for name, samples_of in FAMILIES.items()}

    def _text(self, name: str, shown: Samples) -> bytes:
        kept = self._kept.get(name)
        if kept is None or kept[0] != shown:
            metric = METRICS[name]
            samples = dict.fromkeys(metric.known, 0.0) | dict(shown)
            kept = shown, encoded(line(metric, labels, value) for labels, value in samples.items())
            self._kept[name] = kept
        return kept[1]
