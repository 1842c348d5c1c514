"""docs/logs.md names every kind of event there is in the code, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from agent.core.actions import kind_of
from agent.telemetry.journald import PRIORITIES, fields_of

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs/logs.md").read_text()


def recorded() -> Iterator[str]:
    """The second argument of each `record(…)`, where it stands there as a text."""
    for path in sorted((ROOT / "agent").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "record":
                for node in ast.walk(call.args[1]) if len(call.args) > 1 else ():
                    if isinstance(node, ast.Constant) and isinstance(node.value, str):
                        yield node.value


def test_all_kinds_are_told() -> None:
    table = PAGE.split("## Kinds")[1].split("##")[0]
    actions, others = table.split("| an action:")[1].split("\n", 1)
    told = set(re.findall(r"`([a-z-]+)`", "\n".join(line.split("|")[1] for line in others.splitlines() if "|" in line)))
    assert told == set(recorded())
    named = set(re.findall(r"`([a-z]+-[a-z-]+)`", actions))
    text = "\n".join(path.read_text() for path in (ROOT / "agent/core").glob("*actions.py"))
    assert named <= {kind_of(type(name, (), {})()) for name in re.findall(r"^class (\w+)", text, re.MULTILINE)}


def test_priorities_are_those_of_the_page() -> None:
    row = next(line for line in PAGE.splitlines() if "`PRIORITY`" in line)
    assert dict(re.findall(r"`([a-z]+)` (\d)", row)) == PRIORITIES


def test_the_journals_own_fields_are_told() -> None:
    for name in fields_of({"event": "e", "resource": "vm/web", "kind": "k", "pass_id": 1}):
        assert f"`{name}`" in PAGE or name == "SYSLOG_FACILITY"
