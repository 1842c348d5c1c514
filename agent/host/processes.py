"""QEMU's processes: starting one without any privilege, finding it again, waiting for its end, and killing it.

A process is known by its pid and its start time, and held by a pidfd, so a pid that the kernel gave to somebody else
is never waited for, let alone killed (pidfd_open(2), proc(5)).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import select
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.core.errors import PermanentError, TransientError

QEMU = "qemu-system-x86_64"
OLDEST_QEMU = (7, 1)
"""The first QEMU that takes `-netdev` as JSON (its 7.1 change log)."""

ENVIRONMENT = {"PATH": os.defpath + ":/usr/sbin:/sbin", "LC_ALL": "C"}
"""All that a QEMU finds in its environment."""

KVM_DEVICE = "/dev/kvm"
_MOST_ARGUMENTS, _LEAST_ARGUMENTS, _POINTER_BYTES = 6 << 20, 128 << 10, 8
_OWN_ARGUMENTS = 4096
"""What `unprivileged` and `ENVIRONMENT` add to a command line, amply."""

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Qemu:
    """The host's QEMU: path and version."""

    path: str
    version: str


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: its exit code, or the signal that killed it."""

    code: int | None
    signal: int | None
    oom: bool = False

    @property
    def reason(self) -> str:
        """The label of `vm_exits_total`. A QEMU that exits with 0 was told to, by `quit` or by SIGTERM."""
        if self.oom:
            return "oom"
        if self.signal == signal.SIGKILL:
            return "killed"
        return "host" if self.code == 0 else "crash"

    @property
    def violence(self) -> str:
        """What killed it, for a person; empty if it ended by itself."""
        if self.oom:
            return "killed by the kernel: memory ran out"
        if self.signal is None:
            return ""
        names = {number.value: number.name for number in signal.Signals}
        told = f"killed by {names.get(self.signal, f'signal {self.signal}')}"
        # seccomp(2): a forbidden system call ends its process by this.
        return f"{told}: its sandbox forbids what it asked for" if self.signal == signal.SIGSYS else told


class Process:
    """A running process. Its pidfd is open until `close`, or until this object is gone."""

    def __init__(self, pid: int, start_time: int, pidfd: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self.start_time = start_time
        self._pidfd = pidfd
        self._child = child

    def __repr__(self) -> str:
        return f"Process(pid={self.pid}, start_time={self.start_time})"

    def __del__(self) -> None:
        self.close()

    async def wait_exit(self) -> ExitStatus | None:
        """Return when the process is gone: how it ended if it is our child (it is reaped here), else None.

        Any number of callers may wait, and be cancelled.
        """
        if self._pidfd >= 0 and not has_ended(self._pidfd):
            await _readable(self._pidfd)
        if self._child is None:
            return None
        code = self._child.wait()
        return ExitStatus(None, -code) if code < 0 else ExitStatus(code, None)

    def signal(self, number: int) -> None:
        """Send a signal to this very process; nothing happens if it is gone (pidfd_send_signal(2))."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """Let go of the process, which runs on."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def has_ended(pidfd: int) -> bool:
    """Whether a process is gone: its pidfd is then readable (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


async def _readable(descriptor: int) -> None:
    """Wait on a copy of a descriptor, because the loop knows one reader for each number."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    copy = os.dup(descriptor)
    loop.add_reader(copy, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(copy)
        os.close(copy)


async def spawn(
    argv: Sequence[str],
    *,
    uid: int,
    pass_fds: Sequence[int] = (),
    log: int,
    cwd: str | Path = "/",
    groups: Sequence[int] = (),
    stdin: int | None = None,
    errors: int | None = None,
    capabilities: Sequence[str] = (),
) -> Process:
    """Start a program as `uid` (and the group of the same number), with these capabilities and no way to get others.

    It has a session and process group of its own, no standard input but `stdin`, and writes what it says to the
    descriptor `log`, its standard error to `errors` if that is given.
    It inherits `pass_fds` under their numbers and nothing else.
    PermanentError if it cannot be started at all; if `argv[0]` cannot be executed, the process ends with code 126 or
    127 and the log says why. The caller keeps its own copies of all descriptors.
    """
    command = unprivileged(argv, uid=uid, groups=groups, capabilities=capabilities)
    child = _popen(command, pass_fds, log, log if errors is None else errors, cwd, stdin)
    with contextlib.suppress(OSError):  # it is gone already
        os.setpriority(os.PRIO_PROCESS, child.pid, 0)  # the agent's own priority is not the guest's
    pidfd = os.pidfd_open(child.pid)
    stat = _stat(child.pid)
    return Process(child.pid, stat.start_time if stat else 0, pidfd, child)


def unprivileged(
    argv: Sequence[str], *, uid: int, groups: Sequence[int] = (), capabilities: Sequence[str] = ()
) -> list[str]:
    """A command line that, as root, starts `argv` as `uid`, with these capabilities and no way to get others, by
    default none at all (setpriv(1))."""
    kept = ",".join(("-all", *(f"+{one}" for one in capabilities)))
    supplementary = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
    dropped = (f"--inh-caps={kept}", f"--ambient-caps={kept}", f"--bounding-set={kept}", "--no-new-privs")
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", supplementary, *dropped, "--", *argv]


def refuse_long(argv: Sequence[str]) -> None:
    """PermanentError `CommandLineTooLong` if the kernel would not take a command line, whoever executes it.

    It takes a quarter of what a stack may have (6 MiB at most, 128 KiB in any case) for the strings, a pointer to each,
    and the environment (execve(2), "Limits on size of arguments and environment"; fs/exec.c, bprm_stack_limits).
    """
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    most = _MOST_ARGUMENTS if stack == resource.RLIM_INFINITY else min(stack // 4, _MOST_ARGUMENTS)
    room = max(most, _LEAST_ARGUMENTS) - _OWN_ARGUMENTS
    needed = sum(len(os.fsencode(argument)) + 1 + _POINTER_BYTES for argument in argv)
    if needed > room:
        message = f"QEMU's command line takes {needed} bytes, and the kernel {room} at most"
        raise PermanentError(f"{message}; shorten extra-args", reason="CommandLineTooLong")


def _popen(
    command: Sequence[str], pass_fds: Sequence[int], log: int, errors: int, cwd: str | Path, stdin: int | None
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=log,
            stderr=errors,
            pass_fds=tuple(pass_fds),
            cwd=cwd,
            env=ENVIRONMENT,
            start_new_session=True,
            umask=0o077,
        )
    except FileNotFoundError as error:
        message = f"cannot start {command[0]}: it is part of util-linux, install that ({error})"
        raise PermanentError(message, reason="ToolMissing") from error
    except OSError as error:
        raise TransientError(f"cannot start {command[0]}: {error}", reason="SpawnFailed") from error


def find_process(pid: int, start_time: int) -> Process | None:
    """The process of that pid that began at `start_time` (field 22 of /proc/PID/stat), None if it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except (ProcessLookupError, OverflowError, ValueError):
        return None
    except OSError as error:
        if pid <= 0:
            return None
        raise TransientError(f"pid {pid}: {error.strerror}", reason="ProcessUnknown") from error
    stat = _stat(pid)
    # The number was read after the pidfd was opened: if that process lives still, it is the one that was read about.
    if stat is None or stat.start_time != start_time or has_ended(pidfd):
        os.close(pidfd)
        return None
    return Process(pid, start_time, pidfd)


def running_process(pid: int) -> Process | None:
    """The process that has a pid now, None if there is none; the caller knows that it has not been reused."""
    stat = _stat(pid)
    return find_process(pid, stat.start_time) if stat else None


def service_of(pid: int) -> str:
    """The systemd unit that a process belongs to, by its control group; empty if there is none (cgroups(7))."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    groups = [line.split(":", 2)[2] for line in lines if ":name=systemd:" in line or line.startswith("0::")]
    return next((group.rpartition("/")[2] for group in groups if group.endswith(".service")), "")


def find_process_with(path: Path) -> Process | None:
    """The process that has a file open, this one aside, None if there is none: a guest's QEMU, known by its lock.

    For a guest of which no pid is recorded: an agent that died in the middle of a launch, or a record that was torn.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and _has_open(entry, str(path)):
            stat = _stat(int(entry.name))
            process = find_process(int(entry.name), stat.start_time) if stat else None
            if process is not None:
                return process
    return None


def _has_open(process: Path, path: str) -> bool:
    with contextlib.suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(descriptor) == path:
                    return True
    return False


def find_process_called(folder: str, uids: frozenset[int]) -> Process | None:
    """The process of one of these users that has a folder in its command line, None if there is none.

    For a service of which no pid is recorded. Whose it is tells it from whoever only looks into its run directory. What
    it forked has its command line, too, so that it is the first of such a family.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if entry.stat().st_uid in uids and os.fsencode(folder) + b"/" in (entry / "cmdline").read_bytes():
                    process = running_process(_eldest(int(entry.name), uids))
                    if process is not None:
                        return process
    return None


def _eldest(pid: int, uids: frozenset[int]) -> int:
    """The last of a process and its forefathers that is one of these users'."""
    while (stat := _stat(pid)) is not None and Path(f"/proc/{stat.parent}").stat().st_uid in uids:
        pid = stat.parent
    return pid


def launched_as(pid: int) -> tuple[int, str]:
    """The uid of a process, and its command line with NUL before, between and after the arguments (proc(5))."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid, "\0" + Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError as error:
        raise TransientError(f"pid {pid}: {error.strerror}", reason="ProcessUnknown") from error


def kill(process: Process) -> None:
    """Kill a process by its pidfd; nothing happens if it is gone."""
    process.signal(signal.SIGKILL)


def is_stuck(process: Process) -> bool:
    """Whether a process's main thread is stopped or waits within the kernel for what nothing interrupts, so that it may
    be silent: a look, at one moment (proc_pid_stat(5), field 3). One that is gone is not."""
    stat = _stat(process.pid)
    return stat is not None and stat.state in {"T", "t", "D"}


def resident_bytes(pid: int) -> int | None:
    """The memory of a process that is in RAM, None if it is gone (proc_pid_statm(5))."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return None


def cpu_seconds(pid: int) -> float | None:
    """The user and system time that a process took, with all its threads, None if it is gone (proc_pid_stat(5))."""
    stat = _stat(pid)
    return None if stat is None else stat.cpu_ticks / _CLOCK_TICKS


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    parent: int
    start_time: int
    cpu_ticks: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # Field 2, the name, may hold blanks and parentheses; what follows the last one begins with field 3.
    values = text.rpartition(")")[2].split()
    return _Stat(
        state=values[0], parent=int(values[1]), start_time=int(values[19]), cpu_ticks=int(values[11]) + int(values[12])
    )


def kvm_usable() -> bool:
    """Whether a guest can have KVM: the device opens, and the processor has the feature it needs.

    In a virtual machine without nesting `/dev/kvm` may open all the same, and a guest hangs.
    """
    try:
        os.close(os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC))
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and not {"vmx", "svm"}.isdisjoint(flags[1].split())


def kvm_groups() -> tuple[int, ...]:
    """The groups that a guest's QEMU needs to open /dev/kvm: distributions give it to root and a group `kvm`."""
    try:
        status = os.stat(KVM_DEVICE)
    except OSError:
        return ()
    return () if status.st_mode & 0o006 == 0o006 or status.st_gid == 0 else (status.st_gid,)


async def find_qemu(name: str = QEMU) -> Qemu:
    """The host's QEMU. PermanentError (`QemuMissing`, `QemuTooOld`) says what to do; TransientError if it hangs."""
    path = shutil.which(name)
    if path is None:
        raise PermanentError(f"{name} is not installed (Debian: apt install qemu-system-x86)", reason="QemuMissing")
    try:
        shown = await asyncio.to_thread(_version_text, path)
    except (OSError, subprocess.SubprocessError) as error:
        raise TransientError(f"{path} --version: {error}", reason="QemuMissing") from error
    found = re.search(r"version (\d+)\.(\d+)(\.\d+)?", shown)
    if found is None:
        raise PermanentError(f"{path} --version says {shown[:80]!r}, which is no QEMU", reason="QemuMissing")
    if (int(found[1]), int(found[2])) < OLDEST_QEMU:
        wanted = ".".join(map(str, OLDEST_QEMU))
        raise PermanentError(f"{path} is {found[0]}; {wanted} or later is needed", reason="QemuTooOld")
    return Qemu(path, found[0].removeprefix("version "))


def _version_text(path: str) -> str:
    done = subprocess.run([path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=20)
    return done.stdout.decode(errors="replace")
