"""Events of files in one folder, from the kernel (inotify(7)), by the C library: Python's own has no call for it.

`watchfiles`, which watches the unit directory, wakes forty times a second for it; this costs nothing between events,
and it is all right that it may lose some: who is rung looks at the file, and the full look finds what was missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path

from agent.core.errors import ObservationError

_EVENT = struct.Struct("iIII")
"""struct inotify_event: watch, mask, cookie, length of the name that follows."""

_MODIFY, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x80, 0x100, 0x200
_BUFFER_BYTES = 1 << 16
_libc = ctypes.CDLL(None, use_errno=True)


class FileEvents:
    """Calls `changed` with the name of each file that is written, made, moved in or deleted, until `close`."""

    def __init__(self, folder: Path, changed: Callable[[str], None]) -> None:
        """Within a running loop; raises ObservationError if the kernel refuses, or the folder is missing."""
        self._changed = changed
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        mask = _MODIFY | _MOVED_TO | _CREATE | _DELETE
        if self._fd < 0 or _libc.inotify_add_watch(self._fd, os.fsencode(folder), mask) < 0:
            why = os.strerror(ctypes.get_errno())
            self._close()
            raise ObservationError(str(folder), why)
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def close(self) -> None:
        """Watch no longer."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _read(self) -> None:
        names: dict[str, None] = {}
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._fd, _BUFFER_BYTES)
            place = 0
            while place < len(data):
                *_, length = _EVENT.unpack_from(data, place)
                place += _EVENT.size
                names[os.fsdecode(data[place : place + length].rstrip(b"\0"))] = None
                place += length
        for name in names:
            if name:
                self._changed(name)
