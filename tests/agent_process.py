"""A real agent in a process of its own, with folders of its own, and the command that speaks to it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from agent.cli.client import AgentClient
from tests.patience import SLOWER

COMMAND_TIMEOUT_S = 120.0 * SLOWER


class AgentProcess:
    """Start it in a network namespace of the caller's (tests.netns); `end` leaves no process behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.units = folder / "vmhost.d"
        self.run_dir = folder / "run"
        self.flags = ["--units", str(self.units), "--run-dir", str(self.run_dir), "--state-dir", str(folder / "state")]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str, settle: bool = True) -> None:
        """Start the agent; with `settle` return when it has done what there is to do."""
        with open(self.folder / "agent.log", "ab") as log:
            command = [sys.executable, "-m", "agent", *self.flags, "--listen", "127.0.0.1:9177", *flags]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if settle:
            self.vmhost("wait", "settled", "--timeout", str(60 * SLOWER))

    def kill(self) -> None:
        """Kill the agent as `kill -9` does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """End the agent as systemd does; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def end(self) -> None:
        """Kill the agent, then every QEMU that it left, each known by its own record, and every service."""
        self.end_services()
        for record in self.run_dir.glob("vms/*/launch.toml"):
            with contextlib.suppress(OSError, KeyError, tomllib.TOMLDecodeError):
                kill_qemu(int(tomllib.loads(record.read_text())["pid"]), self.run_dir)

    def end_services(self) -> None:
        """Kill the agent, which would start them again, and each service that is left, known by its run directory."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        for directory in self.run_dir.glob("services/*"):
            for name in os.listdir("/proc"):  # Path.glob would look at each, and some are gone by then
                with contextlib.suppress(OSError):
                    if name.isdecimal() and f"{directory}/".encode() in Path("/proc", name, "cmdline").read_bytes():
                        os.kill(int(name), signal.SIGKILL)

    def command(
        self, *words: str, timeout_s: float = COMMAND_TIMEOUT_S, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `vmhost`; whatever it exits with."""
        command = [sys.executable, "-m", "agent.cli.main", *self.flags, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, input=stdin)

    def vmhost(self, *words: str) -> str:
        """Run `vmhost`, which must exit with 0; its output."""
        done = self.command(*words)
        if done.returncode != 0:
            raise RuntimeError(f"vmhost {' '.join(words)}: exit {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def status(self) -> dict[str, Any]:
        """What `vmhost status --json` prints, asked without a process of its own, which would take most of the time."""
        return AgentClient(self.run_dir).status(COMMAND_TIMEOUT_S)

    def vm(self, name: str) -> dict[str, Any]:
        """What `status` says of one guest, see `told`."""
        return self.told("vms", name)

    def told(self, kind: str, name: str) -> dict[str, Any]:
        """What `status` says of one of `vms` or `bridges`, once it says something: a file is read a moment later."""
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while True:
            if found := [one for one in self.status()[kind] if one["name"] == name]:
                one: dict[str, Any] = found[0]
                return one
            assert time.monotonic() < deadline, f"nothing is told of {name}"
            time.sleep(0.02)

    def pending(self, name: str) -> list[tuple[str, str, str]]:
        """What waits for a guest's next start: key, what runs, what its unit says."""
        return [(one["key"], one["from"], one["to"]) for one in self.vm(name)["pending"]]

    def metrics(self) -> str:
        """What Prometheus would get, once the agent listens: a moment after it is there."""
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while True:
            try:
                with urllib.request.urlopen("http://127.0.0.1:9177/metrics", timeout=60) as answer:
                    text: str = answer.read().decode()
                    return text
            except urllib.error.URLError as error:
                if not isinstance(error.reason, ConnectionRefusedError) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def metric(self, series: str) -> float:
        """The value of a series, as it is written with its labels; KeyError if there is none."""
        found = dict(line.rsplit(" ", 1) for line in self.metrics().splitlines() if line[0] != "#")
        return float(found[series])

    def drop(self, name: str, text: str) -> None:
        """Put a unit file into the directory, as a careful editor does: whole or not at all."""
        self.units.mkdir(exist_ok=True)
        temporary = self.units / f".{name}.part"
        temporary.write_text(text)
        temporary.rename(self.units / name)


def kill_qemu(pid: int, directory: Path) -> None:
    """Kill a QEMU, if the pid is still that of one below this run directory, and wait until it is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if str(directory).encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            time.sleep(0.005)  # not our child: there is nothing to wait for
