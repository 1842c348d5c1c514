"""What is read over TCP: `/metrics`, `/healthz`, the status page. Read-only, never in the way of the agent's work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from agent.telemetry.exposition import Form, form_of
from agent.telemetry.guard import CHALLENGE, Guard
from agent.telemetry.listen import Listen, ListenError
from agent.telemetry.page import Page

SHUTDOWN_S = 1.0
"""What a scrape that is under way gets when the agent ends."""

SLOW_S = 10.0
"""How long a client may take for an exposition; then it is dropped. A thousand guests make megabytes, which would be
kept for each that asks and does not read."""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the agent does its work, and why not."""

    ok: bool
    message: str


def health_of_passes(last_success_s: float | None, now_s: float, bound_s: float) -> Health:
    """Health by the age of the last successful pass; both times are of the same clock, in seconds."""
    if last_success_s is None:
        return Health(False, "no pass has succeeded yet")
    age_s = now_s - last_success_s
    if age_s > bound_s:
        return Health(False, f"the last successful pass was {age_s:.0f} s ago, more than {bound_s:.0f} s")
    return Health(True, "ok")


@asynccontextmanager
async def serve_metrics(
    listen: Listen,
    guard: Guard,
    *,
    render: Callable[[Form], bytes],
    health: Callable[[], Health],
    page: Page | None = None,
    slow_s: float = SLOW_S,
) -> AsyncIterator[Listen]:
    """Serve until the block ends; gives the address that is bound, with the port that the kernel chose for 0.

    `render` runs in a thread of its own, one at a time, so that a scrape of 1,000 guests does not hold up the agent,
    nor a file system that hangs a scrape.
    `/metrics` wants a user that the guard knows, else it answers 401. `/healthz` answers everybody, 200 or 503 with one
    line of text: who asks for it holds no password as a rule, and it says nothing of guests. With `page`
    there are `/` and `/events` too, for whom `/metrics` is for. Who takes longer than `slow_s` to read is dropped.
    Raises ListenError when the address is not to be had.
    """
    rendering = ThreadPoolExecutor(1, "metrics")

    async def metrics(request: web.Request) -> web.StreamResponse:
        if not await guard.admits(request.headers.get("Authorization")):
            return web.Response(status=401, text="want a user and a password\n", headers=CHALLENGE)
        form = form_of(request.headers.get("Accept", ""), request.headers.get("Accept-Encoding", ""))
        body = await asyncio.get_running_loop().run_in_executor(rendering, render, form)
        return await _send(request, body, form.headers, slow_s)

    async def healthz(_: web.Request) -> web.Response:
        found = health()
        return web.Response(text=f"{found.message}\n", status=200 if found.ok else 503)

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz)])
    if page is not None:
        page.serve_in(app, guard)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        yield await _bind(runner, listen, guard)
    finally:
        await runner.cleanup()
        rendering.shutdown(wait=False)


async def _send(request: web.Request, body: bytes, headers: Mapping[str, str], slow_s: float) -> web.StreamResponse:
    """Send an answer to who takes it in time."""
    if request.method == "HEAD":
        return web.Response(body=body, headers=headers)
    response = web.StreamResponse(headers=headers)
    response.content_length = len(body)
    try:
        async with asyncio.timeout(slow_s):
            await response.prepare(request)
            await response.write(body)  # returns once the client has taken most of it
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    except ConnectionResetError:
        pass  # it is gone
    return response


async def _bind(runner: web.AppRunner, listen: Listen, guard: Guard) -> Listen:
    site = web.TCPSite(runner, listen.host or None, listen.port, ssl_context=guard.tls)
    try:
        await site.start()
    except OSError as error:
        why = error.strerror or str(error)
        raise ListenError(f"cannot serve metrics on {listen}: {why}; free it or choose another --listen") from error
    port = int(runner.addresses[0][1])
    return Listen(listen.host, port)
