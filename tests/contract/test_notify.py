"""The service manager's protocol against a real socket, as sd_notify(3) has it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.host.notify import Notifier

ROOT = Path(__file__).resolve().parent.parent.parent


class Manager:
    """The receiving side: a socket with the manager's own options."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(30)

    def heard(self) -> list[str]:
        return self.heard_with_descriptors()[0]

    def heard_with_descriptors(self) -> tuple[list[str], list[int]]:
        data, fds, _, _ = socket.recv_fds(self.socket, 4096, 4)
        return data.decode().split("\n"), fds


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify") if request.param == "path" else f"@vmhost-test-{os.getpid()}")
    with manager.socket:
        yield manager


@pytest.fixture
def notifier(manager: Manager) -> Iterator[Notifier]:
    with Notifier.from_environment({"NOTIFY_SOCKET": manager.address}) as notifier:
        yield notifier


def test_each_message_is_one_datagram(manager: Manager, notifier: Notifier) -> None:
    assert notifier.is_present
    assert notifier.ready()
    assert notifier.status("2 guests run\nand more")
    assert notifier.alive()
    assert notifier.stopping()
    assert [manager.heard() for _ in range(4)] == [
        ["READY=1"],
        ["STATUS=2 guests run and more"],
        ["WATCHDOG=1"],
        ["STOPPING=1"],
    ]


def test_a_reload_says_when_it_began(manager: Manager, notifier: Notifier) -> None:
    before = time.monotonic_ns() // 1000
    assert notifier.reloading()
    first, second = manager.heard()
    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_a_kept_descriptor_is_the_same_open_file(manager: Manager, notifier: Notifier, tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb+") as file:
        assert notifier.keep("tap.web.lan", file.fileno())
        lines, (copy,) = manager.heard_with_descriptors()
        assert lines == ["FDSTORE=1", "FDNAME=tap.web.lan", "FDPOLL=0"]
        with open(copy, "wb") as same:
            same.write(b"through the copy")
        assert file.seek(0, os.SEEK_CUR) == len(b"through the copy")


def test_a_release_waits_until_the_manager_has_done_it(
    manager: Manager, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.host.notify.PATIENCE_S", 30.0)  # a busy host's thread takes longer than a manager may

    def manage() -> list[list[str]]:
        heard = [manager.heard(), manager.heard()]
        lines, (barrier,) = manager.heard_with_descriptors()
        os.close(barrier)
        return [*heard, lines]

    with ThreadPoolExecutor() as other:
        managing = other.submit(manage)
        assert notifier.release("tap.web.lan", "tap.web.wan")
        removals = [["FDSTOREREMOVE=1", f"FDNAME=tap.web.{nic}"] for nic in ("lan", "wan")]
        assert managing.result() == [*removals, ["BARRIER=1"]]


@pytest.mark.usefixtures("manager")
def test_a_release_that_nobody_answers_is_given_up(notifier: Notifier) -> None:
    began = time.monotonic()
    assert not notifier.release("tap.web.lan")
    assert 0.04 < time.monotonic() - began < 20


def in_a_process_with_descriptors(names: str, program: str) -> str:
    """What a program prints that begins with as many kept descriptors, from 3 on, as there are names."""
    numbers = range(3, 4 + names.count(":"))
    begin = (
        "import os\n"
        "from agent.host.notify import Notifier\n"
        "null = os.open('/dev/null', os.O_RDONLY)\n"
        f"for number in {list(numbers)}: os.dup2(null, number)\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "notifier = Notifier.from_environment(os.environ)\n"
        "def is_open(fd): return os.path.exists(f'/proc/self/fd/{fd}')\n"
    )
    environment = {**os.environ, "LISTEN_FDS": str(len(numbers)), "LISTEN_FDNAMES": names}
    done = subprocess.run(
        [sys.executable, "-c", begin + program], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout


def test_what_was_kept_comes_back_once_and_is_closed_on_exec() -> None:
    program = (
        "fd = notifier.take_kept('tap.web.lan')\n"
        "print(fd, os.get_inheritable(fd), notifier.take_kept('tap.web.lan'))\n"
        "print([name for name in os.environ if name.startswith('LISTEN_')])\n"
        "notifier.drop_kept()\n"
        "print(is_open(3), is_open(4))\n"
    )
    assert in_a_process_with_descriptors("tap.gone.lan:tap.web.lan", program) == "4 False None\n[]\nFalse True\n"


def test_of_two_descriptors_with_one_name_neither_is_believed() -> None:
    program = "print(notifier.take_kept('tap.web.lan'), is_open(3), is_open(4))"
    assert in_a_process_with_descriptors("tap.web.lan:tap.web.lan", program) == "None False False\n"


def test_the_watchdog_is_asked_of_this_process_only() -> None:
    def asked(**environment: str) -> float | None:
        return Notifier.from_environment(environment).watchdog_s

    assert asked(WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid())) == 30.0
    assert asked(WATCHDOG_USEC="30000000") == 30.0
    assert asked(WATCHDOG_USEC="30000000", WATCHDOG_PID="1") is None
    assert asked() is None
    assert asked(WATCHDOG_USEC="0") is None


def test_without_a_manager_nothing_is_told_and_nothing_fails() -> None:
    with Notifier.from_environment({}) as notifier:
        assert not notifier.is_present
        assert not notifier.ready()
        assert not notifier.keep("tap.web.lan", 0)


def test_a_manager_that_does_not_read_is_not_waited_for(manager: Manager, notifier: Notifier) -> None:
    began = time.monotonic()
    while notifier.alive():
        assert time.monotonic() - began < 30
    assert not notifier.status("nobody listens")
    manager.socket.close()
    assert not notifier.alive()
