"""`/metrics` and `/healthz` over real TCP on loopback."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import aiohttp
import pytest

from agent.telemetry.guard import Guard, Protection
from agent.telemetry.httpd import Health, health_of_passes, serve_metrics
from agent.telemetry.listen import Listen, ListenError, parse_listen
from agent.telemetry.metrics import Metrics
from agent.telemetry.passwords import hash_password
from tests.integration.waiting import wait_for


async def test_metrics_and_health_are_served() -> None:
    metrics = Metrics(version="0.1.0", qemu="7.2.0", started_s=1.0)
    health = Health(True, "ok")
    server = serve_metrics(
        Listen("127.0.0.1", 0),
        Guard(Protection()),
        render=metrics.render,
        health=lambda: health,
    )
    async with server as bound, aiohttp.ClientSession(f"http://{bound}") as session:
        assert bound.port != 0
        async with session.get("/metrics") as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert "vmhost_start_time_seconds 1.0" in await answer.text()
        async with session.get("/healthz") as answer:
            assert (answer.status, await answer.text()) == (200, "ok\n")
        health = Health(False, "no pass has succeeded yet")
        async with session.get("/healthz") as answer:
            assert (answer.status, await answer.text()) == (503, "no pass has succeeded yet\n")


async def test_whom_the_guard_knows_waits_for_no_guess_of_others(tmp_path: Path) -> None:
    def header(password: bytes) -> str:
        return f"Basic {base64.b64encode(b'kim:' + password).decode()}"

    users = tmp_path / "users"
    users.write_text(f"kim:{hash_password(b'1')}\n")
    guard = Guard(Protection(users=users))
    assert await guard.admits(header(b"1"))
    guesses = [asyncio.create_task(guard.admits(header(b"guess"))) for _ in range(8)]
    await asyncio.sleep(0)
    assert await guard.admits(header(b"1"))
    assert not any(guess.done() for guess in guesses), "a scrape waited until guesses were hashed"
    assert not any(await asyncio.gather(*guesses))


def is_cut(connection: socket.socket) -> bool:
    """Whether the other end of a TCP connection has closed it: proc(5), /proc/net/tcp, where 01 is TCP_ESTABLISHED."""
    ends = f":{connection.getpeername()[1]:04X}", f":{connection.getsockname()[1]:04X}"
    rows = [line.split()[1:4] for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]]
    return not any(row[0].endswith(ends[0]) and row[1].endswith(ends[1]) and row[2] == "01" for row in rows)


async def test_who_asks_and_does_not_read_is_dropped() -> None:
    whole = b"# EOF\n" * (2 << 20)

    def server(slow_s: float) -> AbstractAsyncContextManager[Listen]:
        guard, health = Guard(Protection()), Health(True, "")
        return serve_metrics(
            Listen("127.0.0.1", 0), guard, render=lambda _: whole, health=lambda: health, slow_s=slow_s
        )

    async with server(0.5) as bound:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect((bound.host, bound.port))
            slow.sendall(f"GET /metrics HTTP/1.1\r\nHost: {bound}\r\n\r\n".encode())
            slow.setblocking(False)
            await asyncio.to_thread(wait_for, lambda: is_cut(slow))  # nothing is read meanwhile
            got = 0
            with contextlib.suppress(ConnectionResetError):
                async with asyncio.timeout(60):
                    while part := await asyncio.get_running_loop().sock_recv(slow, 1 << 20):
                        got += len(part)
        assert got < len(whole)
    async with server(60.0) as bound:
        plain = {"Accept-Encoding": "identity"}
        async with aiohttp.ClientSession(f"http://{bound}", headers=plain) as session:
            async with session.get("/metrics") as answer:
                assert await answer.read() == whole
                assert answer.headers["Content-Length"] == str(len(whole))
            async with session.head("/metrics") as answer:
                assert (answer.status, await answer.read()) == (200, b"")


async def test_a_taken_port_is_one_clear_line() -> None:
    metrics = Metrics(version="0.1.0", qemu="7.2.0", started_s=1.0)
    async with serve_metrics(
        Listen("127.0.0.1", 0), Guard(Protection()), render=metrics.render, health=lambda: Health(True, "")
    ) as bound:
        second = serve_metrics(bound, Guard(Protection()), render=metrics.render, health=lambda: Health(True, ""))
        with pytest.raises(ListenError) as caught:
            await second.__aenter__()
    message = str(caught.value)
    assert message.startswith(f"cannot serve metrics on {bound}: ")
    assert "address already in use" in message.lower()
    assert message.endswith("; free it or choose another --listen")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9177", Listen("127.0.0.1", 9177)),
        ("[::1]:0", Listen("::1", 0)),
        (":9177", Listen("", 9177)),
        ("localhost:1", Listen("localhost", 1)),
    ],
)
def test_addresses_that_are_understood(text: str, expected: Listen) -> None:
    assert parse_listen(text) == expected


@pytest.mark.parametrize("text", ["", "9177", "::1:9177", "host:", "host:65536", "host:x", "host:-1", "host:\u0663"])
def test_addresses_that_are_not(text: str) -> None:
    with pytest.raises(ListenError, match="--listen"):
        parse_listen(text)


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        (":1", False),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("192.0.2.1:1", False),
        ("host.example:1", False),
    ],
)
def test_what_only_this_host_can_reach(text: str, loopback: bool) -> None:
    assert parse_listen(text).loopback == loopback


def test_health_follows_the_age_of_the_last_pass() -> None:
    assert health_of_passes(None, 100.0, 60.0) == Health(False, "no pass has succeeded yet")
    assert health_of_passes(50.0, 100.0, 60.0) == Health(True, "ok")
    assert health_of_passes(30.0, 100.0, 60.0).message == "the last successful pass was 70 s ago, more than 60 s"
