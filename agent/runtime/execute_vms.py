"""Carries out the actions on guests and their disks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from agent.core.actions import ChangeReboot, EndVm, LaunchVm, LimitVm, RenameVm, ResetVm, ResumeVm, StopVm
from agent.core.desired import Limits, VmSpec
from agent.core.device_actions import CreateDisk
from agent.core.edits.digest import digest
from agent.core.edits.tuning import tuned_at_launch
from agent.core.errors import ActionError, OutcomeUnknownError, TransientError
from agent.core.limits import limit_values
from agent.core.memory import (
    Memory,
    with_end,
    with_lack,
    with_reboot,
    with_refusal,
    with_restart,
    with_stop,
    without_refusal,
)
from agent.core.observed import End, Intent
from agent.core.qemu.argv import (
    DiskSet,
    FirmwareSets,
    LaunchFiles,
    qemu_argv,
    resolved_accel,
)
from agent.core.qemu.display import vnc_port, written
from agent.core.qemu.serial import serial_log, serial_sockets
from agent.core.reasons import Reason
from agent.host.disks import create_disk, open_disk, prepare_boot_file
from agent.host.firmware import find_firmware, open_firmware
from agent.host.launches import Launches, LaunchRecord
from agent.host.listeners import find_listener
from agent.host.logs import last_line, log_size, open_log
from agent.host.processes import kvm_groups, kvm_usable, refuse_long
from agent.host.statedir import StateDirectory
from agent.runtime.clock import boot_id, now_s
from agent.runtime.descriptors import Descriptors
from agent.runtime.guest import Guest
from agent.runtime.guests import Guests
from agent.runtime.keeper import Keeper
from agent.runtime.latency import count_latencies
from agent.runtime.starts import Start, Starts
from agent.runtime.threads import run_to_end
from agent.runtime.vhost import open_vhosts

log = structlog.get_logger("vmhost.vms")

CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
"""The unit of a process's start time (proc_pid_stat(5), field 22), which counts from the boot as our clock does."""

FIRST_DISK_SET, CODE_SET, VARIABLES_SET, FIRST_LOG_SET = 1, 1001, 1002, 1101


@dataclass(frozen=True, slots=True)
class NicFiles:
    """The descriptors of a guest's NICs, one a queue: of their taps, and of vhost-net where that carries them."""

    tap_fds: Mapping[str, tuple[int, ...]]
    vhost_fds: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that a launch needs, opened: descriptors that QEMU is to inherit, and paths that it may read."""

    files: LaunchFiles
    record: LaunchRecord
    lock: int


class VmExecutor:
    """Each method does one action and returns when the guest's state shows it, or raises an ActionError."""

    def __init__(
        self,
        launches: Launches,
        guests: Guests,
        descriptors: Descriptors,
        keeper: Keeper,
        state: StateDirectory,
        starts: Starts,
    ) -> None:
        self._launches = launches
        self._guests = guests
        self._descriptors = descriptors
        self._keeper = keeper
        self._firmware, self._ran = state.firmware, state.ran
        self._starts = starts

    async def create_disk(self, action: CreateDisk) -> None:
        """Create a disk; it counts as known from now on, so that it is never created again."""
        await create_disk(action.disk)
        await self._keeper.update(lambda memory: _with_disks(memory, frozenset({action.disk.path})))

    async def launch(self, action: LaunchVm, qemu: str) -> None:
        """Start a guest's QEMU and wait until its monitor answers. One that exits first is told in its own words."""
        spec = action.spec
        # Beside the start, not before it: nothing of this has to be on the disk for a guest to run.
        remembered = asyncio.ensure_future(self._keeper.update(lambda memory: _launching(memory, spec)))
        try:
            await self._launch(action, qemu)
        finally:
            await remembered

    async def _launch(self, action: LaunchVm, qemu: str) -> None:
        spec = action.spec
        # Not in the thread: a pass may look at the same descriptors at any moment.
        tap_fds = {nic.id: self._descriptors.of_tap(spec.name, spec.uid, nic) for nic in spec.nics}
        with ExitStack() as opened:
            vhost_fds = open_vhosts(spec, opened, kvm=kvm_usable())
            prepared = await run_to_end(self._prepare, action, NicFiles(tap_fds, vhost_fds), opened)
            said_before = log_size(self._launches.log_path(spec.name))
            try:
                guest = await self._spawn(prepared, qemu)
            except ActionError:
                opened.close()
                await run_to_end(self._launches.forget, spec.name)
                raise
        await guest.connected()
        if not guest.alive:
            said = last_line(self._launches.log_path(spec.name), said_before) or "it says nothing"
            said = f"{guest.killed_how}; {said}" if guest.killed_how else said
            said += await asyncio.to_thread(port_taken, spec)
            if guest.exit_reason == "crash":  # by itself, and not because somebody killed it
                await self._note_refusal(action, said)
            await self._forget(guest)
            raise TransientError(f"QEMU of {spec.name} did not start: {said}", reason="LaunchFailed")

    async def _note_refusal(self, action: LaunchVm, said: str) -> None:
        former = await run_to_end(self._ran.find, action.spec.uuid)
        fell_back = bool(action.instead_of)
        await self._keeper.update(lambda memory: with_refusal(memory, action.spec, said, former, fell_back=fell_back))

    async def _note_run(self, guest: Guest) -> None:
        """Write down what a guest runs with, as what there is to fall back to; without it there is just less to do."""
        try:
            await run_to_end(self._ran.keep, guest.record.spec)
        except OSError as error:
            log.warning("what a guest ran with is not kept", vm=guest.name, why=str(error))

    def _prepare(self, action: LaunchVm, nics: NicFiles, opened: ExitStack) -> Prepared:
        """Lock the guest, open its disks, and write down that it is being launched. Runs in a thread."""
        spec = action.spec
        lock = self._launches.lock(spec.name, spec.uid, serial_sockets(spec))
        opened.callback(os.close, lock)
        directory = str(self._launches.directory(spec.name))
        disk_sets: dict[str, DiskSet] = {}
        for set_id, disk in enumerate((disk for disk in spec.disks if disk.path), FIRST_DISK_SET):
            open_one = open_disk(disk)
            opened.callback(open_one.close)
            disk_sets[disk.id] = DiskSet(set_id, open_one.fds, open_one.block_device)
        firmware = open_flash(spec, self._firmware, opened) if spec.firmware == "uefi" else None
        files = LaunchFiles(
            directory=directory,
            tap_fds=nics.tap_fds,
            vhost_fds=nics.vhost_fds,
            disk_sets=disk_sets,
            kernel=prepare_boot_file(spec.kernel, directory, spec.uid) if spec.kernel else None,
            initrd=prepare_boot_file(spec.initrd, directory, spec.uid) if spec.initrd else None,
            firmware=firmware,
            log_sets=self._open_serial_logs(spec, opened),
        )
        record = LaunchRecord(
            spec,
            action.generation,
            action.reset_generation,
            action.resume_generation,
            digest(spec),
            files.tap_fds,
            tuned=tuned_at_launch(spec),
            instead_of=action.instead_of,
            vhosts=tuple(nics.vhost_fds),
        )
        self._launches.save(record)
        return Prepared(files, record, lock)

    def _open_serial_logs(self, spec: VmSpec, opened: ExitStack) -> dict[str, tuple[int, int]]:
        """Open the logs of a guest's serial ports: ours, so that its user can only append to them."""
        sets: dict[str, tuple[int, int]] = {}
        for set_id, serial in enumerate(spec.serials, FIRST_LOG_SET):
            if serial.to == "file":
                path = self._launches.directory(spec.name) / serial_log(serial.id)
                sets[serial.id] = set_id, open_log(path)
                opened.callback(os.close, sets[serial.id][1])
        return sets

    async def _spawn(self, prepared: Prepared, qemu: str) -> Guest:
        spec, kvm = prepared.record.spec, kvm_usable()
        with_kvm = resolved_accel(spec, kvm) == "kvm"
        argv = qemu_argv(spec, qemu, prepared.files, kvm)
        refuse_long(argv)
        start = Start(
            spec=spec,
            argv=argv,
            fds=(*prepared.files.fds, prepared.lock),
            directory=self._launches.directory(spec.name),
            log_path=self._launches.log_path(spec.name),
            groups=kvm_groups() if with_kvm else (),
            files=[path for path in (prepared.files.kernel, prepared.files.initrd) if path],
            kvm=with_kvm,
        )
        process, unit = await self._starts.start(start)
        record = replace(prepared.record, pid=process.pid, start_time=process.start_time, unit=unit)
        guest = self._guests.add(record, process)
        guest.limits = spec.limits if unit else None  # it was started with them; the next look tells
        guest.assume_devices_at_launch()
        await run_to_end(self._launches.save, record)
        return guest

    async def release(self, name: str) -> None:
        """Let a guest run that QEMU holds."""
        guest = self._guests.get(name)
        await count_latencies(self._guests, guest)  # from its first read on
        await guest.release()
        if guest.has_run:
            await self._note_run(guest)
            forget = with_lack_over if guest.record.instead_of else without_refusal
            await self._keeper.update(lambda memory: forget(memory, guest.record.spec.uuid))

    async def pause(self, name: str) -> None:
        """Stop a guest's processors."""
        await self._guests.get(name).pause()

    async def resume(self, action: ResumeVm) -> None:
        """Let a guest go on, and record which wish that answered: one that is interrupted is done again, harmlessly."""
        guest = self._guests.get(action.vm)
        await guest.resume()
        if action.resume_generation is not None:
            answered = action.resume_generation
            await self._guests.keep(action.vm, lambda record: replace(record, resume_generation=answered))

    async def change(self, action: LimitVm | ChangeReboot) -> None:
        """Change what is set beside a guest that runs: its limits, or what its reboot does."""
        await (self._limit(action) if isinstance(action, LimitVm) else self._change_reboot(action))

    async def _limit(self, action: LimitVm) -> None:
        """Limit a guest's service, and read back what that has then."""
        guest = self._guest(action.vm, action.uuid)
        await self._starts.limit(guest.record, action.limits)
        guest.note_limits(await self._starts.limits(guest.record))
        if guest.limits != action.limits:
            values = ", ".join(
                f"{key} {value or 'not set'}" for key, value in limit_values(guest.limits or Limits()).items()
            )
            raise TransientError(f"{guest.record.unit} took its limits and has {values}", reason="LimitsNotTaken")
        await self._guests.keep(
            action.vm, lambda record: replace(record, spec=replace(record.spec, limits=action.limits))
        )

    async def stop(self, action: StopVm) -> None:
        """End a guest, however long it takes, and forget its launch."""
        guest = self._guest(action.vm, action.uuid)
        if action.unit_asked:
            await self._keeper.update(lambda memory: with_stop(memory, action.vm, action.uuid, now_s()))
        if action.reason is Reason.EDITED:
            await self._keeper.update(lambda memory: with_reboot(memory, action.vm))
        await self._keeper.update(lambda memory: with_lack_over(memory, action.uuid))
        await self._guests.keep(action.vm, lambda record: replace(record, stopping=True))
        if guest.has_run:  # it may have taken over more of its unit since, and an earlier agent kept nothing
            await self._note_run(guest)
        await guest.stop(action.timeout_s)
        await self._forget(guest)

    async def end(self, action: EndVm) -> None:
        """Write down how a guest ended, before the QEMU that still knows it is told to quit."""
        guest = self._guest(action.vm, action.uuid)
        await self._keeper.update(lambda memory: with_lack(memory, action.uuid, action.lacks))
        if action.rebooted:
            # In this order: where it is interrupted, the next agent knows a guest that is to come back.
            await self._guests.keep(action.vm, lambda record: replace(record, rebooted=True))
            await self._keeper.update(lambda memory: with_reboot(memory, action.vm))
        elif not action.asked:
            end = End(now_s(), ran_s(guest), boot_id(), action.exit_reason)
            await self._keeper.update(lambda memory: with_end(memory, action.vm, end))
        await guest.quit()
        await self._forget(guest)

    async def _forget(self, guest: Guest) -> None:
        """Forget a launch that is over; the service manager last, which knows how it ended until that is recorded."""
        await run_to_end(self._launches.forget, guest.name)
        await self._starts.clear(guest.record)
        self._guests.forget(guest.name)

    async def rename(self, action: RenameVm) -> None:
        """Carry a running guest over to its new name; restarts asked of whoever had that name before are not for it."""
        guest = self._guest(action.vm, action.uuid)
        asked = self._keeper.memory.intents.get(action.new_name, Intent())
        guest.record = replace(
            guest.record,
            generation=max(guest.record.generation, asked.generation),
            reset_generation=max(guest.record.reset_generation, asked.reset_generation),
            resume_generation=max(guest.record.resume_generation, asked.resume_generation),
        )
        await self._guests.rename(action.vm, action.new_name)

    async def reset(self, action: ResetVm) -> None:
        """Press the reset button, and record which wish that answered: one that is interrupted is done again."""
        guest = self._guests.get(action.vm)
        try:
            await guest.execute("system_reset")
        except OutcomeUnknownError as error:
            if error.reason != "QemuSilent":
                raise
            # A QEMU that hangs has the command in its queue and does it when it wakes: it must not be sent again.
        await self._guests.keep(action.vm, lambda record: replace(record, reset_generation=action.reset_generation))

    async def _change_reboot(self, action: ChangeReboot) -> None:
        """Tell QEMU what a reboot of its guest is, and write down that it may end it before that can be so."""
        guest = self._guest(action.vm, action.uuid)
        if action.ends:
            await self._guests.keep(action.vm, lambda record: replace(record, reboot_ends=True))
        await guest.change_reboot(ends=action.ends)
        if not action.ends:
            await self._guests.keep(action.vm, lambda record: replace(record, reboot_ends=False))

    def _guest(self, name: str, uuid: str) -> Guest:
        """A guest by name, if it is still the one that the plan saw."""
        guest = self._guests.get(name)
        if guest.record.spec.uuid != uuid:
            raise TransientError(f"{name} is another guest by now", reason="Gone")
        return guest


def open_flash(spec: VmSpec, folder: Path, opened: ExitStack) -> FirmwareSets:
    """Open the firmware of a guest with UEFI; `opened` closes it. Runs in a thread."""
    firmware = find_firmware(spec.machine, secure_boot=spec.secure_boot)
    flash = open_firmware(firmware, folder, spec.uuid, secure_boot=spec.secure_boot)
    opened.callback(flash.close)
    return FirmwareSets(DiskSet(CODE_SET, flash.code_fds), DiskSet(VARIABLES_SET, flash.variable_fds))


def port_taken(spec: VmSpec) -> str:
    """Who has the port of a guest's display, if somebody has, as the end of a line. Looks at every process."""
    if not isinstance(spec.vnc, str):
        return ""
    address = vnc_port(spec.vnc)
    holder = find_listener(*address)
    if holder is None:
        return ""
    return f"; {holder} listens at {written(address)}: end it, or give the guest another display"


def with_lack_over(memory: Memory, uuid: str) -> Memory:
    """Memory in which a guest's next start is tried as its unit says, unless QEMU itself refused that."""
    return with_lack(memory, uuid, None)


def ran_s(guest: Guest) -> float:
    """How long a guest's process ran, or has been running."""
    start_time = guest.record.start_time
    return now_s() - (start_time / CLOCK_TICKS_PER_S if start_time is not None else guest.began_s)


def _launching(memory: Memory, spec: VmSpec) -> Memory:
    memory = _with_disks(memory, frozenset(disk.path for disk in spec.disks if disk.path))
    return with_restart(memory, spec.name) if spec.name in memory.ends else memory


def _with_disks(memory: Memory, paths: frozenset[str]) -> Memory:
    if paths <= memory.known_disks:
        return memory
    return replace(memory, known_disks=memory.known_disks | paths)
