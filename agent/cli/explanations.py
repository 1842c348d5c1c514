"""Plans, reasons and differences as a person reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TextIO

from agent.cli.client import Json
from agent.cli.render import unit_lines, write_pending
from agent.cli.tables import write_line, write_table
from agent.core.text import counted

TOPICS = {
    "unit": "unit",
    "wanted": "wanted",
    "now": "now",
    "end": "ends",
    "condition": "because",
    "attempt": "tried",
    "event": "event",
    "next": "next",
}
"""What a reason is called at the beginning of its line."""


def write_plan(out: TextIO, plan: Json) -> None:
    """Write a forecast: unit files with mistakes, the actions in their order, then what does not happen by itself."""
    for line in unit_lines(plan["units"]):
        write_line(out, line)
    rows = [(_when(step), step["disruption"], step["resource"], step["text"]) for step in plan["actions"]]
    write_table(out, ("WHEN", "DISRUPTION", "RESOURCE", "ACTION"), rows)
    for step in plan["actions"]:
        if step["waits_for"]:
            write_line(out, f"{step['resource']}: {_when(step)}: {step['waits_for']}")
    for approval in plan["approvals"]:
        guests = ", ".join(approval["guests"])
        write_line(out, f"not without an answer: {guests} would stop; `vmhost approve {approval['id']}` allows it")
    for one in plan["conditions"]:
        write_line(out, f"remains: {one['resource']}: {one['type']}: {one['message']}")
    write_pending(out, {"vms": [{"name": one["vm"], "pending": [one]} for one in plan["pending"]]})
    write_line(out, _summary(plan))


def _when(step: Json) -> str:
    if step["under_way"]:
        return "under way"
    return f"in {step['after_s']:.0f} s" if step["after_s"] else "now"


def _summary(plan: Json) -> str:
    count = len(plan["actions"])
    if not count:
        return "nothing to do"
    noticed = Counter(step["disruption"] for step in plan["actions"] if step["disruption"] != "none")
    told = ", ".join(f"{number} {what}" for what, number in sorted(noticed.items())) or "none that a guest notices"
    broken_off = "" if plan["complete"] else "; broken off there"
    return f"{counted(count, 'action')}; disruption: {told}{broken_off}"


def write_why(out: TextIO, answer: Json) -> None:
    """Write the chain of reasons of each resource of a name."""
    for place, found in enumerate(answer["found"]):
        if place:
            out.write("\n")
        write_line(out, found["resource"])
        for reason in found["reasons"]:
            write_line(out, f"  {TOPICS.get(reason['topic'], reason['topic']):8}{reason['text']}")


def write_show(out: TextIO, answer: Json) -> None:
    """Write each resource of a name: its unit files, how they differ from their last good versions, and what runs."""
    for place, found in enumerate(answer["found"]):
        if place:
            out.write("\n")
        write_line(out, found["resource"])
        for line in _unit_texts(found):
            write_line(out, line)
        _write_settings(out, found)


def _unit_texts(found: Json) -> Iterator[str]:
    if not found["units"]:
        yield "no unit file names it"
    for unit in found["units"]:
        yield ""
        yield f"# {unit['file']} ({unit['state']}; line {unit['line']})"
        yield from (unit["text"] or "").splitlines()
        yield from unit["errors"]
        if unit["diff"]:
            yield ""
            yield "# since its last good version"
            yield from unit["diff"]
        elif unit["last_good"] is None:
            yield "# there is no good version of it yet"


def _write_settings(out: TextIO, found: Json) -> None:
    settings = found["settings"]
    if not settings:
        return
    out.write("\n")
    if not found["runs"]:
        write_table(out, ("KEY", "UNIT"), [(one["key"], one["unit"]) for one in settings])
        write_line(out, "nothing of it runs")
        return
    rows = [(one["key"], one["unit"], one["runs"], "differs" if one["differs"] else "=") for one in settings]
    write_table(out, ("KEY", "UNIT", "RUNS", ""), rows)
    count = sum(one["differs"] for one in settings)
    verb = "differs" if count == 1 else "differ"
    write_line(out, f"{count} of {counted(len(settings), 'key')} {verb}" if count else "it runs as its unit says")
