"""The agent as a service: it says when it serves, how it goes, and that it makes progress; and it reloads when told to.

The watchdog is fed by what the agent is there for: a pass that was asked for and is over, while full looks succeed. An
agent whose loop, passes or netlink stand still is restarted by the service manager; guests run on meanwhile.
"""

from __future__ import annotations

import asyncio

from agent.core.tell.status_line import status_line
from agent.host.notify import Notifier
from agent.runtime.agent import FULL_LOOK_EVERY_S, Agent
from agent.telemetry.journal import Journal

STALE_LOOK_S = 4 * FULL_LOOK_EVERY_S
"""When the agent counts as blind: three full looks in a row failed."""
MEALS = 3
"""How often the watchdog is fed within its interval."""
STATUS_EVERY_S = 1.0


class Service:
    """What goes between one agent and its service manager."""

    def __init__(self, notifier: Notifier, agent: Agent, journal: Journal) -> None:
        self._notifier = notifier
        self._agent = agent
        self._journal = journal

    async def run(self, reload: asyncio.Event) -> None:
        """Until it is cancelled; `reload` is set whenever a reload is asked for, also without a service manager."""
        await self._agent.next_pass()
        self._notifier.ready()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reload(reload), name="reload")
            if self._notifier.is_present:
                group.create_task(self._tell_status(), name="status line")
            if self._notifier.watchdog_s is not None:
                group.create_task(self._feed_watchdog(self._notifier.watchdog_s / MEALS), name="watchdog")

    async def _reload(self, reload: asyncio.Event) -> None:
        while True:
            await reload.wait()
            reload.clear()
            self._notifier.reloading()
            await self._agent.reread_units()
            await self._agent.next_pass()
            self._journal.record("agent", "reloaded", "the unit directory was read again, as it was asked for")
            self._notifier.ready()

    async def _feed_watchdog(self, every_s: float) -> None:
        while True:
            if await self._agent.next_pass() < STALE_LOOK_S:
                self._notifier.alive()
            await asyncio.sleep(every_s)

    async def _tell_status(self) -> None:
        shown, told = -1, ""
        while True:
            if self._agent.operator.pass_number != shown:
                shown = self._agent.operator.pass_number
                line = status_line(self._agent.operator.inputs())
                if line != told and self._notifier.status(line):
                    told = line
            await asyncio.sleep(STATUS_EVERY_S)
