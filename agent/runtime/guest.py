"""One launched QEMU: its monitor, its exit, and what it said last. Events only ring; a query's answer counts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from agent.core.desired import Limits
from agent.core.errors import ActionError, OutcomeUnknownError, TransientError
from agent.core.observed import VmState
from agent.core.qemu.answers import NOT_AN_ANSWER
from agent.core.qemu.argv import devices_at_launch, disk_node, drive_node
from agent.host.launches import LOG, LaunchRecord
from agent.host.processes import ExitStatus, Process, is_stuck
from agent.host.qmp import Monitor
from agent.runtime.clock import now_s
from agent.runtime.descriptors import Descriptors
from agent.runtime.reboots import has_rebooted
from agent.runtime.starts import Starts
from agent.runtime.witness import GuestWitness

log = structlog.get_logger("vmhost.guest")

SILENT_AFTER_S = 5.0
"""A query that is not answered for this long makes the run state unknown; it is not sent again meanwhile."""

CONNECT_EVERY_S = 0.002
ODD_EVERY_S = 1.0
QUIT_ANSWER_S = 1.0
LOOK_EVERY_S = 22.0
"""With `SILENT_AFTER_S`: a QEMU that is stopped, or stuck in the kernel, is found within half a minute."""

LOOKS_PER_QUESTION = 6
"""A look at a process costs 0.02 ms, a question 0.5 ms, and two hundred guests are asked by one agent."""

QUIT_GRACE_S = 5.0
POWER_BUTTON_EVERY_S = 10.0
"""A guest that is still booting does not hear the power button; so it is pressed again."""

STATE_EVENTS = frozenset(
    {"STOP", "RESUME", "SHUTDOWN", "GUEST_PANICKED", "RESET", "BLOCK_IO_ERROR", "SUSPEND", "WAKEUP", "WATCHDOG"}
)
SHUTDOWN_CAUSES = {"host-signal": "killed", "host-qmp-quit": "host", "guest-panic": "panic"}
"""QMP SHUTDOWN reasons that tell more than the run state does (QEMU, ShutdownCause)."""


class Guest:
    """Serves one QEMU from its launch, or its adoption, to its exit."""

    def __init__(
        self,
        record: LaunchRecord,
        process: Process | None,
        directory: Path,
        descriptors: Descriptors,
        ring: Callable[[str], None],
        witness: GuestWitness,
        starts: Starts,
    ) -> None:
        self.record = record
        self.process = process
        self.directory = directory
        self.alive = process is not None
        self.began_s = now_s()
        self.run_state: str | None = None
        self.exit_reason: str | None = None if process is not None else record.exit_reason
        self.killed_how = ""
        self.resumed_s: float | None = None
        self.limits: Limits | None = None
        self.limits_awaited = False
        self.monitor: Monitor | None = None
        self.devices: frozenset[str] | None = None
        self.cpus: int | None = None
        self.media: Mapping[str, str] = {}
        self.saving = asyncio.Lock()
        self._descriptors = descriptors
        self._ring = ring
        self._witness = witness
        self._starts = starts
        self._deletions: dict[str, asyncio.Future[None]] = {}
        self._asked_s: float | None = now_s()
        self._stale = asyncio.Event()
        self._devices_old = False
        self._changed = asyncio.Event()
        self._cause: str | None = None
        self._stop_by_s = 0.0
        self._has_answered = False
        self._shutdown: str | None = None
        self._rebooted = False
        self.reboot_known = not record.reboot_ends
        self.has_run = False

    @property
    def name(self) -> str:
        """The guest's name."""
        return self.record.spec.name

    def state(self) -> VmState:
        """What is known of the guest now."""
        spec = self.record.spec
        own = (*spec.nics, *self.record.leaving_nics) if self.alive else ()
        nics = {nic.id: self._descriptors.state(spec.name, nic.id) for nic in own}
        silent = self._asked_s is not None and self.run_state is None and self.alive
        return VmState(
            spec=spec,
            alive=self.alive,
            pid=self.process.pid if self.process else None,
            generation=self.record.generation,
            reset_generation=self.record.reset_generation,
            resume_generation=self.record.resume_generation,
            run_state=self.run_state,
            exit_reason=self.exit_reason or self._cause,
            stopping=self.record.stopping,
            resumed_s=self.resumed_s,
            unanswered_s=now_s() - self._asked_s if silent and self._asked_s is not None else 0.0,
            nics=nics,
            devices=self.devices,
            leaving_nics=self.record.leaving_nics,
            leaving_disks=self.record.leaving_disks,
            unit=self.record.unit,
            limits=self.limits,
            limits_awaited=self.limits_awaited and self.alive,
            tuned=self.record.tuned,
            cpus=self.cpus,
            media=self.media,
            told_mtus=self.record.told_mtus,
            reboot_ends=self.record.reboot_ends if self.reboot_known else None,
            rebooted=self.record.rebooted or self._rebooted,
            vhosts=frozenset(self.record.vhosts),
        )

    async def serve(self) -> None:
        """Follow the guest until its process is gone."""
        if self.process is None:
            return
        async with asyncio.TaskGroup() as group:
            talking = group.create_task(self._keep_talking(), name=f"qmp {self.name}")
            status = await self.process.wait_exit() or await self._starts.find_end(self.record)
            talking.cancel()
        self.process.close()  # at once, and not when the collector of cycles comes by
        self.alive = False
        self.run_state = None
        self.exit_reason = self._reason_of(status)
        for deletion in self._deletions.values():
            if not deletion.done():
                deletion.set_result(None)  # with its process it let go of everything; nobody waits for the rest of 20 s
        self.killed_how = status.violence if status is not None else ""
        if self.killed_how and self._has_answered:
            self._witness.killed(self.name, self.killed_how)
        self._note_change("exit")

    def _reason_of(self, status: ExitStatus | None) -> str:
        """Why it ended: an OOM kill is known to the service manager only, all else QEMU knew better."""
        if status is not None and status.oom:
            return status.reason
        return self._cause or (status.reason if status is not None else "crash")

    async def _keep_talking(self) -> None:
        connections = 0
        while True:
            try:
                self.monitor = await Monitor.connect(
                    self.directory / "qmp.sock", SILENT_AFTER_S, self._heard, peer_uid=self.record.spec.uid
                )
            except ActionError:
                await asyncio.sleep(CONNECT_EVERY_S if now_s() - self.began_s < SILENT_AFTER_S else 1.0)
                continue
            connections += 1
            self._devices_old = self._devices_old or connections > 1 or self.devices is None
            if connections > 1:
                self._witness.reconnected(self.name)
            pause_s = CONNECT_EVERY_S
            try:
                await self._ask_until_closed(self.monitor)
            except ActionError:
                pass
            except NOT_AN_ANSWER as error:  # of a QEMU that is not itself any more: its trouble alone
                log.warning("QEMU's answer is none; it is asked again", vm=self.name, why=repr(error))
                pause_s = ODD_EVERY_S
            await self.monitor.close()  # it may be open yet, and a QEMU's monitor serves one client
            self.monitor = None
            self._asked_s = now_s()
            self._set_run_state(None)
            await asyncio.sleep(pause_s)

    async def _ask_until_closed(self, monitor: Monitor) -> None:
        """Query the run state when an event makes it stale, and from time to time: thousands of times a day."""
        monitor.when_closed(self._stale.set)
        while not monitor.is_closed:
            self._stale.clear()
            await self._ask(monitor)
            for _ in range(LOOKS_PER_QUESTION):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._stale.wait()
                if self._stale.is_set() or self.process is None or is_stuck(self.process):
                    break

    async def _ask(self, monitor: Monitor) -> None:
        """Query the run state; a QEMU that is silent is waited for, and shown as silent meanwhile."""
        self._asked_s = now_s()
        silent = asyncio.get_running_loop().call_later(SILENT_AFTER_S, self._set_run_state, None)
        try:
            answer = await self._timed(monitor, "query-status", {}, None)
        finally:
            silent.cancel()
        self._asked_s = None
        self._has_answered = True
        if isinstance(answer, dict):
            ended = answer["status"] == "shutdown" and self.record.reboot_ends
            self._rebooted = ended and has_rebooted(self._shutdown, self.process, self.directory / LOG)
            self._set_run_state(str(answer["status"]))
        if self._devices_old:
            await self.look_at_devices()

    def assume_devices_at_launch(self) -> None:
        """Take for plugged what a QEMU that has just been started has by its command line."""
        spec = self.record.spec
        self.devices = devices_at_launch(spec)
        self.cpus = spec.cpus if spec.max_cpus is not None else None
        self.media = {disk.id: drive_node(disk) for disk in spec.disks if disk.media == "cdrom"}

    async def look_at_devices(self) -> None:
        """Ask QEMU what is plugged into it, and what is in its drives; errors as `execute`."""
        self._devices_old = False
        spec = self.record.spec
        children = await self.execute("qom-list", {"path": "/machine/peripheral"})
        devices = frozenset(str(child["name"]) for child in children)
        cpus: int | None = None
        if spec.max_cpus is not None:
            cpus = sum("qom-path" in place for place in await self.execute("query-hotpluggable-cpus"))
        media: dict[str, str] = {}
        if drives := {disk_node(disk.id): disk.id for disk in spec.disks if disk.media == "cdrom"}:
            for block in await self.execute("query-block"):
                if block.get("qdev") in drives:
                    media[drives[block["qdev"]]] = str(block.get("inserted", {}).get("node-name", ""))
        if (devices, cpus, media) != (self.devices, self.cpus, self.media):
            self.devices, self.cpus, self.media = devices, cpus, media
            self._note_change("qmp")

    def _heard(self, event: str, data: Mapping[str, Any]) -> None:
        if event == "SHUTDOWN":
            self._shutdown = str(data.get("reason"))
            self._cause = SHUTDOWN_CAUSES.get(str(data.get("reason")), self._cause)
        if event in STATE_EVENTS:
            self._stale.set()
        if event in {"DEVICE_DELETED", "DEVICE_TRAY_MOVED"}:
            self._devices_old = True
            self._stale.set()
        if event == "DEVICE_DELETED":
            deletion = self._deletions.pop(str(data.get("device")), None)
            if deletion is not None and not deletion.done():
                deletion.set_result(None)
        self._witness.heard(self.name, event, data)

    def _set_run_state(self, run_state: str | None) -> None:
        self.has_run = self.has_run or run_state == "running"
        if run_state != self.run_state:
            self.run_state = run_state
            self._note_change("qmp")

    def _note_change(self, source: str) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._ring(source)

    def note_limits(self, limits: Limits | None) -> None:
        """Take note of what the guest's service is limited to, None if that is not to be had."""
        changed = self.limits_awaited or limits != self.limits
        self.limits, self.limits_awaited = limits, False
        if changed:
            self._ring("limits")

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, timeout_s: float = SILENT_AFTER_S
    ) -> Any:
        """One QMP command; `TransientError` while nobody is connected."""
        return await self._timed(self.connection(), command, arguments or {}, timeout_s)

    async def _timed(
        self, monitor: Monitor, command: str, arguments: Mapping[str, Any], timeout_s: float | None
    ) -> Any:
        began = time.perf_counter()
        try:
            answer = await monitor.execute(command, dict(arguments), timeout_s=timeout_s)
        except ActionError as error:
            self._witness.refused(command, getattr(error, "error_class", error.reason))
            self._stale.set()
            # It may be done later, when nobody waits for it any more: a device may come that is not known to be there.
            self._devices_old = self._devices_old or isinstance(error, OutcomeUnknownError)
            raise
        self._witness.answered(command, time.perf_counter() - began)
        return answer

    def connection(self) -> Monitor:
        """The monitor; `TransientError` while nobody is connected."""
        if self.monitor is None:
            raise TransientError(f"QEMU of {self.name} is not connected", reason="NotConnected")
        return self.monitor

    def device_deleted(self, device: str) -> asyncio.Future[None]:
        """A future that is done when the guest has let go of a device; ask for it before `device_del`."""
        deletion: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._deletions[device] = deletion
        return deletion

    async def change_reboot(self, *, ends: bool, timeout_s: float = SILENT_AFTER_S) -> None:
        """Have a reboot end QEMU, which stays for a look at how it ended, or be one (QMP `set-action`)."""
        await self.execute("set-action", {"reboot": "shutdown" if ends else "reset"}, timeout_s)
        self.reboot_known = True

    async def release(self) -> None:
        """Let the guest run, and return when QEMU says so."""
        await self.execute("cont")
        self._stale.set()
        await self._until(lambda: self.run_state != "prelaunch")

    async def resume(self) -> None:
        """Let a paused guest go on; whether it does, or is paused again at once, the next answer tells."""
        self.resumed_s = now_s()
        await self.execute("cont")
        self._stale.set()

    async def pause(self) -> None:
        """Have the guest's processors stop, and return when QEMU says so."""
        await self.execute("stop")
        self._stale.set()
        await self._until(lambda: self.run_state != "running")

    async def connected(self) -> None:
        """Return when the run state is known, or the process is gone."""
        await self._until(lambda: self.run_state is not None or not self.alive)

    async def stop(self, timeout_s: float) -> None:
        """End the guest: power button, at the deadline `quit`, then a kill. Returns when the process is gone.

        One that is paused is let go on first: only a guest that runs can shut itself down.
        """
        self._stop_by_s = now_s() + timeout_s
        while self._is_ending_itself() and now_s() < self._stop_by_s:
            await self._ask_to_shut_down(self._stop_by_s)
        await self.quit()

    async def _ask_to_shut_down(self, by_s: float) -> None:
        """Press the power button, and wait until the guest ends, it is time to press again, or there is less time."""
        left_s = max(0.1, by_s - now_s())
        with contextlib.suppress(ActionError):
            if self.run_state == "paused":
                await self.execute("cont", timeout_s=min(SILENT_AFTER_S, left_s))
            await self.execute("system_powerdown", timeout_s=min(SILENT_AFTER_S, left_s))
        wait_s = max(0.0, min(POWER_BUTTON_EVERY_S, by_s - now_s()))
        with contextlib.suppress(TimeoutError):
            ends = self._until(lambda: not self._is_ending_itself() or self._stop_by_s < by_s)
            await asyncio.wait_for(ends, wait_s)

    def hurry(self, by_s: float) -> None:
        """Give a guest that is being stopped no more time than until then (CLOCK_BOOTTIME)."""
        if by_s < self._stop_by_s:
            self._stop_by_s = by_s
            self._note_change("budget")

    def _is_ending_itself(self) -> bool:
        """Whether a guest may still obey its power button: one that QEMU holds, or that has ended, will not."""
        return self.alive and self.run_state not in {
            "prelaunch",
            "shutdown",
            "guest-panicked",
            "internal-error",
            "watchdog",
        }

    async def quit(self) -> None:
        """Have QEMU quit, and kill it if it does not. Returns when the process is gone."""
        if self.alive:
            with contextlib.suppress(ActionError):
                await self.execute("quit", timeout_s=QUIT_ANSWER_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._until(lambda: not self.alive), QUIT_GRACE_S)
        if self.alive and self.process is not None:
            await self._starts.kill(self.record, self.process)
            await self._until(lambda: not self.alive)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._changed.wait()
