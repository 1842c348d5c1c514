"""One doorbell for everything that happens: an event never says what to do, only that it is time to look."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter


class Doorbell:
    """Any number of rings before a look are one look; `rings` counts them by source."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self.rings: Counter[str] = Counter()

    def ring(self, source: str) -> None:
        """Ask for a look."""
        self.rings[source] += 1
        self._rung.set()

    async def wait(self, timeout_s: float | None) -> None:
        """Return when rung since the last return, or after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._rung.wait(), timeout_s)
        self._rung.clear()
