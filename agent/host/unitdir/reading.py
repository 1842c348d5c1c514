"""What is in a unit directory right now, read without ever waiting for anybody but the disk."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from agent.core.text import printable

MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class UnitContent:
    """A unit file: its bytes, or None with the reason why they cannot be read."""

    path: str
    data: bytes | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class DirectoryView:
    """The files of the unit directory by path.

    Not `available`: `problem` says why, and `files` are what was last seen, which says nothing about now. Of two views
    the one with the greater `number` is the newer one.
    """

    available: bool
    problem: str = ""
    files: Mapping[str, UnitContent] = field(default_factory=dict)
    number: int = field(default=0, compare=False)


class Stamp(NamedTuple):
    """What does not move while a file is still; the change time also tells of a permission that was given."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    link_inode: int


@dataclass(frozen=True, slots=True)
class Seen:
    """A directory entry: its stamp, and why it cannot be a unit (empty when it can)."""

    stamp: Stamp
    problem: str = ""


def is_unit_name(name: str) -> bool:
    """Whether a directory entry is a unit: `.toml`, and neither hidden nor an editor's temporary."""
    return name.endswith(".toml") and not name.startswith((".", "#"))


def read_unit_file(path: Path) -> UnitContent:
    """A unit file as it is now. Blocks on the disk only, never on a FIFO; what goes wrong is in the `problem`."""
    seen = look_at(os.fspath(path))
    if seen is None:
        return UnitContent(str(path), None, "cannot be read: it does not exist")
    return read(path, seen)[0]


def read_directory(path: Path) -> DirectoryView:
    """All unit files of a directory as they are now, without waiting for them to be still."""
    try:
        entries = scan(path)
    except OSError as error:
        return DirectoryView(False, directory_problem(path, error))
    contents = [read(path / name, seen)[0] for name, seen in sorted(entries.items())]
    return DirectoryView(True, "", {content.path: content for content in contents})


def scan(path: Path) -> dict[str, Seen]:
    """The units among a directory's entries. Raises OSError when it cannot be read."""
    with os.scandir(path) as found:
        paths = {entry.name: entry.path for entry in found if is_unit_name(entry.name)}
    entries = {name: look_at(path) for name, path in paths.items()}
    return {name: seen for name, seen in entries.items() if seen is not None}


def look_at(path: str) -> Seen | None:
    """An entry without opening it; None when there is none (any more)."""
    name = path.rpartition("/")[2]
    if not name.isprintable() and "\\udc" in ascii(name):
        return Seen(Stamp(0, 0, 0, 0, 0, 0), "its name is not UTF-8; rename it")
    try:
        link = os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        return Seen(Stamp(0, 0, 0, 0, 0, error.errno or 0), _read_problem(error))
    try:
        found = os.stat(path) if stat.S_ISLNK(link.st_mode) else link
    except OSError as error:
        problem = _read_problem(error)
        if error.errno == errno.ENOENT:
            problem = f"cannot be read: it is a symlink to {printable(_target(path))}, which does not exist"
        return Seen(_stamp(link, link), problem)
    return Seen(_stamp(found, link), _kind_problem(found))


def _stamp(found: os.stat_result, link: os.stat_result) -> Stamp:
    return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, link.st_ino)


_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _kind_problem(found: os.stat_result) -> str:
    if not stat.S_ISREG(found.st_mode):
        return f"cannot be read: it is {_KINDS.get(stat.S_IFMT(found.st_mode), 'no regular file')}, not a file"
    if found.st_size > MAX_FILE_BYTES:
        return f"the file is larger than {MAX_FILE_BYTES >> 20} MiB"
    return ""


def read(path: Path, seen: Seen) -> tuple[UnitContent, bool]:
    """A file's content, and whether it is still the one that was looked at."""
    if seen.problem:
        return UnitContent(str(path), None, seen.problem), True
    try:
        with _opened(path) as descriptor:
            before = os.fstat(descriptor)
            problem = _kind_problem(before)
            if problem:
                return UnitContent(str(path), None, problem), False
            data = _read_all(descriptor)
            after = os.fstat(descriptor)
    except OSError as error:
        return UnitContent(str(path), None, _read_problem(error)), error.errno != errno.ENOENT
    if len(data) > MAX_FILE_BYTES:
        return UnitContent(str(path), None, f"the file is larger than {MAX_FILE_BYTES >> 20} MiB"), False
    unmoved = _same_file(before, seen.stamp) and _same_file(after, seen.stamp)
    return UnitContent(str(path), data), unmoved


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open for reading without waiting for anybody: a FIFO in the place of the file opens at once (open(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read_all(descriptor: int) -> bytes:
    parts: list[bytes] = []
    left = MAX_FILE_BYTES + 1
    while left and (part := os.read(descriptor, left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _same_file(found: os.stat_result, stamp: Stamp) -> bool:
    return _stamp(found, found)[:5] == stamp[:5]


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return "somewhere"


def _read_problem(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "cannot be read: its symlinks lead in a circle"
    if error.errno == errno.ENAMETOOLONG:
        return "cannot be read: its symlink's target is too long a name"
    return f"cannot be read: {(error.strerror or str(error)).lower()}"


def directory_problem(path: Path, error: OSError) -> str:
    """Why a directory cannot be read, in words."""
    if error.errno == errno.ENOENT:
        return f"the unit directory {printable(str(path))} does not exist"
    if error.errno == errno.ENOTDIR:
        return f"the unit directory {printable(str(path))} is not a directory"
    return f"the unit directory {printable(str(path))} cannot be read: {(error.strerror or str(error)).lower()}"
