"""Notifications as a POST of JSON to one URL; with `httpd`, which listens, what knows HTTP here.

A webhook's URL is a secret as often as not, in its path too, so nothing but scheme, host and port is ever shown.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from agent.core.errors import HookError
from agent.telemetry.listen import Listen

MAX_URL = 4096

CONFINED = "the packaged service reaches this host only, until a drop-in has IPAddressAllow="
"""How a filter of the service manager shows: connect(2) is not permitted, no name server answers."""


class Webhook:
    """One URL, or a file that holds it and is read for each notification. TLS is verified, redirects not followed."""

    def __init__(self, url: str | Path, timeout_s: float) -> None:
        """Raises HookError for a URL that is none, or that would carry it unprotected over a network."""
        self._url = url
        self._timeout_s = timeout_s
        self.name = str(url) if isinstance(url, Path) else shown_url(url)

    def problem(self) -> str:
        """Why it cannot work as it is now; empty if nothing is seen."""
        try:
            self._find_url()
        except HookError as error:
            return str(error)
        return ""

    async def send(self, body: bytes, _: Mapping[str, str]) -> str:
        """POST the body; returns the answer's status. Raises HookError for any but 2xx, or no answer in time."""
        url = await asyncio.to_thread(self._find_url)
        name = shown_url(url)
        headers = {"Content-Type": "application/json", "User-Agent": "vmhost-agent"}
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout_s)) as session,
                session.post(url, data=body, headers=headers, allow_redirects=False) as answer,
            ):
                status = answer.status
        except TimeoutError as error:
            raise HookError(f"{name}: no answer within {self._timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise HookError(f"{name}: {_why(error)}") from error
        if 300 <= status < 400:
            raise HookError(f"{name}: answered {status}; redirects are not followed, give the URL that it leads to")
        if not 200 <= status < 300:
            raise HookError(f"{name}: answered {status}")
        return f"answered {status}"

    def _find_url(self) -> str:
        if isinstance(self._url, str):
            return self._url
        try:
            with self._url.open() as file:
                url = file.read(MAX_URL + 1).strip()
        except (OSError, UnicodeDecodeError) as error:
            why = "no text in UTF-8" if isinstance(error, UnicodeDecodeError) else (error.strerror or "").lower()
            raise HookError(f"--notify-url-file {self._url}: {why}; put a URL there") from error
        try:
            shown_url(url)
        except HookError as error:
            raise HookError(f"--notify-url-file {self._url}: {error}") from error
        return url


def shown_url(url: str) -> str:
    """What of a webhook's URL may be shown: `https://host:port`. Raises HookError, without the URL, for a wrong one."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise HookError("this is no URL; want one such as https://HOST/PATH") from error
    if parts.scheme not in {"https", "http"} or not host or not url.isprintable() or " " in url or len(url) > MAX_URL:
        raise HookError("this is no URL; want one such as https://HOST/PATH")
    if parts.scheme == "http" and not Listen(host, port or 80).loopback:
        raise HookError(f"http://{host} carries secrets in the clear; want https, http goes to this host itself only")
    where = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{where}" + ("" if port is None else f":{port}")


def _why(error: Exception) -> str:
    """In words of our own: an error's text may hold the URL."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return f"its certificate is not to be trusted: {getattr(error.certificate_error, 'verify_message', '')}"
        case aiohttp.ClientConnectorError():
            cause = error.os_error
            said = cause.strerror if isinstance(cause, socket.gaierror) or not cause.errno else os.strerror(cause.errno)
            why = f"cannot connect: {(said or type(cause).__name__).lower()}"
            return f"{why}; {CONFINED}" if isinstance(cause, PermissionError | socket.gaierror) else why
        case aiohttp.ServerDisconnectedError():
            return "hung up without an answer"
        case OSError():
            return (error.strerror or type(error).__name__).lower()
        case _:
            return f"no answer that is HTTP ({type(error).__name__})"
