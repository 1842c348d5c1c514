"""What people are told of, when, and in which words; tests/property has every other order of events."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.__main__ import _notifying, parser
from agent.core.conditions import Condition
from agent.core.errors import AgentError, UnitError
from agent.core.memory import Memory, with_boot
from agent.core.planner.approval import Approval
from agent.core.tell.notification_text import ENVIRONMENT, FIELDS, MAX_MORE, document, environment
from agent.core.tell.notifications import (
    COOLDOWN_S,
    WATCHED,
    Limits,
    News,
    Notification,
    Told,
    Trouble,
    Watch,
    look,
    troubles_of,
)

DOCS = Path(__file__).resolve().parent.parent.parent / "docs/notifications.md"
LIMITS = Limits(10)


@dataclass(frozen=True)
class File:
    path: str
    state: str
    errors: tuple[UnitError, ...] = ()


@dataclass
class Story:
    """One agent's looks, and what it told, in short: `problem vm/web Conflict`, with `+N` for what is summed up."""

    watch: Watch = field(default_factory=Watch)
    limits: Limits = LIMITS
    sent: list[Notification] = field(default_factory=list)

    def at(self, now_s: float, *stands: str, limits: Limits | None = None) -> list[str]:
        """`stands`: what stands, as `vm/web CrashLoop` or `vm/web Held Operator`."""
        self.watch, new = look(self.watch, standing(*stands), now_s, limits or self.limits)
        self.sent += new
        return [short(one) for one in new]


def standing(*stands: str) -> Mapping[str, Trouble]:
    found = {}
    for text in stands:
        resource, type_, *reason = text.split()
        found[f"{resource} {type_}"] = Trouble(resource, type_, reason[0] if reason else type_, "why; what to do")
    return found


def short(one: Notification) -> str:
    more = f" +{len(one.more)}" if one.more else ""
    passed = f" passed {one.passed}" if one.passed else ""
    return f"{'over' if one.news.is_over else 'problem'} {one.news.key}{more}{passed}"


def test_what_stands_long_enough_is_told_once_and_so_is_its_end() -> None:
    story = Story()
    assert story.at(0, "vm/web Conflict") == []
    assert story.at(4.9, "vm/web Conflict") == []
    assert story.at(5, "vm/web Conflict") == ["problem vm/web Conflict"]
    assert story.at(300, "vm/web Conflict") == []
    assert story.at(5000, "vm/web Conflict") == []
    assert story.at(5001) == []
    assert story.at(5010.9) == []
    assert story.at(5011) == ["over vm/web Conflict"]
    assert story.at(9000) == []
    assert story.watch == Watch()


def test_what_passes_at_once_is_not_told() -> None:
    story = Story()
    assert story.at(0, "vm/web Conflict") == story.at(3) == story.at(20) == []
    assert story.watch == Watch()


def test_a_crash_loop_is_one_problem_while_each_next_start_is_tried() -> None:
    story = Story()
    assert story.at(0, "vm/web CrashLoop") == ["problem vm/web CrashLoop"]
    for start_s in range(10, 500, 60):
        assert story.at(start_s) == []
        assert story.at(start_s + 50, "vm/web CrashLoop") == []
    assert story.at(600) == []
    assert story.at(720) == ["over vm/web CrashLoop"]


def test_what_returns_soon_is_told_when_its_ten_minutes_are_over() -> None:
    story = Story()
    story.at(0, "vm/web FellBack")
    story.at(10)
    assert story.at(20) == ["over vm/web FellBack"]
    assert story.at(30, "vm/web FellBack") == []
    assert story.at(COOLDOWN_S - 0.1, "vm/web FellBack") == []
    assert story.at(COOLDOWN_S, "vm/web FellBack") == ["problem vm/web FellBack"]


def test_what_came_and_went_meanwhile_is_counted_in_the_next_one() -> None:
    story = Story()
    story.at(0, "vm/web FellBack")
    story.at(1)
    story.at(11)
    for now_s in (20, 30, 40):
        assert story.at(now_s, "vm/web FellBack") == story.at(now_s + 1) == []
    assert story.at(50, "vm/db FellBack") == ["problem vm/db FellBack passed 3"]
    assert story.at(60, "vm/x FellBack", "vm/db FellBack") == ["problem vm/x FellBack"]


def test_another_reason_of_a_hold_is_another_problem_but_no_sooner() -> None:
    story = Story()
    story.at(0, "vm/web Held UnitInvalid")
    assert story.at(5, "vm/web Held UnitInvalid") == ["problem vm/web Held"]
    assert story.at(20, "vm/web Held Operator") == []
    assert story.at(604, "vm/web Held Operator") == []
    assert story.at(605, "vm/web Held Operator") == ["problem vm/web Held"]
    assert story.sent[-1].news.reason == "Operator"


def test_another_reason_of_a_crash_loop_is_not() -> None:
    story = Story()
    story.at(0, "vm/web CrashLoop killed")
    assert story.at(1000, "vm/web CrashLoop panic") == []


def test_more_than_the_limit_is_summed_up_in_the_last_one() -> None:
    story = Story(limits=Limits(3))
    many = [f"vm/{number:02} FellBack" for number in range(15)]
    assert story.at(0, *many) == ["problem vm/00 FellBack", "problem vm/01 FellBack", "problem vm/02 FellBack +12"]
    assert document(story.sent[-1], "h", "t")["text"] == "vm/02 on h: FellBack: why; what to do; and 12 more"
    assert story.at(1, *many, "vm/x FellBack", "vm/y FellBack") == []
    assert story.at(59, *many, "vm/x FellBack", "vm/y FellBack") == []
    assert story.at(60, *many, "vm/x FellBack", "vm/y FellBack") == ["problem vm/x FellBack", "problem vm/y FellBack"]


def test_where_there_is_no_room_what_is_due_waits_and_is_not_lost() -> None:
    story = Story()
    assert story.at(0, "a/a FellBack", "b/b FellBack", limits=Limits(10, room=0)) == []
    busy = Limits(10, room=1, busy=frozenset({"a/a FellBack"}))
    assert story.at(1, "a/a FellBack", "b/b FellBack", limits=busy) == ["problem b/b FellBack"]
    assert story.at(2, "a/a FellBack", "b/b FellBack") == ["problem a/a FellBack"]
    assert story.at(3, "b/b FellBack", limits=busy) == story.at(20, "b/b FellBack", limits=busy) == []
    assert story.at(21, "b/b FellBack") == ["over a/a FellBack"]


def test_what_cannot_be_seen_is_neither_over_nor_forgotten() -> None:
    story = Story()
    unknown = Limits(10, complete=False)
    story.at(0, "vm/web FellBack", "vm/db Conflict")
    assert story.at(6, limits=unknown) == []
    assert story.at(7, "vm/web FellBack", "vm/db Conflict") == ["problem vm/db Conflict"]
    story = Story()
    story.at(0, "vm/web FellBack")
    assert story.at(1, limits=unknown) == story.at(100, limits=unknown) == []
    assert story.at(101, "vm/web FellBack") == []
    assert story.at(102) == []
    assert story.at(112) == ["over vm/web FellBack"]


def test_another_boot_of_the_host_knows_what_was_told_and_no_times() -> None:
    before = Memory("seed", boot_id="one", told={"vm/web FellBack": Told("FellBack", stands=True, at_s=25.0)})
    assert with_boot(before, "one") is before
    story = Story(Watch(told=with_boot(before, "two").told))
    assert story.at(1, "vm/web FellBack") == []
    assert story.at(20) == []
    assert story.at(30) == ["over vm/web FellBack"]
    assert story.at(40, "vm/web FellBack") == ["problem vm/web FellBack"]


def test_what_an_agent_of_another_version_told_ends_as_well() -> None:
    story = Story(Watch(told={"vm/web Levitating": Told("Levitating", stands=True, at_s=0.0)}))
    story.at(1)
    assert story.at(11) == ["over vm/web Levitating"]


def test_what_is_worth_telling() -> None:
    held = Condition("vm/a", "Held", "ApprovalNeeded", "…")
    conditions = [
        held,
        Condition("vm/b", "Held", "Operator", "held by root"),
        Condition("vm/b", "Backoff", "Backoff", "next start in 3 s"),
        Condition("bridge/br", "Conflict", "Conflict", "first"),
        Condition("bridge/br", "Conflict", "Conflict", "second"),
        Condition("agent", "StateNotSaved", "StateNotSaved", "full"),
    ]
    approval = Approval("1f2e3d4c", ("a", "c"), frozenset())
    files = [
        File("/etc/vmhost.d/good.toml", "valid"),
        File("/etc/vmhost.d/my bad\udc80.toml", "held", (UnitError("bad", 1, 2, "unknown key"),)),
    ]
    found = troubles_of(conditions, approval, files)
    assert sorted(found) == [
        "agent ApprovalNeeded",
        "agent StateNotSaved",
        "bridge/br Conflict",
        "unit/my bad\\udc80.toml UnitInvalid",
        "vm/b Held",
    ]
    assert found["agent ApprovalNeeded"] == Trouble(
        "agent",
        "ApprovalNeeded",
        "1f2e3d4c",
        "units want these guests stopped, more at once than is allowed unasked: a, c; `vmhost approve 1f2e3d4c` "
        "allows it",
    )
    assert found["bridge/br Conflict"].message == "first"
    assert found["unit/my bad\\udc80.toml UnitInvalid"].message == "bad:1:2: error: unknown key"


def test_the_document_is_bounded_and_of_one_line_each() -> None:
    news = News("vm/web", "CrashLoop", "killed", "one\ntwo " + "x" * 2000)
    more = tuple(News(f"vm/{n}", "CrashLoop", "killed", "CrashLoop is over", is_over=True) for n in range(150))
    plain = document(Notification(news, more, passed=2), "host1", "2026-01-01T00:00:00.000+00:00")
    assert plain.keys() == FIELDS.keys()
    message = str(plain["message"])
    assert message.startswith("one\\ntwo x")
    assert len(message) == 1000
    assert plain["text"] == f"vm/web on host1: CrashLoop: {message}; and 150 more; 2 more came and went before"
    assert plain["more_count"] == 150
    listed = plain["more"]
    assert isinstance(listed, list)
    assert len(listed) == MAX_MORE
    assert listed[0]["state"] == "over"
    variables = environment(plain)
    assert variables.keys() == ENVIRONMENT.keys()
    assert (variables["VMHOST_STATE"], variables["VMHOST_MORE"]) == ("problem", "150")


def test_the_page_names_every_field_variable_and_type() -> None:
    rows = re.findall(r"^\| `([A-Za-z_]+)` \|", DOCS.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted([*FIELDS, *ENVIRONMENT, *WATCHED])


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ["--notify-url", "http://u:pass@192.0.2.1/T0KEN"],
            "--notify-url: http://192.0.2.1 carries secrets in the clear",
        ),
        (["--notify-url", "http://host.example/T0KEN"], "--notify-url: http://host.example carries secrets"),
        (["--notify-url", "ftp://u:pass@host/T0KEN"], "--notify-url: this is no URL; want one such as"),
        (["--notify-url", "https://u:pass@host:x/T0KEN"], "--notify-url: this is no URL"),
        (["--notify-url", "https://host/T0 KEN"], "--notify-url: this is no URL"),
        (["--notify-url", "pass"], "--notify-url: this is no URL"),
        (["--notify-command", "/x", "--notify-timeout", "10"], "--notify-timeout: must be a duration such as"),
        (["--notify-command", "/x", "--notify-timeout", "0s"], "--notify-timeout: want 1s to 5m"),
        (["--notify-command", "/x", "--notify-per-minute", "0"], "--notify-per-minute: want 1 or more"),
        (["--notify-timeout", "5s"], "nobody is told; give --notify-command or a URL"),
        (["--notify-per-minute", "5"], "nobody is told; give --notify-command or a URL"),
    ],
)
def test_flags_that_cannot_be(words: list[str], problem: str) -> None:
    with pytest.raises(AgentError) as caught:
        _notifying(parser().parse_args(words))
    assert problem in str(caught.value)
    assert "pass" not in str(caught.value)
    assert "KEN" not in str(caught.value)


def test_flags_that_can() -> None:
    words = ["--notify-command", "x", "--notify-url", "https://u:pass@host:1/T0KEN", "--notify-per-minute", "3"]
    notifying = _notifying(parser().parse_args(words))
    assert [hook.name for hook in notifying.hooks] == [str(Path("x").absolute()), "https://host:1"]
    assert notifying.per_minute == 3
    assert _notifying(parser().parse_args([])).hooks == ()
