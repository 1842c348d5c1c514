"""A network namespace of a test's own: real links, and nothing of the host's network is touched.

    @pytest.fixture(autouse=True)
    def own_network() -> Iterator[None]:
        with network_namespace():
            yield

The *thread* of the test moves into the namespace: sockets, links and child processes that it makes live there, and so
do threads that it starts (asyncio.to_thread, as each test has its own loop). The kernel removes the namespace with all
its links when the last process and descriptor in it are gone, also when the test is killed. Asynchronous tests use it
from a plain (not async) fixture.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator

import pytest

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def network_namespace() -> Iterator[None]:
    """Move the calling thread into a fresh network namespace with `lo` up, and back at the end; skip without rights."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(CLONE_NEWNET) != 0:
            pytest.skip(f"no network namespace: {os.strerror(ctypes.get_errno())}")
        try:
            ip("link set lo up")
            yield
        finally:
            if _libc.setns(before, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "cannot leave the network namespace of the test")
    finally:
        os.close(before)


@contextlib.contextmanager
def network_namespace_of(pid: int) -> Iterator[None]:
    """Move the calling thread into a process's network namespace, and back at the end."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    theirs = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(theirs, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace of {pid}")
        try:
            yield
        finally:
            if _libc.setns(before, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "cannot leave the network namespace of another process")
    finally:
        os.close(theirs)
        os.close(before)


def ip(*commands: str) -> None:
    """Run `ip` commands, one a line of a batch; the test fails when one fails."""
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True, timeout=20)


def ip_output(command: str) -> str:
    """What one `ip` command prints."""
    return subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=True, timeout=20).stdout
