"""`vmhost check`: every error of every unit file, offline, without root and without an agent."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from agent.core.allocation import Allocations
from agent.core.errors import UnitError
from agent.core.text import counted, printable
from agent.host.unitdir import UnitContent, read_directory, read_unit_file
from agent.unitfile.parse import ParsedUnit, parse_unit
from agent.unitfile.resolve import ResolveContext, UnitSource, resolve

SLOW_S = 2.0
"""After this long it tells on a terminal how far it is."""


def check(paths: Sequence[str], units: Path, out: TextIO) -> int:
    """Checks files and directories, or the unit directory where none is named; returns 0 when all is well, else 1.

    What is named is checked as a whole of its own. Only files of the unit directory itself are seen together with the
    other units there, because that is where they name each other.
    """
    contents: dict[str, UnitContent] = {}
    problems: list[str] = []
    for path in [Path(path) for path in paths] or [units]:
        if not paths or path.is_dir():
            problems += _add_directory(contents, path)
        else:
            contents.setdefault(str(path), read_unit_file(path))
    asked = frozenset(contents)
    if any(_is_in(Path(path), units) for path in asked):
        known = {_absolute(path) for path in asked}
        others = read_directory(units).files.items()
        contents |= {path: content for path, content in others if _absolute(path) not in known}
    for problem in problems:
        print(f"error: {problem}", file=out)
    count = len(problems) + _write_errors(_errors(contents, out), asked, out)
    print(f"{counted(len(asked), 'file')}, {counted(count, 'error')}", file=out)
    return 1 if count else 0


def _is_in(path: Path, units: Path) -> bool:
    return _absolute(str(path.parent)) == _absolute(str(units))


def _absolute(path: str) -> Path:
    return Path(path).absolute()


def _add_directory(contents: dict[str, UnitContent], path: Path) -> list[str]:
    view = read_directory(path)
    for name, content in view.files.items():
        contents.setdefault(name, content)
    return [] if view.available else [view.problem]


def _errors(contents: dict[str, UnitContent], out: TextIO) -> Iterable[tuple[str, tuple[UnitError, ...]]]:
    """The errors of each file, in the order of their paths."""
    sources = [UnitSource(unit) for unit in _parsed(contents, out)]
    # Nothing is remembered here: names belong to nobody yet, and what is derived only has to be different.
    context = ResolveContext("", uuid.UUID(int=0), Allocations(), {}, {})
    return [(status.path, status.errors) for status in resolve(sources, context).files]


def _parsed(contents: dict[str, UnitContent], out: TextIO) -> Iterable[ParsedUnit]:
    progress = _Progress(len(contents), out)
    for content in contents.values():
        if content.data is None:
            error = UnitError(printable(content.path), 1, 1, content.problem)
            yield ParsedUnit(content.path, b"", (error,))
        else:
            yield parse_unit(content.path, content.data)
        progress.advance()
    progress.clear()


def _write_errors(found: Iterable[tuple[str, tuple[UnitError, ...]]], asked: frozenset[str], out: TextIO) -> int:
    count = 0
    for path, errors in found:
        for error in errors if path in asked else ():
            print(error, file=out)
            count += 1
    return count


class _Progress:
    """A line on the terminal while a slow check goes on; nothing at all where the output is no terminal."""

    def __init__(self, total: int, out: TextIO) -> None:
        self._total = total
        self._done = 0
        self._live = out.isatty() and sys.stderr.isatty()
        self._next_s = time.monotonic() + SLOW_S
        self._drawn = False

    def advance(self) -> None:
        """One file more is done."""
        self._done += 1
        if self._live and time.monotonic() >= self._next_s:
            print(f"\rchecking: {self._done} of {counted(self._total, 'file')}", end="", file=sys.stderr, flush=True)
            self._next_s = time.monotonic() + 0.2
            self._drawn = True

    def clear(self) -> None:
        """Takes the line away again."""
        if self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
