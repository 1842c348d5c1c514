"""What holds of both ways to run QEMU, as cases that a test runs here and in a lab's systemd.

`python start_cases.py CASE FOLDER` runs one as a service's way; it needs the agent's own packages and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from agent.core.desired import Limits, VmSpec
from agent.core.errors import PermanentError
from agent.host.launches import Launches, LaunchRecord
from agent.host.processes import ExitStatus, Process, service_of
from agent.host.systemd import ServiceManager
from agent.runtime.starts import ChildStarts, Start, Starts, UnitStarts, unit_of

UID = 1_900_000_123
NONE = Limits()
WAITS = ("sleep", "300")
MANY = 600
"""More descriptors than fit into two messages."""


class Ways:
    """One way, and what a second agent of the same host would have."""

    def __init__(self, folder: Path, *, as_units: bool) -> None:
        self.as_units = as_units
        self.launches = Launches(folder / "run")
        self.launches.open()
        self._folder = folder

    @staticmethod
    def null() -> BinaryIO:
        """A descriptor to pass on."""
        return open(os.devnull, "rb")

    @asynccontextmanager
    async def starts(self) -> AsyncIterator[Starts]:
        """A way as an agent has it."""
        run_dir = self._folder / "run"
        starts: Starts = UnitStarts(ServiceManager(), run_dir) if self.as_units else ChildStarts()
        try:
            yield starts
        finally:
            starts.close()

    @asynccontextmanager
    async def run(
        self,
        starts: Starts,
        argv: Sequence[str],
        fds: Sequence[int] = (),
        name: str = "start-case",
        limits: Limits = NONE,
    ) -> AsyncIterator[tuple[Process, LaunchRecord]]:
        """A program in QEMU's place, gone and put away at the end."""
        spec = VmSpec(name=name, uuid="u", uid=UID, limits=limits)
        lock = self.launches.lock(name, UID)
        directory, log_path = self.launches.directory(name), self.launches.log_path(name)
        start = Start(spec, argv, [*fds, lock], directory, log_path)
        try:
            process, unit = await starts.start(start)
        finally:
            os.close(lock)
        record = LaunchRecord(spec, pid=process.pid, start_time=process.start_time, unit=unit)
        try:
            yield process, record
        finally:
            await starts.kill(record, process)
            await process.wait_exit()
            await starts.find_end(record)
            await starts.kill(record, process)  # which is nothing now
            await starts.clear(record)

    def log(self, name: str = "start-case") -> str:
        """What the program said."""
        return self.launches.log_path(name).read_text()


async def end_of(starts: Starts, process: Process, record: LaunchRecord) -> ExitStatus | None:
    """How a program ended, as a guest asks for it."""
    return await process.wait_exit() or await starts.find_end(record)


async def it_is_what_was_asked_for(ways: Ways) -> None:
    """User, privileges, environment, descriptors: the same in both."""
    with Ways.null() as one:
        async with (
            ways.starts() as starts,
            ways.run(starts, ("sh", "-c", "exec sleep 300"), [one.fileno()]) as (process, record),
        ):
            # Asleep: until then its loader opens libraries, and closes them again.
            await until(lambda: proc(process.pid, "cmdline") == b"sleep\x00300\x00" and state_of(process.pid) == "S")
            lines = proc(process.pid, "status").decode().splitlines()
            status = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
            assert status["Uid"] == status["Gid"] == [str(UID)] * 4
            assert status["Groups"] == []
            assert {status[key][0].strip("0") for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {""}
            assert status["NoNewPrivs"] == ["1"]
            # Python ignores SIGPIPE, and what it starts would too; whoever runs this may ignore others (nohup).
            assert int(status["SigIgn"][0], 16) & (1 << (signal.SIGPIPE - 1)) == 0
            assert os.getsid(process.pid) == process.pid
            names = {variable.partition(b"=")[0] for variable in proc(process.pid, "environ").split(b"\0")[:-1]}
            assert names - {b"PWD", b"SHLVL", b"_", b"OLDPWD"} == {b"PATH", b"LC_ALL"}  # what sh itself adds aside
            numbers = {
                int(fd): os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")
            }
            log_path = str(ways.launches.log_path("start-case"))
            assert {numbers[0], numbers[one.fileno()]} == {os.devnull}
            assert numbers[1] == numbers[2] == log_path
            lock = str(ways.launches.lock_path("start-case"))
            assert sorted(numbers.values()) == sorted([os.devnull, os.devnull, log_path, log_path, lock])
            assert os.readlink(f"/proc/{process.pid}/cwd") == "/"
            assert bool(record.unit) == ways.as_units == bool(unit_of(process))
            assert service_of(process.pid) == record.unit or not ways.as_units


async def the_lock_is_held_until_it_is_gone(ways: Ways) -> None:
    """Nothing is started twice, and the next start finds the lock free at once."""
    async with ways.starts() as starts:
        async with ways.run(starts, WAITS):
            assert ways.launches.is_locked("start-case")
        assert not ways.launches.is_locked("start-case")
        async with ways.run(starts, WAITS):
            pass


async def each_end_is_told(ways: Ways) -> None:
    """Exit codes and signals; a program that is not there says so in its log."""
    ends = {
        "exit 0": (ExitStatus(0, None), "host"),
        "exit 3": (ExitStatus(3, None), "crash"),
        "kill -9 $$": (ExitStatus(None, 9), "killed"),
        "kill -11 $$": (ExitStatus(None, 11), "crash"),
    }
    async with ways.starts() as starts:
        for program, (expected, reason) in ends.items():
            async with ways.run(starts, ("sh", "-c", program)) as (process, record):
                status = await end_of(starts, process, record)
                assert status == expected, (program, status)
                assert status.reason == reason
        async with ways.run(starts, ("/nonexistent/qemu",)) as (process, record):
            assert await end_of(starts, process, record) == ExitStatus(127, None)
        assert "/nonexistent/qemu" in ways.log()


async def an_end_is_told_to_the_next_agent(ways: Ways) -> None:
    """Of a service only, and of the very process that was recorded; put away, it is forgotten."""
    for program, expected in {"exit 0": ExitStatus(0, None), "kill -9 $$": ExitStatus(None, 9)}.items():
        async with ways.starts() as starts, ways.run(starts, ("sh", "-c", program)) as (process, record):
            await process.wait_exit()
            async with ways.starts() as later:
                assert await later.find_end(record) == (expected if ways.as_units else None)
                assert await later.find_end(replace(record, pid=1)) is None
                await later.clear(record)
                assert await later.find_end(record) is None


async def one_that_runs_is_not_put_away(ways: Ways) -> None:
    """Putting away ends nobody."""
    async with ways.starts() as starts, ways.run(starts, WAITS) as (process, record):
        await until(lambda: proc(process.pid, "cmdline").startswith(b"sleep"))  # empty while within execve(2)
        await starts.clear(record)
        assert proc(process.pid, "cmdline") != b""


async def a_renamed_guest_leaves_its_name_to_another(ways: Ways) -> None:
    """Its unit keeps the old name, so the next one of that name gets another."""
    async with ways.starts() as starts, ways.run(starts, WAITS) as (first, record):
        ways.launches.save(record)
        ways.launches.rename(record, "renamed-case")
        assert ways.launches.is_locked("renamed-case")
        async with ways.run(starts, WAITS) as (second, other):
            assert first.pid != second.pid
            await until(lambda: proc(first.pid, "cmdline").startswith(b"sleep"))
            assert (record.unit != other.unit) == ways.as_units
        assert proc(first.pid, "cmdline") != b""
    ways.launches.forget("renamed-case")


async def it_gets_as_many_descriptors_as_it_needs(ways: Ways) -> None:
    """Each under its number, also those whose numbers are taken by others on the way."""
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(MANY)]
    try:
        async with ways.starts() as starts, ways.run(starts, WAITS, fds[::-1]) as (process, _):
            await until(lambda: proc(process.pid, "cmdline").startswith(b"sleep"))
            assert {int(fd) for fd in os.listdir(f"/proc/{process.pid}/fd")} >= {0, 1, 2, *fds}
    finally:
        for fd in fds:
            os.close(fd)


async def it_is_limited_while_it_runs(ways: Ways) -> None:
    """A service is, with what it was started with, then with other limits and with none; a child never is."""
    given, other = Limits(200, 1_500_000, 50, 90), Limits(cpu_weight=1, tasks=100)
    async with ways.starts() as starts, ways.run(starts, WAITS, limits=given) as (process, record):
        assert starts.as_services == ways.as_units
        if not ways.as_units:
            assert await starts.limits(record) is None
            with suppress(PermanentError):
                await starts.limit(record, other)
                raise AssertionError("a child was limited")
            return
        await until(lambda: proc(process.pid, "cmdline").startswith(b"sleep"))
        assert await starts.limits(record) == given
        for limits in (other, NONE, given):
            await starts.limit(record, limits)
            async with ways.starts() as later:
                assert await later.limits(record) == limits
        assert await starts.limits(replace(record, unit="vmhost-vm-nobody.service")) is None
        assert proc(process.pid, "cmdline") != b""
    async with ways.starts() as starts, ways.run(starts, WAITS) as (_, record):
        assert await starts.limits(record) == NONE  # nothing is left of the one before


async def it_gets_as_long_a_command_line_as_the_kernel_takes(ways: Ways) -> None:
    """Also one that is longer than a socket's buffer."""
    argv = ("sh", "-c", "exec sleep 300", *["x" * 131_071] * 12)
    async with ways.starts() as starts, ways.run(starts, argv) as (process, _):
        await until(lambda: proc(process.pid, "cmdline").startswith(b"sleep"))


CASES: dict[str, Callable[[Ways], Coroutine[None, None, None]]] = {
    case.__name__: case
    for case in (
        it_is_what_was_asked_for,
        the_lock_is_held_until_it_is_gone,
        each_end_is_told,
        an_end_is_told_to_the_next_agent,
        one_that_runs_is_not_put_away,
        a_renamed_guest_leaves_its_name_to_another,
        it_gets_as_many_descriptors_as_it_needs,
        it_is_limited_while_it_runs,
        it_gets_as_long_a_command_line_as_the_kernel_takes,
    )
}


def proc(pid: int, name: str) -> bytes:
    """A file of a process."""
    return Path(f"/proc/{pid}/{name}").read_bytes()


def state_of(pid: int) -> str:
    """What a process is doing, as proc(5) abbreviates it."""
    return proc(pid, "stat").decode().rpartition(")")[2].split()[0]


async def until(holds: Callable[[], bool]) -> None:
    """What a process does to itself, nobody announces."""
    for _ in range(12_000):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError


if __name__ == "__main__":
    asyncio.run(CASES[sys.argv[1]](Ways(Path(sys.argv[2]), as_units=True)))
