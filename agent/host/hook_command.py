"""A command of the operator's that is told of a notification, run so that it can hold up nobody.

It runs in a thread: to start a program waits for its file (vfork(2)), which may lie where nothing answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from agent.core.errors import HookError
from agent.core.text import printable

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

OUTPUT_MAX_BYTES = 4096
"""What is kept of a command's output; the rest is read and thrown away, so that no command waits for a reader."""

CHUNK_BYTES = 1 << 16


class CommandHook:
    """One command, run anew for each notification: without a shell or arguments, in a session of its own."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s

    @property
    def name(self) -> str:
        """How it is called in logs and in the status."""
        return str(self._path)

    def problem(self) -> str:
        """Why it cannot work as it is now; empty if nothing is seen."""
        if not self._path.is_file():
            return f"--notify-command {self._path}: there is no such file; put it there"
        if not os.access(self._path, os.X_OK):
            return f"--notify-command {self._path}: it may not be run; `chmod 755` it"
        return ""

    async def send(self, body: bytes, variables: Mapping[str, str]) -> str:
        """Run it with `body` as its standard input and return the beginning of its output when it exits with 0.

        Raises HookError when it cannot be run, exits with anything else, or takes too long. In each case, and when
        this is cancelled, nothing of its process group is left: it is killed together.
        """
        stop_read, stop_write = os.pipe()
        work = asyncio.ensure_future(asyncio.to_thread(self._run, body, variables, stop_read))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            os.close(stop_write)
            stop_write = -1
            await asyncio.wait({work})
            raise
        finally:
            os.close(stop_read)
            if stop_write >= 0:
                os.close(stop_write)

    def _run(self, body: bytes, variables: Mapping[str, str], stop: int) -> str:
        output, writing = os.pipe()
        os.set_blocking(output, False)
        try:
            try:
                child = self._start(body, variables, writing)
            finally:
                os.close(writing)
            said = bytearray()
            try:
                problem = self._follow(child.pid, output, stop, said)
            finally:
                # Its exit code is not fetched yet, so its number still means its group and nobody else's.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                code = child.wait()
        finally:
            os.close(output)
        text = printable(said.decode(errors="replace").strip())
        if problem or code != 0:
            raise HookError(f"{self._path}: {problem or _ending(code)}{f': {text}' if text else ''}")
        return text

    def _start(self, body: bytes, variables: Mapping[str, str], output: int) -> subprocess.Popen[bytes]:
        # A file and no pipe: nobody waits for a command that reads slowly or not at all.
        with open(os.memfd_create("vmhost-notification"), "w+b", buffering=0) as stdin:
            stdin.write(body)
            stdin.seek(0)
            try:
                child = subprocess.Popen(
                    [self._path],
                    stdin=stdin,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    env={"PATH": PATH, "LC_ALL": "C.UTF-8", **variables},
                    start_new_session=True,
                    umask=0o077,
                )
            except OSError as error:
                raise HookError(f"{self._path}: cannot be run: {(error.strerror or str(error)).lower()}") from error
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PGRP, child.pid, 0)  # the agent's own priority is not the command's
        return child

    def _follow(self, pid: int, output: int, stop: int, said: bytearray) -> str:
        """Return when the command has ended, or with the reason to end it. What it writes is added to `said`."""
        pidfd = os.pidfd_open(pid)
        try:
            waiting = select.poll()
            for descriptor in (pidfd, output, stop):
                waiting.register(descriptor, select.POLLIN)
            deadline_s = time.monotonic() + self._timeout_s
            while (left_s := deadline_s - time.monotonic()) > 0:
                ready = {descriptor for descriptor, _ in waiting.poll(left_s * 1000)}
                if stop in ready:
                    return "the agent ends"
                if output in ready and not _read(output, said):
                    waiting.unregister(output)
                if pidfd in ready:
                    _read(output, said)
                    return ""
            return f"killed, it took longer than {self._timeout_s:g} s"
        finally:
            os.close(pidfd)


def _read(output: int, said: bytearray) -> bool:
    """Take what is there; False at its end."""
    try:
        chunk = os.read(output, CHUNK_BYTES)
    except BlockingIOError:
        return True
    said += chunk[: OUTPUT_MAX_BYTES - len(said)]
    return bool(chunk)


def _ending(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
