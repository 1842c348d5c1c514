"""Gives the status page what the agent knows."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping

from agent.core.measures import GuestMeasure
from agent.runtime.agent import Agent
from agent.telemetry.board import Look, PageSources
from agent.telemetry.journal import Journal


def page_sources(agent: Agent, journal: Journal, measures: Callable[[], Mapping[str, GuestMeasure]]) -> PageSources:
    """The page's sources; `measures` gives the last look at each guest's counters.

    Whatever changes in a status rings for a pass, or is told in the journal.
    """

    def look() -> Look:
        return Look(agent.operator.inputs(), agent.started_s(), measures())

    def signature() -> object:
        looks = sum(one.at_s for one in measures().values())
        return agent.operator.pass_number, journal.last_seq, looks

    return PageSources(platform.node(), journal, look, signature)
