"""Two ways to run a short command that needs rights which the agent has not: as a child, or as a service beside it."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol

from agent.core.errors import PermanentError, TransientError
from agent.core.services.unit import service_unit, task_properties
from agent.host.processes import ENVIRONMENT, ExitStatus, kill, spawn
from agent.host.systemd import ServiceManager
from agent.runtime.service_starts import exit_status

MAX_OUTPUT_BYTES = 8 << 20
GRACE_S = 5.0
"""After its deadline, for systemd to end a command and to say so."""


@dataclass(frozen=True, slots=True)
class Task:
    """A command that ends by itself within `deadline_s` seconds. It runs as root with these capabilities only."""

    name: str
    command: Sequence[str]
    capabilities: Sequence[str]
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Ran:
    """The exit code of a command, and what it wrote to its standard output and its standard error."""

    code: int
    output: str
    errors: str


class Beside(Protocol):
    """A way to run commands. Whichever it is: no right but what the task names, and no input."""

    async def follow(self, task: Task, output: int, errors: int) -> ExitStatus:
        """Run a command, whose program is named by its whole path, to its end; it writes to these descriptors.

        ActionError if it cannot be run, or took too long and was killed."""


async def run_beside(way: Beside, task: Task) -> Ran:
    """Run a command to its end. PermanentError `ToolMissing` if it is not installed, TransientError if it was killed,
    took too long, or wrote more than `MAX_OUTPUT_BYTES`; nothing of it runs then, at the latest after its deadline."""
    program = shutil.which(task.command[0], path=ENVIRONMENT["PATH"])
    if program is None:
        raise PermanentError(f"{task.command[0]} is not installed", reason="ToolMissing")
    task = replace(task, command=(program, *task.command[1:]))
    # Files and no pipes: nobody has to read while it writes.
    with _file(task, "output") as output, _file(task, "errors") as errors:
        end = await way.follow(task, output.fileno(), errors.fileno())
        if end.code is None:
            raise TransientError(f"{task.name} was {end.violence}", reason="TaskFailed")
        return Ran(end.code, _text(task, output), _text(task, errors))


def _file(task: Task, name: str) -> BinaryIO:
    return open(os.memfd_create(f"vmhost-{task.name}-{name}"), "w+b", buffering=0)


def _text(task: Task, file: BinaryIO) -> str:
    if (size := os.fstat(file.fileno()).st_size) > MAX_OUTPUT_BYTES:
        raise TransientError(f"{task.name} wrote {size >> 20} MiB, more than is read", reason="TaskFailed")
    file.seek(0)
    return file.read().decode(errors="replace")


def _too_long(task: Task) -> TransientError:
    return TransientError(f"{task.name} did not end within {task.deadline_s:g} s", reason="TaskFailed")


class ChildBeside:
    """Commands as children: the way where there is no systemd, or the agent is not its service."""

    async def follow(self, task: Task, output: int, errors: int) -> ExitStatus:
        """As `Beside.follow`."""
        process = await spawn(task.command, uid=0, log=output, errors=errors, capabilities=task.capabilities)
        try:
            async with asyncio.timeout(task.deadline_s):
                end = await process.wait_exit()
        except TimeoutError as error:
            raise _too_long(task) from error
        finally:
            kill(process)
            await process.wait_exit()
            process.close()
        assert end is not None, "how a child ended is known"
        return end


class UnitBeside:
    """Commands as transient services. Systemd ends one at its deadline, and forgets it once nobody asks about it: when
    it is let go here, or when this agent, with its connection, is gone."""

    def __init__(self, manager: ServiceManager, run_dir: Path) -> None:
        self._manager = manager
        self._run_dir = run_dir
        self._numbers = itertools.count(1)

    async def follow(self, task: Task, output: int, errors: int) -> ExitStatus:
        """As `Beside.follow`."""
        unit = service_unit(f"{task.name}-{os.getpid()}-{next(self._numbers)}")
        environment = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        properties = task_properties(
            task.name, task.command, environment, str(self._run_dir), task.capabilities, task.deadline_s
        )
        fds = {"StandardOutputFileDescriptor": output, "StandardErrorFileDescriptor": errors}
        try:
            await self._manager.start(unit, properties, fds)
            status = await self._manager.wait_end(unit, task.deadline_s + GRACE_S)
        finally:
            await self._manager.let_go(unit)
        if status is None:
            raise TransientError(f"systemd does not say how {unit} ended", reason="TaskFailed")
        if status.result == "timeout":
            raise _too_long(task)
        return exit_status(status)
