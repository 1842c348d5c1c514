"""Lines of the log as entries of systemd's journal, each with its fields (systemd, "Native Journal Protocol").

Nobody waits for the journal: what it does not take at once is written to stderr if that takes it, else it is counted,
and told in the next entry that passes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import socket
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from agent.core.guest_unit import unit_name

SOCKET = Path("/run/systemd/journal/socket")
IDENTIFIER = "vmhost-agent"

DAEMON = "3"
"""The facility of what is no mail and no kernel (syslog(3), LOG_DAEMON)."""

PRIORITIES = {"debug": "7", "info": "6", "warning": "4", "error": "3", "critical": "2"}
"""syslog(3), by the names of levels."""

SEND_BUFFER_BYTES = 8 << 20
"""As sd_journal_send() has it: a burst of entries finds room though the journal is late."""

MAX_FIELD_NAME = 64
"""journald drops a field with a longer name (systemd, journal_field_valid())."""

_TOO_LARGE = {errno.EMSGSIZE, errno.ENOBUFS}
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_OURS = {"event", "level", "timestamp", "exception", "stack"}
"""Keys of a line that become MESSAGE and PRIORITY, or that the journal has by itself."""


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether a stream is the one that systemd joined to the journal: JOURNAL_STREAM is its device and inode."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or no file at all
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


def entry(fields: Mapping[str, str]) -> bytes:
    """An entry as it is sent: `KEY=value` lines, and with the value's size before it where it has newlines."""
    parts = []
    for name, value in fields.items():
        data = value.encode("utf-8", "replace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


def fields_of(line: Mapping[str, object]) -> dict[str, str]:
    """A line of the log (docs/logs.md) as the journal's fields; a traceback follows the message, where it shows."""
    level, resource = str(line.get("level", "info")), str(line.get("resource", ""))
    traces = [str(line[key]) for key in ("stack", "exception") if line.get(key)]
    fields = {
        "MESSAGE": "\n".join([str(line.get("event", "")), *traces]),
        "PRIORITY": PRIORITIES.get(level, PRIORITIES["info"]),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "SYSLOG_FACILITY": DAEMON,
    }
    for key, value in line.items():
        if key not in _OURS and value is not None:
            fields[field_name(key)] = value if isinstance(value, str) else json.dumps(value, default=str)
    kind, _, rest = resource.partition("/")
    guest = rest.partition("/")[0] if kind in {"vm", "tap"} else ""
    if guest:
        fields["VMHOST_VM"] = guest
        fields["OBJECT_SYSTEMD_UNIT"] = unit_name(guest)
    return fields


def field_name(key: str) -> str:
    """The journal's name of a field: ours begin with VMHOST_, and have capitals, digits and underscores only."""
    return "VMHOST_" + re.sub(r"[^A-Z0-9_]", "_", key.upper())[: MAX_FIELD_NAME - len("VMHOST_")]


class JournaldHandler(logging.Handler):
    """Sends records whose message is a line of the log as JSON; `fallback` is the stream for what cannot be sent."""

    def __init__(self, fallback: TextIO, path: Path = SOCKET) -> None:
        super().__init__()
        self._path = str(path)
        self._fallback = fallback
        self._lost = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record. Never raises, never waits."""
        try:
            text = self.format(record)
            fields = fields_of(json.loads(text))
            if "VMHOST_KIND" not in fields:  # where in the code says nothing of an event: all come from the journal
                fields |= {
                    "CODE_FILE": record.pathname,
                    "CODE_LINE": str(record.lineno),
                    "CODE_FUNC": record.funcName or "",
                }
            if self._lost:
                fields["VMHOST_LOST_LINES"] = str(self._lost)
            if self._send(entry(fields)):
                self._lost = 0
            elif not self._write(text):
                self._lost += 1
        except Exception:  # noqa: BLE001 - a line that cannot be told must not end what it is about
            self._lost += 1

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()
        super().close()

    def _send(self, data: bytes) -> bool:
        try:
            self._socket.sendto(data, self._path)
        except OSError as error:
            return error.errno in _TOO_LARGE and self._send_large(data)
        return True

    def _send_large(self, data: bytes) -> bool:
        """A datagram has a bound; what is larger goes as a sealed file without a name, alone in its message."""
        try:
            descriptor = os.memfd_create("vmhost-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError:
            return False
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))]
            self._socket.sendmsg([], rights, 0, self._path)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True

    def _write(self, text: str) -> bool:
        """Write a line to the fallback, if it takes it at once: it may be the same journal's, by a stream."""
        data = text.encode("utf-8", "replace") + b"\n"
        try:
            descriptor = self._fallback.fileno()
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                return os.write(descriptor, data) == len(data)
            with socket.socket(fileno=os.dup(descriptor)) as stream:
                return stream.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(data)
        except OSError:
            return False
