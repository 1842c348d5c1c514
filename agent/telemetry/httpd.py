"""What monitoring reads over TCP: `/metrics` and `/healthz`. Read-only, and never in the way of the agent's work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from agent.telemetry.guard import Guard
from agent.telemetry.listen import Listen, ListenError

CHALLENGE = {"WWW-Authenticate": 'Basic realm="vmhost", charset="UTF-8"'}

SHUTDOWN_S = 1.0
"""What a scrape that is under way gets when the agent ends."""


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
    listen: Listen, guard: Guard, *, render: Callable[[], bytes], content_type: str, health: Callable[[], Health]
) -> AsyncIterator[Listen]:
    """Serve until the block ends; gives the address that is bound, with the port that the kernel chose for 0.

    `render` runs in a thread, one at a time, so that a scrape of 1,000 guests does not hold up the agent.
    `/metrics` wants a user that the guard knows, else it answers 401. `/healthz` answers everybody, 200 or 503 with one
    line of text: who asks for it holds no password as a rule, and it says nothing of guests.
    Raises ListenError when the address is not to be had.
    """
    one_at_a_time = asyncio.Lock()

    async def metrics(request: web.Request) -> web.Response:
        if not await guard.admits(request.headers.get("Authorization")):
            return web.Response(status=401, text="want a user and a password\n", headers=CHALLENGE)
        async with one_at_a_time:
            body = await asyncio.to_thread(render)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def healthz(_: web.Request) -> web.Response:
        found = health()
        return web.Response(text=f"{found.message}\n", status=200 if found.ok else 503)

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        yield await _bind(runner, listen, guard)
    finally:
        await runner.cleanup()


async def _bind(runner: web.AppRunner, listen: Listen, guard: Guard) -> Listen:
    site = web.TCPSite(runner, listen.host or None, listen.port, ssl_context=guard.tls)
    try:
        await site.start()
    except OSError as error:
        why = error.strerror or str(error)
        raise ListenError(f"cannot serve metrics on {listen}: {why}; free it or choose another --listen") from error
    port = int(runner.addresses[0][1])
    return Listen(listen.host, port)
