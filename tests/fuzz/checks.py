"""What must hold of a unit file and of a set of them, whatever is in it. Runs in processes of its own."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping

from agent.core.allocation import Allocations
from agent.core.errors import UnitError
from agent.unitfile.parse import MAX_ERRORS, ParsedUnit, parse_unit
from agent.unitfile.resolve import Resolution, ResolveContext, UnitSource, resolve
from tests.fuzz.mutations import mutated, nearly_right

SEED = uuid.UUID(int=7)
LONGEST_ERROR = 500
"""Characters; a message must stay one that somebody reads."""


class FuzzError(AssertionError):
    """Something that no file may cause; the message has the file and how to draw it again."""


def parse_many(seed: int, number: int) -> Counter[str]:
    """Parse `number` files drawn from a seed; how many were without error, or not TOML, or mistaken."""
    dice = random.Random(seed)
    seen: Counter[str] = Counter()
    for _ in range(number):
        data = mutated(dice)
        try:
            unit = parse_unit("u.toml", data)
            check_errors(data, unit.errors)
        except Exception as error:
            raise FuzzError(f"seed {seed}: {type(error).__name__}: {error}\n{data!r}") from error
        kind = "valid" if not unit.errors else "not TOML" if not (unit.bridges or unit.vms) else "mistaken"
        seen[kind] += 1
        seen["errors"] += len(unit.errors)
    return seen


def check_errors(data: bytes, errors: Iterable[UnitError]) -> None:
    """Each error is in words, on one line, and points at a character of the file or right behind a line's last."""
    found = list(errors)
    if not found:
        return
    # A byte that is no UTF-8 is shown as one character by every editor, and so counts as one.
    lines = data.decode(errors="replace").split("\n")
    assert len(found) <= MAX_ERRORS + 1, f"{len(found)} errors"
    for error in found:
        assert 1 <= error.line <= len(lines), f"line of {error}"
        assert 1 <= error.column <= len(lines[error.line - 1]) + 1, f"column of {error}"
        assert error.problem, f"no problem: {error!r}"
        assert str(error).isprintable(), f"unprintable: {error!r}"
        assert len(str(error)) <= LONGEST_ERROR, f"{len(str(error))} characters: {error}"


def resolve_many(seed: int, number: int) -> Counter[str]:
    """Resolve `number` histories of file sets drawn from a seed; the states that the files had."""
    dice = random.Random(seed)
    seen: Counter[str] = Counter()
    for _ in range(number):
        history = [_draw_files(dice) for _ in range(3)]
        try:
            _check_history(history, dice, seen)
        except Exception as error:
            raise FuzzError(f"seed {seed}: {type(error).__name__}: {error}\n{history!r}") from error
    return seen


def _draw_files(dice: random.Random) -> dict[str, bytes]:
    return {f"{name}.toml": nearly_right(dice) for name in dice.sample("abcdef", dice.randint(1, 5))}


def _check_history(history: list[dict[str, bytes]], dice: random.Random, seen: Counter[str]) -> None:
    context = ResolveContext("machine", SEED, Allocations(), {}, {})
    good: dict[str, ParsedUnit] = {}
    for files in history:
        sources = [UnitSource(parse_unit(path, data), good.get(path)) for path, data in files.items()]
        result = resolve(sources, context)
        dice.shuffle(sources)
        assert resolve(sources, context) == result, "the order of the files changes the answer"
        check_resolution(files, result)
        seen.update(file.state for file in result.files)
        retained = {**result.desired.retained, **result.desired.bridges}
        context = ResolveContext("machine", SEED, result.allocations, result.incumbents, retained)
        good = {path: parse_unit(path, data) for path, data in result.good.items()}


def check_resolution(files: Mapping[str, bytes], result: Resolution) -> None:
    """Every error points into its file, an error is there where a file is not valid, and nothing is anybody's twice."""
    assert {file.path for file in result.files} == set(files)
    for file in result.files:
        check_errors(files[file.path], file.errors)
        assert (file.state == "valid") == (not file.errors), f"{file.path} is {file.state} with {file.errors}"
    specs = list(result.desired.vms.values())
    ports = [port for bridge in result.desired.bridges.values() for port in bridge.ports]
    for what in (
        [spec.uuid for spec in specs],
        [spec.uid for spec in specs],
        [*(nic.tap for spec in specs for nic in spec.nics), *result.desired.bridges, *ports],
        [nic.mac for spec in specs for nic in spec.nics],
    ):
        assert len(what) == len(set(what)), f"twice: {what}"
