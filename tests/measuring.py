"""Looks at guests that an agent launched and left behind, in the test's own process: what the agent would have seen."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from agent.core.measures import DiskMeasure, GuestMeasure
from agent.host.launches import Launches, LaunchRecord
from agent.host.netlink import Links
from agent.host.notify import Notifier
from agent.runtime.clock import now_s
from agent.runtime.descriptors import Descriptors
from agent.runtime.guest import Guest
from agent.runtime.guests import Guests
from agent.runtime.measures import Measures
from agent.runtime.starts import ChildStarts
from tests.agent_process import AgentProcess


class Deaf:
    """Hears everything, and only counts commands."""

    def __init__(self) -> None:
        self.commands: dict[str, int] = {}

    def heard(self, _vm: str, _event: str, _data: Mapping[str, Any]) -> None: ...

    def killed(self, _vm: str, _how: str) -> None: ...

    def refused(self, _command: str, _error_class: str) -> None: ...

    def reconnected(self, _vm: str) -> None: ...

    def answered(self, command: str, _seconds: float) -> None:
        self.commands[command] = self.commands.get(command, 0) + 1


@dataclass
class Measuring:
    """Guests and what is measured of them."""

    guests: Guests
    measures: Measures
    witness: Deaf
    group: asyncio.TaskGroup

    def guest(self, name: str) -> Guest:
        return self.guests.get(name)

    async def look(self, name: str) -> GuestMeasure:
        """Look until it succeeds; what was seen. A look that began before counts while it is under way."""
        began_s = now_s()
        async with asyncio.timeout(60.0):
            while True:
                await self.measures.refresh({name})
                found = self.measures.latest.get(name)
                if found is not None and found.at_s >= began_s:
                    return found
                await asyncio.sleep(0.02)

    async def disk(self, name: str, disk: str) -> DiskMeasure:
        """Look now; what was seen of a disk."""
        return next(one for one in (await self.look(name)).disks if one.disk == disk)

    async def until(self, holds: Callable[[], object], timeout_s: float = 60.0) -> None:
        """Return once something is true of what is measured; not of what is missing, as a measure that is too old."""
        deadline_s = now_s() + timeout_s
        while True:
            with contextlib.suppress(KeyError):
                if holds():
                    return
            assert now_s() < deadline_s, "did not become true in time"
            await asyncio.sleep(0.02)


@asynccontextmanager
async def measuring(agent: AgentProcess, interval_s: float = 3600.0, *, begin: bool = True) -> AsyncIterator[Measuring]:
    """Take over the guests of an agent, which must have ended, and look at them each `interval_s`.

    Without `begin`, only once `poll_in` was called.
    """
    launches, witness = Launches(agent.run_dir), Deaf()
    records = [one for one in launches.read() if isinstance(one, LaunchRecord)]
    async with Links() as links:
        guests = Guests(launches, Descriptors(Notifier()), ChildStarts(), lambda _source: None, witness)
        try:
            async with asyncio.TaskGroup() as group:
                guests.serve_in(group)
                await guests.adopt(records)
                for guest in guests:
                    await asyncio.wait_for(guest.connected(), 30.0)
                measures = Measures(guests, links, dict, interval_s)
                group.create_task(links.watch(lambda _source: None))
                if begin:
                    measures.poll_in(group)
                yield Measuring(guests, measures, witness, group)
                raise _Over
        except* _Over:
            pass
        finally:
            await guests.close()


class _Over(Exception):  # noqa: N818 - it ends a task group
    """The test is over."""
