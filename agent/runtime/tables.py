"""Follows tables of nftables: what they hold, and that somebody changed them.

nft runs in a thread, for milliseconds each time. Its events say when to look again; a look that comes regularly finds
what no event told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

from agent.core.errors import ActionError, ObservationError
from agent.core.routing.ruleset import ElementChange, Ruleset, RulesetState, after_change
from agent.host.nft import MISSING, NftMissingError, change_tables, find_nft, look_at_tables
from agent.host.nft_events import NftEvents
from agent.host.nft_presence import NftPresence
from agent.runtime.threads import run_to_end

log = structlog.get_logger("vmhost.tables")

AGAIN_S = 1.0
"""After a look that failed."""

AHEAD_S = 0.5
"""How long another change waits at most for one that is to go first."""

State = TypeVar("State", bound=RulesetState)


class Tables(Generic[State]):
    """What is known of one ruleset; `problem` says why nothing is, where that will not change by itself."""

    def __init__(self, ruleset: Ruleset, state: type[State], ring: Callable[[], None]) -> None:
        self._ruleset = ruleset
        self._make = state
        self._ring = ring
        self._presence = NftPresence(ruleset)
        self.state: State | None = None
        self.problem = ""
        self._looking = asyncio.Lock()
        self._changed = asyncio.Event()
        self._changing = 0
        self._changes = 0
        self._missed = False
        self._done = asyncio.Event()
        self._done.set()
        self._hears = False
        self._heard: set[int] = set()
        self._own: set[int] = set()

    def look_in(self, group: asyncio.TaskGroup) -> None:
        """Look, and hear of changes, in tasks of this group from now on."""
        self._changed.set()
        group.create_task(self._follow(), name="nftables")
        group.create_task(self._listen(), name="nftables' events")

    def look_soon(self) -> None:
        """Look again, whether or not anything was heard."""
        self._changed.set()

    async def change(self, change: ElementChange) -> None:
        """Run a transaction. Raises an ActionError; the tables are looked at again then."""
        # What it did is known without a look, unless it failed or somebody else did something too: a look takes longer
        # than a change of one element among hundreds.
        self._changing += 1
        self._done.clear()
        try:
            pid = await run_to_end(change_tables, self._ruleset, change)
            if self.state is not None:
                self.state = self._make(*after_change(self._ruleset, self.state, change))
            self._changes += 1
            self._own.add(pid)
        except ActionError:
            await self._look()
            raise
        finally:
            self._changing -= 1
            if not self._changing:
                self._done.set()
                if self._missed or self._heard - self._own or not self._hears:
                    self._changed.set()
                self._missed = False
                self._heard.clear()
                self._own.clear()

    async def let_go_first(self) -> None:
        """Return when the kernel has what is being changed, or soon: there is no promise in it, only less waiting."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AHEAD_S):
                await self._done.wait()

    async def _follow(self) -> None:
        with contextlib.closing(self._presence):
            while True:
                await self._changed.wait()
                self._changed.clear()
                before = self.state, self.problem
                try:
                    await self._look()
                except ObservationError as error:
                    log.warning("the firewall is not known", why=str(error))
                    asyncio.get_running_loop().call_later(AGAIN_S, self._changed.set)
                if (self.state, self.problem) != before:
                    self._ring()

    async def _look(self) -> None:
        """Read the tables; unknown, with the reason, where that fails. Raises ObservationError then, but not for nft
        that is not installed, which only a regular look will find."""
        async with self._looking:
            try:
                changes = self._changes
                seen = await self._seen()
                if changes != self._changes or self._changing:  # it may be what was before a change of ours
                    # Looked at again once that is over: a look at no tables waits for nothing, nor lets it end.
                    self._missed = bool(self._changing)
                    if not self._missed:
                        self._changed.set()
                    if self.state is not None:
                        return
                self.state, self.problem = self._make(seen.skeleton, seen.elements), ""
            except NftMissingError:
                self.state, self.problem = None, MISSING
            except ObservationError as error:
                self.state, self.problem = None, str(error)
                raise

    async def _seen(self) -> RulesetState:
        """See `look_at_tables`; where none of the tables is there, as after a flush, without a process or a thread."""
        if find_nft() is not None and self._presence.are_absent():
            return RulesetState()
        return await run_to_end(look_at_tables, self._ruleset)

    async def _listen(self) -> None:
        try:
            with NftEvents(self._ruleset) as events:
                self._hears = True
                self._changed.set()  # what happened before there was a socket
                await events.watch(self._hear)
        except ObservationError as error:
            log.warning("changes of the firewall are found every half minute only", why=str(error))

    def _hear(self, pid: int) -> None:
        if self._changing:
            self._heard.add(pid)
            self._done.set()  # nft itself ends some 10 ms later, when the kernel has freed what went
        else:
            self._changed.set()
