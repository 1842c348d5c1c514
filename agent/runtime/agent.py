"""The agent: joins the sources, the reconciler and the executors, and keeps them going side by side."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from agent.core.desired import Desired
from agent.core.errors import ObservationError
from agent.core.memory import Memory, cards_of, enslaved_links, without_guests, without_lacks
from agent.core.observed import Observed
from agent.core.planner.approval import still_asked
from agent.core.planner.fallback import starts_of
from agent.core.planner.obstacles import edited
from agent.core.qemu.serial import serial_logs
from agent.core.tell.status import AgentFacts
from agent.host.launches import Launches
from agent.host.logs import cap_log
from agent.host.netlink import VlanLinks
from agent.host.notify import Notifier
from agent.host.service_files import ServiceFiles
from agent.host.statedir import StateDirectory
from agent.host.statedir.moves import Journals
from agent.host.tap import vhost_problem
from agent.host.unitdir import UnitDirectory
from agent.runtime.adoption import Adoption
from agent.runtime.chronicle import Chronicle
from agent.runtime.clock import machine_id, now_s
from agent.runtime.descriptors import Descriptors
from agent.runtime.doctor import Doctor
from agent.runtime.doorbell import Doorbell
from agent.runtime.execute import Executor
from agent.runtime.execute_devices import DeviceExecutor
from agent.runtime.execute_links import LinkExecutor
from agent.runtime.execute_tuning import TuningExecutor
from agent.runtime.execute_vms import VmExecutor, ran_s
from agent.runtime.guests import Guests
from agent.runtime.host_found import QemuFound, host_at_start, look_for_qemu
from agent.runtime.keeper import Keeper
from agent.runtime.leases import Leases
from agent.runtime.limits import LimitLooks, controllers_here
from agent.runtime.measures import Measures
from agent.runtime.network import Network
from agent.runtime.notifications import Notifications, Notifying
from agent.runtime.observe import (
    DiskLooks,
    FileLooks,
    MemoryLooks,
    full_disks,
    short_of_memory,
    sized_disks,
    unplugged_disks,
)
from agent.runtime.operator import Operator
from agent.runtime.probes import Probes
from agent.runtime.publisher import Published, publish, watch_lag
from agent.runtime.queue_events import watch_queues
from agent.runtime.reconcile import Reconciler
from agent.runtime.services import Services, absent_programs
from agent.runtime.starts import Starts
from agent.runtime.threads import run_to_end
from agent.runtime.units import Units
from agent.runtime.uplinks import Uplinks
from agent.runtime.watching import Watching

log = structlog.get_logger("vmhost.agent")

FULL_LOOK_EVERY_S = 30.0
CAP_SERIAL_EVERY_S = 1.0


def cap_all(logs: Sequence[Path]) -> None:
    """Empty those logs that have outgrown their bound."""
    for path in logs:
        cap_log(path)


class Agent:
    """Everything between the adapters and the operator. `run` serves until it is cancelled; guests run on."""

    def __init__(
        self,
        units: Path,
        run_dir: Path,
        state: StateDirectory,
        memory: Memory,
        links: VlanLinks,
        chronicle: Chronicle,
        max_disruption: int,
        facts: AgentFacts,
        qemu: QemuFound,
        notifier: Notifier,
        starts: Starts,
    ) -> None:
        self._links = links
        self._chronicle = chronicle
        self._max_disruption = max_disruption
        self._launches = Launches(run_dir)
        self._directory = UnitDirectory(units)
        self._descriptors = Descriptors(notifier)
        self._starts = starts
        self._doorbell = Doorbell()
        self._guests = Guests(self._launches, self._descriptors, starts, self._doorbell.ring, chronicle)
        self._host = host_at_start(qemu, starts)
        self._looked_s = now_s()
        self._keeper = Keeper(state, memory)
        self._units = Units(units, state, self._keeper, machine_id(), self._units_changed)
        self._disks = DiskLooks(self._keeper, self._doorbell.ring)
        self._files = FileLooks(self._doorbell.ring)
        self._memory = MemoryLooks()
        moves = Uplinks(links, Journals(state.path), self._keeper, starts, self._host.boot_id)
        self._network = Network(self._doorbell.ring, self._keeper, self._host.boot_id, moves)
        self._limits = LimitLooks(self._guests, starts)
        self._probes = Probes(self._doorbell.ring)
        self._services = Services(ServiceFiles(run_dir, state.path), starts.services(), self._doorbell.ring)
        self._leases = Leases(state.path / "leases", self._doorbell.ring)
        self.measures = Measures(self._guests, links, self._leases.states)
        executor = self._executor(state, run_dir)
        self._reconciler = Reconciler(self._doorbell, self._observe, executor.execute, chronicle)
        self._doctor = Doctor(
            self._reconciler,
            chronicle.journal,
            self._doorbell.ring,
            lambda: self._network.routing.switched_off,
            starts.beside(),
        )
        self.operator = Operator(
            facts,
            self._reconciler,
            self._units,
            self._keeper,
            chronicle,
            look_at_all=self._look_at_all,
            hurry=self._guests.hurry,
            doctor=self._doctor,
            watching=Watching(self.measures, links.statistics),
            uplinks=self._network.uplinks,
        )

    def _executor(self, state: StateDirectory, run_dir: Path) -> Executor:
        links = LinkExecutor(self._links, self._descriptors, self._keeper, run_dir)
        return Executor(
            VmExecutor(self._launches, self._guests, self._descriptors, self._keeper, state, self._starts),
            DeviceExecutor(self._guests, links, self._descriptors),
            TuningExecutor(self._guests),
            links,
            self._services,
            self._disks,
            self._guests,
            self._network,
            qemu=lambda: self._host.qemu or "",
        )

    def started_s(self) -> Mapping[str, float]:
        """When each guest that runs was started, Unix time."""
        return {guest.name: time.time() - ran_s(guest) for guest in self._guests if guest.alive}

    async def run(self) -> None:
        """Adopt what runs, then watch, plan and heal. Raises what a bug outside one resource's work raises."""
        adoption = Adoption(
            self._launches, self._guests, self._units, self._keeper, self._links, self._chronicle.journal
        )
        try:
            async with asyncio.TaskGroup() as group:
                self._guests.serve_in(group)
                self._disks.look_in(group)
                self._files.look_in(group)
                self._limits.look_in(group)
                self._probes.probe_in(group)
                self._services.serve_in(group)
                self._leases.follow_in(group)
                await self._services.adopt()
                await self._network.look_in(group)
                await adoption.take_over(self._host.boot_id)
                self._limits.look()
                self._descriptors.drop_rest()
                group.create_task(self._links.watch(self._doorbell.ring), name="netlink")
                group.create_task(watch_queues(self._guests.have_queues, self._doorbell.ring), name="queues")
                group.create_task(self._follow_units(), name="units")
                group.create_task(self._look_regularly(), name="full look")
                group.create_task(self._cap_serial_logs(), name="serial logs")
                self.measures.poll_in(group)
                group.create_task(publish(self._published(), self._chronicle), name="publisher")
                group.create_task(watch_lag(self._chronicle.metrics), name="lag")
                group.create_task(self._reconciler.run(), name="reconciler")
                self._doctor.look_in(group)
        finally:
            await self._guests.close()
            self._leases.close()
            self._network.close()
            self._starts.close()
            self._descriptors.close()

    def _published(self) -> Published:
        return Published(
            self.operator,
            self._links,
            self._guests,
            self._network.filters,
            self._doorbell,
            measures=lambda: self.measures.latest,
            looked_s=self._looks,
        )

    def _looks(self) -> Mapping[str, float]:
        units_s = self._directory.looked_s
        return {"links": self._looked_s} | ({} if units_s is None else {"units": units_s})

    async def next_pass(self) -> float:
        """Ask for a pass and return when it is over: how old the last full look is then, in seconds.

        Never returns if passes stop.
        """
        await self._reconciler.next_pass()
        return now_s() - self._looked_s

    async def notify(self, notifying: Notifying) -> None:
        """Tell people of what wants them, until cancelled."""
        await Notifications(notifying, self.operator, self._keeper, self._chronicle).run()

    async def _follow_units(self) -> None:
        async for view in self._directory.watch():
            first = not self._units.loaded
            if await self._units.take(view):
                if first:
                    gc.freeze()  # a thousand units stay; each full collection would walk them, for 100 ms
                valid = all(file.state == "valid" for file in self._units.files)
                self._chronicle.metrics.units_reloaded(success=valid, at_s=time.time())
            await self._keeper.update(self._without_answered_approvals)
            self._tell_unit_errors()
            self._doorbell.ring("units")

    async def reread_units(self) -> None:
        """Read the unit directory now; what follows from it follows in the next pass."""
        await self._units.take(await self._directory.reread())
        self._tell_unit_errors()
        self._doorbell.ring("units")

    def _units_changed(self) -> None:
        self._chronicle.edited()
        self._guests.share(self._units.desired.vms)
        self._disks.look(sized_disks(self._units.desired))
        self._doorbell.ring("units")

    def _tell_unit_errors(self) -> None:
        self._chronicle.tell_unit_errors([error for file in self._units.files for error in file.errors])

    async def _look_regularly(self) -> None:
        """The safety net beneath all events: whatever was missed is found at the next full look."""
        while True:
            await asyncio.sleep(FULL_LOOK_EVERY_S)
            try:
                await self._links.full_look()
            except ObservationError as error:
                log.warning("a full look failed; the next one is due", why=str(error))
                continue
            self._looked_s = now_s()
            qemu = await look_for_qemu()
            self._host = replace(
                self._host,
                qemu=qemu.path,
                qemu_problem=qemu.problem,
                controllers=controllers_here(),
                absent=absent_programs(),
                vhost_problem=vhost_problem(),
            )
            self._leases.look()
            self._limits.look()
            await self._network.look_again()
            if self._units.unsaved:
                await self._units.take(await self._directory.reread())
            await run_to_end(self._cap_logs)
            self._disks.look(sized_disks(self._units.desired))
            await self._keeper.update(self._without_what_is_over)
            self._doorbell.ring("timer")

    def _cap_logs(self) -> None:
        for guest in self._guests:
            cap_log(self._launches.log_path(guest.name))
        self._services.cap_logs()

    async def _cap_serial_logs(self) -> None:
        """A guest writes to its own logs as fast as it likes, so they are looked at more often."""
        while True:
            await asyncio.sleep(CAP_SERIAL_EVERY_S)
            logs = [guest.directory / name for guest in self._guests for name in serial_logs(guest.record.spec)]
            if logs:
                await run_to_end(cap_all, logs)

    def _without_answered_approvals(self, memory: Memory) -> Memory:
        """An approval is for what was asked at its time: of a guest that is wanted again, none is left."""
        if not memory.approved:
            return memory
        desired, observed = self._observe()
        approved = still_asked(memory.approved, desired, observed)
        return memory if approved == memory.approved else replace(memory, approved=approved)

    def _without_what_is_over(self, memory: Memory) -> Memory:
        if not self._units.loaded:
            return memory
        states = self._guests.states()
        running = {state.spec.uuid for state in states.values() if state.run_state == "running"}
        return without_guests(without_lacks(memory, running), frozenset({*self._units.desired.vms, *states}))

    async def _look_at_all(self) -> None:
        """Read units, links, limits and the files of edits anew."""
        await self._units.take(await self._directory.reread())
        await self._links.full_look()
        self._host = replace(self._host, absent=absent_programs())
        await self._limits.look_now()
        await self._disks.look_at_edits()
        await self._files.look_at_edits()

    def _observe(self) -> tuple[Desired, Observed]:
        """All that the adapters know now, from caches; only a few new published ports and uplinks are looked at."""
        self._descriptors.read_settings(self._links.take_stated())
        memory, vms = self._keeper.memory, self._guests.states()
        desired = replace(self._units.desired, complete=self._units.loaded)
        self._disks.look(unplugged_disks(starts_of(desired.vms, memory.refused), vms))
        self._disks.look_for_space(full_disks(vms))
        edits = edited(desired.vms, vms)
        self._disks.look_for_edits(edits)
        self._files.look_for_edits(edits)
        network = self._network.look(desired, vms, self._links.snapshot)
        return desired, Observed(
            links=self._links.snapshot,
            vms=vms,
            disks=self._disks.states(memory.known_disks),
            host=replace(
                self._host,
                memory=self._memory.look(desired, vms, edits),
                down=memory.down_in == self._host.boot_id,
                down_by_s=memory.down_by_s if memory.down_in == self._host.boot_id else None,
            ),
            intents=memory.intents,
            ends=memory.ends,
            enslaved=enslaved_links(memory, self._links.snapshot),
            cards=cards_of(memory),
            attempts=dict(self._reconciler.attempts),
            in_flight=dict(self._reconciler.in_flight),
            stops_at_s=memory.stops_at_s,
            approved=memory.approved,
            refused=memory.refused,
            short=short_of_memory(self._reconciler.last.plan),
            max_disruption=self._max_disruption,
            reachable=self._probes.look(self._reconciler.last.plan.asked),
            files=self._files.seen,
            services=self._services.states(),
            leases=self._leases.states(),
            routing=network.routing,
            filters=network.filters,
            opened=self._descriptors.opened(),
            ipv6=network.ipv6,
            routes=network.routes,
            uplinks=network.uplinks,
            moves=self._network.uplinks.moves(),
            unreadable_moves=self._network.uplinks.unreadable,
        )
