"""`vmhost console`: a real guest's shell over its serial port, in a pipe and on a terminal."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from select import select

import pytest

from agent.cli import console
from agent.cli.console import _Relay
from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST, bare_vm
from tests.integration.test_guest import unit
from tests.probe import answers_within
from tests.qemu import short_folder

BOOT_S = 180.0
QUIET_S = "10"
"""A guest that is slow to answer is not quiet yet."""


@dataclass
class Typist:
    """`vmhost console` on a terminal of its own, and what it shows there."""

    process: subprocess.Popen[bytes]
    terminal: int
    before: list[object]
    shown: bytes = field(default=b"")

    def type(self, keys: bytes) -> None:
        os.write(self.terminal, keys)

    def sees(self, text: bytes, timeout_s: float = 60.0) -> bool:
        """Whether the terminal shows it from here on; what came before it is forgotten."""
        deadline_s = time.monotonic() + timeout_s
        while text not in self.shown:
            readable, _, _ = select([self.terminal], [], [], max(0.0, deadline_s - time.monotonic()))
            if not readable:
                return False
            try:
                self.shown += os.read(self.terminal, 65536)
            except OSError:  # EIO: its last user has closed it (tty_io.c)
                return text in self.shown
        self.shown = self.shown.split(text, 1)[1]
        return True

    def settings(self) -> list[object]:
        return list(termios.tcgetattr(self.terminal))


@contextmanager
def typing(agent: AgentProcess, name: str) -> Iterator[Typist]:
    ours, theirs = pty.openpty()
    before = list(termios.tcgetattr(ours))
    command = [sys.executable, "-m", "agent.cli.main", *agent.flags, "console", name]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    try:
        yield Typist(process, ours, before)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
        os.close(theirs)
        os.close(ours)


@pytest.fixture
def shell(agent: AgentProcess, boot_files: str) -> AgentProcess:
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", unit(boot_files))
    agent.start()
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    return agent


def piped(agent: AgentProcess, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent.cli.main", *agent.flags, "console", *words]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)


def test_a_guests_shell(shell: AgentProcess) -> None:
    done = piped(shell, "echo $((6 * 7))-answer\n", "web", "--quiet-for", QUIET_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert "42-answer" in done.stdout
    with typing(shell, "web") as typist:
        assert typist.sees(b"console of web: Ctrl-] leaves it")
        assert typist.sees(b"stty rows ")
        typist.type(b"echo $((7 * 8))-typed\r")
        assert typist.sees(b"56-typed")
        # Said by what it is to end: a shell's child that has not begun yet may lose it.
        typist.type(b"sh -c 'echo $((3 * 3))-there; exec sleep 100'\r")
        assert typist.sees(b"9-there")
        typist.type(b"\x03")  # Ctrl-C is the guest's, not ours
        assert typist.sees(b"/ # ")
        typist.type(b"echo $((8 * 8))-alive\r")
        assert typist.sees(b"64-alive")
        assert typist.settings() != typist.before
        second = piped(shell, "", "web")
        busy = "vmhost: somebody else is at the console of vm web; it serves one at a time\n"
        assert (second.returncode, second.stdout, second.stderr) == (1, "", busy)
        typist.type(b"\x1d")
        assert typist.process.wait(60) == 0
        assert typist.settings() == typist.before
    many = "".join(f"echo line-$(({number}))\n" for number in range(300))
    done = piped(shell, many, "web", "--quiet-for", QUIET_S)
    assert [line for line in done.stdout.splitlines() if line.startswith("line-")][-1] == "line-299"


def test_what_was_written_while_the_command_stood_still_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    """It takes the guest for quiet only after it has looked: until then it was not there to hear anything."""
    line, guest = socket.socketpair()
    with line, guest:
        line.setblocking(False)
        relay = _Relay(line, typed=False, quiet_s=0.1)
        relay._reading = False
        relay._heard_s -= 60.0
        guest.sendall(b"late\n")
        assert relay.run() == ""
    assert capfd.readouterr().out == "late\n"


def test_who_waits_for_no_quiet_ends_with_the_input(capfd: pytest.CaptureFixture[str]) -> None:
    """Also where the guest never stops: what it says from then on is not asked for."""
    line, guest = socket.socketpair()
    with line, guest:
        line.setblocking(False)
        relay = _Relay(line, typed=False, quiet_s=0.0)
        relay._reading = False
        guest.sendall(b"on and on\n")
        assert relay.run() == ""
    assert capfd.readouterr().out == ""


def test_a_qemu_that_nobody_has_may_be_slow_to_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "ACCEPT_S", 0.0)
    with short_folder() as folder, socket.socket(socket.AF_UNIX) as listening:
        path = folder / "vms" / "web" / "console.sock"
        path.parent.mkdir(parents=True)
        listening.bind(str(path))
        listening.listen()
        accepted: list[socket.socket] = []
        accepting = threading.Timer(0.2, lambda: accepted.append(listening.accept()[0]))
        accepting.start()
        with console._connected(folder, "web", None):
            accepting.join()
        accepted[0].close()


def test_the_terminal_is_as_before_whatever_ends_it(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web", 'restart = "never"'))
    agent.start()
    with typing(agent, "web") as typist:
        assert typist.sees(b"stty rows ")
        assert typist.settings() != typist.before
        typist.process.send_signal(signal.SIGTERM)
        assert typist.process.wait(60) == 128 + signal.SIGTERM
        assert typist.settings() == typist.before
    with typing(agent, "web") as typist:
        assert typist.sees(b"stty rows ")
        assert typist.settings() != typist.before
        os.kill(int(agent.vm("web")["pid"]), signal.SIGKILL)
        assert typist.process.wait(60) == 1
        assert typist.settings() == typist.before
        assert typist.sees(b"the console ended: its QEMU is gone")


def test_consoles_that_are_not_to_be_had(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web"))
    agent.start()
    wrong = piped(agent, "", "wbe")
    assert (wrong.returncode, wrong.stderr) == (
        1,
        'vmhost: no guest named "wbe" was ever started here; did you mean "web"?\n',
    )
    pid = int(agent.vm("web")["pid"])
    os.kill(pid, signal.SIGSTOP)
    try:
        hung = piped(agent, "", "web")
        assert (hung.returncode, hung.stderr) == (1, "vmhost: QEMU of vm web does not answer\n")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert piped(agent, "", "web", "--quiet-for", "0").returncode == 0
    agent.vmhost("stop", "web")
    stopped = piped(agent, "", "web")
    assert (stopped.returncode, stopped.stderr) == (1, "vmhost: vm web does not run; `vmhost status web` says why\n")


def test_a_guest_that_reads_nothing_can_be_left(agent: AgentProcess) -> None:
    """Bare firmware never empties its serial port: what is typed piles up, and the detach key works all the same."""
    agent.drop("web.toml", bare_vm("web"))
    agent.start()
    with typing(agent, "web") as typist:
        assert typist.sees(b"stty rows ")
        assert typist.settings() != typist.before
        for _ in range(300):
            typist.type(b"x" * 1000)
        typist.type(b"\x1d")
        assert typist.process.wait(60) == 0
