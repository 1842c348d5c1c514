"""An alert as a value, and alerts as the rule file that Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

RUNBOOKS = "docs/runbooks.md"
"""Relative to the project: whoever publishes the page elsewhere replaces it (docs/monitoring.md)."""

Severity = Literal["critical", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Bound:
    """An expression that has a value whenever there is something to look at, and what is told of that value."""

    expr: str
    threshold: str


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert. It fires where `bound` holds, and `where` too if given, for the time `holds`.

    `where` is joined by the labels `by`; the expressions stay apart from thresholds, so that tests can see each give
    data on a host where all is well.
    """

    group: str
    name: str
    bound: Bound
    holds: str
    severity: Severity
    summary: str
    description: str
    where: Bound | None = None
    by: str = ""

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """What has to hold, each by itself."""
        return (self.bound,) if self.where is None else (self.bound, self.where)

    @property
    def expr(self) -> str:
        """The whole expression."""
        told = f"{self.bound.expr} {self.bound.threshold}"
        return told if self.where is None else f"{told} and on ({self.by}) {self.where.expr} {self.where.threshold}"


def to_yaml(alerts: Sequence[Alert]) -> str:
    """The rule file."""
    return "\n".join(_lines(alerts)) + "\n"


def _lines(alerts: Sequence[Alert]) -> Iterator[str]:
    yield "# Written by `make dashboards` from dashboards/alerts.py."
    yield "groups:"
    for group in dict.fromkeys(alert.group for alert in alerts):
        yield f"  - name: vmhost-{group}"
        yield "    rules:"
        for alert in alerts:
            if alert.group == group:
                yield from _rule(alert)


def _rule(alert: Alert) -> Iterator[str]:
    yield f"      - alert: {alert.name}"
    yield f"        expr: {_text(alert.expr)}"
    yield f"        for: {alert.holds}"
    yield "        labels:"
    yield f"          severity: {alert.severity}"
    yield "        annotations:"
    yield f"          summary: {_text(alert.summary)}"
    yield f"          description: {_text(alert.description)}"
    yield f"          runbook_url: {_text(f'{RUNBOOKS}#{alert.name.lower()}')}"


def _text(text: str) -> str:
    """In YAML; within single quotes nothing is special but they themselves."""
    return "'" + text.replace("'", "''") + "'"
