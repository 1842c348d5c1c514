"""Looking at paths and ports, against the real kernel."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from agent.core.observed import Reach
from agent.host.reach import accepts, exists
from agent.runtime.probes import Probes
from tests.netns import ip, network_namespace


async def test_a_path_is_there_or_says_why_not(tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert await exists(str(file)) == (False, "")
    file.symlink_to(tmp_path / "target")
    assert await exists(str(file)) == (False, "")
    (tmp_path / "target").touch()
    assert await exists(str(file)) == (True, "")
    assert await exists(str(file / "below")) == (False, "Not a directory")


async def test_a_port_takes_connections_or_says_why_not() -> None:
    with network_namespace():
        assert await accepts("127.0.0.1", 5353) == (False, "connection refused")
        assert await accepts("192.0.2.1", 5353) == (False, "network is unreachable")
        for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
            with socket.create_server((host, 5353), family=family) as server:
                assert await accepts(host, 5353) == (True, "")
                server.settimeout(30)
                with server.accept()[0] as connection:
                    connection.settimeout(30)
                    assert connection.recv(1) == b""


async def test_nobody_who_does_not_answer_is_waited_for_longer_than_two_seconds() -> None:
    with network_namespace():
        ip("link add far0 type veth peer name far1", "link set far0 up", "link set far1 up")
        ip("addr add 192.0.2.1/24 dev far0", "neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev far0")
        assert await accepts("192.0.2.2", 5353) == (False, "no answer within 2 s")


async def test_what_is_asked_for_is_looked_at_and_forgotten_when_nobody_asks(tmp_path: Path) -> None:
    rung = asyncio.Event()
    probes = Probes(lambda _: rung.set())
    reference = f"path:{tmp_path}/file"
    async with asyncio.TaskGroup() as group:
        probes.probe_in(group)
        first = probes.look(frozenset({reference}))[reference]
        assert first.ok is None
        await asyncio.wait_for(rung.wait(), 30)
        assert probes.look(frozenset({reference})) == {reference: Reach(False, first.since_s)}
        rung.clear()
        (tmp_path / "file").touch()
        await asyncio.wait_for(rung.wait(), 30)
        found = probes.look(frozenset({reference}))[reference]
        assert (found.ok, found.since_s > first.since_s) == (True, True)
        assert probes.look(frozenset()) == {}
