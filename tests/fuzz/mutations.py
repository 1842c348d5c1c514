"""Unit files as hands, editors and half-written disks leave them, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.every_key import EVERY_KEY

BRIDGES = b"""\
[bridge.br0]
ports = ["eth1", "eth2"]
addresses = ["192.168.0.1/24", "fd00::1/64"]
mac = "02:00:00:00:00:01"
mtu = 1500
stp = false
adopt = true

[bridge.br1] # isolated
"""
SMALL = b"""\
[vm.db]
memory = "512M"
disk.root = { path = "/srv/vm/db.raw", size = "1G" }

[vm.db.nic.lan]
bridge = "br0"
[vm.db.nic.dmz]
bridge = "br1"
"""
SEEDS = (BRIDGES, EVERY_KEY, SMALL, BRIDGES + SMALL)
WORDS = (
    *(bytes([byte]) for byte in b"[]{}=\"'.,#\n\r\t\\-_0 \0"),
    *(
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\xe2\x80\xae",
        b"\xf0\x9f\x90\xa7",
        b"\r\n",
        b"'''",
        b'"""',
    ),
    *(b"true", b"nan", b"1e999", b"-0", b"0x_1", b"1979-05-27T07:32:00Z", b"[[vm]]", b"[vm.web]", b"vm = 1\n", b"{}"),
    *(
        b"br0",
        b"web",
        b"db",
        b"vm:web",
        b'"1G"',
        b"99999999999999999999",
        b"\\u0000",
        b"\\ud800",
        b"a.b.c",
        b"[bridge]",
    ),
)


def mutated(dice: random.Random) -> bytes:
    """A unit file with one to six things wrong with it, each of which may happen to be none.

    Most of any bytes are no TOML, so every other file has only what still may be: other keys, values and lines.
    """
    data = dice.choice(SEEDS)
    mutations = dice.choice((MUTATIONS, TIDY))
    for _ in range(dice.randint(1, 6)):
        data = dice.choice(mutations)(data, dice)
    return data


def nearly_right(dice: random.Random) -> bytes:
    """A unit file with little wrong with it, or nothing: what files among others look like while one edits them."""
    data = dice.choice(SEEDS)
    for _ in range(dice.choice((0, 0, 1, 2))):
        data = dice.choice(TIDY)(data, dice)
    return data.replace(b"web", dice.choice((b"web", b"shop", b"mail")))


def _at(data: bytes, dice: random.Random) -> int:
    return dice.randint(0, len(data))


def _replaced(data: bytes, dice: random.Random) -> bytes:
    start = _at(data, dice)
    return data[:start] + dice.choice(WORDS) + data[start + dice.randint(0, 8) :]


def _inserted(data: bytes, dice: random.Random) -> bytes:
    start = _at(data, dice)
    return data[:start] + dice.choice(WORDS) + data[start:]


def _flipped(data: bytes, dice: random.Random) -> bytes:
    if not data:
        return b"\x80"
    start = dice.randrange(len(data))
    return data[:start] + bytes([data[start] ^ 1 << dice.randrange(8)]) + data[start + 1 :]


def _cut(data: bytes, dice: random.Random) -> bytes:
    """A file whose writer was interrupted."""
    return data[: _at(data, dice)]


def _without_line(data: bytes, dice: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    if lines:
        del lines[dice.randrange(len(lines))]
    return b"".join(lines)


def _moved_line(data: bytes, dice: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    if lines:
        lines.insert(dice.randint(0, len(lines)), lines.pop(dice.randrange(len(lines))))
    return b"".join(lines)


def _doubled_line(data: bytes, dice: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    if lines:
        lines.insert(dice.randint(0, len(lines)), dice.choice(lines))
    return b"".join(lines)


def _other_value(data: bytes, dice: random.Random) -> bytes:
    """A key with the value of another one, or with anything."""
    lines = data.split(b"\n")
    pairs = [number for number, line in enumerate(lines) if b"=" in line]
    if not pairs:
        return data
    number, other = dice.choice(pairs), dice.choice(pairs)
    value = dice.choice([lines[other].partition(b"=")[2], b" " + dice.choice(WORDS)])
    lines[number] = lines[number].partition(b"=")[0] + b"=" + value
    return b"\n".join(lines)


def _other_key(data: bytes, dice: random.Random) -> bytes:
    """A key with a letter too many, too few or wrong."""
    lines = data.split(b"\n")
    pairs = [number for number, line in enumerate(lines) if line.find(b"=") > 0]
    if not pairs:
        return data
    number = dice.choice(pairs)
    start = dice.randrange(lines[number].find(b"="))
    letter = dice.choice((b"", b"e", b"_", lines[number][start : start + 1] * 2))
    lines[number] = lines[number][:start] + letter + lines[number][start + 1 :]
    return b"\n".join(lines)


def _nested(data: bytes, dice: random.Random) -> bytes:
    start, depth = _at(data, dice), dice.choice((3, 40, 400))
    return data[:start] + dice.choice((b"[", b"{a=", b"a.", b"[1,")) * depth + data[start:]


def _spliced(data: bytes, dice: random.Random) -> bytes:
    other = dice.choice(SEEDS)
    return data[: _at(data, dice)] + other[_at(other, dice) :]


TIDY: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _without_line,
    _moved_line,
    _other_value,
    _other_key,
)
MUTATIONS = (*TIDY, _replaced, _inserted, _flipped, _cut, _doubled_line, _nested, _spliced)
