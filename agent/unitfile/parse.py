"""From the bytes of one unit file to its tables, with every mistake at its line and column."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from agent.core.desired import VmSpec
from agent.core.errors import UnitError
from agent.core.text import counted, printable
from agent.unitfile import fields, schema, values
from agent.unitfile.claims import Claim, Extract, KeyPath, Reference, extract, extract_names
from agent.unitfile.machines import Mistake
from agent.unitfile.positions import position_of
from agent.unitfile.schema import BridgeTable, Table, VlanTable, VmTable
from agent.unitfile.syntax import read_toml
from agent.unitfile.values import BadValueError, quoted, shown
from agent.unitfile.vlans import link_mistakes

MAX_ERRORS = 200
"""More mistakes of one file are counted, not listed."""

T = TypeVar("T", bound=Table)


@dataclass(slots=True)
class Memo:
    """What the last resolution made of a version, each with what it depended on besides the file.

    A file that does not change costs next to nothing then, and its specs are the very same objects in every resolution.
    """

    claims: tuple[object, tuple[Claim, ...]] | None = None
    vms: dict[str, tuple[object, VmSpec]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ParsedUnit:
    """One version of a unit file: its valid tables, its errors, and what it claims and refers to in spite of them."""

    path: str
    data: bytes
    errors: tuple[UnitError, ...] = ()
    bridges: Mapping[str, BridgeTable] = field(default_factory=dict)
    vms: Mapping[str, VmTable] = field(default_factory=dict)
    vlans: Mapping[str, VlanTable] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    references: tuple[Reference, ...] = ()
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)

    def error_at(self, where: KeyPath, problem: str, hint: str = "") -> UnitError:
        """A mistake at a key path of this file, on one line whatever names the file holds."""
        line, column = position_of(self.data, where)
        return UnitError(printable(self.path), line, column, printable(problem), printable(hint))


@dataclass(frozen=True, slots=True)
class _Found:
    """A mistake before its position is looked up."""

    where: KeyPath
    problem: str
    hint: str = ""


def parse_unit(path: str, data: bytes) -> ParsedUnit:
    """Everything that one unit file says. Never raises: whatever the bytes are, what is wrong is in `errors`."""
    outcome = read_toml(data)
    if isinstance(outcome, tuple):
        line, column, problem, hint = outcome
        names = extract_names(data.decode(errors="replace")) if len(data) <= values.MAX_FILE_BYTES else Extract()
        error = UnitError(printable(path), line, column, printable(problem), printable(hint))
        return ParsedUnit(path, data, (error,), claims=names.claims)
    bridges: dict[str, BridgeTable] = {}
    vms: dict[str, VmTable] = {}
    vlans: dict[str, VlanTable] = {}
    mistakes = [
        *_top_mistakes(outcome),
        *_read_tables(outcome, "bridge", values.parse_link_name, BridgeTable, schema.bridge_mistakes, bridges),
        *_read_tables(outcome, "vm", values.parse_vm_name, VmTable, lambda _, table: schema.vm_mistakes(table), vms),
        *_read_tables(outcome, "vlan", values.parse_link_name, VlanTable, link_mistakes, vlans),
    ]
    found = extract(outcome)
    unit = ParsedUnit(path, data, (), bridges, vms, vlans, found.claims, found.references)
    return ParsedUnit(path, data, _positioned(unit, mistakes), bridges, vms, vlans, found.claims, found.references)


def suggestion(wrong: object, choices: Sequence[str], *, cutoff: float = 0.7) -> str:
    """What was probably meant, as a hint; empty when nothing is as alike as `cutoff` (difflib's ratio) says."""
    if not isinstance(wrong, str) or len(wrong) > 64:
        return ""
    close = difflib.get_close_matches(wrong.replace("_", "-"), choices, n=1, cutoff=cutoff)
    return f"did you mean {quoted(close[0])}?" if close else ""


def _positioned(unit: ParsedUnit, mistakes: Sequence[_Found]) -> tuple[UnitError, ...]:
    errors = [unit.error_at(mistake.where, mistake.problem, mistake.hint) for mistake in mistakes[:MAX_ERRORS]]
    errors.sort(key=lambda error: (error.line, error.column))
    if len(mistakes) > MAX_ERRORS:
        last = mistakes[MAX_ERRORS]
        errors.append(unit.error_at(last.where, f"and {counted(len(mistakes) - MAX_ERRORS, 'more mistake')}"))
    return tuple(errors)


def _top_mistakes(top: Mapping[str, object]) -> Iterator[_Found]:
    for key, value in top.items():
        if key not in fields.KINDS:
            what = "table" if isinstance(value, dict) else "key"
            yield _Found((key,), f"unknown {what} {quoted(key)}", _kind_hint(key))
        elif not isinstance(value, dict):
            yield _Found((key,), f"{key} must be tables such as [{key}.NAME], not {shown(value)}")


def _kind_hint(key: str) -> str:
    return suggestion(key, fields.KINDS) or "a unit file has [bridge.NAME], [vm.NAME] and [vlan.NAME]"


def _read_tables(
    top: Mapping[str, object],
    kind: str,
    check_name: Callable[[object], str],
    model: type[T],
    between: Callable[[str, Mapping[str, object]], Iterator[Mistake]],
    valid: dict[str, T],
) -> Iterator[_Found]:
    """Validates each table of a kind by itself; puts the good ones into `valid`, gives the mistakes of the others."""
    tables = top.get(kind)
    for name, table in tables.items() if isinstance(tables, dict) else ():
        mistakes = list(_name_mistakes(kind, name, check_name))
        if not isinstance(table, dict):
            yield from mistakes
            yield _Found((kind, name), _not_a_table(kind, name, table), _known_hint(name, model))
            continue
        mistakes += [_Found((kind, name, *keys), problem, hint) for keys, problem, hint in between(name, table)]
        try:
            validated = model.model_validate(table)
        except ValidationError as error:
            mistakes += [_translated((kind, name), detail) for detail in error.errors(include_url=False)]
        else:
            if not mistakes:
                valid[name] = validated
        yield from mistakes


_CALLED = {"vm": "guest", "vlan": "VLAN link"}


def _name_mistakes(kind: str, name: str, check: Callable[[object], str]) -> Iterator[_Found]:
    try:
        check(name)
    except BadValueError as bad:
        yield _Found((kind, name), f"the name of a {_CALLED.get(kind, kind)} {bad.problem}", bad.hint)


def _not_a_table(kind: str, name: str, value: object) -> str:
    return f"{kind} must hold tables such as [{kind}.NAME], not the key {quoted(name)} = {shown(value)}"


def _known_hint(name: str, model: type[Table]) -> str:
    """A key of `[vm]` that belongs into `[vm.NAME]`."""
    return "it belongs into a table with a name" if name in schema.keys_of(model) else ""


def _translated(prefix: tuple[str, ...], detail: ErrorDetails) -> _Found:
    """One of pydantic's errors in plain words."""
    where: KeyPath = (*prefix, *detail["loc"])
    if where[-1] == "[key]":
        where = where[:-1]
        bad = detail.get("ctx", {}).get("error")
        what = {"nic": "NIC", "serial": "serial port", "vlan": "VLAN"}.get(str(where[-2]), "disk")
        return _Found(where, f"the name of a {what} {bad.problem if isinstance(bad, BadValueError) else 'is wrong'}")
    keys = [part for part in where if isinstance(part, str)]
    problem, hint = _in_words(detail, keys)
    if detail["type"] == "missing":
        return _Found(where[:-1], problem, hint)
    return _Found(where, problem, hint)


_PREDICATES = {
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "mapping_type": "must be a table",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
}


def _in_words(detail: ErrorDetails, keys: Sequence[str]) -> tuple[str, str]:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    key, model = keys[-1], schema.table_at(tuple(keys[:-1]) if len(keys) > 2 else tuple(keys))
    bad = context.get("error")
    if isinstance(bad, BadValueError):
        return f"{key} {bad.problem}", bad.hint
    if kind == "extra_forbidden":
        return f"unknown key {quoted(key)} in {_header(keys[:-1])}", suggestion(key, schema.keys_of(model))
    if kind == "missing":
        return f"{_header(keys[:-1])} needs {key}", ""
    if kind in {"greater_than_equal", "less_than_equal"} or (kind == "int_type" and key in fields.BOUNDS):
        least, most = fields.BOUNDS[key]
        return f"{key} must be a whole number, {least} to {most}, not {shown(value)}", _unquoted_hint(value)
    if kind == "literal_error":
        choices = re.findall("'([^']*)'", str(context.get("expected", "")))
        return f"{key} must be {_one_of(choices)}, not {shown(value)}", suggestion(value, choices)
    predicate = _PREDICATES.get(kind, "has a value that is not allowed")
    return f"{key} {predicate}, not {shown(value)}", _unquoted_hint(value)


def _unquoted_hint(value: object) -> str:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,9}|true|false", value, re.ASCII):
        return f"write {value} without quotes"
    return ""


def _one_of(choices: Sequence[str]) -> str:
    words = [f'"{choice}"' for choice in choices]
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else "".join(words)


def _header(keys: Sequence[str]) -> str:
    """A table's header as it is written."""
    parts = (key if re.fullmatch("[A-Za-z0-9_-]{1,64}", key, re.ASCII) else quoted(key) for key in keys)
    return f"[{'.'.join(parts)}]"
