"""A small internet around a test's host: a stranger behind the uplink, and boxes that stand for guests.

The host is the namespace that the test is in (tests.netns). Each box is a namespace of its own, held by a process of
its own that also listens and asks there, so that nothing of the test's thread has to move.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.netns import ip

BOX = Path(__file__).with_name("box.py")


class Box:
    """A namespace of its own with one link to the host's; `ask` has it do something there and returns the answer."""

    def __init__(self, link: str, *, addresses: tuple[str, ...] = (), gateways: tuple[str, ...] = ()) -> None:
        self.link = link
        self._process = subprocess.Popen(
            [sys.executable, "-S", str(BOX)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        far = "eth0"
        ip(f"link add {link} type veth peer name {far} netns {self._process.pid}", f"link set {link} up")
        commands = ["link set lo up", f"link set {far} up"]
        commands += [f"addr add {one} dev {far}{' nodad' if ':' in one else ''}" for one in addresses]
        commands += [f"route add default via {one} dev {far}" for one in gateways]
        self.ask("ip", commands)

    @property
    def pid(self) -> int:
        """The process that holds the namespace."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the box with its namespace."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def ask(self, what: str, *arguments: Any) -> Any:
        """Have the box do one of the functions of tests/box.py, by its name."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([what, arguments]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(f"{self.link}: {what}{arguments}: {answer['error']}")
        return answer["is"]

    def serve(self, port: int, name: str, proto: str = "tcp") -> None:
        """Answer on a port with a name and with who asked, over IPv4 and IPv6."""
        self.ask(f"serve_{proto}", port, name)

    def hear(self, host: str, port: int, proto: str = "tcp", timeout_s: float = 10.0) -> str | None:
        """What answers there: `NAME ADDRESS OF WHO ASKED`; None for nobody."""
        heard: str | None = self.ask(f"hear_{proto}", host, port, timeout_s)
        return heard
