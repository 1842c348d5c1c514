"""The kernel's links, watched as the agent does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TypeVar

from agent.host.netlink import Links

L = TypeVar("L", bound=Links)


@contextlib.asynccontextmanager
async def watched(links: L) -> AsyncIterator[tuple[L, asyncio.Event]]:
    """Links that are open, and what is set whenever they were heard to change."""
    async with links:
        rung = asyncio.Event()
        watching = asyncio.create_task(links.watch(lambda _: rung.set()))
        await asyncio.sleep(0)
        try:
            yield links, rung
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
