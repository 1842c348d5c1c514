"""Supervised programs: starts, reloads and ends them, and sees when one ends by itself.

They run on when the agent ends, and the next one takes them over by their records.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path

import structlog

from agent.core.errors import ActionError, PermanentError, TransientError
from agent.core.observed import End, ServiceState
from agent.core.planner.policy import ENDS_KEPT
from agent.core.reasons import Reason
from agent.core.services.actions import ReloadService, StartService, StopService
from agent.core.services.spec import PACKAGES, SERVICE_UIDS, FileEffect, ServiceSpec
from agent.core.text import printable
from agent.host.logs import cap_log, log_size
from agent.host.processes import ENVIRONMENT, Process, find_process, find_process_called
from agent.host.service_files import CANDIDATE, ServiceFiles, ServiceRecord
from agent.runtime.clock import boot_id, now_s
from agent.runtime.service_starts import ServiceStart, ServiceStarts, unit_of
from agent.runtime.threads import run_to_end

log = structlog.get_logger("vmhost.services")

CHECK_TIMEOUT_S = 10.0
STARTED_WITHIN_S = 5.0
"""A program that runs for this long counts as started, whatever it says."""

HEARD_WITHIN_S = 0.2
"""A signal that no word of its program answers within this time was lost."""

LOOK_AT_LOG_S = 0.005
END_TIMEOUT_S = 5.0
"""How long a program may take to end; then it is killed."""

CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Service:
    """One program, from its start or adoption to its end. `leaving`: we end it, so its end is no end of its own."""

    def __init__(self, record: ServiceRecord, process: Process | None) -> None:
        self.record = record
        self.process = process
        self.leaving = False

    def state(self) -> ServiceState:
        """What is known of it now."""
        record, process = self.record, self.process
        pid = process.pid if process is not None else None
        alive = process is not None
        return ServiceState(
            record.spec, alive, pid, record.unit, record.ends, record.ended, record.restarts, _began_s(record)
        )


class Services:
    """All services that were started and not stopped on purpose, by name."""

    def __init__(self, files: ServiceFiles, starts: ServiceStarts, ring: Callable[[str], None]) -> None:
        self._files = files
        self._starts = starts
        self._ring = ring
        self._group: asyncio.TaskGroup | None = None
        self._services: dict[str, Service] = {}

    def serve_in(self, group: asyncio.TaskGroup) -> None:
        """Watch processes in tasks of this group from now on."""
        self._group = group

    def states(self) -> Mapping[str, ServiceState]:
        """What is known of each service now."""
        return {name: service.state() for name, service in self._services.items()}

    def cap_logs(self) -> None:
        """Empty logs that have outgrown their bound."""
        for name in tuple(self._services):
            cap_log(self._files.log_path(name))

    async def adopt(self) -> int:
        """Take over what an earlier agent started; how many of them run."""
        for name, record in await run_to_end(lambda: list(self._files.read())):
            if isinstance(record, str):
                log.warning("a service's record cannot be read; it is stopped if it runs", service=name, why=record)
                process = self._find_called(name)
                if process is not None:
                    unknown = ServiceSpec(name, "", "", ())
                    self._add(ServiceRecord(unknown, process.pid, process.start_time, unit_of(name, process)), process)
                continue
            process = self._find_process(record)
            if process is not None:
                unit = record.unit or unit_of(name, process)
                record = replace(record, pid=process.pid, start_time=process.start_time, unit=unit)  # noqa: PLW2901
            elif record.pid is not None:
                record = await self._ended_meanwhile(record)  # noqa: PLW2901
            self._add(record, process)
        return sum(service.process is not None for service in self._services.values())

    def _find_process(self, record: ServiceRecord) -> Process | None:
        if record.pid is None or record.start_time is None:
            # An agent died between starting it and writing its pid down.
            return self._find_called(record.spec.name)
        return find_process(record.pid, record.start_time)

    def _find_called(self, name: str) -> Process | None:
        return find_process_called(str(self._files.directory(name)), frozenset(SERVICE_UIDS.values()))

    async def _ended_meanwhile(self, record: ServiceRecord) -> ServiceRecord:
        status = await self._starts.find_end(record)
        return _with_end(record, status.reason if status is not None else "crash")

    def _add(self, record: ServiceRecord, process: Process | None) -> Service:
        service = self._services[record.spec.name] = Service(record, process)
        if process is not None:
            if self._group is None:
                raise RuntimeError("services are watched in a task group")
            self._group.create_task(self._watch(service, process), name=f"service {record.spec.name}")
        return service

    async def _watch(self, service: Service, process: Process) -> None:
        status = await process.wait_exit() or await self._starts.find_end(service.record)
        process.close()
        service.process = None
        if service.leaving:
            return
        service.record = _with_end(service.record, status.reason if status is not None else "crash")
        with contextlib.suppress(ActionError):  # nobody but the next agent would miss it
            await run_to_end(self._files.save, service.record)
        self._ring("service")

    async def start(self, action: StartService) -> None:
        """Check the configuration; then end what runs with the former one, and start the program.

        PermanentError `ConfigRefused` with the program's own words: what ran runs on, or again with the former one.
        """
        spec, former = action.spec, self._services.get(action.spec.name)
        program = _find_program(spec)
        await run_to_end(self._files.write_candidate, spec)
        try:
            await self._check(spec, program)
        except PermanentError:
            if former is not None and former.process is None and former.record.spec != spec:
                with contextlib.suppress(ActionError):
                    await self._begin(former.record.spec, program, former.record, action.reason)
            raise
        if former is not None:
            await self._end(former)
        await self._begin(spec, program, former.record if former is not None else None, action.reason)

    async def reload(self, action: ReloadService) -> None:
        """Write what has changed, and tell the program; TransientError if it is gone meanwhile, or runs on as before.

        One that says how it went has what it is to read checked first: PermanentError `ConfigRefused`, as by `start`.
        """
        spec = action.spec
        service = self._services.get(spec.name)
        if service is None or service.process is None or service.process.pid != action.pid:
            raise TransientError(f"{spec.name} is gone meanwhile", reason="Gone")
        if spec.reloaded:
            await run_to_end(self._files.write_candidate, spec)
            await self._check(spec, _find_program(spec))
        await run_to_end(self._files.install, spec, SERVICE_UIDS[spec.program])
        if any(file.effect is FileEffect.RELOAD for file in spec.files):
            if spec.reloaded:
                await self._read_again(service.record, service.process, spec)
            else:
                await self._starts.signal(service.record, service.process, signal.Signals[spec.reload_signal])
        service.record = replace(service.record, spec=spec)
        await run_to_end(self._files.save, service.record)

    async def stop(self, action: StopService) -> None:
        """End a program and forget it; what it kept stays. ActionError if it cannot be ended."""
        service = self._services.get(action.service)
        if service is None:
            return
        await self._end(service)
        await run_to_end(self._files.forget, action.service)
        del self._services[action.service]

    async def _check(self, spec: ServiceSpec, program: str) -> None:
        if not spec.test:
            return
        command = self._files.command(spec, program, spec.test, CANDIDATE)
        try:
            done = await run_to_end(_run, command)
        except (OSError, subprocess.SubprocessError) as error:
            raise TransientError(f"{' '.join(command)}: {error}", reason="ServiceFailed") from error
        if done.returncode != 0:
            words = _complaint(spec, done.stderr.decode(errors="replace")) or f"exit code {done.returncode}"
            raise PermanentError(f"{spec.program} refuses the configuration: {words}", reason="ConfigRefused")

    async def _begin(self, spec: ServiceSpec, program: str, former: ServiceRecord | None, reason: Reason) -> None:
        record = ServiceRecord(spec)
        if former is not None:
            restarts = former.restarts + (reason is Reason.EXITED)
            record = replace(record, ends=former.ends, ended=former.ended, restarts=restarts)
            await self._starts.clear(former)
        uid, log_path = SERVICE_UIDS[spec.program], self._files.log_path(spec.name)
        await run_to_end(self._files.install, spec, uid)
        await run_to_end(self._files.save, record)
        command = self._files.command(spec, program, spec.argv)
        kept = self._files.open_kept(spec, uid)
        before = log_size(log_path)
        try:
            directory = self._files.directory(spec.name)
            process, unit = await self._starts.start(ServiceStart(spec, command, uid, directory, log_path, kept))
        finally:
            if kept is not None:
                os.close(kept)
        record = replace(record, pid=process.pid, start_time=process.start_time, unit=unit)
        await self._until_started(record, process, before)
        await run_to_end(self._files.save, record)
        self._add(record, process)

    async def _until_started(self, record: ServiceRecord, process: Process, before: int) -> None:
        """Return when a program serves; TransientError `ServiceFailed`, with its last words, if it ends instead."""
        spec, path = record.spec, self._files.log_path(record.spec.name)
        answer = await _until_said(path, before, process, (spec.started,), STARTED_WITHIN_S)
        if answer is _Answer.SILENT:
            log.warning("a service does not say that it serves", service=spec.name)
        if answer is _Answer.ENDED:
            await self._starts.clear(record)
            words = _complaint(spec, _log_since(path, before)) or "it says nothing"
            raise TransientError(f"{spec.name} ended at once: {words}", reason="ServiceFailed")

    async def _read_again(self, record: ServiceRecord, process: Process, spec: ServiceSpec) -> None:
        """Return when a program has read its files again; TransientError `ServiceFailed` if it could not, or ended.

        A signal that it does not answer is sent again: haproxy 2.6 loses one that comes when it is just done with the
        former, 13 of 25 did.
        """
        path, answer = self._files.log_path(spec.name), _Answer.SILENT
        before = log_size(path)
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(contextlib.suppress(TimeoutError))
            await stack.enter_async_context(asyncio.timeout(STARTED_WITHIN_S))
            while answer is _Answer.SILENT:
                await self._starts.signal(record, process, signal.Signals[spec.reload_signal])
                answer = await _until_said(path, before, process, (spec.reloading,), HEARD_WITHIN_S)
        answer = await _until_said(path, before, process, (spec.reloaded, spec.not_reloaded), STARTED_WITHIN_S)
        said = _log_since(path, before)
        if answer is not _Answer.SAID or spec.not_reloaded in said:
            words = _complaint(spec, said) or "it says nothing"
            raise TransientError(f"{spec.name} did not take its new configuration: {words}", reason="ServiceFailed")

    async def _end(self, service: Service) -> None:
        process = service.process
        if process is not None:
            service.leaving = True
            for number in (signal.SIGTERM, signal.SIGKILL):
                await self._starts.signal(service.record, process, number)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(END_TIMEOUT_S):
                        await process.wait_exit()
                        break
            else:
                service.leaving = False
                raise TransientError(f"{service.record.spec.name} (pid {process.pid}) does not end", reason="Stuck")
        await self._starts.clear(service.record)


class _Answer(Enum):
    SAID, SILENT, ENDED = range(3)


async def _until_said(path: Path, before: int, process: Process, words: tuple[str, ...], within_s: float) -> _Answer:
    """Return when a program's log has one of these words, or the program ended, or its time for that is over."""
    ended, said = asyncio.ensure_future(process.wait_exit()), False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while not ended.done() and not said:
                await asyncio.wait({ended}, timeout=LOOK_AT_LOG_S)
                said = any(one in _log_since(path, before) for one in words)
    if ended.done():
        return _Answer.ENDED
    ended.cancel()
    return _Answer.SAID if said else _Answer.SILENT


def _complaint(spec: ServiceSpec, text: str) -> str:
    """What a program says is wrong, empty if it says nothing."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line for line in lines if spec.complaint and spec.complaint in line]
    return printable(marked[0] if marked else lines[-1]) if lines else ""


def _with_end(record: ServiceRecord, reason: str) -> ServiceRecord:
    began_s = _began_s(record)
    end = End(now_s(), now_s() - began_s if began_s is not None else 0.0, boot_id(), reason)
    return replace(record, ends=(*record.ends, end)[-ENDS_KEPT:], ended=record.ended + 1, pid=None, start_time=None)


def _began_s(record: ServiceRecord) -> float | None:
    return record.start_time / CLOCK_TICKS_PER_S if record.start_time is not None else None


def _find_program(spec: ServiceSpec) -> str:
    path = shutil.which(spec.program, path=ENVIRONMENT["PATH"])
    if path is None:
        package = PACKAGES[spec.program]
        message = f"{spec.program} is not installed (Debian: apt install {package})"
        raise TransientError(message, reason="ProgramMissing", retry_after_s=10.0)
    return path


def absent_programs() -> frozenset[str]:
    """The programs of services that this host does not have."""
    return frozenset(one for one in PACKAGES if shutil.which(one, path=ENVIRONMENT["PATH"]) is None)


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=ENVIRONMENT,
        timeout=CHECK_TIMEOUT_S,
        check=False,
        start_new_session=True,
    )


def _log_since(path: os.PathLike[str], before: int) -> str:
    """What a log says since it had a size; all of it, if it was put aside since and is shorter."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(before if before <= size else 0)
            return file.read(1 << 16).decode(errors="replace")
    except OSError:
        return ""
