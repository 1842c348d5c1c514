"""States that an earlier version wrote, brought step by step to what this one knows.

An agent ignores what it does not know in a state, and forgets it with the next change. So the version goes up whenever
an earlier agent would lose by that what it was told, and every step up is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agent.core.memory import VERSION

Raw = Mapping[str, object]
"""A state as it was read."""


def _with_holds_and_pauses(state: Raw) -> Raw:
    """Version 2 has what operators hold and pause. Nobody did before, which is what their absence says."""
    return state


STEPS: Mapping[int, Callable[[Raw], Raw]] = {1: _with_holds_and_pauses}
"""What leads from each version to the next one."""


def version_of(state: Raw) -> int:
    """The version of a state; one that carries none, or no number, is of the first."""
    version = state.get("version")
    return version if isinstance(version, int) and not isinstance(version, bool) and version > 0 else 1


def migrated(state: Raw) -> Raw:
    """The state as of the present version; it must not be of a later one."""
    for version in range(version_of(state), VERSION):
        state = STEPS[version](state)
    return {**state, "version": VERSION}
