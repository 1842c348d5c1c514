"""What the agent counts by itself, by Prometheus' own client; as lines that are made anew only where something changed.

Its own writers take 14 µs a line and 30 as OpenMetrics, of two thousand lines; a few dozen change between two scrapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from agent.telemetry.exposition import encoded, sample_line
from agent.telemetry.metric import Metric, MetricType

Collecting = Counter | Gauge | Histogram


class _Series:
    """One combination of labels. Counted by one thread, read by another: what is kept is of a turn, which each count
    ends."""

    def __init__(self, collecting: Collecting, labels: Mapping[str, str]) -> None:
        self._collecting = collecting
        self._labels = labels
        self._turn = 0
        self._kept: tuple[int, bytes] | None = None

    def change(self, change: Callable[[Collecting], None]) -> None:
        change(self._collecting)
        self._turn += 1

    def lines(self) -> bytes:
        kept, turn = self._kept, self._turn
        if kept is None or kept[0] != turn:
            samples = [sample for family in self._collecting.collect() for sample in family.samples]
            lines = [sample_line(one.name, {**self._labels, **one.labels}, one.value) for one in samples]
            kept = self._kept = turn, encoded(lines)
        return kept[1]


class _Family:
    """One metric with all its series: of some, dozens of histograms, of which few change between two scrapes."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._collecting = _collecting(metric)
        self._series: dict[tuple[str, ...], _Series] = {}
        for labels in metric.known or (((),) if not metric.labels else ()):
            self._of(labels)

    def _of(self, labels: tuple[str, ...]) -> _Series:
        known = self._series.get(labels)
        if known is None:
            collecting = self._collecting.labels(*labels) if labels else self._collecting
            known = self._series[labels] = _Series(collecting, dict(zip(self._metric.labels, labels, strict=True)))
        return known

    def change(self, labels: tuple[str, ...], change: Callable[[Collecting], None]) -> None:
        self._of(labels).change(change)

    def lines(self) -> bytes:
        return b"".join(series.lines() for series in self._series.copy().values())


class Counted:
    """Counters, gauges and histograms of the catalogue, by short name. Methods never raise; any thread may read."""

    def __init__(self, metrics: tuple[Metric, ...]) -> None:
        cast(Callable[[], None], disable_created_metrics)()
        self._families = {metric.short: _Family(metric) for metric in metrics}

    def add(self, name: str, *labels: str, amount: float = 1.0) -> None:
        """Count."""
        self._families[name].change(labels, lambda one: cast(Counter, one).inc(amount))

    def set(self, name: str, value: float, *labels: str) -> None:
        """Show a value."""
        self._families[name].change(labels, lambda one: cast(Gauge, one).set(value))

    def observe(self, name: str, seconds: float, *labels: str) -> None:
        """Count a duration."""
        self._families[name].change(labels, lambda one: cast(Histogram, one).observe(seconds))

    def blocks(self) -> dict[str, list[bytes]]:
        """All lines, by short name of their metric."""
        return {name: [family.lines()] for name, family in self._families.items()}


def _collecting(metric: Metric) -> Collecting:
    registry = CollectorRegistry()
    name, labels, unit = metric.family, metric.labels, metric.unit
    match metric.type:
        case MetricType.COUNTER:
            return Counter(name, metric.help, labels, unit=unit, registry=registry)
        case MetricType.GAUGE:
            return Gauge(name, metric.help, labels, unit=unit, registry=registry)
        case MetricType.HISTOGRAM:
            return Histogram(name, metric.help, labels, unit=unit, registry=registry, buckets=metric.bounds)
