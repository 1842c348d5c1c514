"""All guests that were launched and not yet forgotten, by name."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import structlog

from agent.core.desired import VmSpec
from agent.core.errors import ActionError, TransientError
from agent.core.observed import VmState
from agent.host.launches import Launches, LaunchRecord
from agent.host.processes import Process, find_process, find_process_with
from agent.host.tap import fetch_descriptors, find_descriptor_numbers
from agent.runtime.descriptors import Descriptors
from agent.runtime.guest import Guest
from agent.runtime.starts import Starts, unit_of
from agent.runtime.threads import run_to_end
from agent.runtime.witness import GuestWitness

LAST_WORD_S = 0.5
"""How long an agent that ends waits for a QEMU's answer."""

log = structlog.get_logger("vmhost.guests")


class Guests:
    """Serves each guest in a task of its own; what one does delays no other."""

    def __init__(
        self,
        launches: Launches,
        descriptors: Descriptors,
        starts: Starts,
        ring: Callable[[str], None],
        witness: GuestWitness,
    ) -> None:
        self._launches = launches
        self._starts = starts
        self._descriptors = descriptors
        self._group: asyncio.TaskGroup | None = None
        self._ring = ring
        self._witness = witness
        self._guests: dict[str, Guest] = {}

    def serve_in(self, group: asyncio.TaskGroup) -> None:
        """Serve guests as tasks of this group from now on."""
        self._group = group

    def __iter__(self) -> Iterator[Guest]:
        return iter(tuple(self._guests.values()))

    def have_queues(self) -> bool:
        """Whether any has a NIC with several queues."""
        return any(nic.queues > 1 for guest in self._guests.values() for nic in guest.record.spec.nics)

    def states(self) -> Mapping[str, VmState]:
        """What is known of each guest now."""
        found = {name: guest.state() for name, guest in self._guests.items()}
        for guest in self._guests.values():
            self._note_queues(guest)
        return found

    def _note_queues(self, guest: Guest) -> None:
        """Write down, beside whatever is done, which queues a guest has switched off: the next agent cannot ask."""
        if not guest.alive or self._group is None or all(nic.queues == 1 for nic in guest.record.spec.nics):
            return
        detached = self._descriptors.detached(guest.name)
        if guest.record.detached != detached and not guest.saving.locked():
            self._group.create_task(self._keep_queues(guest.name, detached), name=f"queues of {guest.name}")

    async def _keep_queues(self, name: str, detached: Mapping[str, tuple[int, ...]]) -> None:
        try:
            await self.keep(name, lambda record: replace(record, detached=detached))
        except ActionError as error:
            log.warning("which queues a guest uses is not kept", vm=name, why=str(error))

    def find(self, name: str) -> Guest | None:
        """The guest of a name, None if there is none."""
        return self._guests.get(name)

    def get(self, name: str) -> Guest:
        """The guest of a name; `TransientError` if it is gone meanwhile."""
        guest = self._guests.get(name)
        if guest is None:
            raise TransientError(f"{name} is gone meanwhile", reason="Gone")
        return guest

    def add(self, record: LaunchRecord, process: Process | None) -> Guest:
        """Begin to serve a guest."""
        guest = Guest(
            record,
            process,
            self._launches.directory(record.spec.name),
            self._descriptors,
            self._ring,
            self._witness,
            self._starts,
        )
        self._guests[record.spec.name] = guest
        if self._group is None:
            raise RuntimeError("guests are served in a task group")
        self._group.create_task(guest.serve(), name=f"guest {record.spec.name}")
        return guest

    async def adopt(self, records: Iterable[LaunchRecord]) -> int:
        """Take over what an earlier agent launched; how many of them run."""
        running = 0
        for record in records:
            process = self._find_process(record)
            if process is None and record.pid is None:
                self._launches.forget(record.spec.name)  # it was never spawned, so it has not ended either
                continue
            if process is None:
                status = await self._starts.find_end(record)
                self.add(record if status is None else replace(record, exit_reason=status.reason), None)
                if status is not None and status.violence:
                    self._witness.killed(record.spec.name, status.violence)
                continue
            self._fetch_descriptors(record, process)
            self._descriptors.recall_detached(record.spec.name, record.detached)
            unit = record.unit or unit_of(process)
            guest = self.add(replace(record, pid=process.pid, start_time=process.start_time, unit=unit), process)
            guest.limits_awaited = bool(unit)
            running += 1
        return running

    def _find_process(self, record: LaunchRecord) -> Process | None:
        if record.pid is None or record.start_time is None:
            # An agent died between spawning this QEMU and writing its pid down.
            return find_process_with(self._launches.lock_path(record.spec.name))
        return find_process(record.pid, record.start_time)

    def _fetch_descriptors(self, record: LaunchRecord, process: Process) -> None:
        """The service manager's copies first: fetching from QEMU needs ptrace rights, which a host may give nobody."""
        for nic in (*record.spec.nics, *record.leaving_nics):
            if self._descriptors.take_back(record.spec.name, nic):
                continue
            # Without numbers it was plugged, or is not even that, when its agent died.
            numbers = record.nic_fds.get(nic.id) or find_descriptor_numbers(process.pid, nic.tap)
            if len(numbers) != nic.queues:
                continue
            try:
                self._descriptors.put(record.spec.name, nic, fetch_descriptors(process.pid, numbers))
            except ActionError as error:
                log.warning("no descriptor of a NIC", vm=record.spec.name, nic=nic.id, why=str(error))

    async def keep(self, name: str, change: Callable[[LaunchRecord], LaunchRecord]) -> None:
        """Write a guest's changed record down, and only then go by it; `TransientError` if either cannot be had.

        One at a time, so that no change is lost and the last one is what the next agent reads.
        """
        guest = self.get(name)
        async with guest.saving:
            record = change(guest.record)
            await run_to_end(self._launches.save, record)
            guest.record = record

    def share(self, specs: Mapping[str, VmSpec]) -> None:
        """Let guests that are as their units say have the very specs of these: a pass then sees that at a glance."""
        for guest in self:
            spec = specs.get(guest.name)
            if spec is not None and guest.record.spec is not spec and guest.record.spec == spec:
                guest.record = replace(guest.record, spec=spec)

    def hurry(self, by_s: float) -> None:
        """Give those that are being stopped no more time than until then (CLOCK_BOOTTIME)."""
        for guest in self:
            guest.hurry(by_s)

    async def close(self) -> None:
        """Let go of all monitors, so that the next agent finds them free.

        While no agent is there, a guest that reboots comes back in the same QEMU; the next agent sees to the rest.
        """
        rebooting = [
            self._let_reboot(guest) for guest in self if guest.record.reboot_ends and guest.monitor is not None
        ]
        await asyncio.gather(*rebooting)
        for guest in self:
            if guest.monitor is not None:
                await guest.monitor.close()

    @staticmethod
    async def _let_reboot(guest: Guest) -> None:
        with contextlib.suppress(ActionError):
            await guest.change_reboot(ends=False, timeout_s=LAST_WORD_S)

    def forget(self, name: str) -> None:
        """Forget a guest that is gone, with its descriptors."""
        self._guests.pop(name, None)
        self._descriptors.forget_guest(name)

    async def rename(self, name: str, new_name: str) -> None:
        """Carry a guest over to another name."""
        guest = self.get(name)
        async with guest.saving:
            guest.record = self._launches.rename(guest.record, new_name)
        guest.directory = self._launches.directory(new_name)
        self._descriptors.rename_guest(name, new_name)
        self._guests[new_name] = self._guests.pop(name)
