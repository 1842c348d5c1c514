"""Brings what the agent knows to the metrics, off the path of passes and scrapes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from agent.core.errors import ObservationError
from agent.core.measures import GuestMeasure
from agent.host.netlink import Links
from agent.host.processes import kvm_usable
from agent.runtime.chronicle import Chronicle
from agent.runtime.clock import now_s
from agent.runtime.doorbell import Doorbell
from agent.runtime.execute_vms import ran_s
from agent.runtime.filters import FilterLooks
from agent.runtime.guests import Guests
from agent.runtime.operator import Operator
from agent.telemetry.metrics import Metrics
from agent.telemetry.snapshot import NetlinkTotals, Readings, Snapshot, snapshot_of, specs_of, with_readings

PUBLISH_EVERY_S = 1.0
READ_TRAFFIC_EVERY_S = 10.0
LAG_EVERY_S = 1.0
STEADY_S = 0.5


@dataclass(frozen=True, slots=True)
class Published:
    """What the metrics are drawn from. `measures`: the last good look at each guest, see `core.measures`;
    `looked_s`: when links and units were last looked at as a whole, by source, on the clock of `now_s`."""

    operator: Operator
    links: Links
    guests: Guests
    filters: FilterLooks
    doorbell: Doorbell
    measures: Callable[[], Mapping[str, GuestMeasure]]
    looked_s: Callable[[], Mapping[str, float]]


async def publish(sources: Published, chronicle: Chronicle) -> None:
    """Hand a snapshot to the metrics, each second in which there was a pass or a look at a guest, and every ten seconds
    with new traffic."""
    readings, shown, snapshot = Readings(kvm=kvm_usable()), -1, Snapshot()
    traffic_at_s = -READ_TRAFFIC_EVERY_S
    while True:
        before = readings
        is_due = now_s() - traffic_at_s >= READ_TRAFFIC_EVERY_S
        if is_due:
            traffic_at_s = now_s()
            readings = await _with_traffic(readings, sources, chronicle)
        readings = _with_guests(readings, sources)
        if sources.operator.pass_number != shown:
            shown = sources.operator.pass_number
            snapshot = snapshot_of(sources.operator.inputs(), readings)
            chronicle.metrics.publish(snapshot)
        elif is_due or readings.measures != before.measures:
            snapshot = with_readings(snapshot, readings)
            chronicle.metrics.publish(snapshot)
        await asyncio.to_thread(chronicle.metrics.draw_ahead)
        _tell_ages(sources, readings, chronicle)
        chronicle.rang(sources.doorbell.rings)
        await asyncio.sleep(PUBLISH_EVERY_S)


async def _with_traffic(readings: Readings, sources: Published, chronicle: Chronicle) -> Readings:
    """New counts of taps and filters; what cannot be read stands still, and the next reading is due in ten seconds."""
    with contextlib.suppress(ObservationError):
        readings = replace(readings, traffic=await sources.links.statistics())
        chronicle.metrics.looked("traffic", now_s())
    filtered = await sources.filters.count(specs_of(sources.operator.inputs()))
    if sources.filters.counted_s is not None:
        chronicle.metrics.looked("filters", sources.filters.counted_s)
    return replace(readings, filtered=filtered)


def _with_guests(readings: Readings, sources: Published) -> Readings:
    return replace(
        readings,
        started_s={
            g.name: _steady(time.time() - ran_s(g), readings.started_s.get(g.name)) for g in sources.guests if g.alive
        },
        qmp_connected=frozenset(g.name for g in sources.guests if g.monitor is not None),
        netlink=_totals(sources.links),
        measures=dict(sources.measures()),
    )


def _steady(at_s: float, before_s: float | None) -> float:
    """A time that was found anew, as it was found before: two clocks never differ by quite the same."""
    return before_s if before_s is not None and abs(at_s - before_s) < STEADY_S else at_s


def _tell_ages(sources: Published, readings: Readings, chronicle: Chronicle) -> None:
    for source, at_s in sources.looked_s().items():
        chronicle.metrics.looked(source, at_s)
    looks_s = [measure.at_s for measure in readings.measures.values()]
    chronicle.metrics.looked("guests", min(looks_s, default=now_s()))


def _totals(links: Links) -> NetlinkTotals:
    return NetlinkTotals(dict(links.events), links.overflows, dict(links.errors))


async def watch_lag(metrics: Metrics) -> None:
    """Measure how late the event loop comes back from a sleep."""
    while True:
        wanted_s = time.perf_counter() + LAG_EVERY_S
        await asyncio.sleep(LAG_EVERY_S)
        metrics.loop_lagged(max(0.0, time.perf_counter() - wanted_s))
