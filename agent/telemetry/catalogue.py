"""All metrics: the exporter, docs/metrics.md and the tests are made from this table.

A metric that is not here cannot be exported. Names and labels are a promise: dashboards and alerts of users rely on
them. No label ever holds a pid, an ifindex, a path, an address or an error's text.
"""

from __future__ import annotations

from agent.telemetry.catalogue_agent import ACTIONS, AGENT, MONITORS, NETLINK, PASSES, UNITS
from agent.telemetry.catalogue_guests import DISKS, GUESTS, NETWORK, NICS, USAGE
from agent.telemetry.metric import Metric

SECTIONS: tuple[tuple[str, tuple[Metric, ...]], ...] = (
    ("The agent", AGENT),
    ("Units and resources", UNITS),
    ("Passes", PASSES),
    ("Actions and repairs", ACTIONS),
    ("Netlink", NETLINK),
    ("Monitors of guests (QMP)", MONITORS),
    ("Guests", GUESTS),
    ("Processors and memory of guests", USAGE),
    ("Disks", DISKS),
    ("Network interfaces", NICS),
    ("Bridges, ports and services", NETWORK),
)

CATALOGUE: tuple[Metric, ...] = tuple(metric for _, metrics in SECTIONS for metric in metrics)

METRICS = {metric.short: metric for metric in CATALOGUE}
"""By name without prefix."""
