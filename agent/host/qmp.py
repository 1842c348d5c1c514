"""The connection to a QEMU monitor (QMP), as far as this agent needs it: commands, events, and its end.

Wraps qemu.qmp, of which these traits are kept away from everybody else: a monitor serves one client at a time, so a
second one connects and waits for ever; `disconnect()` raises what broke the connection; event listeners keep every
event for ever, and are not woken by a disconnect; refusals are logged before they are raised; each message is laid out
for its log, whether anybody logs or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, Message, QMPClient, QMPError, Runstate
from qemu.qmp.qmp_client import ExecuteError

from agent.core.errors import OutcomeUnknownError, PermanentError, TransientError

MAX_PATH_BYTES = 107
"""sun_path less its terminating NUL (unix(7))."""

EXECUTE_TIMEOUT_S = 10.0
DISCONNECT_TIMEOUT_S = 1.0

OnEvent = Callable[[str, Mapping[str, Any]], None]
"""Who hears of events: name and data."""

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


class CommandRefusedError(PermanentError):
    """QEMU understood a command and refused it. `error_class` is QMP's, mostly `GenericError`."""

    def __init__(self, message: str, error_class: str) -> None:
        super().__init__(message, reason="QemuRefused")
        self.error_class = error_class


class _Forwarder(EventListener):
    """Hands each event on at once; the default listener would keep them all, and cannot be removed."""

    def __init__(self, on_event: OnEvent) -> None:
        super().__init__()
        self._on_event = on_event

    async def put(self, event: Message) -> None:
        data = event.get("data")
        arguments = data if isinstance(data, dict) else {}
        # Not called from here: what it raises would take the connection down.
        asyncio.get_running_loop().call_soon(self._on_event, str(event["event"]), arguments)


class _Client(QMPClient):
    """Its hooks for messages, without their log."""

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg


class Monitor:
    """One connection to one QEMU; made by `connect`, and of no use any more once `closed` returned."""

    def __init__(self, client: QMPClient, on_event: OnEvent) -> None:
        client.events.event_filter = lambda _event: False
        client.register_listener(_Forwarder(on_event))
        self._client = client
        self._ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watcher: asyncio.Task[None] | None = None
        self._handing_over = asyncio.Lock()

    @classmethod
    async def connect(
        cls, path: str | Path, timeout_s: float, on_event: OnEvent, *, peer_uid: int | None = None
    ) -> Monitor:
        """Connect and negotiate. `on_event` hears of every event from then on, also of those that come meanwhile.

        `peer_uid`: whom the listening process must run as. TransientError if nobody listens (yet), or the monitor does
        not greet within `timeout_s`, as one does that serves another client or whose QEMU is stopped; PermanentError if
        the path is longer than a socket's may be, or somebody else listens.
        """
        connection = _open_socket(os.fspath(path), peer_uid)
        client = _Client()
        monitor = cls(client, on_event)
        try:
            async with asyncio.timeout(timeout_s):
                await client.connect(connection)
        except TimeoutError as error:
            message = f"{path}: QEMU does not greet; it hangs, or another client uses its monitor"
            raise TransientError(message, reason="MonitorBusy") from error
        except (QMPError, OSError, EOFError) as error:
            raise TransientError(f"{path}: {error}", reason="NotConnected") from error
        finally:
            if client.runstate is not Runstate.RUNNING:
                connection.close()
        monitor._watcher = asyncio.create_task(monitor._watch(), name=f"qmp {path}")
        return monitor

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, timeout_s: float | None = EXECUTE_TIMEOUT_S
    ) -> Any:
        """Run a command and return QEMU's answer, which is of no fixed type; `timeout_s` None waits for ever.

        CommandRefusedError carries QEMU's words. OutcomeUnknownError if the connection broke or the time ran out: the
        command may have been done, or may be done later. TransientError if there was no connection to begin with.
        """
        if self._client.runstate is not Runstate.RUNNING:
            raise TransientError(f"{command}: the connection to QEMU is closed", reason="NotConnected")
        try:
            async with asyncio.timeout(timeout_s):
                return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise CommandRefusedError(f"{command}: {error}", error.error_class) from error
        except TimeoutError as error:
            message = f"{command}: QEMU did not answer within {timeout_s:g} s"
            raise OutcomeUnknownError(message, reason="QemuSilent") from error
        except (QMPError, OSError, EOFError) as error:
            message = f"{command}: the connection broke before QEMU answered"
            raise OutcomeUnknownError(message, reason="ConnectionLost") from error

    async def send_descriptor(self, name: str, fd: int) -> None:
        """Give QEMU a copy of a descriptor under a name (`getfd`), which replaces a former one; errors as `execute`."""
        await self._hand_over(fd, "getfd", {"fdname": name})

    async def add_descriptor(self, set_id: int, fd: int, opaque: str) -> None:
        """Give QEMU a copy of a descriptor in a set (`add-fd`), which it opens as `/dev/fdset/N`; errors as `execute`.

        `opaque` is whose it is, which `query-fdsets` tells.
        """
        await self._hand_over(fd, "add-fd", {"fdset-id": set_id, "opaque": opaque})

    async def _hand_over(self, fd: int, command: str, arguments: Mapping[str, object]) -> None:
        """QEMU keeps only what was sent last until a command takes it, so that there is one at a time."""
        async with self._handing_over:
            if self._client.runstate is not Runstate.RUNNING:
                raise TransientError(f"{command}: the connection to QEMU is closed", reason="NotConnected")
            try:
                self._client.send_fd_scm(fd)
            except BlockingIOError as error:
                raise TransientError(f"{command}: QEMU does not read its monitor", reason="QemuSilent") from error
            except OSError as error:
                raise OutcomeUnknownError(f"{command}: {error}", reason="ConnectionLost") from error
            await self.execute(command, arguments)

    @property
    def is_closed(self) -> bool:
        """Whether the connection is gone."""
        return self._watcher is None or self._watcher.done()

    def when_closed(self, tell: Callable[[], None]) -> None:
        """Call `tell` once the connection is gone, whoever ended it."""
        if self._watcher is not None:
            self._watcher.add_done_callback(lambda _: tell())

    async def closed(self) -> None:
        """Return when the connection is gone, whoever ended it. May be cancelled, and called any number of times."""
        if self._watcher is not None:
            await asyncio.wait({self._watcher})

    async def close(self) -> None:
        """End the connection; what is being executed gets OutcomeUnknownError. QEMU runs on, free for a next client."""
        if not self._ending.done():
            self._ending.set_result(None)
        await self.closed()

    async def _watch(self) -> None:
        """Clean up after the connection has ended, in one place, because two disconnects at once are not supported."""
        try:
            while self._client.runstate is Runstate.RUNNING and not self._ending.done():
                changed = asyncio.ensure_future(self._client.runstate_changed())
                either: set[asyncio.Future[Any]] = {changed, self._ending}
                try:
                    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
        finally:
            # It raises what ended the connection, which whoever waited for an answer heard already. A stopped QEMU
            # would have it wait for its last words to be taken.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(DISCONNECT_TIMEOUT_S):
                    await self._client.disconnect()


def check_socket_path(path: str) -> None:
    """PermanentError if a path is longer than the kernel lets a Unix socket's be."""
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        message = (
            f"{path}: {length} bytes, a Unix socket's path has at most {MAX_PATH_BYTES}; shorten the run directory"
        )
        raise PermanentError(message, reason="PathTooLong")


def _open_socket(path: str, peer_uid: int | None) -> socket.socket:
    """Connect without waiting: on a Unix socket connect(2) is done at once, or refused if its queue is full."""
    check_socket_path(path)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.connect(path)
        _check_peer(connection, path, peer_uid)
    except OSError as error:
        connection.close()
        raise TransientError(f"{path}: {error.strerror}", reason="NotConnected") from error
    except PermanentError:
        connection.close()
        raise
    return connection


def _check_peer(connection: socket.socket, path: str, peer_uid: int | None) -> None:
    if peer_uid is None:
        return
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("iII", credentials)
    if uid != peer_uid:
        raise PermanentError(
            f"{path}: uid {uid} listens there, not this guest's QEMU (uid {peer_uid})", reason="Conflict"
        )
