"""What was launched: for each guest a run directory `RUN/vms/NAME` with its sockets, its log, its lock and its record.

A launch goes `lock`, `save` (without pid), spawn QEMU with the lock's descriptor, `save` (with pid), close the own
lock. QEMU inherits the lock, so it is held from before the launch until QEMU is gone, whatever becomes of the agent
meanwhile: nothing is started twice (flock(2): a lock belongs to the open file, and goes with its last descriptor).

The directory belongs to root and is sticky, its group is the guest's: QEMU makes its sockets there, and can neither
touch the record and the lock nor put others in their place.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tomllib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tomli_w
from pydantic import BeforeValidator, TypeAdapter, ValidationError

from agent.core.desired import DiskSpec, NicSpec, VmSpec
from agent.core.errors import PermanentError, TransientError

RECORD, LOCK, LOG = "launch.toml", "lock", "qemu.log"
SOCKETS = ("qmp.sock", "operator.sock", "console.sock", "vnc.sock")
MAX_PATH_BYTES = 107
"""sun_path less its terminating NUL (unix(7))."""

_KEPT = frozenset({RECORD, LOCK, LOG, f"{LOG}.1"})


def _each_alone(value: object) -> object:
    """Numbers as earlier agents wrote them, which knew one queue a NIC and so no array."""
    if not isinstance(value, Mapping):
        return value
    return {key: (one,) if isinstance(one, int) else one for key, one in value.items()}


@dataclass(frozen=True, slots=True)
class LaunchRecord:
    """A guest's launch. `nic_fds` are descriptor numbers inside QEMU, by NIC, one a queue.

    `pid` is None until QEMU was spawned.

    `start_time` tells its process from a later one of the same pid; `exit_reason` is why it ended, once that is known.
    `stopping`: this launch is being ended by us, and what it does then is no end of its own. `unit`: the service that
    QEMU runs as, empty if it was started as a child of the agent; it keeps its name when the guest is renamed.
    `spec` is what the guest is to be like by now; what it must let go of for that is `leaving`. `tuned` is what its
    QEMU was told last (agent.core.edits.tuning).
    `told_mtus`: what the guest was told of a NIC's MTU where that is another one by now. `reboot_ends`: QEMU was, or is
    about to be, told to end when its guest reboots; `rebooted`: it has, and the guest is to be started again.
    `instead_of`: the digest of the spec that QEMU refused, where it was launched as it last ran.
    `counted_from`: of disks whose latencies are not counted from the beginning, the time that all operations had taken
    by then, in nanoseconds by operation.
    `vhosts`: the NICs that were plugged with vhost-net. `detached`: of NICs with several queues, the places of those
    that their guest had switched off, which nobody can ask of a tap that is lost.
    """

    spec: VmSpec
    generation: int = 0
    reset_generation: int = 0
    resume_generation: int = 0
    digest: str = ""
    nic_fds: Annotated[Mapping[str, tuple[int, ...]], BeforeValidator(_each_alone)] = field(default_factory=dict)
    pid: int | None = None
    start_time: int | None = None
    exit_reason: str | None = None
    stopping: bool = False
    unit: str = ""
    leaving_nics: tuple[NicSpec, ...] = ()
    leaving_disks: tuple[DiskSpec, ...] = ()
    tuned: Mapping[str, str] = field(default_factory=dict)
    told_mtus: Mapping[str, int] = field(default_factory=dict)
    reboot_ends: bool = False
    rebooted: bool = False
    instead_of: str = ""
    counted_from: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    vhosts: tuple[str, ...] = ()
    detached: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BrokenLaunch:
    """A record that cannot be understood, kept aside. `running`: the guest's QEMU runs all the same."""

    name: str
    why: str
    kept_as: str
    running: bool


_RECORD = TypeAdapter(LaunchRecord)


class Launches:
    """The guests' run directories."""

    def __init__(self, run_dir: str | Path) -> None:
        self._run_dir = Path(run_dir)
        self._vms = self._run_dir / "vms"

    def open(self) -> None:
        """Make the directories, which any user may pass, as each QEMU must, but not list; `OSError` if that fails."""
        for folder in (self._run_dir, self._vms):
            folder.mkdir(mode=0o711, parents=True, exist_ok=True)
            folder.chmod(0o711)

    def directory(self, name: str) -> Path:
        """A guest's run directory, whether it exists or not."""
        return self._vms / name

    def lock_path(self, name: str) -> Path:
        """The lock of a guest, which its QEMU has open as long as it lives."""
        return self.directory(name) / LOCK

    def log_path(self, name: str) -> Path:
        """The file that a guest's QEMU writes its complaints to."""
        return self.directory(name) / LOG

    def lock(self, name: str, uid: int, sockets: Sequence[str] = ()) -> int:
        """Take the right to start a guest: the descriptor that QEMU must inherit; the caller closes its own.

        The directory is there afterwards, without what an earlier launch left but its logs and its record. `sockets`
        are the names of those that QEMU is to make there beside the usual ones.
        PermanentError `AlreadyRunning` if somebody holds the lock, which is then still theirs, and `PathTooLong` if the
        run directory's path is too long for sockets; TransientError if the directory cannot be had.
        """
        directory = self.directory(name)
        longest = max(len(os.fsencode(directory / socket)) for socket in (*SOCKETS, *sockets))
        if longest > MAX_PATH_BYTES:
            message = f"{directory}: its sockets' paths have {longest} bytes, {MAX_PATH_BYTES} are possible"
            raise PermanentError(f"{message}; shorten the run directory or the name", reason="PathTooLong")
        descriptor = -1
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            descriptor = self._take(name)
            self._clear(directory, keep=_KEPT)
            os.chown(directory, os.geteuid(), uid, follow_symlinks=False)
            directory.chmod(0o1770)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            raise TransientError(f"{directory}: {error.strerror}", reason="RunDirectoryUnusable") from error
        return descriptor

    def _take(self, name: str) -> int:
        path = self.directory(name) / LOCK
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise PermanentError(f"QEMU of {name} runs already: {path} is locked", reason="AlreadyRunning") from error
        return descriptor

    def is_locked(self, name: str) -> bool:
        """Whether a guest's QEMU runs, or is being started."""
        try:
            descriptor = os.open(self.directory(name) / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise TransientError(f"lock of {name}: {error.strerror}", reason="RunDirectoryUnusable") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def save(self, record: LaunchRecord) -> None:
        """Write a guest's record; TransientError if it could not be, with the former one still in place."""
        self._write(self.directory(record.spec.name), record)

    @staticmethod
    def _write(directory: Path, record: LaunchRecord) -> None:
        plain = _RECORD.dump_python(record, mode="json", exclude_none=True)
        try:
            _replace(directory / RECORD, tomli_w.dumps(plain).encode())
        except OSError as error:
            raise TransientError(f"{directory / RECORD}: {error.strerror}", reason="RunDirectoryUnusable") from error

    def read(self) -> Sequence[LaunchRecord | BrokenLaunch]:
        """All records, by name; one that cannot be understood is renamed to `launch.toml.broken-N` and told.

        A guest whose lock is held without any record is told as well, with an empty `kept_as`.
        """
        return [launch for name in self._names() if (launch := self._read_one(name)) is not None]

    def _names(self) -> Iterator[str]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self._vms) as entries:
            yield from sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))

    def _read_one(self, name: str) -> LaunchRecord | BrokenLaunch | None:
        path = self.directory(name) / RECORD
        try:
            record = _RECORD.validate_python(tomllib.loads(_read_own(path)))
        except FileNotFoundError:
            return BrokenLaunch(name, "it runs without a record", "", running=True) if self.is_locked(name) else None
        except (tomllib.TOMLDecodeError, ValidationError, UnicodeDecodeError, RecursionError, OSError) as error:
            return BrokenLaunch(name, str(error).splitlines()[0], str(_keep_aside(path)), self.is_locked(name))
        # The directory has the last word: a rename that was interrupted did move it.
        return replace(record, spec=replace(record.spec, name=name))

    def rename(self, record: LaunchRecord, new_name: str) -> LaunchRecord:
        """Carry a guest's directory, running or not, over to a new name, and return its new record.

        What an ended guest of that name left there is removed; PermanentError `Conflict` if one runs or is recorded.
        The sockets work under their new path, and the lock is held as before.
        """
        old, new = self.directory(record.spec.name), self.directory(new_name)
        if self.is_locked(new_name) or (new / RECORD).exists():
            raise PermanentError(f"{new_name} is the name of another guest that was launched", reason="Conflict")
        renamed = replace(record, spec=replace(record.spec, name=new_name))
        self._write(old, renamed)  # before it moves: where there is no room for it, nothing has happened yet
        try:
            if new.exists():
                shutil.rmtree(new)
            old.rename(new)
        except OSError as error:
            raise TransientError(f"{old} to {new}: {error.strerror}", reason="RunDirectoryUnusable") from error
        return renamed

    def forget(self, name: str) -> None:
        """Remove a guest's record and sockets; its log stays. PermanentError `StillRunning` while QEMU runs."""
        directory = self.directory(name)
        if self.is_locked(name):
            raise PermanentError(f"QEMU of {name} still runs", reason="StillRunning")
        try:
            # The record goes last: until then the guest is known, and this is done again.
            self._clear(directory, keep=_KEPT)
            (directory / RECORD).unlink(missing_ok=True)
        except OSError as error:
            raise TransientError(f"{directory}: {error.strerror}", reason="RunDirectoryUnusable") from error

    @staticmethod
    def _clear(directory: Path, keep: frozenset[str]) -> None:
        with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
            for entry in entries:
                if entry.name in keep or ".broken-" in entry.name or _is_own_serial_log(entry):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)


def _is_own_serial_log(entry: os.DirEntry[str]) -> bool:
    """Whether this is a serial port's log that we made; the guest's user may have put something else there."""
    if not (entry.name.startswith("serial-") and entry.name.endswith((".log", ".log.1"))):
        return False
    status = entry.stat(follow_symlinks=False)
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def _read_own(path: Path) -> str:
    """The text of a record that we wrote: no link, and no file of the guest's."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, encoding="utf-8", newline="") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise PermissionError(f"{path} was not written by this agent")
        return file.read()


def _keep_aside(path: Path) -> Path:
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.broken-{number}")):
        number += 1
    path.rename(aside)
    return aside


def _replace(path: Path, data: bytes) -> None:
    """Replace a file at once; its temporary is nobody else's (O_EXCL).

    Without fsync: what it tells of are processes, of which none is left after a crash of the host.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
