"""Keeps the agent's memory: the value of the moment, and its way to the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.core.memory import Memory
from agent.host.statedir import StateDirectory
from agent.runtime.threads import run_to_end


class Keeper:
    """The one owner of `Memory`. `problem` is why the last write failed, empty when it did not."""

    def __init__(self, directory: StateDirectory, memory: Memory) -> None:
        self._directory = directory
        self._writing = asyncio.Lock()
        self._written: Memory | None = None
        self.memory = memory
        self.problem = ""

    async def update(self, change: Callable[[Memory], Memory]) -> None:
        """Change the memory and return when it is on the disk; changes that come meanwhile share one write.

        A write that fails is told in `problem` and tried again at the next change or `flush`; the agent goes on with
        what it has in mind, because a host whose disk is full needs its guests healed all the same.
        """
        self.memory = change(self.memory)
        await self.flush()

    async def flush(self) -> None:
        """Bring to the disk what is not there yet."""
        async with self._writing:
            if self._written is self.memory:
                return
            latest = self.memory
            try:
                await run_to_end(self._directory.save, latest)
            except OSError as error:
                self.problem = f"{error.filename or 'state directory'}: {error.strerror}; make room or mend it"
            else:
                self._written = latest
                self.problem = ""
