"""Two ways to run a supervised program: as a child of the agent, or as a service of its own beside the agent."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from agent.core.errors import ActionError, PermanentError, TransientError
from agent.core.services.spec import ServiceSpec
from agent.core.services.unit import service_properties, service_unit
from agent.host.logs import open_log
from agent.host.processes import ENVIRONMENT, ExitStatus, Process, running_process, service_of, spawn, unprivileged
from agent.host.service_files import ServiceRecord
from agent.host.systemd import ServiceManager, UnitStatus

log = structlog.get_logger("vmhost.services")


@dataclass(frozen=True, slots=True)
class ServiceStart:
    """What is to run: the command line, its user, its run directory, its log, and what it finds as standard input."""

    spec: ServiceSpec
    command: Sequence[str]
    uid: int
    directory: Path
    log_path: Path
    stdin: int | None = None


class ServiceStarts(Protocol):
    """A way to run programs. Whichever it is: no right but what the spec names, and it outlives the agent."""

    async def start(self, start: ServiceStart) -> tuple[Process, str]:
        """Start a program: its process, and the unit that it runs as, if any. An ActionError if that cannot be."""

    async def find_end(self, record: ServiceRecord) -> ExitStatus | None:
        """How a process that is gone ended, None if nobody knows; a child's end is told by its `wait_exit`."""

    async def signal(self, record: ServiceRecord, process: Process, number: signal.Signals) -> None:
        """Send a signal; nothing happens if the process is gone. ActionError if that cannot be done now."""

    async def clear(self, record: ServiceRecord) -> None:
        """Put away what is left of a process that is gone; never fails."""


class ChildServices:
    """Programs as children: the way where there is no systemd, or the agent is not its service."""

    async def start(self, start: ServiceStart) -> tuple[Process, str]:
        """As `ServiceStarts.start`."""
        output = open_log(start.log_path)
        try:
            capabilities = start.spec.capabilities
            process = await spawn(
                start.command, uid=start.uid, log=output, stdin=start.stdin, capabilities=capabilities
            )
        finally:
            os.close(output)
        return process, ""

    async def find_end(self, record: ServiceRecord) -> ExitStatus | None:  # noqa: ARG002
        """As `ServiceStarts.find_end`: nobody knows."""
        return None

    async def signal(self, record: ServiceRecord, process: Process, number: signal.Signals) -> None:  # noqa: ARG002
        """As `ServiceStarts.signal`."""
        process.signal(number)

    async def clear(self, record: ServiceRecord) -> None:
        """As `ServiceStarts.clear`: nothing is left."""


class UnitServices:
    """Programs as transient services. The manager signals them: the agent has no right to, under a user of its own."""

    def __init__(self, manager: ServiceManager, run_dir: Path) -> None:
        self._manager = manager
        self._run_dir = run_dir

    async def start(self, start: ServiceStart) -> tuple[Process, str]:
        """As `ServiceStarts.start`."""
        unit = service_unit(start.spec.name)
        command = unprivileged(start.command, uid=start.uid, capabilities=start.spec.capabilities)
        command[0] = shutil.which(command[0], path=ENVIRONMENT["PATH"]) or command[0]
        environment = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        properties = service_properties(start.spec, command, environment, str(self._run_dir), str(start.directory))
        output = open_log(start.log_path)
        try:
            fds = {"StandardOutputFileDescriptor": output, "StandardErrorFileDescriptor": output}
            if start.stdin is not None:
                fds["StandardInputFileDescriptor"] = start.stdin
            await self._manager.clear(unit)
            await self._manager.start(unit, properties, fds)
        except PermanentError as error:
            # One of that name runs, which this agent has not found: it is not ours to end.
            raise TransientError(f"{unit}: {error}", reason="ServiceFailed") from error
        finally:
            os.close(output)
        status = await self._manager.status(unit)
        process = running_process(status.pid) if status is not None and status.pid else None
        if process is None:
            raise TransientError(f"{unit} ended at once; see its log {start.log_path}", reason="ServiceFailed")
        return process, unit

    async def find_end(self, record: ServiceRecord) -> ExitStatus | None:
        """As `ServiceStarts.find_end`."""
        if not record.unit:
            return None
        try:
            status = await self._manager.wait_end(record.unit)
        except ActionError as error:
            log.warning("how a service ended is not known", service=record.spec.name, why=str(error))
            return None
        return exit_status(status) if status is not None and status.pid == record.pid else None

    async def signal(self, record: ServiceRecord, process: Process, number: signal.Signals) -> None:
        """As `ServiceStarts.signal`."""
        if record.unit:
            await self._manager.kill(record.unit, number)
        else:
            process.signal(number)

    async def clear(self, record: ServiceRecord) -> None:
        """As `ServiceStarts.clear`. A unit that could not be cleared is cleared before the next start."""
        if record.unit:
            try:
                await self._manager.clear(record.unit)
            except ActionError as error:
                log.warning("a service's unit is left", unit=record.unit, why=str(error))


def exit_status(status: UnitStatus) -> ExitStatus:
    """How a unit's process ended, in our words; systemd tells an OOM kill from others (systemd.service(5), Result=)."""
    return ExitStatus(status.code, status.signal, oom=status.result == "oom-kill")


def unit_of(name: str, process: Process) -> str:
    """The unit of a service that a process runs in, empty if there is none."""
    unit = service_of(process.pid)
    return unit if unit == service_unit(name) else ""
