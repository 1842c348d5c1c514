"""What the control socket answers of moves of uplinks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from aiohttp import web

from agent.runtime.request_bodies import read_object


class MovesApi(Protocol):
    """What is needed of the agent. Methods raise UnknownNameError or RefusedError, nothing else on purpose."""

    def moves(self) -> Mapping[str, object]:
        """All moves that there is a journal of, ready for JSON."""

    async def confirm(self, bridge: str | None, by: str) -> str:
        """Keep a move that waits for a word, without a bridge the only one; returns a line for the operator."""


def move_routes(api: MovesApi, asker: Callable[[web.Request], Awaitable[str]]) -> list[web.RouteDef]:
    """The routes; `asker` says in words who asks."""

    async def moves(_: web.Request) -> web.StreamResponse:
        return web.json_response(api.moves())

    async def confirm(request: web.Request) -> web.StreamResponse:
        bridge = (await read_object(request)).get("bridge")
        if bridge is not None and not isinstance(bridge, str):
            raise web.HTTPBadRequest(text="bridge: want a name, or null")
        by = await asker(request)
        return web.json_response({"message": await asyncio.shield(api.confirm(bridge, by))})

    return [web.get("/v1/moves", moves), web.post("/v1/confirm", confirm)]
