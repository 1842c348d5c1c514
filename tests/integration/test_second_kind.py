"""Faults of the second kind: not what the agent keeps breaks, but what it stands on."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST, bare_vm
from tests.integration.test_edits import conditions, pids
from tests.integration.waiting import ip_links, wait_for
from tests.netns import ip, ip_output
from tests.probe import answers_within, run_in_guest

PIDFD_GETFD = 438
_libc = ctypes.CDLL(None, use_errno=True)

BOOT_S = 180.0
FOUND_WITHIN_S = 60.0
NIC = '[vm.{0}.nic.lan]\nbridge = "br-test"'


@contextlib.contextmanager
def small_storage(path: Path, mib: int) -> Iterator[Path]:
    """A file system of a few MiB at a path."""
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=755", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def connections(agent: AgentProcess, peer: Path, *, shut: bool = False) -> int:
    """How many connections to a path the agent has, by copies of their descriptors (pidfd_getfd(2)); break them."""
    assert agent.process is not None
    pidfd, number = os.pidfd_open(agent.process.pid), 0
    for entry in Path(f"/proc/{agent.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError, ValueError):  # the agent closed it meanwhile
            if os.readlink(entry).startswith("socket:"):
                with socket.socket(fileno=_libc.syscall(PIDFD_GETFD, pidfd, int(entry.name), 0)) as copy:
                    if copy.family == socket.AF_UNIX and copy.getpeername() == str(peer):
                        number += 1
                        if shut:
                            copy.shutdown(socket.SHUT_RDWR)
    os.close(pidfd)
    return number


@pytest.fixture
def two(agent: AgentProcess) -> AgentProcess:
    """An agent with two guests."""
    agent.drop("net.toml", BRIDGE)
    for name in ("web", "db"):
        agent.drop(f"{name}.toml", bare_vm(name, NIC.format(name)))
    agent.start()
    return agent


def test_a_hanging_qemu_is_told_within_half_a_minute_and_delays_nobody(two: AgentProcess) -> None:
    before = pids(two)
    web, db = before["web"], before["db"]
    assert web is not None
    assert db is not None
    os.kill(web, signal.SIGSTOP)
    try:
        ip("link del web-lan", "link del db-lan")
        wait_for(lambda: {"web-lan", "db-lan"} <= ip_links())
        os.kill(db, signal.SIGKILL)
        wait_for(lambda: pids(two)["db"] not in {db, None}, 30.0)
        wait_for(lambda: "Unresponsive" in conditions(two, "vms", "web"), FOUND_WITHIN_S)
        assert two.vm("web")["state"] == "unresponsive"
    finally:
        os.kill(web, signal.SIGCONT)
    wait_for(lambda: conditions(two, "vms", "web") == {}, 30.0)
    assert two.vm("web")["state"] == "running"
    assert pids(two)["web"] == web


def test_a_monitor_connection_that_breaks_is_made_anew(two: AgentProcess) -> None:
    before, monitor = pids(two), two.run_dir / "vms" / "web" / "qmp.sock"
    for _ in range(3):
        wait_for(lambda: connections(two, monitor) == 1)  # it may be on its way
        assert connections(two, monitor, shut=True) == 1
        two.vmhost("reset", "web")  # over the monitor
    assert pids(two) == before
    two.vmhost("stop", "web")
    assert pids(two)["db"] == before["db"]


def test_lost_link_events_are_made_up_for(two: AgentProcess) -> None:
    assert two.process is not None
    ip("link add noise0 type veth peer name noise1")
    two.process.send_signal(signal.SIGSTOP)
    try:
        ip(*(f"link set noise0 mtu {1300 + number % 2}" for number in range(20_000)))
        ip("link del web-lan", "link set br-test down")
    finally:
        two.process.send_signal(signal.SIGCONT)
    # Not asked for: a question would have the agent look at everything.
    wait_for(lambda: "UP" in json.loads(ip_output("-j link show br-test"))[0]["flags"])
    wait_for(lambda: "web-lan" in ip_links())
    wait_for(lambda: float(re.findall(r"(?m)^vmhost_netlink_overflows_total\S* (\S+)", two.metrics())[0]) > 0, 30.0)


def test_a_unit_directory_whose_watch_is_lost_is_still_read(two: AgentProcess) -> None:
    """The kernel takes a watch away without a word when its file system goes; here its number is removed."""
    assert two.process is not None
    pid = two.process.pid
    pidfd = os.pidfd_open(pid)
    removed = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # another one, that the agent closed meanwhile
            if os.readlink(entry) == "anon_inode:inotify":
                told = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text()
                copy = _libc.syscall(PIDFD_GETFD, pidfd, int(entry.name), 0)
                for number in re.findall(r"inotify wd:([0-9a-f]+)", told):
                    assert _libc.inotify_rm_watch(copy, int(number, 16)) == 0
                    removed += 1
                os.close(copy)
    os.close(pidfd)
    assert removed
    two.drop("more.toml", bare_vm("more"))
    wait_for(lambda: pids(two).get("more"), FOUND_WITHIN_S)


def test_a_guest_that_fills_its_storage_waits_and_goes_on_when_there_is_room(
    agent: AgentProcess, boot_files: str
) -> None:
    with small_storage(agent.folder / "storage", 160) as storage:
        (storage / "ballast").write_bytes(b"\1" * (80 << 20))
        agent.drop("net.toml", BRIDGE)
        disk = f'[vm.web.disk.data]\npath = "{storage}/web.raw"\nsize = "128M"\n'
        agent.drop(
            "web.toml",
            f'[vm.web]\nmemory = "128M"\naccel = "tcg"\nstop-timeout = "1s"\n{boot_files}{NIC.format("web")}\n{disk}',
        )
        agent.start()
        answers_within(GUEST, BOOT_S, BRIDGE_LINK)
        before = agent.vm("web")["pid"]
        run_in_guest(
            GUEST,
            "(tr '\\0' x </dev/zero | dd of=/dev/vda bs=1M count=120 iflag=fullblock conv=fsync;"
            " echo $? >/done) >/dev/null 2>&1 &",
        )
        wait_for(lambda: "PausedOnIoError" in conditions(agent, "vms", "web"), 120.0)
        assert agent.vm("web")["state"] == "paused"
        os.truncate(storage / "ballast", 60 << 20)  # written anew it would be empty for a moment, with room enough
        time.sleep(3.0)  # three looks find some room, and not enough of it
        assert agent.vm("web")["state"] == "paused"
        (storage / "ballast").unlink()
        wait_for(lambda: agent.vm("web")["state"] == "running", 60.0)
        wait_for(lambda: run_in_guest(GUEST, "cat /done").strip() == "0", 120.0)
        assert agent.vm("web")["pid"] == before
        assert "PausedOnIoError" not in conditions(agent, "vms", "web")
        agent.vmhost("stop", "web")
        agent.end()


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_state_directory_that_takes_nothing_is_told_and_nothing_is_lost(agent: AgentProcess, how: str) -> None:
    with small_storage(agent.folder / "state", 1) as state:
        agent.drop("net.toml", BRIDGE)
        agent.drop("web.toml", bare_vm("web", NIC.format("web")))
        agent.start()
        before = pids(agent)
        if how == "read-only":
            agent.kill()  # the kernel refuses to change a file system in which a file is open for writing
        set_writable(state, how, writable=False)
        if how == "read-only":
            agent.start()
        agent.drop("db.toml", bare_vm("db", NIC.format("db")))
        wait_for(lambda: pids(agent).get("db"))
        wait_for(lambda: "StateNotSaved" in own_conditions(agent))
        ip("link del web-lan")
        wait_for(lambda: "web-lan" in ip_links(), 30.0)
        agent.kill()
        agent.start()
        assert pids(agent)["web"] == before["web"]
        both = pids(agent)
        assert both["db"] is not None
        wait_for(lambda: "StateNotSaved" in own_conditions(agent))
        set_writable(state, how, writable=True)
        agent.vmhost("wait", "settled")
        wait_for(lambda: own_conditions(agent) == set())
        assert (state / "units" / "db.toml").read_text() == bare_vm("db", NIC.format("db"))
        agent.kill()
        agent.start()
        assert pids(agent) == both
        agent.end()


def own_conditions(agent: AgentProcess) -> set[str]:
    return {condition["type"] for condition in agent.status()["agent"]["conditions"]}


def set_writable(state: Path, how: str, *, writable: bool) -> None:
    """Fill a file system, or make it read-only, and the other way round."""
    if how == "read-only":
        subprocess.run(["mount", "-o", f"remount,{'rw' if writable else 'ro'}", str(state)], check=True)
    elif writable:
        (state / "filler").unlink()
    else:
        with contextlib.suppress(OSError), open(state / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(b"x" * 4096)


JUMPING_CLOCK = """
import signal, sys, time
real, jumped = time.time, [0.0]
def jump(number, frame): jumped[0] += 1e9 if number == signal.SIGUSR1 else -2e9
time.time = lambda: real() + jumped[0]
signal.signal(signal.SIGUSR1, jump)
signal.signal(signal.SIGUSR2, jump)
from agent.__main__ import main
sys.exit(main())
"""


def test_a_wall_clock_that_jumps_by_decades_changes_nothing(agent: AgentProcess) -> None:
    """Decisions go by CLOCK_BOOTTIME. The process, not the machine, gets the clock that jumps; its readers are real."""
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", bare_vm("web", NIC.format("web")))
    with open(agent.folder / "agent.log", "ab") as log:
        command = [sys.executable, "-c", JUMPING_CLOCK, *agent.flags, "--listen", "127.0.0.1:9177"]
        agent.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    agent.vmhost("wait", "settled", "--timeout", "60")
    go_on_after_jump(agent, signal.SIGUSR1, "more")
    for _ in range(2):
        old = agent.vm("web")["pid"]
        os.kill(old, signal.SIGKILL)
        wait_for_successor(agent, old)
    os.kill(agent.vm("web")["pid"], signal.SIGKILL)
    time.sleep(0.2)  # it is put off for up to four seconds: most times the clock jumps back meanwhile
    agent.process.send_signal(signal.SIGUSR2)
    agent.vmhost("wait", "running", "web", "--timeout", "60")


def wait_for_successor(agent: AgentProcess, old: int) -> None:
    wait_for(lambda: pids(agent)["web"] not in {old, None})


def go_on_after_jump(agent: AgentProcess, jump: signal.Signals, new: str) -> None:
    """Have the clock jump; then links are healed, files are read, guests come and come back as ever."""
    assert agent.process is not None
    before = pids(agent)["web"]
    assert before is not None
    agent.process.send_signal(jump)
    agent.vmhost("wait", "in-sync", "--timeout", "60")
    assert pids(agent)["web"] == before
    ip("link del web-lan")
    wait_for(lambda: "web-lan" in ip_links(), 30.0)
    agent.drop("web.toml", bare_vm("web", f'description = "{new}"\n' + NIC.format("web")))
    wait_for(lambda: agent.vm("web")["description"] == new, 30.0)
    agent.drop(f"{new}.toml", bare_vm(new))
    wait_for(lambda: pids(agent).get(new))
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: pids(agent)["web"] not in {before, None})
    agent.vmhost("wait", "running", "web", "--timeout", "60")
