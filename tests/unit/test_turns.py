"""When guests are looked at: some at once, never all of many, and each at the same moment again."""

from __future__ import annotations

import uuid
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agent.core.turns import OWN_WITHIN_S, SHARE, moments, turn_of

INTERVAL_S = 10.0


@given(st.uuids(), st.integers(1, 5000))
def test_ones_own_moment_is_soon_after_the_shared_one_and_before_the_next(one: uuid.UUID, guests: int) -> None:
    turn = turn_of(str(one), guests, INTERVAL_S)
    assert 0 <= turn.shared_s <= turn.own_s < turn.shared_s + turn.within_s <= INTERVAL_S
    assert turn.within_s <= OWN_WITHIN_S
    assert turn.shared_s + turn.within_s <= turn.shared_s + INTERVAL_S / moments(guests)


@given(st.integers(SHARE, 5000))
def test_so_many_share_a_moment_on_average(guests: int) -> None:
    assert SHARE <= guests / moments(guests) < 2 * SHARE


@given(st.integers(0, SHARE))
def test_few_share_one_moment(guests: int) -> None:
    assert moments(guests) == 1


@given(st.uuids(), st.integers(SHARE, 2500))
def test_twice_as_many_stay_or_go_half_way_to_the_next_moment(one: uuid.UUID, guests: int) -> None:
    before_s, after_s = (turn_of(str(one), number, INTERVAL_S).shared_s for number in (guests, 2 * guests))
    assert after_s in {before_s, before_s + INTERVAL_S / moments(guests) / 2}


def test_two_hundred_are_spread_over_the_interval() -> None:
    turns = [turn_of(str(uuid.uuid5(uuid.NAMESPACE_DNS, f"g{n}")), 200, INTERVAL_S) for n in range(200)]
    shared = Counter(turn.shared_s for turn in turns)
    assert sorted(shared) == [n * INTERVAL_S / 16 for n in range(16)]
    assert max(shared.values()) < 4 * SHARE
    assert len({turn.own_s for turn in turns}) == len(turns)
