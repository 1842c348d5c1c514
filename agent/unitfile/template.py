"""A unit file to begin with, as a person would write it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from agent.unitfile.schema import disk_format
from agent.unitfile.values import BadValueError, parse_path, parse_size


@dataclass(frozen=True, slots=True)
class DiskWish:
    """A disk that somebody asks for: its path, and its size as it is written (None: the image is there already)."""

    path: str
    size: str | None = None


@dataclass(frozen=True, slots=True)
class UnitWish:
    """What somebody wants of a new guest. `own_bridge`: no unit has the bridge yet, so this one makes it."""

    name: str
    cpus: int = 1
    memory: str = "512M"
    disks: tuple[DiskWish, ...] = ()
    bridge: str | None = None
    own_bridge: bool = False
    kernel: str | None = None
    initrd: str | None = None
    append: str | None = None
    schema: str | None = None


def parse_disk_wish(text: str) -> DiskWish:
    """`PATH` or `PATH:SIZE`. BadValueError says what is wrong with either."""
    path, colon, size = text.rpartition(":")
    if not colon or "/" in size:
        return DiskWish(parse_path(text))
    parse_size(size)
    return DiskWish(parse_path(path), size)


def unit_text(wish: UnitWish) -> str:
    """The unit file. Whether it can run beside the other units is for `check` to say."""
    return "\n".join(_lines(wish)) + "\n"


def _lines(wish: UnitWish) -> Iterator[str]:
    if wish.schema is not None:
        yield f"#:schema {wish.schema}"
    if wish.bridge is not None and wish.own_bridge:
        yield f"[bridge.{_key(wish.bridge)}]"
        yield '# ports = ["eth1"]                 # host links to enslave; none: an isolated bridge'
        yield '# addresses = ["192.168.0.1/24"]   # the host\'s own addresses on it'
        yield ""
    yield f"[vm.{_key(wish.name)}]"
    yield f"cpus = {wish.cpus}"
    yield f"memory = {_string(wish.memory)}"
    for key in ("kernel", "initrd", "append"):
        if (value := getattr(wish, key)) is not None:
            yield f"{key} = {_string(value)}"
    yield '# restart = "always"               # or on-failure (as it is now), never'
    for disk, name in zip(wish.disks, _disk_names(len(wish.disks)), strict=True):
        yield ""
        yield f"[vm.{_key(wish.name)}.disk.{name}]"
        yield f"path = {_string(disk.path)}"
        if disk.size is not None:
            yield f"size = {_string(disk.size)}"
        if disk_format(disk.path, None) is None:
            yield 'format = "raw"'
    if wish.bridge is not None:
        yield ""
        yield f"[vm.{_key(wish.name)}.nic.lan]"
        yield f"bridge = {_string(wish.bridge)}"


def _disk_names(count: int) -> list[str]:
    return ["root", *(f"data{number}" for number in range(1, count))][:count]


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name, re.ASCII) else _string(name)


def _string(text: str) -> str:
    """A TOML basic string (toml.io, v1.0.0: String)."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'


__all__ = ["BadValueError", "DiskWish", "UnitWish", "parse_disk_wish", "unit_text"]
