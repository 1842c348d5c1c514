"""Words for people: what comes from outside stays on its line, and one is told as one."""

from __future__ import annotations

from dataclasses import replace

from agent.core.desired import Desired
from agent.core.planning import plan
from agent.core.text import counted, printable, suggestion
from agent.unitfile.parse import MAX_ERRORS, parse_unit
from tests.unit.planning_world import SETTLED, said


def test_text_from_outside_stays_on_its_line() -> None:
    assert printable("a\nb\x1b[31m\t\udcff é") == "a\\nb\\x1b[31m\\t\\udcff é"
    assert suggestion("wbe", ["web", "db"]) == 'did you mean "web"?'
    assert suggestion("mail", ["web", "db"]) == ""


def test_one_is_told_as_one() -> None:
    assert [counted(number, "guest") for number in (0, 1, 2)] == ["0 guests", "1 guest", "2 guests"]
    decided = plan(Desired(), replace(SETTLED, max_disruption=0), 0.0)
    assert decided.approval is not None
    message = f"1 guest would stop at once; `vmhost approve {decided.approval.id}` allows it"
    assert [one[3] for one in said(decided) if one[1] == "Held"] == [f"its end was not asked for alone: {message}"]
    unit = parse_unit("u.toml", b"".join(b"k%d = 1\n" % n for n in range(MAX_ERRORS + 1)))
    assert unit.errors[-1].problem == "and 1 more mistake"
