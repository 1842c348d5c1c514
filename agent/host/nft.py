"""Our tables in the kernel, by nft(8): read as JSON (libnftables-json(5)), changed by text on its input.

One run of `nft -f -` is one transaction: all of it is done, or nothing.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agent.core.errors import ObservationError, OutcomeUnknownError, PermanentError, TransientError
from agent.core.routing.ruleset import (
    Chain,
    Element,
    ElementChange,
    Ruleset,
    RulesetState,
    SetShape,
    Table,
    chain_line,
    rule_line,
    set_line,
)

NFT_S = 20.0
"""A transaction of thousands of elements takes a tenth of a second; the kernel may be busy with somebody else's."""

MISSING = "there is no nft (in PATH), and without it no NAT, no published ports, no filters; apt install nftables"

_ENVIRONMENT = {"LC_ALL": "C"}
LASTING = 65535
"""How many elements there may be that rules put in: memory is for whoever sends most."""

_TEXT_TYPES = frozenset({"ifname"})


class NftMissingError(Exception):
    """There is no nft on this host."""


def find_nft() -> str | None:
    """The path of nft(8), None if PATH leads to none."""
    return shutil.which("nft")


def look_at_tables(ruleset: Ruleset) -> RulesetState:
    """The tables as they are; an empty state where there is none. Blocks for milliseconds.

    `NftMissingError` without nft, `ObservationError` where it or the kernel refuses.
    """
    lines: set[str] = set()
    elements: set[Element] = set()
    for table in ruleset.tables:
        listing = _listing("table", table.reach)
        if listing is not None:
            try:
                seen = parse_table(listing, table, ruleset)
            except (ValueError, KeyError, TypeError, IndexError) as e:
                raise ObservationError("nft", f"its listing cannot be read: {e!r}") from e
            lines |= seen.skeleton
            elements |= seen.elements
    return RulesetState(frozenset(lines), frozenset(elements))


def _listing(kind: str, name: str) -> Mapping[str, Any] | None:
    """What nft says of a table or a set, None if there is none."""
    done = _run(["-j", "list", kind, *name.split()], "")
    if done.returncode == 0:
        try:
            found: Mapping[str, Any] = json.loads(done.stdout)
        except ValueError as e:
            raise ObservationError("nft", f"its listing cannot be read: {e!r}") from e
        return found
    if "No such file or directory" in done.stderr:
        return None
    raise ObservationError("nft", _words(done.stderr))


def read_counts(ruleset: Ruleset) -> Mapping[Element, int]:
    """The packets that each element of a counted set was found for; answer and errors as `look_at_tables`.

    Set by set, some 6 ms each: a guest that fills a set that rules put elements in (`LASTING`) makes the whole listing
    take seconds.
    """
    found: dict[Element, int] = {}
    counted_sets = [(f"{table.reach} {one.name}", one) for table in ruleset.tables for one in table.sets if one.counted]
    for name, shape in counted_sets:
        for entry in (_listing("set", name) or {"nftables": []})["nftables"]:
            body = entry.get("set", {})
            for one in body.get("elem", []):
                if isinstance(one, dict) and "counter" in one.get("elem", {}):
                    counted = one["elem"]
                    found[Element(shape.name, _written(counted["val"], _types(body)))] = counted["counter"]["packets"]
    return found


def change_tables(ruleset: Ruleset, change: ElementChange) -> int:
    """Do one transaction; the pid of the nft that did it, as its events name it. Blocks for milliseconds.

    `PermanentError` without nft, or where the kernel cannot do it; `TransientError` where the tables are not as they
    were seen; `OutcomeUnknownError` where nft did not end.
    """
    return apply_text(transaction(ruleset, change))


def apply_text(text: str) -> int:
    """Have nft do what a text says, whole or not at all; answer and errors as `change_tables`."""
    try:
        done = _run(["-f", "-"], text)
    except NftMissingError as e:
        raise PermanentError(MISSING, reason="NftMissing") from e
    except ObservationError as e:
        raise OutcomeUnknownError(str(e), reason="NftHangs") from e
    if done.returncode == 0:
        return done.pid
    words = _words(done.stderr)
    if "Operation not supported" in words or "Operation not permitted" in words:
        message = f"nft: {words}; the kernel needs nf_tables with nat, masquerade, fib, conntrack and bridge"
        raise PermanentError(message, reason="KernelLacks")
    raise TransientError(f"nft: {words}", reason="NftRefused")


@dataclass(frozen=True, slots=True)
class _Done:
    pid: int
    returncode: int
    stdout: str
    stderr: str


def _run(arguments: list[str], text: str) -> _Done:
    path = find_nft()
    if path is None:
        raise NftMissingError
    try:
        nft = subprocess.Popen(
            [path, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_ENVIRONMENT,
        )
    except FileNotFoundError as e:
        raise NftMissingError from e
    except OSError as e:
        raise ObservationError("nft", f"{path}: {e.strerror}") from e
    with nft:
        try:
            output, errors = nft.communicate(text, NFT_S)
        except subprocess.TimeoutExpired as e:
            nft.kill()
            raise ObservationError("nft", f"{path} did not end within {NFT_S:g} s") from e
    return _Done(nft.pid, nft.returncode, output, errors)


def _words(stderr: str) -> str:
    """What nft said first; the lines beneath only point at a place in the text."""
    told = next((line.partition("Error: ")[2] for line in stderr.splitlines() if "Error: " in line), stderr.strip())
    return told[:300] or "it said nothing"


def transaction(ruleset: Ruleset, change: ElementChange) -> str:
    """What nft reads for a change."""
    # Added first, because what is not there cannot be deleted; all of it is one transaction.
    away = [f"{verb} table {table.reach}" for table in ruleset.tables for verb in ("add", "delete")]
    if change.gone:
        return "\n".join(away)
    added = _element_lines(ruleset, "add", change.add)
    if change.whole:
        return "\n".join([*away, *(line for table in ruleset.tables for line in _table_lines(table)), *added])
    return "\n".join([*_element_lines(ruleset, "delete", change.remove), *added])


def _table_lines(table: Table) -> Iterator[str]:
    yield f"table {table.reach} {{"
    yield from (_set_text(shape) for shape in table.sets)
    yield from (_chain_text(chain) for chain in table.chains)
    yield "}"


def _set_text(shape: SetShape) -> str:
    kind, value = ("map", f" : {shape.value}") if shape.value else ("set", "")
    words = [f"{'typeof' if shape.raw else 'type'} {shape.key}{value}"]
    if shape.interval:
        words.append("flags interval")
    if shape.counted:
        words.append("counter")
    if shape.lasts:
        words += [f"size {LASTING}", "flags dynamic,timeout", f"timeout {shape.lasts}"]
    return f"{kind} {shape.name} {{ {'; '.join(words)}; }}"


def _chain_text(chain: Chain) -> str:
    hook = f"type {chain.type} hook {chain.hook} priority {chain.priority}; policy accept;\n" if chain.type else ""
    rules = "\n".join(f'{rule.text} comment "{rule.comment}"' for rule in chain.rules)
    return f"chain {chain.name} {{\n{hook}{rules}\n}}"


def _element_lines(ruleset: Ruleset, verb: str, elements: Iterable[Element]) -> Iterator[str]:
    """One command for each set."""
    by_set: dict[str, list[str]] = {}
    for element in elements:
        written = f"{element.key} : {element.value}" if element.value else element.key
        by_set.setdefault(element.set, []).append(written)
    for name, written_ones in by_set.items():
        yield f"{verb} element {ruleset.table_of[name].reach} {name} {{ {', '.join(written_ones)} }}"


def parse_table(listing: Mapping[str, Any], table: Table, ruleset: Ruleset) -> RulesetState:
    """The state that a listing tells of; `ValueError`, `KeyError` or the like for what is none."""
    lines: set[str] = {"table"}
    elements: set[Element] = set()
    places: dict[str, int] = {}
    for entry in listing["nftables"]:
        for kind, body in entry.items():
            match kind:
                case "table" if body.get("flags"):
                    lines.add(f"table {body['flags']}")
                case "set" | "map":
                    shape = ruleset.shapes.get(body["name"])
                    lines.add(_seen_set_line(body, shape))
                    if shape is None or not shape.lasts:
                        elements |= set(_elements_of(body, counted=shape is not None and shape.counted))
                case "chain":
                    lines.add(_seen_chain_line(body))
                case "rule":
                    place = places.get(body["chain"], 0)
                    places[body["chain"]] = place + 1
                    lines.add(rule_line(body["chain"], place, body.get("comment", "")))
                case "table" | "metainfo":
                    pass
                case _:
                    lines.add(f"{kind} {body.get('name', '')}")
    return RulesetState(frozenset(f"{table.reach}: {line}" for line in lines), frozenset(elements))


def _seen_set_line(body: Mapping[str, Any], wanted: SetShape | None) -> str:
    flags = body.get("flags", [])
    seen = SetShape(
        body["name"],
        " . ".join(_types(body)),
        body.get("map", ""),
        interval=flags == ["interval"],
        counted=body.get("stmt") == [{"counter": None}],
        lasts="some" if "timeout" in flags else "",
        raw=wanted is not None and wanted.raw,
    )
    known = flags in ([], ["interval"], ["timeout"]) and (seen.counted or "stmt" not in body)
    return set_line(seen) if known else f"{set_line(seen)} {flags}"


def _seen_chain_line(body: Mapping[str, Any]) -> str:
    line = chain_line(body["name"], body.get("type", ""), body.get("hook", ""), body.get("prio"))
    return line if body.get("policy", "accept") == "accept" else f"{line} {body['policy']}"


def _types(body: Mapping[str, Any]) -> list[str]:
    return [body["type"]] if isinstance(body["type"], str) else list(body["type"])


def _elements_of(body: Mapping[str, Any], *, counted: bool = False) -> Iterator[Element]:
    types = _types(body)
    for entry in body.get("elem", []):
        key, value = entry if isinstance(entry, list) else (entry, "")
        if counted and isinstance(key, dict) and key.get("elem", {}).keys() == {"val", "counter"}:
            key = key["elem"]["val"]
        yield Element(body["name"], _written(key, types), _written(value, []) if value != "" else "")


def _written(value: Any, types: list[str]) -> str:
    """A key or a value as `agent.core.routing.firewall.Element` has it, from nft's JSON of it."""
    if isinstance(value, dict) and "elem" in value:  # with a timeout or a comment: none of ours has one
        return f"{_written(value['elem']['val'], types)} with more"
    parts = value["concat"] if isinstance(value, dict) and "concat" in value else [value]
    named = [*types, *[""] * len(parts)]
    return " . ".join(_part(part, type_) for part, type_ in zip(parts, named, strict=False))


def _part(part: Any, type_: str) -> str:
    if isinstance(part, dict) and "prefix" in part:
        return f"{_plain(part['prefix']['addr'])}/{part['prefix']['len']}"
    if isinstance(part, dict) and "range" in part:
        first, last = part["range"]
        return _network(first, last) if isinstance(first, str) else f"{first}-{last}"
    return f'"{part}"' if type_ in _TEXT_TYPES else _plain(str(part))


def _plain(word: str) -> str:
    """An IPv6 address as `ipaddress` writes it: nft ends some of them as an IPv4 address. Anything else as it is."""
    if ":" in word and "." in word:
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(word))
    return word


def _network(first: str, last: str) -> str:
    """A range of addresses as the network that it is; else as a range, which is none of ours."""
    ends = ipaddress.ip_address(first), ipaddress.ip_address(last)
    networks = list(ipaddress.summarize_address_range(*ends)) if ends[0].version == ends[1].version else []
    return str(networks[0]) if len(networks) == 1 else f"{first}-{last}"
