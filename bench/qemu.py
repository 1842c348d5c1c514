"""QEMU without an agent: the bare limit of every start, and a look at when a guest was released."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CONNECT_EVERY_S = 0.001
TIMEOUT_S = 60.0


def command_line(pid: int) -> list[str]:
    """The command line of a running QEMU."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]


def start_bare(argv: Sequence[str], directory: Path, copy: Path) -> tuple[float, subprocess.Popen[bytes]]:
    """Execute QEMU as the agent would, connect, negotiate and let the guest run; the seconds until it says it does.

    `argv` is that of a guest whose run directory is `directory`; `copy` is the folder that this one has instead.
    """
    copy.mkdir()
    own = [word.replace(str(directory), str(copy)) for word in argv]
    began = time.perf_counter()
    process = subprocess.Popen(own, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with connected(copy / "qmp.sock") as monitor:
        monitor.execute("query-status")
        monitor.execute("cont")
    return time.perf_counter() - began, process


@contextlib.contextmanager
def bare_guests(argv: Sequence[str], directory: Path, copies: Path, number: int, at_once: int) -> Iterator[float]:
    """Start many, `at_once` at a time; the seconds until all run. They are gone afterwards."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        with ThreadPoolExecutor(at_once) as pool:
            began = time.perf_counter()
            for _, process in pool.map(lambda n: start_bare(argv, directory, copies / f"b{n}"), range(number)):
                started.append(process)
            spent = time.perf_counter() - began
        yield spent
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


class _Monitor:
    """A QMP connection that blocks: the least that there can be between a client and QEMU."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rwb")
        self._file.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str) -> Any:
        self._file.write(json.dumps({"execute": command}).encode())
        self._file.flush()
        while True:
            answer = self.read()
            if "event" not in answer:
                return answer["return"]

    def read(self) -> Any:
        line = self._file.readline()
        if not line:
            raise ConnectionError("QEMU closed its monitor")
        return json.loads(line)

    def wait_running(self) -> float:
        """The time (time.time) at which the guest was let run: QEMU's own where it says so in an event."""
        if self.execute("query-status")["status"] == "running":
            return time.time()
        while True:
            answer = self.read()
            if answer.get("event") == "RESUME":
                return float(answer["timestamp"]["seconds"]) + float(answer["timestamp"]["microseconds"]) / 1e6


@contextlib.contextmanager
def connected(path: Path) -> Iterator[_Monitor]:
    """Connect to a monitor as soon as it listens."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(TIMEOUT_S)
        try:
            connection.connect(str(path))
            break
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(CONNECT_EVERY_S)
    with connection:
        yield _Monitor(connection)


def released_at(directory: Path) -> float:
    """Wait until a guest of the agent runs; the time (time.time) at which it was released."""
    with connected(directory / "operator.sock") as monitor:
        return monitor.wait_running()


def kill_and_wait(pid: int) -> float:
    """Kill a QEMU; the time (time.time) at which everybody can see that it ended."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], TIMEOUT_S)
        return time.time()
    finally:
        os.close(pidfd)
