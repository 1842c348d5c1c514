"""`vmhost history` and `vmhost undo`: the good versions of unit files, read from the state directory, agent or not."""

from __future__ import annotations

import contextlib
import difflib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from agent.cli.client import Json, RefusedError
from agent.core.text import suggestion
from agent.host.statedir import UnitHistory, Version
from agent.host.unitdir import is_unit_name, read_unit_file


@dataclass(frozen=True, slots=True)
class Undone:
    """What `undo` did: the version that it wrote, and the number under which it kept what stood there (None: known)."""

    path: Path
    written: Version
    aside: int | None


def file_name(word: str, units: Path) -> str:
    """The unit file that somebody means by `web`, `web.toml` or a path in the unit directory."""
    path = Path(word)
    if path.parent != Path() and path.parent.absolute() != units.absolute():
        raise RefusedError(f"{word} is not in the unit directory {units}; name its --units")
    name = path.name if path.name.endswith(".toml") else f"{path.name}.toml"
    if not is_unit_name(name):
        raise RefusedError(f"{word} is no name of a unit file")
    return name


def overview(history: UnitHistory, units: Path) -> list[Json]:
    """One row for each file that ever was good."""
    rows = []
    for name in history.files():
        good = [version for version in history.versions(name) if version.good]
        if good:
            state = _state(present_text(units / name), good[-1])
            rows.append({"file": name, "versions": len(good), "newest": _time(good[-1]), "state": state})
    return rows


def versions_of(history: UnitHistory, name: str, units: Path) -> list[Json]:
    """One row for each version of a file, oldest first."""
    versions, present = found_versions(history, name), present_text(units / name)
    rows = []
    former = b""
    for version in versions:
        added, removed = _difference(former, version.data)
        rows.append(
            {
                "version": version.number,
                "since": _time(version),
                "added": added,
                "removed": removed,
                "good": version.good,
                "present": version.data == present,
            }
        )
        former = version.data if version.good else former
    return rows


def found_versions(history: UnitHistory, name: str) -> list[Version]:
    """A file's versions; RefusedError if there are none."""
    versions = history.versions(name)
    if not versions:
        hint = suggestion(name, history.files())
        raise RefusedError(f"no good version of {name} is known" + (f"; {hint}" if hint else ""))
    return versions


def version_numbered(history: UnitHistory, name: str, number: int) -> Version:
    """One version; RefusedError names those that there are."""
    versions = found_versions(history, name)
    for version in versions:
        if version.number == number:
            return version
    there = ", ".join(str(version.number) for version in versions)
    raise RefusedError(f"{name} has no version {number}; there are {there}")


def undo(history: UnitHistory, name: str, units: Path, to: int | None) -> Undone:
    """Write a good version back into the unit directory: version `to`, else the newest that differs from what is there.

    So undoing twice is back where it began. A text that no good version has is kept in the history first. Raises
    RefusedError if there is nothing to write, OSError if it cannot be written; the file is as before then.
    """
    path = units / name
    present = present_text(path)
    version = version_numbered(history, name, to) if to is not None else _former(history, name, present)
    if version.data == present:
        raise RefusedError(f"{name} is version {version.number} already")
    known = present is None or any(one.data == present for one in history.versions(name))
    aside = None if known or present is None else history.set_aside(name, present)
    write_whole(path, version.data)
    return Undone(path, version, aside)


def _former(history: UnitHistory, name: str, present: bytes | None) -> Version:
    """What to go back to: of a good text the newest other one, of any other text the newest good one."""
    good = [version for version in found_versions(history, name) if version.good]
    for version in reversed(good):
        if version.data != present:
            return version
    raise RefusedError(f"{name} never had another good version than the one that is there")


def present_text(path: Path) -> bytes | None:
    """What stands in the unit directory; None if nothing does. RefusedError if it cannot be read."""
    content = read_unit_file(path)
    if content.data is None and os.path.lexists(path):
        raise RefusedError(f"{path} {content.problem}")
    return content.data


def write_whole(path: Path, data: bytes, *, new: bool = False) -> None:
    """Write a unit file in one step, keeping the mode and owner of one that is there; through a symlink to its target.

    `new`: FileExistsError if there is one. The temporary beside it is hidden, so no agent takes it for a unit.
    """
    target = path if new else path.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(temporary, "xb") as file:
            with contextlib.suppress(FileNotFoundError):
                before = target.stat()
                os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if new:
            os.link(temporary, target)
        else:
            temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)


def _difference(before: bytes, after: bytes) -> tuple[int, int]:
    """How many lines were added and removed."""
    changes = list(difflib.unified_diff(_lines(before), _lines(after), n=0))[2:]
    marks = [line[:1] for line in changes]
    return marks.count("+"), marks.count("-")


def _lines(data: bytes) -> Sequence[str]:
    return data.decode(errors="replace").splitlines()


def _state(present: bytes | None, newest: Version) -> str:
    if present is None:
        return "gone"
    return "present" if present == newest.data else "edited"


def _time(version: Version) -> str:
    return datetime.fromtimestamp(version.since_s, UTC).isoformat(timespec="seconds")
