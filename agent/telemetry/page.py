"""The status page: one document without anything from elsewhere, and its news as server-sent events (HTML, 9.2).

The document has everything in it, so a browser without scripts shows a plain, true page; the script only draws what
`/events` sends. The guard stands before both as it does before `/metrics`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import ipaddress
import time
from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from aiohttp import web

from agent.core.tell.page import Cell, Line, Table
from agent.core.text import printable
from agent.telemetry.board import Board, PageSources, Shown
from agent.telemetry.guard import CHALLENGE, Guard

MOST_CLIENTS = 32
ALIVE_EVERY_S = 15.0
TURN_S = 0.1
SLOW_S = 10.0
"""How long a client may take nothing of what is sent; then it is dropped, and gets the whole page when it is back."""

RETRY_MS = 1000

_STYLE = files(__package__).joinpath("page.css").read_text()
_SCRIPT = files(__package__).joinpath("page.js").read_text()
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect x='1' y='3' width='14' height='10' rx='2' fill='%2314662f'/%3E%3C/svg%3E"
)


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {_source(_STYLE)}; script-src {_source(_SCRIPT)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Page:
    """Answers for `/` and `/events`, also one listener after another."""

    def __init__(self, sources: PageSources, *, slow_s: float = SLOW_S, alive_every_s: float = ALIVE_EVERY_S) -> None:
        self._host = sources.host
        self._board = Board(sources)
        self._slow_s = slow_s
        self._alive_every_s = alive_every_s
        self.clients = 0
        """How many read `/events`."""

    def serve_in(self, app: web.Application, guard: Guard) -> None:
        """Add the page to a listener; its streams end with it."""
        ending = asyncio.Event()

        async def end(_: web.Application) -> None:
            ending.set()

        async def document(request: web.Request) -> web.StreamResponse:
            refused = await _refused(request, guard)
            return refused if refused is not None else await self._document()

        async def events(request: web.Request) -> web.StreamResponse:
            refused = await _refused(request, guard)
            return refused if refused is not None else await self._events(request, guard, ending)

        app.on_shutdown.append(end)
        app.add_routes([web.get("/", document), web.get("/events", events, allow_head=False)])

    async def _document(self) -> web.Response:
        await self._board.refresh()
        body = await asyncio.to_thread(document_of, self._host, self._board.shown)
        response = web.Response(body=body, content_type="text/html", charset="utf-8", headers=HEADERS)
        response.enable_compression()
        return response

    async def _events(self, request: web.Request, guard: Guard, ending: asyncio.Event) -> web.StreamResponse:
        """The whole page, then what changes, until the client is gone or admitted no more, or the listener ends."""
        if self.clients >= MOST_CLIENTS:
            text = f"{MOST_CLIENTS} pages are open, more there may not be; close one\n"
            return web.Response(status=503, text=text, headers=HEADERS)
        self.clients += 1
        # The third header has nginx pass on what it gets, instead of gathering it.
        headers = {**HEADERS, "Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers=headers)
        try:
            await response.prepare(request)
            async with contextlib.aclosing(self._parts(request, guard, ending)) as parts:
                async for part in parts:
                    async with asyncio.timeout(self._slow_s):
                        await response.write(part)
        except TimeoutError:
            # Nothing is kept for a client that does not read: it gets the whole page when it is back.
            if request.transport is not None:
                request.transport.abort()
        except ConnectionResetError:
            pass  # it is gone
        finally:
            self.clients -= 1
        return response

    async def _parts(self, request: web.Request, guard: Guard, ending: asyncio.Event) -> AsyncGenerator[bytes]:
        yield f"retry: {RETRY_MS}\n\n".encode()
        version = 0
        said_s = asked_s = time.monotonic()
        while not ending.is_set() and request.transport is not None:
            await self._board.refresh()
            now_s = time.monotonic()
            if now_s - asked_s >= self._alive_every_s:
                asked_s = now_s
                if not await guard.admits(request.headers.get("Authorization")):
                    return
            if version != self._board.version:
                version, part = await self._board.since(version)
                said_s = now_s
                yield part
            elif now_s - said_s >= self._alive_every_s:
                said_s = now_s
                yield b"event: alive\ndata:\n\n"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TURN_S):
                    await ending.wait()


async def _refused(request: web.Request, guard: Guard) -> web.Response | None:
    """The answer for whom the guard does not know, or whose browser was led here by another site's name; else None."""
    if not await guard.admits(request.headers.get("Authorization")):
        return web.Response(status=401, text="want a user and a password\n", headers={**CHALLENGE, **HEADERS})
    if not guard.wants_users and not is_plain_host(request.host):
        text = f"{request.host!r} may be a name of somebody else's; use an address or localhost, or --listen-users\n"
        return web.Response(status=403, text=text, headers=HEADERS)
    return None


def is_plain_host(host: str) -> bool:
    """Whether a `Host` header is an address, `localhost`, or a name without a dot, which no stranger's site can have.

    A site can give its own name the address of this listener, and its scripts then count as the page's own (DNS
    rebinding). Where there are passwords, a browser sends none to such a name.
    """
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return "." not in name.removesuffix(".")
    return True


def document_of(host: str, shown: Shown) -> bytes:
    """The whole document, with everything that is known; all that is not this module's own is escaped."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<title>{escape(shown.title)}</title><link rel="icon" href="{_ICON}"><style>{_STYLE}</style></head><body>',
        f"<header><h1>{escape(printable(host))}</h1>",
        f'<p id="live" role="status">As of {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC; reload for news</p></header>',
        "<main>",
        *(part for table in shown.tables.values() for part in _table(table)),
        f"</main><script>{_SCRIPT}</script></body></html>\n",
    ]
    return "".join(parts).encode(errors="replace")


def _table(table: Table) -> Iterator[str]:
    some, none = ("", " hidden") if table.rows else (" hidden", "")
    heads = "".join(f'<th scope="col" role="columnheader">{escape(one)}</th>' for one in table.columns)
    yield f'<section aria-labelledby="{table.id}-title"><h2 id="{table.id}-title">{escape(table.title)}</h2>'
    yield f'<table id="{table.id}" role="table" aria-labelledby="{table.id}-title"{some}><thead role="rowgroup">'
    yield f'<tr role="row">{heads}</tr></thead><tbody role="rowgroup">'
    for key, row in table.rows.items():
        cells = "".join(_cell(cell, label) for cell, label in zip(row, table.columns, strict=True))
        yield f'<tr role="row" data-key="{escape(key)}">{cells}</tr>'
    yield f"</tbody></table><p{none}>{escape(table.empty)}</p></section>"


def _cell(cell: Cell, label: str) -> str:
    return f'<td role="cell" data-label="{escape(label)}">{"".join(map(_line, cell))}</td>'


def _line(line: Line) -> str:
    if line.at_s:
        at = f"{datetime.fromtimestamp(line.at_s, UTC):%Y-%m-%dT%H:%M:%S}.000Z"
        return (
            f'<time data-at="{line.at_s}" datetime="{at}" title="{at}">{escape(span(time.time() - line.at_s))}</time>'
        )
    tone = f' class="{line.tone}"' if line.tone else ""
    return f"<span{tone}>{escape(line.text)}</span>"


def span(seconds: float) -> str:
    """A time that passed, as a person says it; as page.js says it."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return "< 1 min"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 1440:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
