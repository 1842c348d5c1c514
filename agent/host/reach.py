"""Looks at what guests are made to wait for: whether a path exists, and whether a TCP port takes connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading

CONNECT_S = 2.0
"""A port that has not taken a connection after this long does not take any now."""


async def exists(path: str) -> tuple[bool, str]:
    """Whether a path exists (links are followed), and else why not, empty for the usual reason.

    It is looked at in a thread of its own, which nobody waits for at the agent's end: a file system that hangs keeps
    one thread, and neither a pass nor other threads' work.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[tuple[bool, str]] = loop.create_future()

    def tell(answer: tuple[bool, str]) -> None:
        if not found.done():
            found.set_result(answer)

    def look() -> None:
        try:
            os.stat(path)
            answer = True, ""
        except FileNotFoundError:
            answer = False, ""
        except OSError as error:
            answer = False, error.strerror or str(error)
        with contextlib.suppress(RuntimeError):  # the loop ended while the file system hung
            loop.call_soon_threadsafe(tell, answer)

    threading.Thread(target=look, name=f"look at {path}", daemon=True).start()
    return await found


async def accepts(host: str, port: int) -> tuple[bool, str]:
    """Whether an address takes connections at a port within 2 s, and else why not; nothing is sent.

    It is asked from the network namespace of the agent. Under a service that may not connect (IPAddressDeny=,
    systemd.resource-control(5)) the kernel says "Operation not permitted".
    """
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return False, f"no answer within {CONNECT_S:g} s"
    except OSError as error:
        return False, _words(error)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True, ""


def _words(error: OSError) -> str:
    """The kernel's words; asyncio puts the address beside them, which is told anyway."""
    if isinstance(error, PermissionError):
        return "the agent may not connect there: its service needs IPAddressAllow=, see docs/security.md"
    return os.strerror(error.errno).lower() if error.errno else str(error)
