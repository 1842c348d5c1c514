"""The state directory: the agent's memory and the last good version of each unit file.

Every write is a temporary beside the target, fsync, rename, fsync of the directory (rename(2)): after a crash there is
the old version or the new one. A file that cannot be understood is kept aside, never deleted or written over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tomllib
import uuid
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from agent.core.errors import AgentError
from agent.core.memory import VERSION, Memory
from agent.core.migrations import migrated, version_of
from agent.host.statedir.durable import write_durably
from agent.host.statedir.history import UnitHistory
from agent.host.statedir.layout import StateText
from agent.host.statedir.ran import RanSpecs

_MEMORY = TypeAdapter(Memory)

_OURS = ".*.new"
_VARIABLES = f".*.fd.{'[0-9a-f]' * 32}"
"""How files are called that are not finished: our own, and the variables of a guest (`agent.host.firmware`)."""


class StateRefusedError(AgentError):
    """The state belongs to somebody else: to another agent that runs."""


class LaterStateError(StateRefusedError):
    """The state belongs to a later version of this agent: no retry mends that."""


class StateDirectory:
    """Reads and writes the state directory, which it makes with mode 0700 if it is missing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._units = path / "units"
        self._history = UnitHistory(path)
        self._ran = RanSpecs(path / "ran")
        self._text = StateText()
        self._on_disk = ""
        self._lock = -1

    @property
    def firmware(self) -> Path:
        """The folder for what guests with UEFI keep, which is made when the first of them is started."""
        return self._path / "firmware"

    @property
    def ran(self) -> RanSpecs:
        """What guests last ran with."""
        return self._ran

    @property
    def path(self) -> Path:
        """The directory itself."""
        return self._path

    def open(self) -> None:
        """Make and lock the directory; `StateRefusedError` if another agent holds it, `OSError` if it cannot be had."""
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._units.mkdir(mode=0o700, exist_ok=True)
        self._lock = lock_directory(self._path)
        for folder, unfinished in ((self._path, _OURS), (self._units, _OURS), (self.firmware, _VARIABLES)):
            for left in folder.glob(unfinished):
                with contextlib.suppress(OSError):  # by an agent that was killed while it wrote; none is writing now
                    left.unlink()

    def close(self) -> None:
        """Unlock the directory."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def load(self) -> tuple[Memory, str]:
        """The memory, and a problem in one line if it had to begin anew (the old file is then kept aside).

        That of an earlier version is migrated, and kept as `state.toml.vN` for whoever goes back to that version.
        `LaterStateError` for the state of a later version: it is left as it is. `OSError` if it cannot be had.
        """
        path = self._path / "state.toml"
        try:
            text = path.read_text()
            raw = tomllib.loads(text)
            if (version := version_of(raw)) > VERSION:
                raise LaterStateError(_later(path, version))
            memory = _MEMORY.validate_python(migrated(raw))
        except FileNotFoundError:
            return Memory(str(uuid.uuid4())), ""
        except (tomllib.TOMLDecodeError, ValidationError, UnicodeDecodeError, RecursionError) as error:
            aside = keep_aside(path)
            why = str(error).splitlines()[0]
            return Memory(
                str(uuid.uuid4())
            ), f"{path} is torn or not ours ({why}); kept as {aside}, rebuilt from what runs"
        if version < VERSION:
            keep_version(path, version)
        self._on_disk = text
        return memory, ""

    def save(self, memory: Memory) -> None:
        """Write the memory, unless it is there already; `OSError` if that failed, with the former version in place."""
        text = self._text.of(_MEMORY.dump_python(memory, mode="json", exclude_none=True))
        if text != self._on_disk:
            write_durably(self._path / "state.toml", text.encode())
            self._on_disk = text

    def good_units(self) -> Mapping[str, bytes]:
        """The last good version of each unit file, by the file's name."""
        return {path.name: path.read_bytes() for path in sorted(self._units.glob("*.toml")) if path.is_file()}

    def save_good_units(self, changed: Mapping[str, bytes], gone: frozenset[str]) -> None:
        """Keep new good versions, and drop those of files that are gone; `OSError` of the first that failed.

        Their history stays, also of files that are gone: `vmhost undo` brings them back.
        """
        problems: list[OSError] = []
        for name, data in changed.items():
            self._remember(name, problems)  # of a state that was written before there were histories
            try:
                write_durably(self._units / name, data)
            except OSError as error:
                problems.append(error)
            else:
                self._remember(name, problems)
        for name in gone:
            self._remember(name, problems)
            (self._units / name).unlink(missing_ok=True)
        if gone and not problems:
            self._history.forget_oldest()
        if problems:
            raise problems[0]

    def _remember(self, name: str, problems: list[OSError]) -> None:
        """A history that cannot be written must not keep the last good versions themselves from the disk."""
        try:
            self._history.add(self._units / name)
        except OSError as error:
            problems.append(error)


def lock_directory(path: Path) -> int:
    """Lock a directory for this agent until the descriptor is closed; `StateRefusedError` names who holds it."""
    descriptor = _open_lock(path / "agent.lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise StateRefusedError(
            f"{path}: another vmhost-agent (pid {holder}) serves it; stop that one first"
        ) from error
    with contextlib.suppress(OSError):  # a full disk keeps nobody from healing; the lock holds without the pid
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _open_lock(path: Path) -> int:
    """A lock file for flock(2), which takes one that can only be read: a file system that went bad is read-only."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _later(path: Path, version: int) -> str:
    message = f"{path}: written by a later vmhost (state version {version}, this one knows {VERSION})"
    former = _of_version(path, VERSION)
    back = f", or go back to what this one knew with `mv {former} {path}`" if former.exists() else ""
    return f"{message}; install that version again{back}"


def _of_version(path: Path, version: int) -> Path:
    return path.with_name(f"{path.name}.v{version}")


def keep_version(path: Path, version: int) -> None:
    """Keep a state as `NAME.vN`, which costs no second write: a state is replaced, never written to. Raises OSError."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.new")
    os.link(path, temporary)
    temporary.rename(_of_version(path, version))


def keep_aside(path: Path) -> Path:
    """Rename a file that cannot be understood to the first free `NAME.broken-N`."""
    number = 1
    while (aside := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    path.rename(aside)
    return aside
