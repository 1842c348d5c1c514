"""Names of the host's users, asked for so that a directory service that hangs delays nothing of the agent."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread

from agent.core.rights import user_shown
from agent.core.text import printable
from agent.host.peers import find_user

USER_NAME_S = 1.0
"""An event goes without the name then."""


class Users:
    """Looks users up in a thread of its own: passes need the loop's others, and the agent's end waits for those."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[tuple[int, asyncio.Future[str]]] = SimpleQueue()
        self._thread: Thread | None = None

    async def shown(self, uid: int) -> str:
        """A user in words, with the name if the host has one and says so within `USER_NAME_S`."""
        if self._thread is None:
            self._thread = Thread(target=self._look, name="users", daemon=True)
            self._thread.start()
        found: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked.put((uid, found))
        name = ""
        with suppress(TimeoutError):
            async with asyncio.timeout(USER_NAME_S):
                name = await found
        return user_shown(uid, printable(name))

    def _look(self) -> None:
        while True:
            uid, found = self._asked.get()
            if found.cancelled():
                continue
            name = find_user(uid)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                found.get_loop().call_soon_threadsafe(_answer, found, name)


def _answer(found: asyncio.Future[str], name: str) -> None:
    if not found.done():
        found.set_result(name)
