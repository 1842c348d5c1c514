"""The outer end of the command agent's port (tests/lab/inside.py): commands in, what they say and how they end out."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import queue
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class WireClosedError(Exception):
    """The machine ended, or never spoke."""


class Running:
    """A command under way in the machine."""

    def __init__(self, wire: Wire, number: int) -> None:
        self._wire = wire
        self._number = number
        self.told: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.code: int | None = None

    def chunks(self, silence_s: float) -> Iterator[tuple[str, bytes]]:
        """What it says as it comes: "out" or "err", and bytes; afterwards `code` is set.

        TimeoutError when it neither said a thing nor ended for so long.
        """
        while self.code is None:
            try:
                message = self.told.get(timeout=silence_s)
            except queue.Empty:
                raise TimeoutError(f"nothing was said for {silence_s:.0f} s") from None
            if message is None:
                raise WireClosedError("the virtual machine has ended")
            for stream in ("out", "err"):
                if stream in message:
                    yield stream, base64.b64decode(message[stream])
            self.code = message.get("exit")

    def finish(self, timeout_s: float) -> tuple[int, bytes, bytes]:
        """Its exit code, its output and its errors; it is killed and TimeoutError raised after so long."""
        said: dict[str, list[bytes]] = {"out": [], "err": []}
        deadline_s = time.monotonic() + timeout_s
        while self.code is None:
            try:
                for stream, data in self.chunks(max(0.0, deadline_s - time.monotonic())):
                    said[stream].append(data)
                    if time.monotonic() > deadline_s:
                        raise TimeoutError
            except TimeoutError:
                self.kill()
                text = b"".join(said["out"] + said["err"])[-2000:].decode(errors="replace")
                raise TimeoutError(f"it did not end in {timeout_s:.0f} s; it said: {text}") from None
        return self.code, b"".join(said["out"]), b"".join(said["err"])

    def kill(self) -> None:
        """End it with its process group."""
        with contextlib.suppress(WireClosedError):
            self._wire.send({"id": self._number, "kill": self._number})


class Wire:
    """A connection to the agent; a thread of its own reads from it until the machine ends."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._numbers = itertools.count(1)
        self._running: dict[int, Running] = {}
        self._registering = threading.Lock()
        self._closed = False
        self._greeted = threading.Event()
        self._sending = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True, name="virtual lab")
        self._reader.start()

    def greeted(self, timeout_s: float) -> bool:
        """Whether the agent has spoken, now or within so long."""
        return self._greeted.wait(timeout_s)

    @property
    def closed(self) -> bool:
        """Whether the machine has ended."""
        return self._closed

    def start(self, command: list[str], stdin: bytes = b"") -> Running:
        """Start a command; several may run at once."""
        number = next(self._numbers)
        running = Running(self, number)
        with self._registering:
            if self._closed:
                raise WireClosedError("the virtual machine has ended")
            self._running[number] = running
        self.send({"id": number, "run": command, "stdin": base64.b64encode(stdin).decode()})
        return running

    def send(self, message: dict[str, Any]) -> None:
        """Send one message, from any thread."""
        data = json.dumps(message).encode()
        try:
            with self._sending:
                self._socket.sendall(struct.pack("!I", len(data)) + data)
        except OSError as error:
            raise WireClosedError(f"the virtual machine has ended: {error}") from error

    def close(self) -> None:
        """Hang up; whoever waits for a command is told."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._socket.close()

    def _read(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                (length,) = struct.unpack("!I", self._exactly(4))
                self._pass_on(json.loads(self._exactly(length)))
        with self._registering:
            self._closed = True
            for running in self._running.values():
                running.told.put(None)
        self._greeted.set()

    def _pass_on(self, message: dict[str, Any]) -> None:
        if "hello" in message:
            self._greeted.set()
            if message["hello"] is True:
                self.send({"hello": "read"})
            return
        with self._registering:
            number: int = message["id"]
            self._running[number].told.put(message)
            if "exit" in message:
                del self._running[number]

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            if not (part := self._socket.recv(length - len(data))):
                raise EOFError
            data += part
        return bytes(data)
