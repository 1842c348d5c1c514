"""Looks at each running guest every ten seconds: what it took of CPU, memory and disks, and how soon it answers.

Each guest has a task of its own, and its looks have a deadline, so that one that hangs delays nobody else. What was
seen is replaced as a whole; who shows it reads it and never waits.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from agent.core.measures import GuestMeasure
from agent.core.services.leases import Lease
from agent.core.turns import turn_of
from agent.host.netlink import Links
from agent.runtime.canary import Canary
from agent.runtime.clock import now_s
from agent.runtime.guest import Guest
from agent.runtime.guests import Guests
from agent.runtime.look import NICS_EVERY, GuestLooks

INTERVAL_S = 10.0
STALE_AFTER_INTERVALS = 3

FIND_EVERY_S = 1.0
FIRST_LOOK_WITHIN_S = 0.05
"""For each guest there is: a new one is looked at soon, and hundreds that are adopted are not looked at at once."""


class Measures:
    """The last good look at each guest.

    `poll_in` begins; errors of a look are the guest's alone: its last look stays until it is too old.
    """

    def __init__(
        self,
        guests: Guests,
        links: Links,
        leases: Callable[[], Mapping[str, Sequence[Lease]]],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._guests = guests
        self._canary = Canary(links, leases)
        self._interval_s = interval_s
        self._looks: dict[Guest, GuestLooks] = {}
        self._group: asyncio.TaskGroup | None = None

    def poll_in(self, group: asyncio.TaskGroup) -> None:
        """Look at guests in tasks of this group, until it is cancelled."""
        self._group = group
        group.create_task(self._find_guests(), name="measures")
        group.create_task(self._canary.watch(NICS_EVERY * self._interval_s), name="canary")

    @property
    def latest(self) -> Mapping[str, GuestMeasure]:
        """The last good look at each guest, by its name.

        There is none of a guest whose process is gone, none that is older than three intervals, and none of a QEMU that
        is known to be silent: its numbers stand still, and would be taken for a guest at rest. 0.5 µs a guest.
        """
        too_old_s = now_s() - STALE_AFTER_INTERVALS * self._interval_s
        found = {}
        for guest, looks in self._looks.items():
            measure = looks.measure
            if measure is not None and guest.alive and guest.run_state is not None and measure.at_s >= too_old_s:
                found[guest.name] = measure if measure.vm == guest.name else replace(measure, vm=guest.name)
        return found

    async def refresh(self, names: Collection[str] | None = None) -> None:
        """Look at these guests now, all by default, and return when that is over, within a look's deadline.

        A look that is under way counts. NICs are not asked. Without effect on guests that do not run.
        """
        self._find()
        wanted = [looks for guest, looks in self._looks.items() if names is None or guest.name in names]
        await asyncio.gather(*(looks.look() for looks in wanted))

    async def _find_guests(self) -> None:
        while True:
            self._find()
            await asyncio.sleep(FIND_EVERY_S)

    def _find(self) -> None:
        """Begin to look at guests that are new, and let go of those that are gone."""
        present = {guest for guest in self._guests if guest.alive}
        for gone in self._looks.keys() - present:
            self._looks.pop(gone)
        for guest in present - self._looks.keys():
            looks = GuestLooks(self._guests, guest, self._canary)
            self._looks[guest] = looks
            if self._group is not None:
                self._group.create_task(self._poll(guest, looks), name=f"look {guest.name}")

    async def _poll(self, guest: Guest, looks: GuestLooks) -> None:
        await asyncio.sleep(random.uniform(0.0, min(self._interval_s, FIRST_LOOK_WITHIN_S * len(self._looks))))
        while self._looks.get(guest) is looks:
            await looks.look()
            turn = turn_of(guest.record.spec.uuid, len(self._looks), self._interval_s)
            if looks.nics_are_due:
                # By itself: how soon a guest answers is taken by the loop that would be looking at others just then.
                left_s = (turn.own_s - now_s()) % self._interval_s
                await asyncio.sleep(left_s if left_s < turn.within_s else 0.0)
            await looks.ask_nics()
            await asyncio.sleep((turn.shared_s - now_s()) % self._interval_s or self._interval_s)
