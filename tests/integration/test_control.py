"""The control socket, over a real Unix socket, by plain HTTP and by the command's own client."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from agent.cli.client import AgentClient, NoAgentError, RefusedError
from agent.core.rights import Rights
from agent.core.tell.looks import NicCount, parse_look
from agent.runtime.control import ControlError, WaitFor, WaitResult, serve_control
from tests.integration.fake_agent import FakeAgent


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    agent = FakeAgent()
    async with serve_control(tmp_path / "agent.sock", agent, Rights()):
        yield agent


@pytest.fixture
async def session(fake: FakeAgent, tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """Speaks to the fake agent."""
    del fake
    connector = aiohttp.UnixConnector(str(tmp_path / "agent.sock"))
    async with aiohttp.ClientSession("http://localhost", connector=connector) as opened:
        yield opened


async def ask(session: aiohttp.ClientSession, method: str, target: str, body: object = None) -> tuple[int, object]:
    async with session.request(method, target, json=body) as answer:
        return answer.status, json.loads(await answer.text())


async def test_the_socket_is_for_its_owner_only_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    before = os.umask(0)
    try:
        async with serve_control(path, FakeAgent(), Rights()):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert await asyncio.to_thread(os.listdir, tmp_path) == []


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with serve_control(path, FakeAgent(), Rights()):
        assert (await asyncio.to_thread(AgentClient(tmp_path).status))["agent"]["pid"] == 7


async def test_a_socket_that_somebody_answers_is_left_to_him(fake: FakeAgent, tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="another agent answers there"):
        await serve_control(tmp_path / "agent.sock", FakeAgent(), Rights()).__aenter__()
    assert await asyncio.to_thread(AgentClient(tmp_path).intent, "start", "web") == "start of web noted"
    assert fake.asked == [("start", "web", "uid 0 (root)")]


async def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="too long, 103 bytes at most"):
        await serve_control(tmp_path / ("x" * 100) / "agent.sock", FakeAgent(), Rights()).__aenter__()


async def test_a_missing_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"cannot listen: No such file or directory; mend --run-dir"):
        await serve_control(tmp_path / "none" / "agent.sock", FakeAgent(), Rights()).__aenter__()


@pytest.mark.parametrize(
    ("method", "target", "body", "expected"),
    [
        ("POST", "/v1/intent", {"verb": "start", "name": "web"}, (200, {"message": "start of web noted"})),
        (
            "POST",
            "/v1/intent",
            {"verb": "stop", "name": "wbe"},
            (404, {"error": 'no guest is named "wbe"; did you mean "web"?'}),
        ),
        (
            "POST",
            "/v1/intent",
            {"verb": "burn", "name": "web"},
            (400, {"error": "verb: want one of start, stop, restart, reset, pause, resume, release"}),
        ),
        ("POST", "/v1/intent", {"verb": "stop"}, (400, {"error": "name: want a text"})),
        ("POST", "/v1/intent", [1], (400, {"error": "want a JSON object"})),
        ("POST", "/v1/wait", {"what": "running"}, (400, {"error": "name: want a text"})),
        ("POST", "/v1/wait", {"what": "settled", "timeout_s": -1}, (400, {"error": "timeout_s: want seconds"})),
        ("POST", "/v1/wait", {"what": "settled"}, (200, {"ok": True, "message": "settled"})),
        ("POST", "/v1/hold", {"name": "web"}, (200, {"message": "web is held"})),
        ("POST", "/v1/hold", {}, (400, {"error": "name: want a text"})),
        (
            "POST",
            "/v1/hold",
            {"name": "web", "reason": 501 * "x"},
            (400, {"error": "reason: want a text of at most 500 characters"}),
        ),
        ("POST", "/v1/down", {"down": True, "budget_s": 3}, (200, {"message": "noted"})),
        ("POST", "/v1/down", {"down": True, "budget_s": "3"}, (400, {"error": "budget_s: want seconds"})),
        ("POST", "/v1/down", {"down": 1}, (400, {"error": "down: want true or false"})),
        ("POST", "/v1/approve", {"id": "ab12"}, (200, {"message": "3 guests may stop"})),
        (
            "POST",
            "/v1/approve",
            {"id": "x"},
            (409, {"error": "nothing asks for an approval x; `vmhost status` shows what does"}),
        ),
        ("POST", "/v1/plan", {"files": []}, (400, {"error": "files: want an object of texts"})),
        (
            "POST",
            "/v1/plan",
            {"files": {"../x.toml": ""}},
            (400, {"error": "files: want texts by names of unit files, not ../x.toml"}),
        ),
        (
            "POST",
            "/v1/plan",
            {"files": {"x.toml": 1}},
            (400, {"error": "files: want texts by names of unit files, not x.toml"}),
        ),
        ("POST", "/v1/plan", {"files": {"x.toml": "\ud800"}}, (400, {"error": "files: want texts"})),
        (
            "GET",
            "/v1/why?name=wbe",
            None,
            (404, {"error": 'no guest and no bridge is named "wbe"; did you mean "web"?'}),
        ),
        ("GET", "/v1/show", None, (400, {"error": "name: want a text"})),
        ("GET", "/v1/measures?max_age_s=x", None, (400, {"error": "max_age_s: want seconds"})),
        ("GET", "/v1/measures?max_age_s=nan", None, (400, {"error": "max_age_s: want seconds"})),
        ("GET", "/v1/events?since=x", None, (400, {"error": "since: want a number of an event"})),
        ("GET", "/nothing", None, (404, {"error": "404: Not Found"})),
    ],
)
async def test_answers(
    session: aiohttp.ClientSession, method: str, target: str, body: object, expected: tuple[int, object]
) -> None:
    assert await ask(session, method, target, body) == expected


async def test_a_body_that_is_no_json_is_refused(session: aiohttp.ClientSession) -> None:
    for body in (b"{", b"\xff\xfe\x00", b"[" * 60_000):
        async with session.post("/v1/wait", data=body) as answer:
            assert (answer.status, await answer.json()) == (400, {"error": "want a JSON object"})


async def test_a_plan_takes_whole_unit_files_whatever_their_bytes(fake: FakeAgent, tmp_path: Path) -> None:
    data = b"# \xff\n" + b"#" * 200_000
    answer = await asyncio.to_thread(AgentClient(tmp_path).plan, {"x.toml": data})
    assert [step["action"] for step in answer["actions"]] == ["create-bridge"]
    assert fake.planned == {"x.toml": data}


async def test_a_peer_that_hangs_up_cancels_its_wait(fake: FakeAgent, session: aiohttp.ClientSession) -> None:
    asking = asyncio.create_task(ask(session, "POST", "/v1/wait", {"what": "running", "name": "db"}))
    async with asyncio.timeout(30):
        await fake.waiting.wait()
        asking.cancel()
        await fake.cancelled.wait()
    assert fake.waits_cancelled == 1


async def test_a_follower_hears_what_happens_next(fake: FakeAgent, session: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(30), session.get("/v1/events?since=0&follow=1") as answer:
        first = json.loads(await answer.content.readline())
        fake.journal.record("tap/web/lan", "repaired", "repaired tap/web/lan", seconds=0.009)
        second = json.loads(await answer.content.readline())
    assert (first["seq"], first["message"], first["fields"]) == (1, "launched web", {"pid": 42})
    assert (second["seq"], second["kind"]) == (2, "repaired")


async def test_the_client_waits_for_an_agent_to_appear(tmp_path: Path) -> None:
    waiting = asyncio.create_task(asyncio.to_thread(AgentClient(tmp_path).wait, "settled", None, 60.0))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    async with serve_control(tmp_path / "agent.sock", FakeAgent(), Rights()):
        assert await waiting == (True, "settled")


async def test_the_client_s_wait_outlives_an_agent(tmp_path: Path) -> None:
    class Ready(FakeAgent):
        async def wait(self, what: WaitFor, name: str | None, timeout_s: float | None) -> WaitResult:
            return WaitResult(timeout_s is not None and 0 < timeout_s < 60, f"{name} is {what}")

    first = FakeAgent()
    async with asyncio.timeout(60):
        async with serve_control(tmp_path / "agent.sock", first, Rights()):
            waiting = asyncio.create_task(asyncio.to_thread(AgentClient(tmp_path).wait, "running", "db", 60.0))
            await first.waiting.wait()
        async with serve_control(tmp_path / "agent.sock", Ready(), Rights()):
            assert await waiting == (True, "db is running")


async def test_no_agent_by_the_timeout(tmp_path: Path) -> None:
    with pytest.raises(NoAgentError, match="no agent answers at"):
        await asyncio.to_thread(AgentClient(tmp_path).wait, "settled", None, 0.1)


async def test_a_hung_agent_is_no_agent(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(tmp_path / "agent.sock"))
        hung.listen()
        with pytest.raises(NoAgentError, match="does not answer"):
            await asyncio.to_thread(AgentClient(tmp_path).status, 0.1)


@pytest.mark.usefixtures("fake")
async def test_the_agent_s_refusal_is_passed_on_word_for_word(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match='no guest is named "wbe"; did you mean "web"\\?'):
        await asyncio.to_thread(AgentClient(tmp_path).intent, "stop", "wbe")


async def test_looks_at_guests(fake: FakeAgent, tmp_path: Path) -> None:
    assert fake.asked == []
    (look,) = (await asyncio.to_thread(AgentClient(tmp_path).measures, 2.5))["guests"]
    found = parse_look(look)
    assert (found.name, found.pid, found.nics) == ("web", 42, (NicCount("lan", 7, 9),))
    assert found.measure is not None
    assert found.measure.at_s == 2.5
