"""What was exported, as the Prometheus client's own parsers read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from prometheus_client.core import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

Parser = Callable[[str], Iterable[Metric]]
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def text_families(body: bytes) -> list[Metric]:
    """Text 0.0.4."""
    return list(cast(Parser, text_string_to_metric_families)(body.decode()))


def openmetrics_families(body: bytes) -> list[Metric]:
    """OpenMetrics 1.0, whose parser is strict: names, order, buckets, the end."""
    return list(cast(Parser, openmetrics.text_string_to_metric_families)(body.decode()))


def samples_of(families: Iterable[Metric]) -> Series:
    """All samples by name and labels, of which none may be there twice."""
    samples = [sample for family in families for sample in family.samples]
    found = {(one.name, frozenset(one.labels.items())): one.value for one in samples}
    assert len(found) == len(samples), "a series twice"
    return found


def value(found: Series, name: str, /, **labels: str) -> float:
    """The value of a series, by its name without prefix; KeyError if there is none."""
    return found[f"vmhost_{name}", frozenset(labels.items())]
