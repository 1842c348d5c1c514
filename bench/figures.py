"""What was measured, and how it is told: a table for people and JSON for machines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    `values` are the agent's, in `unit`; `bare` those of the bare limit, measured in the same run, empty where there is
    none (`bare_name` then says why, if there ought to be one). `goal` is what the median has to reach, or the p99 where
    `at_p99`; `goal_ratio` is for the median, as a multiple of the bare limit's.
    """

    name: str
    unit: str
    values: Sequence[float]
    goal: float | None = None
    bare: Sequence[float] = ()
    bare_name: str = ""
    goal_ratio: float | None = None
    at_p99: bool = False

    @property
    def ratio(self) -> float | None:
        """The median as a multiple of the bare limit's."""
        return median(self.values) / median(self.bare) if self.bare else None

    @property
    def reached(self) -> bool:
        """Whether every goal of this line is reached."""
        below = self.goal is None or (p99 if self.at_p99 else median)(self.values) <= self.goal
        return below and (self.goal_ratio is None or self.ratio is None or self.ratio <= self.goal_ratio)

    def as_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "name": self.name,
            "unit": self.unit,
            "median": median(self.values),
            "p99": p99(self.values),
            "samples": len(self.values),
            "bare": self.bare_name,
            "bare_median": median(self.bare) if self.bare else None,
            "bare_p99": p99(self.bare) if self.bare else None,
            "ratio": self.ratio,
            "goal": self.goal,
            "goal_ratio": self.goal_ratio,
            "goal_at_p99": self.at_p99,
            "reached": self.reached,
        }


def median(values: Sequence[float]) -> float:
    """The middle one, of an even number the lower."""
    return sorted(values)[(len(values) - 1) // 2]


def p99(values: Sequence[float]) -> float:
    """The value that 99 of 100 do not exceed; of few, the largest."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def table(figures: Sequence[Figure]) -> str:
    """A Markdown table."""
    lines = ["| what | median | p99 | n | bare limit | ratio | to reach | |", "|---|---|---|---|---|---|---|---|"]
    for figure in figures:
        bare = figure.bare_name or "-"
        if figure.bare:
            bare = f"{_shown(median(figure.bare), figure.unit)} ({bare})"
        at = "p99 " if figure.at_p99 else ""
        goals = [f"{at}≤ {_shown(figure.goal, figure.unit)}"] if figure.goal is not None else []
        goals += [f"≤ {figure.goal_ratio:g} times bare"] if figure.goal_ratio is not None else []
        cells = (
            figure.name,
            _shown(median(figure.values), figure.unit),
            _shown(p99(figure.values), figure.unit),
            str(len(figure.values)),
            bare,
            f"{figure.ratio:.2f}" if figure.ratio is not None else "-",
            ", ".join(goals),
            "reached" if figure.reached else "missed",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(value: float, unit: str) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"
