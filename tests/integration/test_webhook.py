"""Webhooks to a real HTTP server on loopback, with real TLS."""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from agent.core.errors import HookError
from agent.telemetry.webhook import Webhook, shown_url
from tests.integration.test_listener import make_certificate
from tests.netns import ip, network_namespace

SECRET = "s3cr3t"
BODY = b'{"type": "Held"}'


@dataclass
class Server:
    port: int = 0
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)


@asynccontextmanager
async def serving(context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server, forever = Server(), asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        server.asked.append((request.path, dict(request.headers), await request.read()))
        match request.path.strip("/").split("/"):
            case ["silent", *_]:
                await forever.wait()
            case ["moved", *_]:
                return web.Response(status=308, headers={"Location": "/ok"})
            case ["hangup", *_]:
                assert request.transport is not None
                request.transport.abort()
            case ["500", *_]:
                return web.Response(status=500, text="x" * 100_000)
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        server.port = runner.addresses[0][1]
        yield server
    finally:
        forever.set()
        await runner.cleanup()


async def failure(url: str, timeout_s: float = 10.0) -> str:
    with pytest.raises(HookError) as caught:
        await Webhook(url, timeout_s).send(BODY, {})
    assert SECRET not in str(caught.value)
    return str(caught.value)


async def test_it_is_a_post_of_json_with_the_credentials_of_the_url() -> None:
    async with serving() as server:
        hook = Webhook(f"http://me:{SECRET}@127.0.0.1:{server.port}/hooks/{SECRET}", 10.0)
        assert hook.name == f"http://127.0.0.1:{server.port}"
        assert hook.problem() == ""
        assert await hook.send(BODY, {}) == "answered 204"
        ((path, headers, body),) = server.asked
    assert (path, body, headers["Content-Type"]) == (f"/hooks/{SECRET}", BODY, "application/json")
    assert headers["Authorization"] == "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()


async def test_what_it_answers_otherwise_is_a_failure_in_a_line_without_the_url() -> None:
    async with serving() as server:
        shown = f"http://127.0.0.1:{server.port}"
        base = f"http://me:{SECRET}@127.0.0.1:{server.port}"
        assert await failure(f"{base}/500/{SECRET}") == f"{shown}: answered 500"
        said = f"{shown}: answered 308; redirects are not followed, give the URL that it leads to"
        assert await failure(f"{base}/moved/{SECRET}") == said
        assert await failure(f"{base}/silent/{SECRET}", 0.3) == f"{shown}: no answer within 0.3 s"
        assert await failure(f"{base}/hangup/{SECRET}") == f"{shown}: hung up without an answer"
        assert [path for path, _, _ in server.asked if path == "/ok"] == []
    assert await failure(f"{base}/{SECRET}") == f"{shown}: cannot connect: connection refused"


@pytest.fixture
def prohibited() -> Iterator[str]:
    """An address that the kernel refuses to connect to, as it does behind a service's IPAddressDeny=."""
    with network_namespace():
        ip("route add prohibit 198.51.100.1/32")
        yield "198.51.100.1"


async def test_where_the_kernel_forbids_it_the_service_s_confinement_is_named(prohibited: str) -> None:
    said = f"https://{prohibited}: cannot connect: permission denied"
    confined = "the packaged service reaches this host only, until a drop-in has IPAddressAllow="
    assert await failure(f"https://me:{SECRET}@{prohibited}/{SECRET}") == f"{said}; {confined}"


async def test_tls_is_verified(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "one")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    async with serving(context) as server:
        shown = f"https://127.0.0.1:{server.port}"
        said = f"{shown}: its certificate is not to be trusted: self-signed certificate"
        assert await failure(f"{shown}/{SECRET}") == said
        assert server.asked == []
        program = "import asyncio; from agent.telemetry.webhook import Webhook\n"
        program += f"print(asyncio.run(Webhook({shown!r}, 10.0).send(b'', {{}})))"
        environment = {**os.environ, "SSL_CERT_FILE": str(certificate)}
        trusting = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, env=environment
        )
        output, _ = await trusting.communicate()
        assert output == b"answered 204\n"


async def test_a_file_is_read_for_each_notification_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "url"
    hook = Webhook(path, 10.0)
    missing = f"--notify-url-file {path}: no such file or directory; put a URL there"
    assert (hook.name, hook.problem()) == (str(path), missing)
    path.write_text(f"http://192.0.2.1/{SECRET}\n")
    clear = "http://192.0.2.1 carries secrets in the clear; want https, http goes to this host itself only"
    assert hook.problem() == f"--notify-url-file {path}: {clear}"
    async with serving() as server:
        path.write_text(f"http://127.0.0.1:{server.port}/{SECRET}\n")
        assert await hook.send(BODY, {}) == "answered 204"
        path.write_text(f"http://localhost:{server.port}/other\n")
        await hook.send(BODY, {})
        assert [path for path, _, _ in server.asked] == [f"/{SECRET}", "/other"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://hooks.example/a/b", "https://hooks.example"),
        ("https://u:p@Hooks.example:8443/a?token=x#y", "https://hooks.example:8443"),
        ("http://[::1]:80/x", "http://[::1]:80"),
        ("http://localhost/x", "http://localhost"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert shown_url(url) == shown
