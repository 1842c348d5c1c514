"""What the kernel tells of devices: births of macvtaps' devices, and queues of links that come and go.

Each message is `ACTION@PATH` and then `KEY=value`, each ended by a NUL (lib/kobject_uevent.c). Those of links come only
to their own network namespace.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping

from agent.host.tap.ioctls import translated

_NETLINK_KOBJECT_UEVENT = 15
_FROM_KERNEL = 1
"""The multicast group of the kernel's own uevents; udev repeats them in another one."""

_SO_RCVBUFFORCE = 33
_MESSAGE_BYTES = 8192
_RECEIVE_BYTES = 4 << 20

LOST: Mapping[str, str] = {}
"""In the place of messages that the kernel had no room for."""


class Uevents:
    """The kernel's uevents from now on; ActionError if they cannot be had."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_KOBJECT_UEVENT)
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
            self._socket.bind((0, _FROM_KERNEL))
        except OSError as e:
            raise translated(e, "listen for the kernel's uevents") from e

    def fileno(self) -> int:
        """What to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()

    def read(self) -> Iterator[Mapping[str, str]]:
        """The fields of each message that is there by now; `LOST` where some are missing."""
        while True:
            try:
                message = self._socket.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS
                yield LOST
                continue
            fields = (part.partition("=") for part in message.decode(errors="replace").split("\0"))
            yield {key: value for key, separator, value in fields if separator}
