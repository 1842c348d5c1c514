"""Tells people, by the operator's own hooks, of what wants them; off the path of passes.

What was told is kept in the agent's memory once the hooks have had it, so a notification that an agent took with it is
sent by the next one: at least once, never only perhaps.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

from agent.core.errors import HookError
from agent.core.memory import Memory
from agent.core.tell.notification_text import document, environment
from agent.core.tell.notifications import Key, Limits, News, Notification, Told, Watch, look
from agent.runtime.chronicle import Chronicle
from agent.runtime.clock import now_s
from agent.runtime.keeper import Keeper
from agent.runtime.operator import Operator

LOOK_EVERY_S = 1.0
AT_ONCE = 2
"""Notifications on their way; a hook that hangs holds up only the other's successor."""
QUEUE = 50
"""Notifications that wait; while there is no room, what is due stays due and is summed up later."""
TRIES = 2
RETRY_AFTER_S = 5.0


class Hook(Protocol):
    """One way to tell (`CommandHook`, `Webhook`)."""

    @property
    def name(self) -> str:
        """How it is called, without any secret."""

    def problem(self) -> str:
        """Why it cannot work as it is now; empty if nothing is seen."""

    async def send(self, body: bytes, variables: Mapping[str, str], /) -> str:
        """Tell; what it answered, for the log. Raises HookError."""


@dataclass(frozen=True, slots=True)
class Notifying:
    """What the agent was told on its command line: whom to tell, and how often at most."""

    hooks: tuple[Hook, ...] = ()
    per_minute: int = 10
    retry_after_s: float = RETRY_AFTER_S


@dataclass(slots=True)
class Notifications:
    """Looks at the latest pass each second in which there is news, and tells all hooks of what is due."""

    notifying: Notifying
    operator: Operator
    keeper: Keeper
    chronicle: Chronicle
    watch: Watch = field(default_factory=Watch)
    _waiting: asyncio.Queue[Notification] = field(default_factory=lambda: asyncio.Queue(QUEUE))
    _under_way: set[Key] = field(default_factory=set)
    _problems: dict[str, str] = field(default_factory=dict)

    async def run(self) -> None:
        """Until it is cancelled; a command that runs then is killed, and what it was told of is told again later."""
        for hook in self.notifying.hooks:
            self._note(hook, await asyncio.to_thread(hook.problem))
        self.watch = Watch(told=self.keeper.memory.told)
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._deliver_all())
            seen = 0
            while True:
                if self.operator.pass_number != seen or self.watch.is_waiting:
                    seen = self.operator.pass_number
                    self._look()
                    await self._keep()
                await asyncio.sleep(LOOK_EVERY_S)

    def _look(self) -> None:
        troubles, complete = self.operator.troubles()
        room = QUEUE - self._waiting.qsize()
        limits = Limits(self.notifying.per_minute, room, frozenset(self._under_way), complete)
        before = self.watch.passed
        self.watch, notifications = look(self.watch, troubles, now_s(), limits)
        passed = sum(one.passed for one in notifications) + self.watch.passed - before
        for _ in range(passed + sum(len(one.more) for one in notifications)):
            self.chronicle.metrics.notified("held_back")
        for one in notifications:
            self._under_way |= one.keys
            self._waiting.put_nowait(one)

    async def _keep(self) -> None:
        """Remember what was told; of what is under way, what was remembered before."""

        def with_told(memory: Memory) -> Memory:
            told: dict[Key, Told] = {k: v for k, v in self.watch.told.items() if k not in self._under_way}
            told |= {key: memory.told[key] for key in self._under_way if key in memory.told}
            return memory if told == memory.told else replace(memory, told=told)

        if with_told(self.keeper.memory) is not self.keeper.memory:
            await self.keeper.update(with_told)

    async def _deliver_all(self) -> None:
        while True:
            notification = await self._waiting.get()
            plain = document(notification, os.uname().nodename, datetime.now(UTC).isoformat(timespec="milliseconds"))
            body, variables = json.dumps(plain, ensure_ascii=False).encode(), environment(plain)
            async with asyncio.TaskGroup() as group:
                for hook in self.notifying.hooks:
                    group.create_task(self._tell(hook, notification.news, body, variables))
            self._under_way -= notification.keys
            await self._keep()

    async def _tell(self, hook: Hook, news: News, body: bytes, variables: Mapping[str, str]) -> None:
        """Tell one hook, and once more if that failed; then it is done with: nobody is told for ever."""
        problem = ""
        for trial in range(TRIES):
            if trial:
                await asyncio.sleep(self.notifying.retry_after_s)
            try:
                answer = await hook.send(body, variables)
            except HookError as error:
                problem = str(error)
                continue
            self._note(hook, "")
            self.chronicle.metrics.notified("delivered")
            said = f"{hook.name} was told: {variables['VMHOST_TEXT']}"
            self.chronicle.journal.record(news.resource, "notified", said, answer=answer)
            return
        self._note(hook, f"{problem}; the latest notification reached nobody there")
        self.chronicle.metrics.notified("failed")
        said = f"not told after {TRIES} tries: {problem}"
        self.chronicle.journal.record(news.resource, "notification-failed", said, level="warning", about=news.type)

    def _note(self, hook: Hook, problem: str) -> None:
        self._problems[hook.name] = problem
        self.operator.note_problem("NotificationFailed", "; ".join(filter(None, self._problems.values())))
