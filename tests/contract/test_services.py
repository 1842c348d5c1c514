"""Supervised programs against the real dnsmasq: what is refused, what ends, and what an earlier agent left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.desired import BridgeSpec, DhcpSpec, DnsSpec
from agent.core.errors import PermanentError, TransientError
from agent.core.observed import ServiceState
from agent.core.reasons import Reason
from agent.core.services.actions import ReloadService, StartService, StopService
from agent.core.services.dnsmasq import dnsmasq_spec
from agent.core.services.spec import ServiceFile, ServiceSpec
from agent.host.processes import find_process_called, running_process
from agent.host.service_files import ServiceFiles
from agent.runtime.service_starts import ChildServices
from agent.runtime.services import Services
from tests.netns import ip, network_namespace

BRIDGE = BridgeSpec(
    "br0", "02::1", addresses=("10.0.0.1/24",), dhcp=DhcpSpec("10.0.0.100", "10.0.0.110", 3600), dns=DnsSpec(())
)
SPEC = dnsmasq_spec(BRIDGE, ())
LONGER = dnsmasq_spec(replace(BRIDGE, dhcp=DhcpSpec("10.0.0.100", "10.0.0.150", 3600)), ())
NAME, RESOURCE = SPEC.name, f"service/{SPEC.name}"
BAD = replace(SPEC, files=(ServiceFile("dnsmasq.conf", f"{SPEC.files[0].text}no-such-option=1\n"), *SPEC.files[1:]))


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr("agent.runtime.services.STARTED_WITHIN_S", 60.0)  # a busy host may hold up what was started
    with network_namespace(), tempfile.TemporaryDirectory(prefix="vmhost-test-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "state").mkdir(mode=0o700)
        (folder / "run").mkdir(mode=0o711)
        ip("link add br0 type bridge", "addr add 10.0.0.1/24 dev br0", "link set br0 up")
        try:
            yield folder
        finally:
            kill_all(folder)
            while LEFT:
                LEFT.pop().wait()


LEFT: list[subprocess.Popen[bytes]] = []
"""Children that an agent's part left behind, which are ours to reap."""


def kill_all(folder: Path) -> None:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"{folder}/".encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
        except OSError:
            continue


class Supervised:
    """Services as an agent has them, and what rang."""

    def __init__(self, folder: Path) -> None:
        self.rung = asyncio.Event()
        self.files = ServiceFiles(folder / "run", folder / "state")
        self.services = Services(self.files, ChildServices(), lambda _: self.rung.set())

    @property
    def state(self) -> ServiceState:
        return self.services.states()[NAME]

    async def start(self, spec: ServiceSpec = SPEC, reason: Reason = Reason.WANTED) -> None:
        former = self.services.states().get(NAME)
        pid = former.pid if former is not None else None
        await self.services.start(StartService(RESOURCE, reason, spec, pid, former.ended if former else 0))

    async def kill(self) -> None:
        self.rung.clear()
        assert self.state.pid is not None
        os.kill(self.state.pid, signal.SIGKILL)
        await self.rung.wait()


@asynccontextmanager
async def supervised(folder: Path) -> AsyncIterator[Supervised]:
    """An agent's part of it, which lets go at the end as an agent does that is killed."""
    one = Supervised(folder)
    async with asyncio.TaskGroup() as group:
        one.services.serve_in(group)
        await one.services.adopt()
        yield one
        processes = [service.process for service in one.services._services.values()]
        LEFT.extend(process._child for process in processes if process is not None and process._child is not None)
        for task in group._tasks:
            task.cancel()


def runs(pid: int | None) -> bool:
    process = running_process(pid) if pid is not None else None
    return process is not None


async def test_a_refused_configuration_leaves_what_runs_as_it_is(folder: Path) -> None:
    async with supervised(folder) as one:
        await one.start()
        pid, conf = one.state.pid, one.files.directory(NAME) / "dnsmasq.conf"
        with pytest.raises(PermanentError, match="refuses the configuration: dnsmasq: bad option at line") as refused:
            await one.start(BAD)
        assert refused.value.reason == "ConfigRefused"
        assert (one.state.pid, one.state.spec) == (pid, SPEC)
        assert runs(pid)
        assert "no-such-option" not in conf.read_text()


async def test_the_former_configuration_comes_back_where_the_new_one_is_refused(folder: Path) -> None:
    async with supervised(folder) as one:
        await one.start()
        await one.kill()
        assert (one.state.alive, one.state.ended, one.state.ends[0].reason) == (False, 1, "killed")
        with pytest.raises(PermanentError, match="bad option"):
            await one.start(BAD, Reason.EXITED)
        assert (one.state.alive, one.state.spec, one.state.restarts) == (True, SPEC, 1)


async def test_another_configuration_replaces_the_process_and_no_end_is_counted(folder: Path) -> None:
    async with supervised(folder) as one:
        await one.start()
        pid = one.state.pid
        await one.start(LONGER)
        assert one.state.pid != pid
        assert not runs(pid)
        assert (one.state.spec, one.state.ended, one.state.restarts) == (LONGER, 0, 0)
        await one.services.stop(StopService(RESOURCE, Reason.UNWANTED, NAME))
        assert one.services.states() == {}
        assert not one.files.directory(NAME).exists()
        assert (folder / "state" / "leases" / "br0").exists()


async def test_what_cannot_bind_says_why_and_is_no_end(folder: Path) -> None:
    async with supervised(folder) as one:
        spec = replace(SPEC, files=tuple(replace(f, text=f.text.replace("br0", "br9")) for f in SPEC.files))
        with pytest.raises(TransientError, match=r"ended at once: dnsmasq: unknown interface br9"):
            await one.start(spec)
        assert one.services.states() == {}


async def _as_it_is(one: Supervised) -> None:
    """An agent that was killed between two actions."""


async def _without_pid(one: Supervised) -> None:
    """One that was killed before it wrote the pid down."""
    record = next(record for _, record in one.files.read() if not isinstance(record, str))
    one.files.save(replace(record, pid=None, start_time=None))


@pytest.mark.parametrize("left", [_as_it_is, _without_pid])
async def test_the_next_agent_takes_it_over(folder: Path, left: Callable[[Supervised], Awaitable[None]]) -> None:
    async with supervised(folder) as one:
        await one.start()
        pid = one.state.pid
        await left(one)
    async with supervised(folder) as two:
        assert (two.state.alive, two.state.pid, two.state.spec) == (True, pid, SPEC)
        hosts = replace(
            SPEC, files=(*SPEC.files[:1], replace(SPEC.files[1], text="02:00:00:00:00:09,web\n"), SPEC.files[2])
        )
        assert pid is not None
        await two.services.reload(ReloadService(RESOURCE, Reason.WANTED, hosts, pid))
        assert (two.state.pid, two.state.spec) == (pid, hosts)
        await two.kill()
        assert two.state.ended == 1
    async with supervised(folder) as three:
        assert (three.state.alive, three.state.ended) == (False, 1)


async def test_one_that_ended_while_nobody_looked_has_ended(folder: Path) -> None:
    async with supervised(folder) as one:
        await one.start()
        pid = one.state.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(LEFT.pop().wait)
    async with supervised(folder) as two:
        assert (two.state.alive, two.state.ended, two.state.ends[0].reason) == (False, 1, "crash")


async def test_a_torn_record_is_no_reason_to_run_twice(folder: Path) -> None:
    async with supervised(folder) as one:
        await one.start()
        pid = one.state.pid
        (one.files.directory(NAME) / "record.toml").write_text("pid = ")
    async with supervised(folder) as two:
        assert (two.state.alive, two.state.pid) == (True, pid)
        await two.start()
        assert two.state.pid != pid
        assert not runs(pid)


def test_who_only_looks_is_not_taken_for_it(folder: Path) -> None:
    assert find_process_called(str(folder), frozenset({os.geteuid()})) is None
