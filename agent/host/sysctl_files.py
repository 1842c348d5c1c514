"""Which line of which file gives a parameter of the kernel its value: sysctl.d(5), as systemd-sysctl(8) reads it."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from agent.core.doctor.scene import Setter

FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")
"""An earlier folder's file hides a later one's of the same name."""

LAST = "/etc/sysctl.conf"
"""Of sysctl(8) itself, which reads it after the folders; systemd sees it by a link in the first one."""

MAX_BYTES = 1 << 20


def find_setters(names: Iterable[str], folders: Iterable[str] = FOLDERS, last: str = LAST) -> Mapping[str, Setter]:
    """The last line that sets each of these parameters, which go by name below `net`. What cannot be read is left out.

    Files are gone through by name, whatever folder they are in, and a later line counts (sysctl.d(5)).
    """
    wanted = [f"net/{name}" for name in names]
    found: dict[str, Setter] = {}
    for path in _files(folders, last):
        for number, key, value in _lines(path):
            hits = fnmatch.filter(wanted, key) if any(sign in key for sign in "*?[") else [key]
            for name in hits:
                if name in wanted:
                    found[name.removeprefix("net/")] = Setter(str(path), number, value)
    return found


def _files(folders: Iterable[str], last: str) -> Iterator[Path]:
    by_name: dict[str, Path] = {}
    for folder in folders:
        try:
            entries = sorted(Path(folder).glob("*.conf"))
        except OSError:
            continue
        for path in entries:
            by_name.setdefault(path.name, path)
    files = [Path(os.path.realpath(path)) for _, path in sorted(by_name.items())]
    # Opening a pipe would wait for somebody who writes; and a file is hidden by a link to /dev/null.
    yield from (path for path in dict.fromkeys([*files, Path(last)]) if path.is_file())


def _lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """The number, parameter and value of each setting of a file."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES).decode(errors="replace")
    except OSError:
        return
    for number, line in enumerate(text.splitlines(), 1):
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith(("#", ";")):
            yield number, _slashed(key.removeprefix("-").strip()), value.strip()


def _slashed(key: str) -> str:
    """A parameter with slashes; where the first separator is a dot, dots separate and slashes are dots."""
    first = next((one for one in key if one in "./"), "/")
    return key if first == "/" else key.translate(str.maketrans("./", "/."))
