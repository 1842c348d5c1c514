"""The command agent of the virtual lab: runs inside the machine, obeys what comes over its virtio-serial port.

The standard library only, and no file of the project: it is in the image, and the image is kept. Messages go both ways
as a length of four bytes and so many bytes of JSON; bytes within are base64. Several commands may run at once; each
request has a number, and what belongs to it carries that.

    {"id": 1, "run": ["sh", "-c", "…"], "stdin": "…"}
        is answered by {"id": 1, "out": "…"} and {"id": 1, "err": "…"}, as they come, then {"id": 1, "exit": 0}
    {"id": 1, "kill": 1}
        ends command 1 with its process group; it answers for itself
    {"hello": true}
        is the first that comes from here, again each second until {"hello": "read"} is the answer
"""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

PORT = "vmhost-lab"
CHUNK = 65536


def find_port() -> str:
    """The device of our port; drivers may still be on their way."""
    while True:
        for name in Path("/sys/class/virtio-ports").glob("*/name"):
            if name.read_text().strip() == PORT:
                return f"/dev/{name.parent.name}"
        time.sleep(0.05)


class Wire:
    """The port: whole messages in, whole messages out."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._writing = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode()
        data = struct.pack("!I", len(data)) + data
        with self._writing:
            while data:
                data = data[os.write(self._descriptor, data[:CHUNK]) :]

    def receive(self) -> dict[str, Any]:
        (length,) = struct.unpack("!I", self._exactly(4))
        message: dict[str, Any] = json.loads(self._exactly(length))
        return message

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            if not (part := os.read(self._descriptor, min(CHUNK, length - len(data)))):
                time.sleep(0.05)  # nobody has the other end open
            data += part
        return bytes(data)


class Commands:
    """What runs for the other side."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def obey(self, message: dict[str, Any]) -> None:
        if "run" in message:
            threading.Thread(target=self._run, args=(message,), daemon=True).start()
        elif "kill" in message and (command := self._running.get(message["kill"])) is not None:
            os.killpg(command.pid, signal.SIGKILL)

    def _run(self, message: dict[str, Any]) -> None:
        number: int = message["id"]
        try:
            command = subprocess.Popen(
                message["run"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                cwd="/root",
            )
        except OSError as error:
            self._tell(number, "err", f"{error}\n".encode())
            self._wire.send({"id": number, "exit": 127})
            return
        self._running[number] = command
        feeding = threading.Thread(target=_feed, args=(command, base64.b64decode(message["stdin"])), daemon=True)
        feeding.start()
        code = self._pass_on(number, command)
        del self._running[number]
        self._wire.send({"id": number, "exit": code})

    def _pass_on(self, number: int, command: subprocess.Popen[bytes]) -> int:
        """Tell what it says until it has ended; what it left running may keep its pipes open as long as it likes."""
        assert command.stdout is not None
        assert command.stderr is not None
        names = {command.stdout.fileno(): "out", command.stderr.fileno(): "err"}
        ended = os.pidfd_open(command.pid)
        try:
            waiting = [ended, *names]
            while True:
                ready = select.select(waiting, [], [])[0]
                for descriptor in [one for one in ready if one != ended]:
                    if data := os.read(descriptor, CHUNK):
                        self._tell(number, names[descriptor], data)
                    else:
                        waiting.remove(descriptor)
                if ready == [ended]:
                    return command.wait()
        finally:
            os.close(ended)
            command.stdout.close()
            command.stderr.close()

    def _tell(self, number: int, stream: str, data: bytes) -> None:
        self._wire.send({"id": number, stream: base64.b64encode(data).decode()})


def _feed(command: subprocess.Popen[bytes], data: bytes) -> None:
    assert command.stdin is not None
    try:
        command.stdin.write(data)
        command.stdin.close()
    except OSError:
        pass  # it did not read to the end, as it may


def main() -> None:
    """Obey until the machine ends."""
    wire = Wire(os.open(find_port(), os.O_RDWR | os.O_CLOEXEC))
    heard = threading.Event()

    def greet() -> None:
        while not heard.wait(1):
            wire.send({"hello": True})

    wire.send({"hello": True})
    threading.Thread(target=greet, daemon=True).start()
    commands = Commands(wire)
    while True:
        message = wire.receive()
        heard.set()
        commands.obey(message)


if __name__ == "__main__":
    main()
