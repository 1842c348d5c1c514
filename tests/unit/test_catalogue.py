"""The catalogue by Prometheus' rules for names, by our own promises, and against the code that counts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.core.planner.repairs import EDITS
from agent.core.reasons import Reason
from agent.telemetry.catalogue import CATALOGUE, METRICS, SECTIONS
from agent.telemetry.catalogue_agent import COMMANDS, DOORBELL_SOURCES, REPAIR_PAIRS
from agent.telemetry.metric import UNITS, Metric, MetricType
from docs.metrics import page

ROOT = Path(__file__).parents[2]
FORBIDDEN = {"pid", "ifindex", "path", "address", "error", "message", "mac", "tap"}
ABBREVIATED = r"_(ms|us|s|kb|mb|kib|mib|percent)(_|$)"


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.short)
def test_a_metric_is_named_by_the_rules(metric: Metric) -> None:
    assert re.fullmatch(r"vmhost_[a-z][a-z0-9_]*", metric.name)
    assert metric.name.endswith("_total") == (metric.type is MetricType.COUNTER)
    assert not re.search(ABBREVIATED, metric.name)
    assert not metric.name.endswith(("_bucket", "_sum", "_count", "_created"))
    assert metric.unit == "" or metric.family.endswith(f"_{metric.unit}")
    assert metric.unit in {"", *UNITS}
    assert metric.labels == tuple(sorted(set(metric.labels)))
    assert not FORBIDDEN & set(metric.labels)
    assert "le" not in metric.labels
    assert metric.help.endswith(".")
    assert metric.source
    assert all(len(labels) == len(metric.labels) for labels in metric.known)
    assert len(set(metric.known)) == len(metric.known)


@pytest.mark.parametrize("metric", [m for m in CATALOGUE if m.type is MetricType.HISTOGRAM], ids=lambda m: m.short)
def test_a_histogram_has_few_and_rising_bounds(metric: Metric) -> None:
    assert metric.unit == "seconds"
    assert metric.bounds == tuple(sorted(set(metric.bounds)))
    assert 5 <= len(metric.bounds) <= 17


def test_each_metric_is_there_once() -> None:
    assert len(METRICS) == len(CATALOGUE) == sum(len(metrics) for _, metrics in SECTIONS)
    assert len({metric.family for metric in CATALOGUE}) == len(CATALOGUE)


def test_who_rings_and_what_is_asked_of_qemu_is_known_beforehand() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "agent").rglob("*.py"))
    rung = set(re.findall(r'\b_?ring\("([^"]+)"\)|_note_change\("([^"]+)"\)', code))
    assert {one or other for one, other in rung} == set(DOORBELL_SOURCES)
    asked = set(re.findall(r'(?:execute|_timed|forgiving)\(\s*(?:\w+, )?"([a-z_-]+)"', code))
    assert asked
    assert asked <= set(COMMANDS)


def test_what_can_be_repaired_is_no_edit() -> None:
    assert {reason for _, reason in REPAIR_PAIRS} == {reason.value for reason in Reason} - {one.value for one in EDITS}


def test_the_page_is_current() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == page(), "run `python -m docs.metrics > docs/metrics.md`"
