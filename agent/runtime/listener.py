"""Keeps the metrics listener: tries again what is not to be had, reads files that change, says what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from agent.telemetry.exposition import Form
from agent.telemetry.guard import Guard, Protection
from agent.telemetry.httpd import Health, serve_metrics
from agent.telemetry.journal import Journal
from agent.telemetry.listen import Listen, ListenError
from agent.telemetry.page import Page

LOOK_EVERY_S = 5.0


@dataclass(slots=True)
class Sources:
    """What is served, and who is told of problems: `note_problem` takes a condition's type, and a message or none.

    `page`: the status page, if there is to be one.
    """

    render: Callable[[Form], bytes]
    health: Callable[[], Health]
    journal: Journal
    note_problem: Callable[[str, str], None]
    page: Page | None = None
    told: str = ""

    def tell(self, type_: str, problem: str) -> None:
        """Show a problem, or that it is over, in the status; and one that is new in the journal."""
        self.note_problem(type_, problem)
        if problem and problem != self.told:
            self.journal.record("agent", "metrics", problem, level="error")
        self.told = problem


async def keep_listening(
    listen: Listen, protection: Protection, sources: Sources, every_s: float = LOOK_EVERY_S
) -> None:
    """Serve metrics for ever. Without what it takes the agent does its work all the same; that is told and tried again.

    `every_s`: how often to look at the files, and to try again.
    """
    while True:
        try:
            await _listen(listen, protection, sources, every_s)
        except ListenError as error:
            sources.tell("MetricsUnavailable", str(error))
        await asyncio.sleep(every_s)


async def _listen(listen: Listen, protection: Protection, sources: Sources, every_s: float) -> None:
    guard = await asyncio.to_thread(Guard, protection)
    serving = serve_metrics(listen, guard, render=sources.render, health=sources.health, page=sources.page)
    async with serving as bound:
        scheme = "http" if guard.tls is None else "https"
        sources.journal.record("agent", "metrics", f"metrics on {scheme}://{bound}/metrics")
        sources.tell("MetricsUnavailable", "")
        while protection.files:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(guard.look)
            sources.tell("MetricsFilesUnusable", guard.problem)
        await asyncio.Event().wait()
