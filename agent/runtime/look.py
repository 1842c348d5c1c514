"""One guest's looks: what is asked of its QEMU and of the kernel, and how often.

Each command costs 0.5 ms of the agent, whatever it asks; so what changes slowly is asked by turns, one thing a look.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from agent.core.errors import ActionError
from agent.core.measures import DiskMeasure, GuestMeasure, JobMeasure, ReachMeasure, never_less
from agent.core.qemu.answers import (
    NOT_AN_ANSWER,
    Sizes,
    balloon_bytes,
    by_disk,
    cpu_threads,
    disk_measure,
    disk_sizes,
    guest_memory,
    job_measures,
)
from agent.core.qemu.platform import BALLOON
from agent.host.process_times import find_control_group, read_delay_s, read_pressure, read_times
from agent.host.qmp import CommandRefusedError
from agent.runtime.canary import Canary, Reach
from agent.runtime.clock import now_s
from agent.runtime.guest import Guest
from agent.runtime.guests import Guests
from agent.runtime.latency import set_missing

log = structlog.get_logger("vmhost.look")

DEADLINE_S = 2.0

TURNS, JOBS_TURN, MEMORY_TURNS = 12, 2, (1, 7)
"""What changes slowly is asked in every twelfth look, and a guest's own memory in every sixth: with two hundred guests
each question more a look costs the agent 1 % of a core."""

NICS_EVERY = 3

MEMORY_EVERY_S = 30
"""How often a guest's own driver is to tell of its memory."""

MEMORY_OLD_AFTER_S = 90.0
_BALLOON_PATH = f"/machine/peripheral/{BALLOON}"


class GuestLooks:
    """The looks at one launch of a guest. `measure` is the last good one, None before."""

    def __init__(self, guests: Guests, guest: Guest, canary: Canary) -> None:
        self.measure: GuestMeasure | None = None
        self._canary = canary
        self._reach: dict[str, Reach] = {}
        self._guests = guests
        self._guest = guest
        self._number = self._nic_turns = 0
        self._threads: tuple[int, ...] = ()
        self._vcpus: int | None = None
        self._cpu_s: Mapping[str, float] = {}
        self._cpus: int | None = None
        self._sizes: Mapping[str, Sizes] = {}
        self._balloon_bytes: int | None = None
        self._memory: Mapping[str, int] = {}
        self._jobs: tuple[JobMeasure, ...] = ()
        self._group: Path | None = None
        self._asked_for_memory = False
        self._uncounted: set[str] = set()
        self._under_way: asyncio.Future[None] | None = None
        self._told = ""

    async def look(self) -> None:
        """Look now, within the deadline; where a look is under way, wait for that one. Never fails."""
        if self._under_way is not None:
            await asyncio.shield(self._under_way)
            return
        self._under_way = asyncio.get_running_loop().create_future()
        try:
            await self._look()
        finally:
            self._under_way.set_result(None)
            self._under_way = None

    @property
    def nics_are_due(self) -> bool:
        """Whether the next `ask_nics` asks, if the guest runs."""
        return self._nic_turns % NICS_EVERY == 0

    async def ask_nics(self) -> None:
        """Ask all NICs of a guest that runs whether they are there, at once, and wait for each no longer than a second.

        What they answer is in the measure then. They are asked at every third call, and not by the number of looks:
        others look in between.
        """
        if self._guest.run_state != "running":
            return
        due, self._nic_turns = self.nics_are_due, self._nic_turns + 1
        if not due:
            return
        nics = self._guest.record.spec.nics
        self._reach = {nic.id: self._reach.get(nic.id) or Reach(self._canary.neighbours) for nic in nics}
        await asyncio.gather(*(self._reach[nic.id].ask(nic, self._canary.askable(nic)) for nic in nics))
        if self.measure is not None:
            self.measure = replace(self.measure, reach=self._reached())

    def _reached(self) -> tuple[ReachMeasure, ...]:
        nics = self._guest.record.spec.nics
        unasked = Reach(self._canary.neighbours)
        return tuple(self._reach.get(nic.id, unasked).measure(nic, self._canary.learnt(nic)) for nic in nics)

    async def _look(self) -> None:
        guest = self._guest
        if not guest.alive or guest.process is None or guest.run_state is None:
            return  # a QEMU that is silent, or not connected: what is asked now only waits
        try:
            async with asyncio.timeout(DEADLINE_S):
                measure = await self._ask(guest, guest.process.pid, guest.process.start_time)
        except TimeoutError:
            log.debug("a look at a guest took too long", vm=guest.name)  # what a silent QEMU means, a condition tells
        except (CommandRefusedError, *NOT_AN_ANSWER) as error:
            self._tell(f"{type(error).__name__}: {error}")
        except ActionError as error:
            log.debug("a look at a guest had no answer", vm=guest.name, why=str(error))
        else:
            self._told = ""
            self.measure = measure or self.measure

    def _tell(self, why: str) -> None:
        """Tell of a look that failed, once until one succeeds."""
        if self._guest.alive and why != self._told:
            self._told = why
            log.info(
                "a look at a guest failed; its last one is shown until it is too old", vm=self._guest.name, why=why
            )

    async def _ask(self, guest: Guest, pid: int, start_time: int) -> GuestMeasure | None:
        """Look at all of a guest; None if it has ended."""
        await self._ask_for_threads(guest, pid)
        await self._ask_in_turn()
        disks = await self._ask_for_disks(guest)
        at_s = now_s()
        times = read_times(pid, start_time)
        if times is None:
            return None
        self._number += 1
        cpu_s = {"user": times.user_s, "system": times.system_s, "guest": times.guest_s}
        self._cpu_s = never_less(self._cpu_s, cpu_s)
        return GuestMeasure(
            vm=guest.name,
            at_s=at_s,
            cpu_s=self._cpu_s,
            vcpus=self._vcpus,
            vcpu_delay_s=read_delay_s(pid, self._threads),
            resident_bytes=times.resident_bytes,
            balloon_bytes=self._balloon_bytes,
            guest_memory_bytes=self._memory,
            pressure_s=read_pressure(self._group) if self._group is not None else {},
            disks=disks,
            jobs=self._jobs,
            reach=self._reached(),
        )

    async def _ask_for_disks(self, guest: Guest) -> tuple[DiskMeasure, ...]:
        answer = await self._query("query-blockstats")
        await set_missing(self._guests, guest, answer, self._uncounted)
        found = by_disk(guest.record.spec.disks, answer)
        if found.keys() - self._sizes.keys():
            await self._ask_for_sizes()
        counted_from = guest.record.counted_from
        return tuple(
            disk_measure(disk, entry, self._sizes.get(disk, (None, None)), counted_from.get(disk, {}))
            for disk, entry in found.items()
        )

    async def _ask_in_turn(self) -> None:
        """Ask what changes slowly: all of it at the first look, then one thing a look; what is refused is left out."""
        if self._number == 0:
            for ask in (self._ask_for_memory, self._ask_for_jobs, self._ask_for_balloon):  # sizes come with the disks
                with suppress(CommandRefusedError):
                    await ask()
            return
        asks = {0: self._ask_for_sizes, 4: self._ask_for_balloon, **dict.fromkeys(MEMORY_TURNS, self._ask_for_memory)}
        at = self._number % TURNS
        with suppress(CommandRefusedError):
            if at in asks:
                await asks[at]()
            elif at == JOBS_TURN or self._jobs:  # where there is one, people watch it
                await self._ask_for_jobs()

    async def _ask_for_threads(self, guest: Guest, pid: int) -> None:
        """Ask which threads are CPUs, at the first look and after CPUs were plugged; and where the process lives."""
        if self._threads and self._cpus == guest.cpus:
            return
        self._cpus = guest.cpus
        answer = await self._query("query-cpus-fast")
        self._threads, self._vcpus = cpu_threads(answer), len(answer)
        self._group = find_control_group(pid) if guest.record.unit else None

    async def _ask_for_sizes(self) -> None:
        answer = by_disk(self._guest.record.spec.disks, await self._query("query-block"))
        self._sizes = {disk: disk_sizes(entry) for disk, entry in answer.items()}

    async def _ask_for_jobs(self) -> None:
        self._jobs = job_measures(self._guest.record.spec.disks, await self._query("query-block-jobs"))

    async def _ask_for_balloon(self) -> None:
        if self._has_balloon():
            self._balloon_bytes = balloon_bytes(await self._query("query-balloon"))

    async def _ask_for_memory(self) -> None:
        """Ask what the guest's own driver told last; it is told how often to tell, once for each agent."""
        if not self._has_balloon():
            return
        if not self._asked_for_memory:
            name = {"path": _BALLOON_PATH, "property": "guest-stats-polling-interval"}
            await self._query("qom-set", {**name, "value": MEMORY_EVERY_S})
            self._asked_for_memory = True
        answer = await self._query("qom-get", {"path": _BALLOON_PATH, "property": "guest-stats"})
        self._memory = guest_memory(answer, time.time(), MEMORY_OLD_AFTER_S)

    def _has_balloon(self) -> bool:
        """Whether QEMU has our balloon: one that an earlier version started may have none."""
        return BALLOON in (self._guest.devices or ())

    async def _query(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        return await self._guest.execute(command, arguments, DEADLINE_S)
