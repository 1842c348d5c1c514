"""The status page's news over real TCP: what is sent, how often, to how many, and how it ends."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.core.desired import Desired, VmSpec
from agent.core.measures import DiskMeasure, GuestMeasure
from agent.core.observed import Observed, VmState
from agent.core.tell.status import AgentFacts, StatusInputs
from agent.telemetry import httpd
from agent.telemetry.board import EVENTS_SHOWN, Look, PageSources
from agent.telemetry.guard import Guard, Protection
from agent.telemetry.httpd import Health, serve_metrics
from agent.telemetry.journal import Journal
from agent.telemetry.listen import Listen
from agent.telemetry.page import MOST_CLIENTS, Page
from agent.telemetry.passwords import hash_password

KIM = {"Authorization": f"Basic {base64.b64encode(b'kim:1').decode()}"}
AGENT = AgentFacts(version="0.1.0", pid=7, started="2026-01-01T00:00:00+00:00", settled=True)


def guests(count: int, description: str = "") -> StatusInputs:
    names = [f"g{number:04}" for number in range(count)]
    vms = {name: VmSpec(name, f"u-{name}", 1900000000, description=description) for name in names}
    return StatusInputs(AGENT, desired=Desired(vms=vms))


@dataclass
class World:
    """What the page is told, and how often it asked."""

    look: Look = field(default_factory=lambda: Look(guests(1)))
    number: int = 0
    looks: int = 0
    journal: Journal = field(default_factory=Journal)

    def change(self, **changes: Any) -> None:
        self.look = replace(self.look, **changes)
        self.number += 1

    def _look(self) -> Look:
        self.looks += 1
        return self.look

    def sources(self) -> PageSources:
        return PageSources("host", self.journal, self._look, lambda: self.number)


@asynccontextmanager
async def served(page: Page, protection: Protection | None = None) -> AsyncIterator[Listen]:
    guard = Guard(protection or Protection())
    serving = serve_metrics(
        Listen("127.0.0.1", 0),
        guard,
        render=lambda _: b"",
        health=lambda: Health(True, "ok"),
        page=page,
    )
    async with serving as bound:
        yield bound


async def next_frame(stream: aiohttp.ClientResponse) -> dict[str, Any]:
    """The next frame; heartbeats are passed over."""
    async with asyncio.timeout(30):
        while True:
            line = (await stream.content.readuntil(b"\n")).decode()
            if line.startswith("data: {"):
                frame: dict[str, Any] = json.loads(line.removeprefix("data: "))
                return frame


async def until_gone(page: Page) -> None:
    await until_at_most(page, 0)


async def until_at_most(page: Page, clients: int) -> None:
    """For the server's side of a connection that was closed: nobody tells of it here."""
    async with asyncio.timeout(60):
        while page.clients > clients:  # noqa: ASYNC110 - a number, which rings for nobody
            await asyncio.sleep(0.01)


async def test_all_comes_first_and_then_what_changes() -> None:
    world = World()
    page = Page(world.sources())
    world.journal.record("vm/a", "killed", "one")
    async with served(page) as bound, aiohttp.ClientSession(f"http://{bound}") as session:
        await asyncio.sleep(0.3)
        assert world.looks == 0, "nobody looks, and it looks all the same"
        async with session.get("/events") as stream:
            assert stream.headers["Content-Type"] == "text/event-stream"
            assert stream.headers["Cache-Control"] == "no-store"
            assert await stream.content.readuntil(b"\n\n") == b"retry: 1000\n\n"
            first = await next_frame(stream)
            assert list(first["tables"]) == [
                "host", "wrong", "vms", "nics", "bridges", "services", "published", "events",
            ]  # fmt: skip
            assert first["tables"]["vms"]["keys"] == ["g0000"]
            world.journal.record("vm/a", "killed", "two")
            second = await next_frame(stream)
            assert list(second["tables"]) == ["events"]
            assert second["tables"]["events"]["keys"] == ["2", "1"]
            assert [key for key, _ in second["tables"]["events"]["rows"]] == ["2"]
            world.change(inputs=guests(2))
            third = await next_frame(stream)
            assert third["title"] == "host: 0/2 running"
            assert list(third["tables"]["vms"]) == ["rows", "keys"]
            assert [key for key, _ in third["tables"]["vms"]["rows"]] == ["g0001"]
        await until_gone(page)
        looks = world.looks
        world.change(inputs=guests(3))
        await asyncio.sleep(0.3)
        assert world.looks == looks


async def test_a_storm_of_changes_is_two_looks_a_second_for_all_clients() -> None:
    world = World()
    page = Page(world.sources())
    async with served(page) as bound, aiohttp.ClientSession(f"http://{bound}") as session:
        streams = [await session.get("/events") for _ in range(3)]
        before, began = world.looks, time.monotonic()
        async with asyncio.timeout(60):
            while world.looks < before + 7:
                world.change(inputs=guests(1 + world.number % 2))
                await asyncio.sleep(0.01)
        allowed = 1 + (time.monotonic() - began) / 0.5
        assert 7 <= world.looks - before <= allowed
        for stream in streams:
            stream.close()


async def test_so_many_pages_and_no_more() -> None:
    page = Page(World().sources())
    async with served(page) as bound, aiohttp.ClientSession(f"http://{bound}", connector=unbounded()) as session:
        streams = [await session.get("/events") for _ in range(MOST_CLIENTS)]
        async with session.get("/events") as answer:
            assert answer.status == 503
            assert await answer.text() == "32 pages are open, more there may not be; close one\n"
        async with session.get("/") as answer:
            assert answer.status == 200
        streams.pop().close()
        await until_at_most(page, MOST_CLIENTS - 1)
        streams.append(await session.get("/events"))
        assert streams[-1].status == 200
        for stream in streams:
            stream.close()
        await until_gone(page)


def unbounded() -> aiohttp.TCPConnector:
    return aiohttp.TCPConnector(limit=0)


async def test_who_does_not_read_is_dropped_and_holds_up_nobody() -> None:
    world = World()
    page = Page(world.sources(), slow_s=8.0)  # the other client, in this very process, is not to be slow ever
    async with served(page) as bound, aiohttp.ClientSession(f"http://{bound}", read_bufsize=1 << 22) as session:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect((bound.host, bound.port))
            slow.sendall(f"GET /events HTTP/1.1\r\nHost: {bound}\r\n\r\n".encode())
            async with session.get("/events") as stream, asyncio.timeout(120):
                while page.clients < 2:  # noqa: ASYNC110 - a number, which rings for nobody
                    await asyncio.sleep(0.01)
                rounds = 0
                while page.clients == 2:
                    for one in range(EVENTS_SHOWN):
                        world.journal.record("agent", "long", f"{rounds} {one} {'word ' * 2000}", level="debug")
                    while str(world.journal.last_seq) not in (await next_frame(stream))["tables"]["events"]["keys"]:
                        pass
                    rounds += 1
                assert page.clients == 1
                assert rounds > 1


async def test_it_says_that_it_lives_and_leaves_whom_it_knows_no_more(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text(f"kim:{hash_password(b'1')}\n")
    page = Page(World().sources(), alive_every_s=0.2)
    guard = Guard(Protection(users=users))
    serving = serve_metrics(
        Listen("127.0.0.1", 0),
        guard,
        render=lambda _: b"",
        health=lambda: Health(True, "ok"),
        page=page,
    )
    async with serving as bound:
        for path in ("/", "/events"):
            async with aiohttp.ClientSession(f"http://{bound}") as session, session.get(path) as answer:
                assert answer.status == 401
                assert answer.headers["WWW-Authenticate"].startswith("Basic ")
        async with aiohttp.ClientSession(f"http://{bound}") as session, session.get("/events", headers=KIM) as stream:
            await next_frame(stream)
            async with asyncio.timeout(30):
                assert await stream.content.readuntil(b"data:\n\n") == b"\nevent: alive\ndata:\n\n"
                users.write_text(f"other:{hash_password(b'1')}\n")
                guard.look()
                await stream.content.read()
        await until_gone(page)


async def test_whom_it_knows_no_more_it_leaves_also_while_it_has_news(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text(f"kim:{hash_password(b'1')}\n")
    world = World()
    page = Page(world.sources(), alive_every_s=0.3)
    guard = Guard(Protection(users=users))
    serving = serve_metrics(
        Listen("127.0.0.1", 0), guard, render=lambda _: b"", health=lambda: Health(True, "ok"), page=page
    )
    async with serving as bound:
        async with aiohttp.ClientSession(f"http://{bound}") as session, session.get("/events", headers=KIM) as stream:
            await next_frame(stream)
            users.write_text(f"other:{hash_password(b'1')}\n")
            guard.look()
            async with asyncio.timeout(30):
                while not stream.content.at_eof():
                    world.journal.record("vm/a", "killed", "news, more often than it says that it lives")
                    await stream.content.readany()
        await until_gone(page)


async def test_pages_that_are_open_do_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpd, "SHUTDOWN_S", 60.0)  # after which the listener would cut them
    page = Page(World().sources())
    async with aiohttp.ClientSession() as session:
        async with served(page) as bound:
            stream = await session.get(f"http://{bound}/events")
            await next_frame(stream)
        # A stream that the end of the listener had to cut has no end of its own: reading it would raise.
        assert (await stream.content.read()).strip() == b""
    assert page.clients == 0


async def test_a_name_that_may_be_a_strangers_is_refused(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text(f"kim:{hash_password(b'1')}\n")
    page, rebound = Page(World().sources()), {"Host": "evil.example:9177"}
    async with served(page) as bound, aiohttp.ClientSession(f"http://{bound}") as session:
        for path in ("/", "/events"):
            async with session.get(path, headers=rebound) as answer:
                assert answer.status == 403
                assert "use an address or localhost, or --listen-users" in await answer.text()
        async with session.get("/", headers={"Host": "localhost:9177"}) as answer:
            assert answer.status == 200
    async with served(page, Protection(users=users)) as bound, aiohttp.ClientSession(f"http://{bound}") as session:
        answer = await session.get("/", headers={**KIM, **rebound})
        assert answer.status == 200


async def test_the_document_allows_nothing_but_itself() -> None:
    page = Page(World().sources())
    async with served(page) as bound, aiohttp.ClientSession(f"http://{bound}") as session:
        async with session.get("/") as answer:
            rules = answer.headers["Content-Security-Policy"].split("; ")
            text = await answer.text()
            assert answer.headers["Content-Encoding"] == "deflate"
        for method in ("POST", "PUT", "DELETE"):
            async with session.request(method, "/") as answer:
                assert answer.status == 405
    assert rules[0] == "default-src 'none'"
    assert "unsafe" not in " ".join(rules)
    assert {"connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} < set(rules)
    for elsewhere in ("src=", "http://", "https://", "@import", "url(", "innerHTML", "<form", " onclick"):
        assert elsewhere not in text.replace("http://www.w3.org/2000/svg", "")


async def test_paces_come_with_the_second_look_at_a_guest() -> None:
    def measure(at_s: float, cpu_s: float, operations: int) -> GuestMeasure:
        disk = DiskMeasure("root", operations={"read": operations, "write": operations, "flush": 999})
        return GuestMeasure("g0000", at_s, cpu_s={"user": cpu_s, "guest": 1.0}, disks=(disk,))

    world = World()
    page = Page(world.sources())

    def shown(frame: dict[str, Any]) -> tuple[Any, Any]:
        cells = dict(frame["tables"]["vms"]["rows"])["g0000"]
        return cells[4], cells[5]

    world.change(measures={"g0000": measure(10, 1.0, 0)})
    async with (
        served(page) as bound,
        aiohttp.ClientSession(f"http://{bound}") as session,
        session.get("/events") as stream,
    ):
        assert shown(await next_frame(stream)) == ([], [])
        world.change(measures={"g0000": measure(20, 3.5, 100)})
        assert shown(await next_frame(stream)) == ([["25 %", "", 0]], [["20", "", 0]])
        world.change(measures={"g0000": measure(30, 0.1, 2)})
        assert shown(await next_frame(stream)) == ([], [])  # another QEMU counts anew
        world.change(measures={"g0000": measure(40, 0.1, 2)})
        assert shown(await next_frame(stream)) == ([["0 %", "", 0]], [["0", "", 0]])
        world.change(measures={})
        assert shown(await next_frame(stream)) == ([], [])


@pytest.mark.parametrize("idle", [True, False])
async def test_start_times_that_tremble_are_no_news(idle: bool) -> None:
    inputs = guests(1)
    running = VmState(inputs.desired.vms["g0000"], alive=True, pid=42, run_state="running")
    world = World(Look(replace(inputs, observed=Observed(vms={"g0000": running})), {"g0000": 1000.4}))
    page = Page(world.sources())
    async with (
        served(page) as bound,
        aiohttp.ClientSession(f"http://{bound}") as session,
        session.get("/events") as stream,
    ):
        await next_frame(stream)
        world.change(started_s={"g0000": 1000.6 if idle else 1002.0})
        async with asyncio.timeout(30):
            while world.looks < 2:  # noqa: ASYNC110 - a number, which rings for nobody
                await asyncio.sleep(0.01)
        world.journal.record("vm/a", "killed", "told")
        assert list((await next_frame(stream))["tables"]) == (["events"] if idle else ["vms"])
