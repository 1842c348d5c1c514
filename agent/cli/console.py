"""`vmhost console NAME`: a guest's first serial port, on a terminal or in a pipe."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import termios
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from agent.cli.client import RefusedError, unusable
from agent.core.qemu.serial import serial_socket
from agent.core.text import printable, suggestion

DETACH = b"\x1d"
"""Ctrl-], as telnet and virsh have it."""

ACCEPT_S, ANSWER_S = 1.0, 5.0
"""A QEMU that has not accepted a connection by then has another one open; one that has none hangs, or is slow."""

LOOK_EVERY_S = 0.01

MAX_UNSENT_BYTES = 65_536
"""A guest that reads nothing: a pipe is left alone from here on, what is typed is dropped."""

CHUNK_BYTES = 65_536
_CONNECTED, _WAITING = "03", "02"
"""Of /proc/net/unix: a connection that was accepted, and one that was not (Linux, af_unix.c: unix_seq_show)."""


def attach(run_dir: Path, name: str, quiet_s: float, port: str | None = None) -> str:
    """Join the terminal, or standard input and output, to a guest's console or another serial port of its.

    Returns why it ended, in words.

    On a terminal it ends with the detach key, else `quiet_s` seconds after the guest wrote last once the input is at
    its end; in both cases the answer is empty when the operator ended it, else the guest did. Raises RefusedError when
    the console is not to be had. Terminal settings are as before in every case, also after SIGTERM and SIGHUP.
    """
    with _connected(run_dir, name, port) as line:
        if not os.isatty(0):
            return _Relay(line, typed=False, quiet_s=quiet_s).run()
        with _raw_terminal():
            print(_greeting(name), end="\r\n", file=sys.stderr, flush=True)
            why = _Relay(line, typed=True, quiet_s=quiet_s).run()
        print(file=sys.stderr)
        return why


def _greeting(name: str) -> str:
    rows, columns = _window()
    return (
        f"console of {name}: Ctrl-] leaves it, Enter may wake it. A serial line does not tell the guest the window's "
        f"size; in it, `stty rows {rows} cols {columns}` does"
    )


def _window() -> tuple[int, int]:
    with contextlib.suppress(OSError):
        rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))
        if rows and columns:
            return rows, columns
    return 24, 80


@contextlib.contextmanager
def _connected(run_dir: Path, name: str, port: str | None) -> Iterator[socket.socket]:
    path = run_dir / "vms" / name / ("console.sock" if port is None else serial_socket(port))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(ACCEPT_S)
        try:
            line.connect(str(path))
        except FileNotFoundError:
            raise RefusedError(why_not_there(run_dir, name, port)) from None
        except ConnectionRefusedError:
            raise RefusedError(f"vm {name} does not run; `vmhost status {name}` says why") from None
        except (TimeoutError, BlockingIOError):
            raise RefusedError(_taken(name)) from None
        except OSError as error:
            raise unusable(error, path) from error
        _await_acceptance(path, name)
        line.setblocking(False)
        yield line


def why_not_there(run_dir: Path, name: str, port: str | None = None) -> str:
    """Why a guest has no sockets, or not this one, in words."""
    if port is not None and (run_dir / "vms" / name / "console.sock").exists():
        table = f"[vm.{name}.serial.{printable(port)}]"
        return f"vm {name} runs without {table} on a socket; a port that its unit names is there after a restart"
    try:
        known = [entry.name for entry in (run_dir / "vms").iterdir()]
    except FileNotFoundError:
        known = []
    except OSError as error:
        return str(unusable(error, run_dir / "vms"))
    if name in known:
        return f"vm {name} does not run; `vmhost status {name}` says why"
    hint = suggestion(name, known)
    return f'no guest named "{name}" was ever started here' + (f"; {hint}" if hint else "")


def _await_acceptance(path: Path, name: str) -> None:
    """QEMU serves one client: the next one is connected, but nobody accepts it before the other one has left.

    In a network namespace other than QEMU's nothing is seen of its sockets, so nothing is waited for. Looks are
    counted, and not the time: a machine that stood still meanwhile gave QEMU none either.
    """
    looks = 0
    while _WAITING in (states := _states(path)):
        taken = _CONNECTED in states
        if looks * LOOK_EVERY_S >= (ACCEPT_S if taken else ANSWER_S):
            raise RefusedError(_taken(name) if taken else f"QEMU of vm {name} does not answer")
        time.sleep(LOOK_EVERY_S)
        looks += 1


def _states(path: Path) -> list[str]:
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as sockets:
        lines = [line.rstrip("\n").split(None, 7) for line in sockets]
    return [line[5] for line in lines if len(line) == 8 and line[7] == str(path)]


def _taken(name: str) -> str:
    return f"somebody else is at the console of vm {name}; it serves one at a time"


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the guest, Ctrl-C as well; undone at the end, whatever ends it."""
    before = termios.tcgetattr(0)
    handlers = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead is kept
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


class _Relay:
    """Passes bytes between standard input, the line and standard output, unchanged."""

    def __init__(self, line: socket.socket, *, typed: bool, quiet_s: float) -> None:
        self._line = line
        self._typed = typed
        self._quiet_s = quiet_s
        self._unsent = b""
        self._reading = True
        self._heard_s = time.monotonic()

    def run(self) -> str:
        """Relay until one side ends; empty when the operator did."""
        try:
            while True:
                readable, writable, _ = select.select(self._sources(), self._sinks(), [], self._wait_s())
                # Only who has looked knows that the guest is quiet: this process may have stood still as long.
                if self._wait_s() == 0 and not (readable and self._quiet_s):
                    return ""
                if writable:
                    self._send()
                if self._line in readable and not self._receive():
                    return "the console ended: its QEMU is gone"
                if 0 in readable and not self._read():
                    return ""
        except ConnectionError:
            return "the console ended: its QEMU is gone"

    def _sources(self) -> list[socket.socket | int]:
        listening = self._reading and (self._typed or len(self._unsent) < MAX_UNSENT_BYTES)
        return [self._line, 0] if listening else [self._line]

    def _sinks(self) -> list[socket.socket]:
        return [self._line] if self._unsent else []

    def _wait_s(self) -> float | None:
        """Without an end only while there is something to wait for."""
        return None if self._reading or self._unsent else max(0.0, self._left_s())

    def _left_s(self) -> float:
        return self._heard_s + self._quiet_s - time.monotonic()

    def _send(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._unsent = self._unsent[self._line.send(self._unsent) :]
            self._heard_s = time.monotonic()

    def _receive(self) -> bool:
        try:
            data = self._line.recv(CHUNK_BYTES)
        except BlockingIOError:
            return True
        self._heard_s = time.monotonic()
        while data:
            data = data[os.write(1, data) :]
            if not data:
                return True
        return False

    def _read(self) -> bool:
        """Take what was typed or piped; False when the operator leaves."""
        data = os.read(0, CHUNK_BYTES)
        if self._typed and (not data or DETACH in data):
            # What was typed before the key is still meant for the guest.
            self._unsent += data.split(DETACH)[0]
            self._send()
            return False
        if not data:
            self._reading = False
            self._heard_s = time.monotonic()
        elif not self._typed or len(self._unsent) < MAX_UNSENT_BYTES:
            self._unsent += data
        return True
