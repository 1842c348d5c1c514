"""Rings when a guest switches queues of its NIC on or off, which rtnetlink tells nobody.

What a lost tap must have again is known from the last look at the living one: so it is looked at upon each change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from agent.core.errors import ActionError
from agent.host.tap import LOST, Uevents

log = structlog.get_logger("vmhost.queues")


async def watch_queues(has_queues: Callable[[], bool], ring: Callable[[str], None]) -> None:
    """Ring for each batch of messages about queues, while there is a NIC with several; until cancelled.

    Where they cannot be heard, the next pass for another reason looks as well.
    """
    try:
        uevents = Uevents()
    except ActionError as error:
        log.warning("queues are looked at with each pass only", why=str(error))
        return
    loop = asyncio.get_running_loop()

    def read() -> None:
        found = [event for event in uevents.read() if event is LOST or event.get("SUBSYSTEM") == "queues"]
        if found and has_queues():
            ring("netlink")

    loop.add_reader(uevents.fileno(), read)
    try:
        await loop.create_future()
    finally:
        loop.remove_reader(uevents.fileno())
        uevents.close()
