"""Services against the real haproxy: what is refused, what cannot be bound, and which of its processes is the one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.errors import PermanentError, TransientError
from agent.core.observed import ServiceState
from agent.core.reasons import Reason
from agent.core.routing.firewall_wanted import Forward
from agent.core.routing.ruleset import Element
from agent.core.services.actions import ReloadService, StartService
from agent.core.services.haproxy import Listening, proxy_spec
from agent.core.services.spec import ServiceSpec
from agent.host.listeners import find_holders
from agent.runtime.routing import CARRIERS
from tests.contract.test_services import Supervised, folder, supervised
from tests.netns import ip

__all__ = ["folder"]

NAME, RESOURCE = "haproxy", "service/haproxy"
HOST6 = "fd00:10::1"


def carrying(*at: tuple[str, int]) -> ServiceSpec:
    """What listens at these, for a guest in whose place this host answers."""
    listening = [
        Listening(
            Forward("web", f"[{address}]:{port}:81/tcp", 6, "10.0.0.1", "br0", Element("carried", "", "")),
            ((address, port, port),),
        )
        for address, port in at
    ]
    return proxy_spec(listening)


SPEC, OTHER = carrying((HOST6, 80)), carrying((HOST6, 80), (HOST6, 81))


@pytest.fixture
def answers(folder: Path) -> Iterator[Path]:
    """The folder, with an IPv6 address of the host, and somebody who takes connections where the guest would."""
    ip("link add up0 type veth peer name up1", "link set up0 up", f"addr add {HOST6}/64 dev up0 nodad")
    with socket.create_server(("10.0.0.1", 81)):
        yield folder


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[tuple[Supervised, int]]:
    """Services with a haproxy that was started, and its pid."""
    async with supervised(folder) as one:
        await one.services.start(StartService(RESOURCE, Reason.WANTED, SPEC))
        yield one, int(state(one).pid or 0)


def state(one: Supervised) -> ServiceState:
    return one.services.states()[NAME]


async def listens(port: int, address: str = HOST6) -> bool:
    try:
        _, writer = await asyncio.open_connection(address, port)
    except OSError:
        return False
    writer.close()
    return True


async def until_listens(*ports: int) -> None:
    """Return once it listens on these of 80 and 81: the former worker lets go of what it had a moment later."""
    async with asyncio.timeout(30):
        while [port for port in (80, 81) if await listens(port)] != [*ports]:
            continue


async def test_a_reload_is_over_when_it_listens_as_it_is_wanted(answers: Path) -> None:
    async with started(answers) as (one, pid):
        assert [await listens(port) for port in (80, 81)] == [True, False]
        await one.services.reload(ReloadService(RESOURCE, Reason.WANTED, OTHER, pid))
        assert [await listens(port) for port in (80, 81)] == [True, True]
        for number in range(10):  # it loses signals that come this soon
            spec = SPEC if number % 2 else OTHER
            await one.services.reload(ReloadService(RESOURCE, Reason.WANTED, spec, pid))
            await until_listens(*((80, 81) if spec is OTHER else (80,)))
        assert replace(state(one), began_s=None) == ServiceState(SPEC, alive=True, pid=pid)


async def test_what_it_refuses_is_told_in_its_words_and_is_not_read(answers: Path) -> None:
    async with started(answers) as (one, pid):
        (file,) = OTHER.files
        bad = replace(OTHER, files=(replace(file, text=f"{file.text}nonsense\n"),))
        with pytest.raises(PermanentError, match=r"refuses the configuration: .*unknown keyword 'nonsense'") as refused:
            await one.services.reload(ReloadService(RESOURCE, Reason.WANTED, bad, pid))
        assert refused.value.reason == "ConfigRefused"
        assert "nonsense" not in (one.files.directory(NAME) / file.name).read_text()
        assert state(one).spec == SPEC
        assert [await listens(port) for port in (80, 81)] == [True, False]


async def test_what_cannot_be_bound_is_told_and_it_goes_on_as_before(answers: Path) -> None:
    async with started(answers) as (one, pid):
        with socket.create_server((HOST6, 81), family=socket.AF_INET6):
            with pytest.raises(TransientError, match=r"did not take .*cannot bind socket .Address already in use"):
                await one.services.reload(ReloadService(RESOURCE, Reason.WANTED, OTHER, pid))
            assert state(one).spec == SPEC
            await until_listens(80, 81)  # the latter is the stranger
        await one.services.reload(ReloadService(RESOURCE, Reason.WANTED, OTHER, pid))
        assert (await listens(81), state(one).pid) == (True, pid)


async def test_a_start_that_cannot_bind_says_where(folder: Path) -> None:
    async with supervised(folder) as one:
        with pytest.raises(TransientError, match=r"ended at once: .*cannot bind socket .*fd00:10::1:80"):
            await one.services.start(StartService(RESOURCE, Reason.WANTED, SPEC))
        assert one.services.states() == {}


def worker_of(pid: int) -> str:
    """The command line of the last process that haproxy began."""
    *_, worker = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return Path(f"/proc/{worker}/cmdline").read_text()


async def test_the_master_is_taken_over_and_not_its_worker(answers: Path) -> None:
    async with started(answers) as (one, pid):
        for spec in (OTHER, SPEC):
            await one.services.reload(ReloadService(RESOURCE, Reason.WANTED, spec, pid))
        assert str(one.files.directory(NAME)) in await asyncio.to_thread(worker_of, pid)
        record = next(record for _, record in one.files.read() if not isinstance(record, str))
        one.files.save(replace(record, pid=None, start_time=None))
    async with supervised(answers) as two:
        assert state(two).pid == pid


async def test_it_holds_no_port_that_it_carries_and_strangers_do(answers: Path) -> None:
    async with started(answers), _stranger(82):
        texts = ["80/tcp", f"[{HOST6}]:80/tcp", "[::]:82/tcp"]
        held = await asyncio.to_thread(find_holders, texts, CARRIERS)
        assert [bool(held[text]) for text in texts] == [False, False, True]
        assert "haproxy" in (await asyncio.to_thread(find_holders, texts))["80/tcp"]


@asynccontextmanager
async def _stranger(port: int) -> AsyncIterator[None]:
    with socket.create_server((HOST6, port), family=socket.AF_INET6):
        yield
