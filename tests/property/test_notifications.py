"""Whatever comes and goes, in whatever order, and however often the agent is started anew: nobody is flooded, nothing
that stands is lost, and each end is told once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from agent.core.tell.notifications import COOLDOWN_S, MINUTE_S, WATCHED, Key, Limits, News, Trouble, Watch, look

KEYS = ("vm/a CrashLoop", "vm/a Held", "vm/b FellBack", "bridge/x Conflict", "agent ApprovalNeeded")
STEPS = st.lists(
    st.tuples(
        st.sampled_from((0.0, 1.0, 3.0, 11.0, 59.0, 130.0, 600.0)),
        st.dictionaries(st.sampled_from(KEYS), st.sampled_from(("one", "two"))),
        st.booleans(),  # whether a new agent looks, which knows what was told and nothing else
        st.booleans(),  # whether all could be looked at
    ),
    max_size=40,
)
LIMITS = st.integers(1, 4)


def troubles(reasons: Mapping[Key, str]) -> Mapping[Key, Trouble]:
    return {key: Trouble(key.split()[0], key.split()[1], reason, "why") for key, reason in reasons.items()}


def tell(
    steps: Sequence[tuple[float, Mapping[Key, str], bool, bool]], per_minute: int, *, restarts: bool = True
) -> tuple[Watch, float, list[tuple[float, News]], list[float]]:
    """All that was told, with its time, and when each notification went out."""
    watch, now_s = Watch(), 1000.0
    told: list[tuple[float, News]] = []
    sent_s: list[float] = []
    for wait_s, reasons, restarted, complete in steps:
        now_s += wait_s
        if restarted and restarts:
            watch = Watch(told=watch.told)
        watch, found = look(watch, troubles(reasons), now_s, Limits(per_minute, complete=complete))
        sent_s += [now_s] * len(found)
        told += [(now_s, news) for one in found for news in (one.news, *one.more)]
    return watch, now_s, told, sent_s


@given(STEPS, LIMITS)
def test_problem_and_end_take_turns_and_no_problem_is_told_twice_within_ten_minutes(
    steps: list[tuple[float, dict[Key, str], bool, bool]], per_minute: int
) -> None:
    _, _, told, _ = tell(steps, per_minute)
    for key in KEYS:
        own = [(at_s, news) for at_s, news in told if news.key == key]
        problems_s = [at_s for at_s, news in own if not news.is_over]
        assert all(b - a >= COOLDOWN_S for a, b in pairwise(problems_s))
        assert not own or not own[0][1].is_over
        for (_, before), (_, after) in pairwise(own):
            assert not (before.is_over and after.is_over)
            if not before.is_over and not after.is_over:
                assert before.reason != after.reason
                assert WATCHED[after.type].by_reason


@given(STEPS, LIMITS)
def test_no_minute_has_more_than_the_limit(
    steps: list[tuple[float, dict[Key, str], bool, bool]], per_minute: int
) -> None:
    _, _, _, sent_s = tell(steps, per_minute, restarts=False)
    assert all(b - a >= MINUTE_S for a, b in zip(sent_s, sent_s[per_minute:], strict=False))


@given(STEPS, LIMITS, st.dictionaries(st.sampled_from(KEYS), st.sampled_from(("one", "two"))))
def test_in_the_end_what_stands_is_told_and_what_is_gone_is_told_as_over(
    steps: list[tuple[float, dict[Key, str], bool, bool]], per_minute: int, last: dict[Key, str]
) -> None:
    watch, now_s, told, _ = tell(steps, per_minute)
    said = {news.key: not news.is_over for _, news in told}
    for _ in range(30):
        now_s += MINUTE_S
        watch, found = look(watch, troubles(last), now_s, Limits(per_minute))
        said |= {news.key: not news.is_over for one in found for news in (one.news, *one.more)}
    assert {key for key, stands in said.items() if stands} == last.keys()
    assert {key: one.reason for key, one in watch.told.items() if one.stands and WATCHED[key.split()[1]].by_reason} == {
        key: reason for key, reason in last.items() if WATCHED[key.split()[1]].by_reason
    }
    assert not watch.is_waiting
    assert look(replace(watch, sent_s=()), troubles(last), now_s, Limits(per_minute))[1] == ()
