"""What guests of a lab write to their consoles, in the order in which it comes."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.lab.machine import Lab

GONE = ""
"""Instead of a line: the console is closed, so its QEMU is gone."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a guest wrote, when it was read."""

    at_s: float
    vm: str
    text: str


class Consoles:
    """Some guests' consoles, as one reader; QEMU serves no other one meanwhile."""

    def __init__(self, sockets: dict[str, socket.socket]) -> None:
        self.lines: list[Line] = []
        self._sockets = sockets
        self._begun = dict.fromkeys(sockets, b"")
        self._selector = selectors.DefaultSelector()
        for name, line in sockets.items():
            self._selector.register(line, selectors.EVENT_READ, name)

    def said(self, name: str) -> list[str]:
        """What one guest has written."""
        return [line.text for line in self.lines if line.vm == name]

    def wait_for_shells(self, timeout_s: float) -> None:
        """Press Enter, once a second, until each guest's shell has answered."""
        deadline_s = time.monotonic() + timeout_s
        while waited := [name for name in self._sockets if not any(line.startswith("/ #") for line in self.said(name))]:
            assert time.monotonic() < deadline_s, (waited, self.lines)
            for name in waited:
                self._sockets[name].sendall(b"\n")
            self._read_for(1.0)

    def read_to_the_end(self, timeout_s: float) -> None:
        """Read until every QEMU is gone."""
        deadline_s = time.monotonic() + timeout_s
        while self._selector.get_map():
            assert time.monotonic() < deadline_s, self.lines
            self._read_for(1.0)

    def _read_for(self, time_s: float) -> None:
        deadline_s = time.monotonic() + time_s
        while self._selector.get_map() and (left_s := deadline_s - time.monotonic()) > 0:
            ready = [(str(key.data), *self._receive(str(key.data))) for key, _ in self._selector.select(left_s)]
            # Of what came at once an end is the older: whoever is told after it has some way to go to its console.
            for name, data, ended in sorted(ready, key=lambda one: not one[2]):
                self._note(name, data, ended=ended)

    def _receive(self, name: str) -> tuple[bytes, bool]:
        """What there is to read, and whether nothing follows it."""
        data = b""
        try:
            while chunk := self._sockets[name].recv(65_536):
                data += chunk
        except BlockingIOError:
            return data, False
        except ConnectionError:
            pass
        return data, True

    def _note(self, name: str, data: bytes, *, ended: bool) -> None:
        now_s = time.monotonic()
        *whole, self._begun[name] = (self._begun[name] + data).split(b"\n")
        texts = [line.decode(errors="replace").strip() for line in whole]
        self.lines += [Line(now_s, name, text) for text in texts if text != GONE]
        if ended:
            self._selector.unregister(self._sockets[name])
            self.lines.append(Line(now_s, name, GONE))

    def close(self) -> None:
        """Let go of all of them."""
        self._selector.close()
        for line in self._sockets.values():
            line.close()


@contextmanager
def recorded(lab: Lab, names: Iterable[str]) -> Iterator[Consoles]:
    """The consoles of these guests from now on."""
    with contextlib.ExitStack() as opened:
        sockets = {name: opened.enter_context(socket.socket(socket.AF_UNIX)) for name in names}
        for name, line in sockets.items():
            line.connect(str(lab.root / f"run/vmhost/vms/{name}/console.sock"))
            line.setblocking(False)
        consoles = Consoles(sockets)
        opened.callback(consoles.close)
        yield consoles
