"""Has QEMU count how long each disk's operations take, from the first one on if that can be."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from agent.core.errors import ActionError
from agent.core.qemu.answers import NOT_AN_ANSWER, Sums, by_disk, lacks_latency, latency_setting, time_sums
from agent.host.launches import LaunchRecord
from agent.host.qmp import CommandRefusedError
from agent.runtime.guest import Guest
from agent.runtime.guests import Guests

log = structlog.get_logger("vmhost.latency")

ASK_WITHIN_S = 2.0
"""A guest's start and a disk's plugging wait no longer for all of this; a look at it does the rest."""


async def count_latencies(guests: Guests, guest: Guest) -> None:
    """Have QEMU count the latencies of the disks that it has now; where that fails, the next look does it."""
    try:
        async with asyncio.timeout(ASK_WITHIN_S):  # of all: each disk is a command, and whoever waits has a deadline
            answer = await guest.execute("query-blockstats")
            await set_missing(guests, guest, answer, set())
    except TimeoutError:
        log.info("latencies are not counted yet", vm=guest.name, why=f"QEMU took more than {ASK_WITHIN_S:g} s")
    except (ActionError, *NOT_AN_ANSWER) as error:
        log.info("latencies are not counted yet", vm=guest.name, why=str(error))


async def set_missing(guests: Guests, guest: Guest, answer: Iterable[Mapping[str, Any]], refused: set[str]) -> None:
    """Set the bounds of histograms for disks that lack them by this answer of `query-blockstats`.

    What is there with our bounds is left alone, because setting them begins to count anew (QAPI,
    `block-latency-histogram-set`). A disk that was in use before is written down with the time that it took until then,
    which QEMU goes on counting. A refusal is told, and the disk is put to the `refused`, which are not tried.
    Raises ActionError otherwise.
    """
    for disk, entry in by_disk(guest.record.spec.disks, answer).items():
        if disk in refused or not lacks_latency(entry):
            continue
        try:
            await guest.execute("block-latency-histogram-set", latency_setting(entry), ASK_WITHIN_S)
        except CommandRefusedError as error:
            refused.add(disk)
            log.warning("QEMU does not count latencies", vm=guest.name, disk=disk, why=str(error))
            continue
        before = time_sums(entry)
        if any(before.values()) or disk in guest.record.counted_from:
            await guests.keep(guest.name, partial(_counted_from, disk=disk, sums=before))


def _counted_from(record: LaunchRecord, disk: str, sums: Sums) -> LaunchRecord:
    others = {id_: one for id_, one in record.counted_from.items() if id_ != disk}
    return replace(record, counted_from={**others, disk: sums} if any(sums.values()) else others)
