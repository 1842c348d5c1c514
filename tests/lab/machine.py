"""A lab: a Debian of its own with a real systemd, in systemd-nspawn, with a network of its own.

Never on the host's own root: a systemd that starts there empties the real /tmp. The tree beneath it is only read; what
the lab writes goes to an overlay (overlayfs), which a second boot of the same lab finds again. The overlay is mounted
in a mount namespace that ends with the lab, and the lab ends with the test, so nothing is left running or mounted,
whatever becomes of either.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

BOOT_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 60.0
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root", "PAGER": "cat"}
NSPAWN = (
    *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe", "--private-network"),
    *("--bind=/dev/net/tun", "--capability=all", "--machine=vmhost-lab", "--resolv-conf=off", "--timezone=off"),
    "--system-call-filter=@debug",  # nspawn refuses pidfd_getfd otherwise
    "--kill-signal=SIGKILL",  # what SIGTERM to nspawn, which a test that is killed leaves behind, does to the lab
)


class CommandFailedError(Exception):
    """A command in a lab did not end with 0."""


class Lab:
    """One machine. `boot` it, `run` commands in it, and `kill` it whatever happened."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self._folder = folder
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._pid = 0
        for layer in ("upper", "work", "root"):
            (folder / layer).mkdir()
        layers = f"lowerdir={tree},upperdir={folder / 'upper'},workdir={folder / 'work'}"
        name = f"vmhost-lab-{uuid.uuid4().hex[:12]}"
        self._groups = [group / name for group in _own_groups()]
        enter = " && ".join(f"echo $$ >{shlex.quote(str(group / 'cgroup.procs'))}" for group in self._groups)
        mount = ["mount", "-t", "overlay", "overlay", "-o", layers, str(folder / "root")]
        begin = f"{enter} && {shlex.join(mount)} && exec {shlex.join([*NSPAWN, '--directory', str(folder / 'root')])}"
        unshare = ["unshare", "--mount", "--propagation", "private"]
        self._command = ["setpriv", "--pdeathsig", "TERM", *unshare, "sh", "-c", begin]

    @property
    def console(self) -> str:
        """What the lab wrote to its console."""
        return (self._folder / "console.log").read_text(errors="replace")

    @property
    def root(self) -> Path:
        """The lab's files as the host sees them, while it runs."""
        return Path(f"/proc/{self._pid}/root")

    @property
    def init_pid(self) -> int:
        """The pid, as the host sees it, of the lab's systemd, while it runs."""
        return self._pid

    def boot(self) -> None:
        """Boot, and return when every unit that is to start has, or failed to."""
        for group in self._groups:
            group.mkdir(exist_ok=True)
        with open(self._folder / "console.log", "ab") as log:
            self._nspawn = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.wait_until(lambda: self._find_init() is not None, "the lab's systemd to start", BOOT_TIMEOUT_S)
        self._pid = self._find_init() or 0
        self.wait_until(self._answers, "the lab's systemd to answer", BOOT_TIMEOUT_S)
        self.output("systemctl is-system-running --wait", check=False)

    def _find_init(self) -> int | None:
        """The pid, as the host sees it, of process 1 of the lab: a child of nspawn in a namespace of its own."""
        assert self._nspawn is not None
        if self._nspawn.poll() is not None:
            raise RuntimeError(f"nspawn ended with {self._nspawn.returncode}: {self.console[-2000:]}")
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{child}/status").read_text()
                if "\nNSpid:\t" + f"{child}\t1\n" in status and "Name:\tsystemd\n" in status:
                    return int(child)
        return None

    def _answers(self) -> bool:
        return self.try_run("systemctl show --property=Version").returncode == 0

    def try_run(
        self, command: str, stdin: bytes | None = None, timeout_s: float = RUN_TIMEOUT_S
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a shell command as the lab's root, whatever it exits with."""
        entering = self._entering(command)
        return subprocess.run(
            entering, input=stdin or b"", capture_output=True, env=ENVIRONMENT, timeout=timeout_s, check=False
        )

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """Start a shell command as the lab's root, and go on meanwhile; the lab's end ends it too."""
        return subprocess.Popen(self._entering(command), stdin=subprocess.DEVNULL, env=ENVIRONMENT)

    def _entering(self, command: str) -> list[str]:
        return ["nsenter", "--target", str(self._pid), "--all", "--", "/bin/sh", "-c", command]

    def output(self, command: str, *, check: bool = True, timeout_s: float = RUN_TIMEOUT_S) -> str:
        """Run a shell command, which must exit with 0 unless `check` is off; its output."""
        done = self.try_run(command, timeout_s=timeout_s)
        if check and done.returncode != 0:
            said = (done.stdout + done.stderr).decode(errors="replace")
            raise CommandFailedError(f"{command}: exit {done.returncode}: {said}")
        return done.stdout.decode(errors="replace")

    def host_pid(self, pid: int) -> int:
        """The pid, as the host sees it, of a process of the lab."""
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                lines = (entry / "status").read_text().splitlines()
                numbers = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
                in_lab = os.readlink(entry / "ns/pid") == os.readlink(f"/proc/{self._pid}/ns/pid")
                if numbers[-1:] == [str(pid)] and in_lab:
                    return int(entry.name)
        raise ProcessLookupError(f"no process {pid} in the lab")

    def copy_in(self, source: Path, target: str) -> None:
        """Put a file of the host's into the lab, readable by everyone."""
        self.write(target, source.read_bytes())

    def write(self, target: str, data: bytes) -> None:
        """Put a file into the lab, whole or not at all; its folder is made."""
        place = self.root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.part")
        temporary.write_bytes(data)
        temporary.chmod(0o644)
        temporary.rename(place)

    def wait_until(self, holds: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
        """Wait for what nothing announces to somebody outside of the lab."""
        deadline_s = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"waited {timeout_s:.0f} s for {what}: {self.console[-2000:]}")
            time.sleep(0.05)

    def left(self, path: str) -> Path:
        """A file that the lab wrote, also when it has ended."""
        return self._folder / "upper" / path

    def has_ended(self) -> bool:
        """Whether the lab is off, having shut itself down."""
        return self._nspawn is None or self._nspawn.poll() is not None

    def kill(self) -> None:
        """End the lab, with every process in it: they go with their process 1 (pid_namespaces(7))."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                _kill_and_wait(self._pid)
            self._pid = 0
        if self._nspawn is not None:
            if self._nspawn.poll() is None:
                self._nspawn.kill()
            self._nspawn.wait()
            self._nspawn = None
        for group in self._groups:
            self.wait_until(partial(_remove_group, group), "the lab's last process to leave its control group")


def _own_groups() -> list[Path]:
    """Where the caller is in the hierarchies that systemd keeps its units in (cgroups(7)).

    Each lab gets groups of its own below: two that were booted from one place would take each other's units for theirs.
    """
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers in {"", "name=systemd"}:
            names = ("systemd",) if controllers else ("unified", ".")
            mount = next(
                root for name in names if (root := Path("/sys/fs/cgroup", name)).joinpath("cgroup.procs").exists()
            )
            found.append(mount / group.lstrip("/"))
    return found


def _remove_group(group: Path) -> bool:
    """Remove a group with those below it; False while a process of one of them is still ending (EBUSY)."""
    if not group.exists():
        return True
    try:
        for entry in group.iterdir():
            if entry.is_dir() and not _remove_group(entry):
                return False
        group.rmdir()
    except OSError:
        return False
    return True


def _kill_and_wait(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], 30)
    finally:
        os.close(pidfd)
