"""What requests to the control socket carry: JSON, each value checked; a mistake is told with 400, in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from aiohttp import web

from agent.core.text import printable
from agent.host.unitdir import is_unit_name


async def read_object(request: web.Request) -> Mapping[str, object]:
    """The JSON object that a request carries."""
    try:
        body = json.loads(await request.text())
    except (ValueError, RecursionError) as error:
        raise web.HTTPBadRequest(text="want a JSON object") from error
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="want a JSON object")
    return body


def text_of(body: Mapping[str, object], key: str) -> str:
    """A text that is to be there."""
    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise web.HTTPBadRequest(text=f"{key}: want a text")
    return value


def files_of(body: Mapping[str, object]) -> Mapping[str, bytes | None]:
    """Contents by file name, None for a file that is to be gone.

    What is no UTF-8 travels as lone surrogates (PEP 383), so that its mistake is found.
    """
    files = body.get("files", {})
    if not isinstance(files, dict):
        raise web.HTTPBadRequest(text="files: want an object of texts")
    for name, text in files.items():
        if not is_unit_name(name) or "/" in name or not isinstance(text, str | None):
            raise web.HTTPBadRequest(text=f"files: want texts by names of unit files, not {printable(name)}")
    try:
        return {n: None if text is None else text.encode(errors="surrogateescape") for n, text in files.items()}
    except UnicodeEncodeError as error:
        raise web.HTTPBadRequest(text="files: want texts") from error


def word_of(body: Mapping[str, object], key: str, allowed: Sequence[str]) -> str:
    """One of some words."""
    value = body.get(key)
    if not isinstance(value, str) or value not in allowed:
        raise web.HTTPBadRequest(text=f"{key}: want one of {', '.join(allowed)}")
    return value


def seconds_of(body: Mapping[str, object], key: str) -> float | None:
    """A time, None where there is none."""
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e9:
        raise web.HTTPBadRequest(text=f"{key}: want seconds")
    return float(value)
