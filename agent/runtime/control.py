"""The socket that `vmhost` speaks to: HTTP and JSON on RUN/agent.sock.

| request | answer |
|---|---|
| GET /v1/status | the status (`agent.core.tell.status`) |
| GET /v1/events?since=N&follow=1 | one event a line, JSON; with `follow` without end |
| POST /v1/wait {"what", "name", "timeout_s"} | {"ok", "message"} once it is decided |
| POST /v1/intent {"verb", "name"} | {"message"} |
| POST /v1/hold {"name", "reason"} | {"message"}; who asks is known from the connection |
| POST /v1/approve {"id"} | {"message"} |
| POST /v1/down {"down": true or false, "budget_s": all guests' time, or nothing} | {"message"} |
| POST /v1/plan {"files": {NAME: text or null}} | what would be done with these, or without (`core.tell.forecast`) |
| GET /v1/why?name=NAME | {"found": [{"resource", "reasons": [{"topic", "text"}]}]} (`agent.core.tell.why`) |
| GET /v1/doctor | {"findings": […], "unexamined": […]} (`agent.core.doctor.diagnosis`), looked at now |
| GET /v1/measures?max_age_s=S | {"guests": [one look each]} (`agent.core.tell.looks`), not older than S if possible |
| POST /v1/confirm {"bridge": NAME or null} | {"message"}, of a move of an uplink (`runtime.move_routes`) |
| GET /v1/moves | {"moves": [one each]} |
| GET /v1/show?name=NAME | {"found": [one for each resource of this name]} (`agent.core.tell.show`) |

A refusal is {"error": "one line"} with 400 (not understood), 403 (not for this user, `agent.core.rights`), 404 (nothing
of that name) or 409 (not now). A peer that hangs up cancels its wait.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast, get_args

from aiohttp import web
from aiohttp.typedefs import Middleware

from agent.core.errors import AgentError
from agent.core.rights import Peer, Rights, refusal
from agent.core.text import suggestion
from agent.host.peers import peer_of
from agent.runtime.move_routes import MovesApi, move_routes
from agent.runtime.request_bodies import files_of, read_object, seconds_of, text_of, word_of
from agent.runtime.users import Users
from agent.telemetry.journal import Event

Verb = Literal["start", "stop", "restart", "reset", "pause", "resume", "release"]
WaitFor = Literal["settled", "in-sync", "running", "stopped", "paused", "held"]
NAMED = frozenset({"running", "stopped", "paused", "held"})
"""What is waited for of one guest."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_SOCKET_PATH = 107
"""sizeof(sun_path) less the terminating NUL (unix(7))."""

_READING = ("status", "events", "wait", "plan", "why", "show", "doctor", "measures", "moves")
READING = frozenset(f"/v1/{what}" for what in _READING)
"""What changes nothing; whatever is not named here counts as a change."""

MAKING = ".new"
"""What the socket's name ends with until its mode is right."""

MAX_REQUEST_BYTES = 65_536
MAX_REASON = 500
MAX_PLAN_BYTES = 16 << 20
"""A request to plan carries whole unit files: ten thousand ordinary ones."""

PEER = web.RequestKey("peer", Peer)
"""Who opened the connection of a request."""

PROBE_S = 2.0
"""A peer that accepts within this time counts as an agent, even if it says nothing."""


class ControlError(AgentError):
    """The socket is not to be had: its path is too long, or somebody answers on it."""


class UnknownNameError(AgentError):
    """Nothing of that name; `known` are the names that could have been meant."""

    def __init__(self, what: str, name: str, known: Sequence[str]) -> None:
        tail = suggestion(name, known)
        super().__init__(f'no {what} is named "{name}"' + (f"; {tail}" if tail else ""))


class RefusedError(AgentError):
    """What was asked for cannot be done now; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class WaitResult:
    """How a wait ended: `ok` when it came true, else the message says what is still missing."""

    ok: bool
    message: str


class AgentApi(MovesApi, Protocol):
    """What the socket needs of the agent. Methods raise UnknownNameError or RefusedError, nothing else on purpose."""

    def status(self) -> Mapping[str, object]:
        """The present status, ready for JSON."""

    def events(self, since: int, *, follow: bool) -> AsyncIterator[Event]:
        """The kept events after number `since`; with `follow` also each new one, without end."""

    async def wait(self, what: WaitFor, name: str | None, timeout_s: float | None) -> WaitResult:
        """Return when `what` is true, or not after `timeout_s` seconds; names not known yet are waited for.

        `running` means that the guest also answered the latest restart and reset (`vm_display.is_running_as_asked`).
        """

    async def intent(self, verb: Verb, name: str, by: str) -> str:
        """Note what the operator asks of a guest, durably, and return at once with a line for the operator.

        `by`: who it is, in words; so for the next three.
        """

    async def hold(self, name: str, uid: int, reason: str, by: str) -> str:
        """Note, durably, that a user wants a guest left alone; returns a line for the operator."""

    async def approve(self, identity: str, by: str) -> str:
        """Allow the stops that a question of this id is about; returns a line for the operator."""

    async def set_down(self, by: str, *, down: bool, budget_s: float | None = None) -> str:
        """Stop all guests in order and start none, or let them start again; returns a line for the operator.

        `budget_s`: the time, in seconds, that all of them have together; None: each has its own.
        """

    async def plan(self, files: Mapping[str, bytes | None]) -> Mapping[str, object]:
        """What would be done from here to settled, with these unit files in place by their names (None: gone)."""

    async def why(self, name: str) -> Mapping[str, object]:
        """The chain of reasons for the present state of what a name stands for."""

    async def show(self, name: str) -> Mapping[str, object]:
        """What a name stands for in its unit, in its last good version, and as it runs."""

    async def doctor(self) -> Mapping[str, object]:
        """What will break guests though our state is right; changes nothing, and may take some seconds."""

    async def measures(self, max_age_s: float) -> str:
        """The counters of all guests, not older than this if they can be had at once; as JSON, there are many."""


@asynccontextmanager
async def serve_control(path: Path, api: AgentApi, rights: Rights) -> AsyncIterator[None]:
    """Answer on a Unix socket until the block ends, then take it away. Raises ControlError when it is not to be had."""
    runner = web.AppRunner(
        _application(api, rights),
        access_log=None,
        handle_signals=False,
        handler_cancellation=True,
        shutdown_timeout=0.5,
    )
    await runner.setup()
    try:
        _refuse_long(path)
        if await _answers(path):
            raise ControlError(f"{path}: another agent answers there; stop it, or choose another --run-dir")
        listener, inode = _bind(path, rights)
        await web.SockSite(runner, listener).start()
        try:
            yield
        finally:
            _take_away(path, inode)
    finally:
        await runner.cleanup()


def _refuse_long(path: Path) -> None:
    if len(os.fsencode(path)) > MAX_SOCKET_PATH - len(MAKING):
        raise ControlError(
            f"{path}: the socket's path is too long, {MAX_SOCKET_PATH - len(MAKING)} bytes at most; shorten --run-dir"
        )


def _bind(path: Path, rights: Rights) -> tuple[socket.socket, int]:
    """A bound socket and its inode. It is made under another name, so that it never stands there with a wider mode."""
    making = path.with_name(path.name + MAKING)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        making.unlink(missing_ok=True)
        listener.bind(str(making))
        making.chmod(0o600)
        if rights.group_gid is not None:
            os.chown(making, -1, rights.group_gid)
        making.chmod(rights.socket_mode)
        listener.listen(128)
        making.rename(path)
        return listener, path.stat().st_ino
    except OSError as error:
        listener.close()
        raise ControlError(f"{path}: cannot listen: {error.strerror}; mend --run-dir") from error


def _take_away(path: Path, inode: int) -> None:
    """Remove the socket, unless another agent's stands there by now."""
    with suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            path.unlink()


async def _answers(path: Path) -> bool:
    try:
        async with asyncio.timeout(PROBE_S):
            _, writer = await asyncio.open_unix_connection(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except TimeoutError:
        return True
    except OSError as error:
        raise ControlError(f"{path}: {error.strerror}; mend --run-dir") from error
    writer.close()
    return True


def _application(api: AgentApi, rights: Rights) -> web.Application:
    control = _Control(api)
    app = web.Application(middlewares=[_as_json_errors, _only_for(rights)], client_max_size=MAX_REQUEST_BYTES)
    app.add_routes(
        [
            web.get("/v1/status", control.status),
            web.get("/v1/events", control.events),
            web.post("/v1/wait", control.wait),
            web.post("/v1/intent", control.intent),
            web.post("/v1/hold", control.hold),
            web.post("/v1/approve", control.approve),
            web.post("/v1/down", control.down),
            web.post("/v1/plan", control.plan),
            web.get("/v1/why", control.why),
            web.get("/v1/show", control.show),
            web.get("/v1/doctor", control.doctor),
            web.get("/v1/measures", control.measures),
            *move_routes(api, control.asker),
        ]
    )
    return app


@web.middleware
async def _as_json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except UnknownNameError as error:
        return web.json_response({"error": str(error)}, status=404)
    except RefusedError as error:
        return web.json_response({"error": str(error)}, status=409)
    except web.HTTPException as error:
        return web.json_response({"error": error.text or error.reason}, status=error.status)


def _only_for(rights: Rights) -> Middleware:
    """Judges each request by who opened its connection; before anything of it is read."""

    @web.middleware
    async def judge(request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = request.get_extra_info("socket")
        if connection is None:
            raise web.HTTPForbidden(text="nobody is at the other end any more")
        request[PEER] = peer_of(connection)
        why_not = refusal(rights, request[PEER], changes=request.path not in READING)
        if why_not is not None:
            raise web.HTTPForbidden(text=why_not)
        return await handler(request)

    return judge


class _Control:
    """The handlers: they read requests and write answers, the agent does the rest."""

    def __init__(self, api: AgentApi) -> None:
        self._api = api
        self._users = Users()

    async def asker(self, request: web.Request) -> str:
        """Who asks, in words."""
        return await self._users.shown(request[PEER].uid)

    async def status(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(self._api.status())

    async def events(self, request: web.Request) -> web.StreamResponse:
        since = request.query.get("since", "0")
        if not (since.isascii() and since.isdigit() and len(since) < 19):
            raise web.HTTPBadRequest(text="since: want a number of an event")
        response = web.StreamResponse(headers={"Content-Type": "application/jsonl"})
        await response.prepare(request)
        async for event in self._api.events(int(since), follow=request.query.get("follow") == "1"):
            await response.write(json.dumps(event.as_json(), default=str).encode() + b"\n")
        await response.write_eof()
        return response

    async def wait(self, request: web.Request) -> web.StreamResponse:
        body = await read_object(request)
        what = word_of(body, "what", get_args(WaitFor))
        name = text_of(body, "name") if what in NAMED else None
        result = await self._api.wait(cast(WaitFor, what), name, seconds_of(body, "timeout_s"))
        return web.json_response({"ok": result.ok, "message": result.message})

    async def intent(self, request: web.Request) -> web.StreamResponse:
        body = await read_object(request)
        verb, name = word_of(body, "verb", get_args(Verb)), text_of(body, "name")
        by = await self._users.shown(request[PEER].uid)
        # Noted or not noted, never half: a peer that hangs up must not interrupt it.
        return web.json_response({"message": await asyncio.shield(self._api.intent(cast(Verb, verb), name, by))})

    async def hold(self, request: web.Request) -> web.StreamResponse:
        body = await read_object(request)
        name, reason = text_of(body, "name"), body.get("reason", "")
        if not isinstance(reason, str) or len(reason) > MAX_REASON:
            raise web.HTTPBadRequest(text=f"reason: want a text of at most {MAX_REASON} characters")
        uid = request[PEER].uid
        by = await self._users.shown(uid)
        return web.json_response({"message": await asyncio.shield(self._api.hold(name, uid, reason, by))})

    async def approve(self, request: web.Request) -> web.StreamResponse:
        identity = text_of(await read_object(request), "id")
        by = await self._users.shown(request[PEER].uid)
        return web.json_response({"message": await asyncio.shield(self._api.approve(identity, by))})

    async def down(self, request: web.Request) -> web.StreamResponse:
        body = await read_object(request)
        down, budget_s = body.get("down"), seconds_of(body, "budget_s")
        if not isinstance(down, bool):
            raise web.HTTPBadRequest(text="down: want true or false")
        by = await self._users.shown(request[PEER].uid)
        message = await asyncio.shield(self._api.set_down(by, down=down, budget_s=budget_s))
        return web.json_response({"message": message})

    async def plan(self, request: web.Request) -> web.StreamResponse:
        body = await read_object(request.clone(client_max_size=MAX_PLAN_BYTES))
        return web.json_response(await self._api.plan(files_of(body)))

    async def why(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await self._api.why(text_of(request.query, "name")))

    async def show(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await self._api.show(text_of(request.query, "name")))

    async def doctor(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(await self._api.doctor())

    async def measures(self, request: web.Request) -> web.StreamResponse:
        text = request.query.get("max_age_s", "10")
        try:
            max_age_s = seconds_of({"max_age_s": float(text)}, "max_age_s") or 0.0
        except ValueError:
            raise web.HTTPBadRequest(text="max_age_s: want seconds") from None
        return web.json_response(text=await self._api.measures(max_age_s))
