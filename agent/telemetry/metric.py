"""What a metric is: one row of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

PREFIX = "vmhost_"

UNITS = ("seconds", "bytes", "ratio")
"""Base units; a name ends with its own, before `_total` (prometheus.io/docs/practices/naming)."""


class MetricType(StrEnum):
    """Prometheus' types, as far as they are used."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """A metric with its full name (`vmhost_…`, a counter's with `_total`), and what it is drawn from (`source`).

    `labels` are in the order of the alphabet. `known`: combinations of their values that are there at zero from the
    start, where the agent counts by itself. `bounds`: the upper ends of a histogram's buckets, without infinity.
    There is one object of each, so that it is its own key.
    """

    name: str
    type: MetricType
    labels: tuple[str, ...]
    help: str
    source: str
    unit: str = ""
    known: tuple[tuple[str, ...], ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def short(self) -> str:
        """The name without its prefix."""
        return self.name.removeprefix(PREFIX)

    @property
    def family(self) -> str:
        """The name of the metric's family in OpenMetrics, which is a counter's without `_total`."""
        return self.name.removesuffix("_total") if self.type is MetricType.COUNTER else self.name

    @property
    def samples(self) -> tuple[str, ...]:
        """The names of its samples."""
        if self.type is MetricType.HISTOGRAM:
            return tuple(f"{self.name}_{end}" for end in ("bucket", "sum", "count"))
        return (self.name,)


def gauge(name: str, labels: str, text: str, source: str) -> Metric:
    """A gauge, by its name without prefix; `labels` are words."""
    return Metric(PREFIX + name, MetricType.GAUGE, tuple(labels.split()), text, source, _unit(name))


def counter(name: str, labels: str, text: str, source: str, known: tuple[tuple[str, ...], ...] = ()) -> Metric:
    """A counter, by its name without prefix, with `_total`."""
    unit = _unit(name.removesuffix("_total"))
    return Metric(PREFIX + name, MetricType.COUNTER, tuple(labels.split()), text, source, unit, known)


def histogram(
    name: str,
    labels: str,
    text: str,
    source: str,
    bounds: tuple[float, ...],
    known: tuple[tuple[str, ...], ...] = (),
) -> Metric:
    """A histogram, by its name without prefix."""
    return Metric(PREFIX + name, MetricType.HISTOGRAM, tuple(labels.split()), text, source, _unit(name), known, bounds)


def _unit(name: str) -> str:
    last = name.rpartition("_")[2]
    return last if last in UNITS else ""
