"""The good versions that each unit file has had: `STATE/history/FILE/NUMBER.toml`, the newest few of each.

A version is a hard link to the state's copy, which is never written to but replaced: it costs no second write. A text
that `vmhost undo` took out of the unit directory without the agent ever having found it good is `NUMBER.aside`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

KEPT_VERSIONS = 20
"""Of each file."""
KEPT_FILES = 2000
"""Files with a history; more than that, and those that changed longest ago are forgotten."""

_VERSION = re.compile(r"(\d{6,})\.(toml|aside)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Version:
    """A text that a unit file had. `since_s`: since when, in seconds since 1970. `good`: the agent has run it."""

    number: int
    since_s: float
    good: bool
    data: bytes


class UnitHistory:
    """Reads and writes the histories of a state directory. The agent and the command may both do so at a time."""

    def __init__(self, state: Path) -> None:
        self._path = state / "history"

    def files(self) -> list[str]:
        """The names of the unit files that have a history. Raises OSError other than for a missing directory."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(entry.name for entry in os.scandir(self._path) if entry.is_dir())
        return []

    def versions(self, name: str) -> list[Version]:
        """The versions of a unit file, oldest first; none for one that was never good. Raises OSError likewise."""
        found = []
        for number, path in self._entries(name):
            with contextlib.suppress(FileNotFoundError):  # the agent has just dropped it
                with open(path, "rb") as file:
                    since_s, data = os.fstat(file.fileno()).st_mtime, file.read()
                found.append(Version(number, since_s, path.suffix == ".toml", data))
        return found

    def add(self, good: Path) -> None:
        """Remember the state's copy of a unit file, unless it is the newest good version already. Raises OSError.

        One that is not there is no error: nothing is remembered then.
        """
        newest = [path for _, path in self._entries(good.name) if path.suffix == ".toml"][-1:]
        with contextlib.suppress(FileNotFoundError):
            if not newest or newest[0].read_bytes() != good.read_bytes():
                self._take_number(good.name, "toml", lambda path: os.link(good, path))

    def set_aside(self, name: str, data: bytes) -> int:
        """Remember a text of a unit file that may not be good; its number. Raises OSError."""

        def write(path: Path) -> None:
            with open(path, "xb", opener=_private) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

        return self._take_number(name, "aside", write)

    def forget_oldest(self) -> None:
        """Forget whole files, those that changed longest ago, where there are too many."""
        folders = [self._path / name for name in self.files()]
        if len(folders) <= KEPT_FILES:
            return
        folders.sort(key=lambda folder: folder.stat().st_mtime)
        for folder in folders[: len(folders) - KEPT_FILES]:
            for entry in list(folder.iterdir()):
                entry.unlink(missing_ok=True)
            folder.rmdir()

    def _entries(self, name: str) -> list[tuple[int, Path]]:
        with contextlib.suppress(FileNotFoundError):
            found = [_VERSION.fullmatch(entry) for entry in os.listdir(self._path / name)]
            return sorted((int(match[1]), self._path / name / match[0]) for match in found if match)
        return []

    def _take_number(self, name: str, kind: str, make: Callable[[Path], object]) -> int:
        """Make a version under the next free number, and drop what is one too many."""
        folder = self._path / name
        for one in (self._path, folder):
            one.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            entries = self._entries(name)
            number = 1 + max((number for number, _ in entries), default=0)
            try:
                make(folder / f"{number:06}.{kind}")
            except FileExistsError:
                continue  # the other program was quicker
            for _, path in entries[: max(0, len(entries) + 1 - KEPT_VERSIONS)]:
                path.unlink(missing_ok=True)
            return number


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
