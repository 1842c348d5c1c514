"""Two ways to run QEMU, and how it ended: as a child of the agent, or as a service of its own beside the agent."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from agent.core.desired import Limits, VmSpec
from agent.core.errors import ActionError, PermanentError, TransientError
from agent.core.guest_unit import (
    LIMIT_PROPERTIES,
    UnitRights,
    is_guest_unit,
    limit_properties,
    limits_of,
    unit_name,
    unit_properties,
)
from agent.host.handover import handover, launcher_command
from agent.host.launches import LaunchRecord
from agent.host.logs import open_log
from agent.host.processes import (
    ENVIRONMENT,
    ExitStatus,
    Process,
    kill,
    running_process,
    service_of,
    spawn,
    unprivileged,
)
from agent.host.systemd import ServiceManager, UnitExistsError, runs_as_service
from agent.runtime.beside import Beside, ChildBeside, UnitBeside
from agent.runtime.dead_man import DeadMan, NoDeadMan, UnitDeadMan
from agent.runtime.service_starts import ChildServices, ServiceStarts, UnitServices, exit_status

log = structlog.get_logger("vmhost.starts")

DEFAULT_TASKS = "DefaultTasksMax"
"""The manager's own property: what a unit without TasksMax= has."""

MAX_UNITS = 9
"""How many units of one guest's name may be there at once: all but one belong to guests that were renamed."""


@dataclass(frozen=True, slots=True)
class Start:
    """What is to run: QEMU's command line, its user and groups, the descriptors that it inherits under their numbers,
    its log and run directory, and the files that it reads by path."""

    spec: VmSpec
    argv: Sequence[str]
    fds: Sequence[int]
    directory: Path
    log_path: Path
    groups: Sequence[int] = ()
    files: Sequence[str] = ()
    kvm: bool = False


class Starts(Protocol):
    """A way to run QEMU. Whichever it is: no privilege, exactly these descriptors, and it outlives the agent.

    `as_services`: as a service of its own, which can be limited.
    """

    @property
    def as_services(self) -> bool: ...  # noqa: D102

    async def start(self, start: Start) -> tuple[Process, str]:
        """Start QEMU: its process, and the unit that it runs as, if any. An ActionError if it cannot be started."""

    async def find_end(self, record: LaunchRecord) -> ExitStatus | None:
        """How a process that is gone ended, None if nobody knows; a child's end is told by its `wait_exit`."""

    async def kill(self, record: LaunchRecord, process: Process) -> None:
        """Kill a process that obeys nobody; nothing happens if it is gone. ActionError if that cannot be done now."""

    async def limits(self, record: LaunchRecord) -> Limits | None:
        """What the process is limited to, None if nobody knows. An ActionError if whoever knows does not answer."""

    async def limit(self, record: LaunchRecord, limits: Limits) -> None:
        """Limit a process that runs, with no other effect on it. An ActionError if that cannot be done."""

    async def clear(self, record: LaunchRecord) -> None:
        """Put away what is left of a process that is gone; never fails."""

    def services(self) -> ServiceStarts:
        """The way to run other programs than QEMU."""

    def beside(self) -> Beside:
        """The way to run short commands with rights that the agent has not."""

    def dead_man(self) -> DeadMan:
        """Whoever puts a move back when the agent cannot."""

    def close(self) -> None:
        """Let go; what was started runs on."""


class ChildStarts:
    """QEMU as a child: the way where there is no systemd, or the agent is not its service."""

    as_services = False

    async def start(self, start: Start) -> tuple[Process, str]:
        """As `Starts.start`."""
        output = open_log(start.log_path)
        try:
            process = await spawn(start.argv, uid=start.spec.uid, pass_fds=start.fds, log=output, groups=start.groups)
        finally:
            os.close(output)
        return process, ""

    async def find_end(self, record: LaunchRecord) -> ExitStatus | None:  # noqa: ARG002
        """As `Starts.find_end`: nobody knows."""
        return None

    async def kill(self, record: LaunchRecord, process: Process) -> None:  # noqa: ARG002
        """As `Starts.kill`."""
        kill(process)

    async def limits(self, record: LaunchRecord) -> Limits | None:  # noqa: ARG002
        """As `Starts.limits`: nobody limits a child."""
        return None

    async def limit(self, record: LaunchRecord, limits: Limits) -> None:  # noqa: ARG002
        """As `Starts.limit`: a child cannot be limited."""
        raise PermanentError(f"{record.spec.name} is no service of its own", reason="LimitsNotApplied")

    async def clear(self, record: LaunchRecord) -> None:
        """As `Starts.clear`: nothing is left."""

    def services(self) -> ServiceStarts:
        """As `Starts.services`."""
        return ChildServices()

    def beside(self) -> Beside:
        """As `Starts.beside`."""
        return ChildBeside()

    def dead_man(self) -> DeadMan:
        """As `Starts.dead_man`: the next agent."""
        return NoDeadMan()

    def close(self) -> None:
        """As `Starts.close`."""


class UnitStarts:
    """QEMU as a transient service: systemd keeps how it ended, also while no agent runs."""

    as_services = True

    def __init__(self, manager: ServiceManager, run_dir: Path) -> None:
        self._manager = manager
        self._run_dir = run_dir

    async def start(self, start: Start) -> tuple[Process, str]:
        """As `Starts.start`."""
        uid = start.spec.uid
        output = open_log(start.log_path)
        try:
            with handover() as launcher:
                standard = {
                    "StandardInput": launcher.theirs.fileno(),
                    "StandardOutput": output,
                    "StandardError": output,
                }
                fds = {f"{name}FileDescriptor": fd for name, fd in standard.items()}
                unit = await self._start_unit(start, fds)
                launcher.sent()
                try:
                    process = running_process(await launcher.ready())
                    if process is None:
                        raise TransientError("it ended before it began", reason="LaunchFailed")
                    launcher.give(unprivileged(start.argv, uid=uid, groups=start.groups), start.fds)
                except ActionError as error:
                    raise TransientError(f"{unit}: {error}; see journalctl -u {unit}", reason="LaunchFailed") from error
                return process, unit
        finally:
            os.close(output)

    async def _start_unit(self, start: Start, fds: dict[str, int]) -> str:
        properties = unit_properties(
            start.spec,
            launcher_command(),
            [f"{name}={value}" for name, value in ENVIRONMENT.items()],
            self._rights(start),
        )
        for number in range(1, MAX_UNITS + 1):
            unit = unit_name(start.spec.name, number)
            await self._manager.clear(unit)
            try:
                await self._manager.start(unit, properties, fds)
            except UnitExistsError:
                continue
            return unit
        raise TransientError(f"{MAX_UNITS} units named after {start.spec.name} run", reason="LaunchFailed")

    def _rights(self, start: Start) -> UnitRights:
        return UnitRights(
            run_dir=str(self._run_dir),
            directory=str(start.directory),
            files=tuple(start.files),
            kvm=start.kvm,
            max_descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        )

    async def find_end(self, record: LaunchRecord) -> ExitStatus | None:
        """As `Starts.find_end`."""
        if not record.unit:
            return None
        try:
            status = await self._manager.wait_end(record.unit)
        except ActionError as error:
            log.warning("how a guest ended is not known", vm=record.spec.name, why=str(error))
            return None
        return exit_status(status) if status is not None and status.pid == record.pid else None

    async def kill(self, record: LaunchRecord, process: Process) -> None:
        """As `Starts.kill`: by systemd, so that the agent needs no right to kill just anybody."""
        if record.unit:
            await self._manager.kill(record.unit)
        else:
            kill(process)

    async def limits(self, record: LaunchRecord) -> Limits | None:
        """As `Starts.limits`."""
        if not record.unit:
            return None
        found = await self._manager.properties(record.unit, LIMIT_PROPERTIES)
        return None if found is None else limits_of(found, await self._manager.default(DEFAULT_TASKS))

    async def limit(self, record: LaunchRecord, limits: Limits) -> None:
        """As `Starts.limit`."""
        if not record.unit:
            raise PermanentError(f"{record.spec.name} is no service of its own", reason="LimitsNotApplied")
        default_tasks = await self._manager.default(DEFAULT_TASKS)
        await self._manager.set_properties(record.unit, limit_properties(limits, default_tasks))

    async def clear(self, record: LaunchRecord) -> None:
        """As `Starts.clear`. A unit that could not be cleared is cleared before the guest's next start."""
        if record.unit:
            try:
                await self._manager.clear(record.unit)
            except ActionError as error:
                log.warning("a guest's unit is left", vm=record.spec.name, unit=record.unit, why=str(error))

    def services(self) -> ServiceStarts:
        """As `Starts.services`."""
        return UnitServices(self._manager, self._run_dir)

    def beside(self) -> Beside:
        """As `Starts.beside`."""
        return UnitBeside(self._manager, self._run_dir)

    def dead_man(self) -> DeadMan:
        """As `Starts.dead_man`."""
        return UnitDeadMan(self._manager)

    def close(self) -> None:
        """As `Starts.close`."""
        self._manager.close()


def starts_here(environment: Mapping[str, str], run_dir: Path) -> Starts:
    """The way of this host and this process."""
    return UnitStarts(ServiceManager(), run_dir) if runs_as_service(environment) else ChildStarts()


def unit_of(process: Process) -> str:
    """The guest's unit that a process runs in, empty if there is none: an agent that died may not have recorded it."""
    unit = service_of(process.pid)
    return unit if is_guest_unit(unit) else ""
