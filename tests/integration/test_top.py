"""`vmhost top` with a real agent and a guest that writes to its disk: on a terminal, and as a table."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from select import select
from typing import Any

from agent.cli.screen import BEGIN, END, HOME, LEAVE, REST_OF_LINE, REST_OF_SCREEN
from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST, bare_vm
from tests.integration.test_guest import BOOT_S, unit
from tests.integration.waiting import wait_for
from tests.probe import answers_within, tell_guest

WRITES = "dd if=/dev/zero of=/dev/vda bs=64k count=1000000 oflag=direct >/dev/null 2>&1 &"


@dataclass
class Terminal:
    """`vmhost top` on a terminal of its own, and the latest frame that it drew there."""

    process: subprocess.Popen[bytes]
    ours: int
    before: list[object]
    drawn: str = ""
    frame: list[str] = field(default_factory=list)

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def until(self, holds: Callable[[list[str]], bool], timeout_s: float = 60.0) -> list[str]:
        """The first frame from here on of which this is true."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            while END in self.drawn:
                text, self.drawn = self.drawn.split(END, 1)
                text = text.split(BEGIN + HOME, 1)[1].split("\r\r\n" + REST_OF_SCREEN)[0]  # a tty adds the first \r
                self.frame = text.replace(REST_OF_LINE, "").split("\r\r\n")
                if holds(self.frame):
                    return self.frame
            self._read(deadline_s)
        raise AssertionError("no such frame; the last one:\n" + "\n".join(self.frame))

    def forget(self) -> None:
        """Let go of what was drawn until now."""
        while self._read(time.monotonic()):
            pass
        self.drawn = ""

    def rest(self) -> str:
        """What it writes until it ends."""
        assert self.process.wait(60) is not None
        while self._read(time.monotonic()):
            pass
        return self.drawn

    def settings(self) -> list[object]:
        return list(termios.tcgetattr(self.ours))

    def _read(self, deadline_s: float) -> bool:
        readable, _, _ = select([self.ours], [], [], max(0.0, deadline_s - time.monotonic()))
        if not readable:
            return False
        self.drawn += os.read(self.ours, 65536).decode()
        return True


@contextmanager
def watching(agent: AgentProcess, *words: str, **environ: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    before = list(termios.tcgetattr(ours))
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
    command = ["setsid", "--ctty", sys.executable, "-m", "agent.cli.main", *agent.flags, "top", *words]
    variables = {**os.environ, "TERM": "xterm-256color", **environ}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=variables)
    try:
        yield Terminal(process, ours, before)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
        os.close(theirs)
        os.close(ours)


def names(frame: list[str]) -> list[str]:
    """The first words of the lines that are about guests."""
    return [line.split()[0] for line in frame[3:] if line and not line.startswith("c cpu")]


def test_a_guest_that_writes(agent: AgentProcess, boot_files: str) -> None:
    agent.drop("net.toml", BRIDGE)
    disk = f'[vm.web.disk.data]\npath = "{agent.folder}/data.raw"\nsize = "1G"\niops = 50\n'
    agent.drop("web.toml", unit(boot_files) + disk)
    agent.drop("idle.toml", bare_vm("idle"))
    agent.start()
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    tell_guest(GUEST, WRITES)

    found: list[dict[str, Any]] = []

    def at_full_speed() -> bool:
        found[:] = json.loads(agent.vmhost("top", "--json", "--interval", "3", "--sort", "iops"))["guests"]
        return 40 <= (found[0]["writes_per_s"] or 0) <= 60 and found[0]["write_p99_s"] <= 0.5

    wait_for(at_full_speed, 120.0, lambda: str(found))  # it has just begun, and a busy machine keeps it from its fifty
    web, idle = found
    assert (web["name"], web["state"], idle["name"]) == ("web", "running", "idle")
    assert 40 * 65536 <= web["written_bytes_per_s"] <= 60 * 65536
    assert web["write_p99_s"] >= 0.01, "one write at a time, 50 a second: 20 ms, and what a busy machine adds"
    assert web["read_p99_s"] is None
    assert web["cpu_ratio"] > 0
    assert web["received_bytes_per_s"] is not None
    assert (idle["writes_per_s"], idle["received_bytes_per_s"]) == (None, None)

    table = agent.vmhost("top", "--interval", "1").splitlines()
    assert table[0].split()[:3] == ["NAME", "STATE", "CPU%"]
    assert sorted(line.split()[0] for line in table[1:]) == ["idle", "web"]

    with watching(agent, "--interval", "1", "--sort", "iops") as terminal:
        frame = terminal.until(lambda lines: names(lines) == ["web", "idle"] and "ms" in lines[3])
        assert "every 1 s, by iops" in frame[0]
        assert "2 guests" in frame[1]
        assert len(frame) == 24
        terminal.type(b"N")
        terminal.until(lambda lines: names(lines) == ["idle", "web"] and "by name" in lines[0])
        terminal.type(b"r")
        terminal.until(lambda lines: names(lines) == ["web", "idle"] and "reversed" in lines[0])
        terminal.resize(40, 8)
        frame = terminal.until(lambda lines: len(lines) == 8)
        assert "DISK-W" not in frame[2]
        terminal.type(b"\x1b[")  # a slow line brings an arrow key in two pieces
        terminal.resize(40, 4)
        terminal.until(lambda lines: len(lines) == 4 and names(lines) == ["web"])
        terminal.type(b"B")
        terminal.until(lambda lines: names(lines) == ["idle"])
        assert terminal.settings() != terminal.before
        terminal.type(b"q")
        assert terminal.rest().endswith(LEAVE)
        assert terminal.process.returncode == 0
        assert terminal.settings() == terminal.before


ENDS: dict[bytes | signal.Signals, int] = {
    b"q": 0,
    b"\x03": 0,
    signal.SIGTERM: 128 + signal.SIGTERM,
    signal.SIGHUP: 128 + signal.SIGHUP,
}
"""What ends it, and its exit code then."""


def test_the_terminal_is_as_before_whatever_ends_it(agent: AgentProcess) -> None:
    agent.start()
    for how, code in ENDS.items():
        with watching(agent) as terminal:
            terminal.until(lambda lines: "0 guests" in lines[1])
            assert terminal.settings() != terminal.before
            if isinstance(how, bytes):
                terminal.type(how)
            else:
                terminal.process.send_signal(how)
            assert terminal.rest().endswith(LEAVE)
            assert terminal.process.returncode == code
            assert terminal.settings() == terminal.before
    with watching(agent) as terminal:
        terminal.until(lambda lines: "0 guests" in lines[1])
        terminal.type(b"\x1a")  # Ctrl-Z
        _, status = os.waitpid(terminal.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert terminal.settings() == terminal.before
        terminal.forget()  # also a frame that it drew before it had read the key
        terminal.process.send_signal(signal.SIGCONT)
        terminal.until(lambda lines: "0 guests" in lines[1])
        assert terminal.settings() != terminal.before
        terminal.type(b"q")
        terminal.rest()
        assert terminal.process.returncode == 0


def test_an_agent_that_goes_away_is_waited_for(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web"))
    agent.start()
    with watching(agent, "--interval", "1", NO_COLOR="1") as terminal:
        terminal.until(lambda lines: names(lines) == ["web"])
        agent.kill()
        frame = terminal.until(lambda lines: "no agent answers at" in lines[0])
        assert names(frame) == ["web"]
        agent.start()
        frame = terminal.until(lambda lines: "every 1 s, by cpu" in lines[0])
        assert not [line for line in frame if "\x1b" in line]
        terminal.type(b"q")
        terminal.rest()
    done = agent.command("top", "--interval", "0.5")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        'vmhost top: error: argument --interval: "0.5" is no interval: 1 to 3600 seconds',
    )
    agent.kill()
    assert agent.command("top").returncode == 3


def test_one_hung_guest_keeps_nobody_waiting(agent: AgentProcess) -> None:
    for name in ("one", "two"):
        agent.drop(f"{name}.toml", bare_vm(name))
    agent.start()
    began_s = time.monotonic()
    agent.vmhost("top", "--interval", "1")
    usual_s = time.monotonic() - began_s
    pid = int(agent.vm("two")["pid"])
    os.kill(pid, signal.SIGSTOP)

    def only_one_answers() -> bool:
        began_s = time.monotonic()
        found: dict[str, Any] = json.loads(agent.vmhost("top", "--json", "--interval", "1"))
        assert time.monotonic() - began_s < usual_s + 30, "two answers, half a second's patience each"
        ratios = {guest["name"]: guest["cpu_ratio"] for guest in found["guests"]}
        assert ratios["two"] is None
        return ratios["one"] is not None

    try:
        wait_for(only_one_answers)  # on a busy machine half a second may be too short for it, too
    finally:
        os.kill(pid, signal.SIGCONT)
