"""What supervised programs find and leave: for each a run directory `RUN/services/NAME` with its files, log and record.

The directory belongs to root, its group is the program's: it may read there, and write nothing. What is to be kept over
reboots of the host lies in the state directory, which the program cannot reach: it gets that file already open.

There is no lock, as guests have: a daemon closes what it inherits (dnsmasq, close_fds). Who runs is known by the pid
and start time in the record and, where an agent died before it wrote them down, by the program's command line, which
names the run directory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tomllib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from pydantic import TypeAdapter, ValidationError

from agent.core.errors import TransientError
from agent.core.observed import End
from agent.core.services.spec import RUN_DIR, ServiceSpec

RECORD, LOG, CANDIDATE = "record.toml", "log", "next"
"""`CANDIDATE` is the folder in which a new configuration is checked before it takes the place of the former one."""


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """A service that was started. `pid` is None until it was; `start_time` tells its process from a later one.

    `ends`, `ended`, `restarts`, `unit` as in `agent.core.observed.ServiceState`.
    """

    spec: ServiceSpec
    pid: int | None = None
    start_time: int | None = None
    unit: str = ""
    ends: tuple[End, ...] = ()
    ended: int = 0
    restarts: int = 0


_RECORD = TypeAdapter(ServiceRecord)


class ServiceFiles:
    """The run directories of all services, and their files in the state directory."""

    def __init__(self, run_dir: Path, state_dir: Path) -> None:
        self._services = run_dir / "services"
        self._state_dir = state_dir

    def directory(self, name: str) -> Path:
        """A service's run directory, whether it exists or not."""
        return self._services / name

    def log_path(self, name: str) -> Path:
        """The file that a service writes its log to."""
        return self.directory(name) / LOG

    def command(self, spec: ServiceSpec, program: str, arguments: Sequence[str], folder: str = "") -> list[str]:
        """A command line of a service's program, for its run directory or a folder below it."""
        directory = self.directory(spec.name) / folder
        return [program, *(argument.replace(RUN_DIR, str(directory)) for argument in arguments)]

    def write_candidate(self, spec: ServiceSpec) -> None:
        """Write all files beside those in use, to be checked; TransientError `RunDirectoryUnusable`."""
        directory = self.directory(spec.name)
        with _told(directory):
            for folder, mode in ((self._services, 0o711), (directory, 0o750), (directory / CANDIDATE, 0o700)):
                folder.mkdir(mode=mode, parents=True, exist_ok=True)
            self._write(spec, directory / CANDIDATE, gid=os.getegid())

    def install(self, spec: ServiceSpec, gid: int) -> None:
        """Put all files in place, readable for a group; TransientError `RunDirectoryUnusable`."""
        directory = self.directory(spec.name)
        with _told(directory):
            for folder, mode in ((self._services, 0o711), (directory, 0o750)):
                folder.mkdir(mode=mode, parents=True, exist_ok=True)
                folder.chmod(mode)
            os.chown(directory, os.geteuid(), gid)
            self._write(spec, directory, gid)
            shutil.rmtree(directory / CANDIDATE, ignore_errors=True)

    def _write(self, spec: ServiceSpec, folder: Path, gid: int) -> None:
        for file in spec.files:
            text = file.text.replace(RUN_DIR, str(self.directory(spec.name)))
            _replace(folder / file.name, text.encode(), mode=0o640, gid=gid)

    def open_kept(self, spec: ServiceSpec, uid: int) -> int | None:
        """The descriptor of the file that a service keeps in the state directory, None if it keeps none.

        The file, not its folder, belongs to the program's user; TransientError `StateUnusable` if it cannot be had.
        """
        if not spec.kept:
            return None
        path = self._state_dir / spec.kept
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            os.fchown(descriptor, uid, uid)
        except OSError as error:
            raise TransientError(f"{path}: {error.strerror}", reason="StateUnusable") from error
        return descriptor

    def save(self, record: ServiceRecord) -> None:
        """Write a service's record; TransientError if it could not be, with the former one still in place."""
        plain = _RECORD.dump_python(record, mode="json", exclude_none=True)
        directory = self.directory(record.spec.name)
        with _told(directory):
            _replace(directory / RECORD, tomli_w.dumps(plain).encode(), mode=0o600, gid=os.getegid())

    def read(self) -> Iterator[tuple[str, ServiceRecord | str]]:
        """All services that have a run directory, with their record, or why that cannot be read."""
        with contextlib.suppress(FileNotFoundError):
            for directory in sorted(self._services.iterdir()):
                path = directory / RECORD
                try:
                    yield directory.name, _RECORD.validate_python(tomllib.loads(path.read_text()))
                except FileNotFoundError:
                    yield directory.name, "it has no record"
                except (tomllib.TOMLDecodeError, ValidationError, UnicodeDecodeError, RecursionError, OSError) as error:
                    yield directory.name, str(error).splitlines()[0]

    def forget(self, name: str) -> None:
        """Remove a service's run directory with all that is in it; TransientError `RunDirectoryUnusable`."""
        directory = self.directory(name)
        with _told(directory), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(directory)


@contextlib.contextmanager
def _told(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TransientError(f"{directory}: {error.strerror}", reason="RunDirectoryUnusable") from error


def _replace(path: Path, data: bytes, *, mode: int, gid: int) -> None:
    """Replace a file at once. Without fsync: it tells of a process, of which none is left after a crash of the host."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            os.fchown(descriptor, os.geteuid(), gid)
            os.fchmod(descriptor, mode)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
