"""What monitoring reads over TCP: `/metrics` and `/healthz`. Read-only, and never in the way of the agent's work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from agent.core.errors import AgentError

SHUTDOWN_S = 1.0
"""What a scrape that is under way gets when the agent ends."""


class ListenError(AgentError):
    """The address to listen on is not one, or is not to be had; the agent goes on without metrics."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen. An empty host means every address; port 0 lets the kernel choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the agent does its work, and why not."""

    ok: bool
    message: str


def parse_listen(text: str) -> Listen:
    """`127.0.0.1:9177`, `[::1]:9177` or `:9177` as an address. Raises ListenError with what is wrong."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ListenError(f'--listen {text}: put an IPv6 address in brackets, as in "[::1]:9177"')
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ListenError(f'--listen {text}: want HOST:PORT with a port from 0 to 65535, as in "127.0.0.1:9177"')
    return Listen(host, int(port))


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
    listen: Listen, *, render: Callable[[], bytes], content_type: str, health: Callable[[], Health]
) -> AsyncIterator[Listen]:
    """Serve until the block ends; gives the address that is bound, with the port that the kernel chose for 0.

    `render` runs in a thread, one at a time, so that a scrape of 1,000 guests does not hold up the agent.
    `/healthz` answers 200 or 503 with one line of text. Raises ListenError when the address is not to be had.
    """
    one_at_a_time = asyncio.Lock()

    async def metrics(_: web.Request) -> web.Response:
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
        yield await _bind(runner, listen)
    finally:
        await runner.cleanup()


async def _bind(runner: web.AppRunner, listen: Listen) -> Listen:
    site = web.TCPSite(runner, listen.host or None, listen.port)
    try:
        await site.start()
    except OSError as error:
        why = error.strerror or str(error)
        raise ListenError(f"cannot serve metrics on {listen}: {why}; free it or choose another --listen") from error
    port = int(runner.addresses[0][1])
    return Listen(listen.host, port)
