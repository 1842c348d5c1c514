"""The agent and its service manager, of which there is a real socket here; tests/lab has a real systemd."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, bare_vm

WEB = BRIDGE + bare_vm("web", f'[vm.web.nic.lan]\nbridge = "{BRIDGE_LINK}"\n')


class Manager:
    """Hears what the agent tells, and answers what waits for an answer."""

    def __init__(self, heard_at: socket.socket) -> None:
        self._socket = heard_at
        self.kept: dict[str, int] = {}

    def until(self, wanted: str, silence_s: float = 60.0) -> list[str]:
        """All lines up to one that begins as wanted; TimeoutError after a silence."""
        self._socket.settimeout(silence_s)
        heard: list[str] = []
        deadline_s = time.monotonic() + 120
        while not any(line.startswith(wanted) for line in heard):
            assert time.monotonic() < deadline_s, heard
            data, fds, _, _ = socket.recv_fds(self._socket, 4096, 1)
            lines = data.decode().split("\n")
            if lines[0] == "FDSTORE=1":
                self.kept[lines[1].removeprefix("FDNAME=")] = fds[0]
            elif lines[0] == "FDSTOREREMOVE=1" and (fd := self.kept.pop(lines[1].removeprefix("FDNAME="), None)):
                os.close(fd)
            elif lines[0] == "BARRIER=1":
                os.close(fds[0])
            heard += lines
        return heard

    def close(self) -> None:
        for fd in self.kept.values():
            os.close(fd)


@pytest.fixture
def manager(agent: AgentProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    address = str(agent.folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard_at:
        heard_at.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "600000")
        manager = Manager(heard_at)
        yield manager
        manager.close()


def test_it_tells_what_a_service_manager_wants_to_know(agent: AgentProcess, manager: Manager) -> None:
    agent.drop("web.toml", WEB)
    agent.start(settle=False)
    manager.until("READY=1")
    manager.until("STATUS=1 of 1 guest running, 1 bridge; settled")
    assert list(manager.kept) == ["tap.web.lan"]
    manager.until("WATCHDOG=1")
    assert agent.process is not None
    agent.process.send_signal(signal.SIGHUP)
    manager.until("RELOADING=1")
    manager.until("READY=1")
    agent.vmhost("stop", "web", "--no-wait")
    manager.until("FDSTOREREMOVE=1")
    assert manager.kept == {}
    agent.process.send_signal(signal.SIGTERM)
    manager.until("STOPPING=1")
    assert agent.process.wait(60) == 0


def test_an_agent_that_stands_still_feeds_no_watchdog(agent: AgentProcess, manager: Manager) -> None:
    agent.start()
    manager.until("WATCHDOG=1")
    assert agent.process is not None
    agent.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, agent.process.pid, os.WSTOPPED)
    with pytest.raises(TimeoutError):
        manager.until("nothing of this kind", silence_s=1.5)
