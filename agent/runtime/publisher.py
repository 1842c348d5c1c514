"""Brings what the agent knows to the metrics, off the path of passes and scrapes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping

from agent.core.errors import ObservationError
from agent.host.netlink import Links
from agent.host.processes import kvm_usable
from agent.runtime.chronicle import Chronicle
from agent.runtime.doorbell import Doorbell
from agent.runtime.execute_vms import ran_s
from agent.runtime.filters import FilterLooks
from agent.runtime.guests import Guests
from agent.runtime.operator import Operator
from agent.telemetry.metrics import Metrics
from agent.telemetry.snapshot import NetlinkTotals, Readings, Snapshot, Traffic, snapshot_of, specs_of, with_traffic

PUBLISH_EVERY_S = 1.0
READ_TRAFFIC_EVERY_S = 10.0
LAG_EVERY_S = 1.0


async def publish(
    operator: Operator,
    links: Links,
    guests: Guests,
    filters: FilterLooks,
    chronicle: Chronicle,
    doorbell: Doorbell,
) -> None:
    """Hand a snapshot to the metrics, each second in which there was a pass, and every ten seconds with new traffic."""
    kvm = kvm_usable()
    traffic: Mapping[str, Traffic] = {}
    filtered: Mapping[tuple[str, str, str], int] = {}
    traffic_at_s, shown, snapshot = -READ_TRAFFIC_EVERY_S, -1, Snapshot()
    while True:
        now_s = time.monotonic()
        is_due = now_s - traffic_at_s >= READ_TRAFFIC_EVERY_S
        if is_due:
            traffic_at_s = now_s
            with contextlib.suppress(
                ObservationError
            ):  # the series stand still; the next reading is due in ten seconds
                traffic = await links.statistics()
            filtered = await filters.count(specs_of(operator.inputs()))
        if operator.pass_number != shown:
            shown = operator.pass_number
            snapshot = snapshot_of(operator.inputs(), _readings(traffic, filtered, links, guests, kvm))
            chronicle.metrics.publish(snapshot)
        elif is_due:
            snapshot = with_traffic(snapshot, traffic, filtered, _totals(links))
            chronicle.metrics.publish(snapshot)
        chronicle.rang(doorbell.rings)
        await asyncio.sleep(PUBLISH_EVERY_S)


def _readings(
    traffic: Mapping[str, Traffic],
    filtered: Mapping[tuple[str, str, str], int],
    links: Links,
    guests: Guests,
    kvm: bool,
) -> Readings:
    return Readings(
        traffic=traffic,
        filtered=filtered,
        started_s={g.name: time.time() - ran_s(g) for g in guests if g.alive},
        qmp_connected=frozenset(g.name for g in guests if g.monitor is not None),
        netlink=_totals(links),
        kvm=kvm,
    )


def _totals(links: Links) -> NetlinkTotals:
    return NetlinkTotals(dict(links.events), links.overflows, dict(links.errors))


async def watch_lag(metrics: Metrics) -> None:
    """Measure how late the event loop comes back from a sleep."""
    while True:
        wanted_s = time.perf_counter() + LAG_EVERY_S
        await asyncio.sleep(LAG_EVERY_S)
        metrics.loop_lagged(max(0.0, time.perf_counter() - wanted_s))
