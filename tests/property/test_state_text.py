"""The text of the state file, whatever the state is and whatever it was before."""

from __future__ import annotations

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from agent.host.statedir.layout import StateText

_SCALARS = st.one_of(st.text(max_size=8), st.integers(-9, 9), st.booleans())
_VALUES = st.recursive(
    st.one_of(_SCALARS, st.lists(_SCALARS, max_size=3)),
    lambda inner: st.one_of(st.dictionaries(st.text(max_size=4), inner, max_size=3), st.lists(inner, max_size=2)),
    max_leaves=12,
)
_STATES = st.dictionaries(st.sampled_from("abcd"), _VALUES, max_size=4)


@given(st.lists(_STATES, min_size=1, max_size=4))
def test_what_is_written_reads_as_the_state_that_was_given(states: list[dict[str, object]]) -> None:
    text = StateText()
    for state in states:
        assert tomllib.loads(text.of(state)) == state
