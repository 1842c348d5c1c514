"""An agent in a network namespace and folders of its own, asked without the start of a process each time."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.cli.client import AgentClient
from tests.agent_process import AgentProcess
from tests.netns import network_namespace

KERNEL = "halt"
"""The kernel of bare guests, in the agent's folder."""
MANY = "1000"
"""`--max-disruption`: benches take away guests as they like."""


@contextlib.contextmanager
def fresh_agent() -> Iterator[AgentProcess]:
    """An agent that is not started yet; it and its guests are gone afterwards."""
    with network_namespace(), tempfile.TemporaryDirectory(prefix="vmhost-bench-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        agent = AgentProcess(Path(folder))
        agent.units.mkdir()
        (agent.folder / KERNEL).write_bytes(halting_kernel())
        (agent.folder / KERNEL).chmod(0o644)
        try:
            yield agent
        finally:
            agent.end()


def start(agent: AgentProcess) -> float:
    """Start the agent; the seconds from its exec until it has settled."""
    began = time.perf_counter()
    agent.start("--max-disruption", MANY, settle=False)
    wait_settled(agent)
    return time.perf_counter() - began


def wait_settled(agent: AgentProcess, timeout_s: float = 300.0) -> None:
    """Return when the agent has done what there is to do; TimeoutError if it does not get there."""
    client = AgentClient(agent.run_dir)
    _wait_for_listener(client.path, timeout_s)
    settled, message = client.wait("settled", None, timeout_s)
    if not settled:
        raise TimeoutError(message)


def _wait_for_listener(path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        with socket.socket(socket.AF_UNIX) as knock:
            try:
                knock.connect(str(path))
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
        time.sleep(0.002)


def status(agent: AgentProcess) -> dict[str, Any]:
    """What `vmhost status --json` tells."""
    return AgentClient(agent.run_dir).status(60.0)


def pids(agent: AgentProcess) -> dict[str, int]:
    """The pid of each guest that runs."""
    return {vm["name"]: vm["pid"] for vm in status(agent)["vms"] if vm["pid"] is not None}


def bare_unit(agent: AgentProcess, name: str, more: str = "") -> str:
    """A guest that halts as soon as its firmware is done: two hundred that search for a disk take two cores."""
    kernel = f'kernel = "{agent.folder}/{KERNEL}"'
    return f'[vm.{name}]\nmemory = "32M"\naccel = "tcg"\n{kernel}\nrestart = "always"\nstop-timeout = "1s"\n{more}\n'


def halting_kernel() -> bytes:
    """A kernel of two instructions, `cli` and `hlt` (Multiboot Specification 0.6.96, 3.1)."""
    code, start, magic, flags = b"\xfa\xf4\xeb\xfd", 0x100000, 0x1BADB002, 1 << 16
    end = start + 32 + len(code)
    return struct.pack("<8I", magic, flags, -(magic + flags) & 0xFFFFFFFF, start, start, end, 0, start + 32) + code


def time_ip_batch(*commands: str) -> float:
    """The seconds that `ip -batch` takes for some commands, which must succeed."""
    began = time.perf_counter()
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True, timeout=60)
    return time.perf_counter() - began
