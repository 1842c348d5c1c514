"""The table `inet vmhost` in the kernel, by nft(8): read as JSON (libnftables-json(5)), changed by text on its input.

One run of `nft -f -` is one transaction: all of it is done, or nothing.
"""

from __future__ import annotations

import ipaddress
import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agent.core.errors import ObservationError, OutcomeUnknownError, PermanentError, TransientError
from agent.core.firewall import (
    CHAINS,
    SETS,
    TABLE,
    Chain,
    Element,
    FirewallState,
    SetShape,
    chain_line,
    rule_line,
    set_line,
)
from agent.core.firewall_actions import ChangeFirewall

NFT_S = 20.0
"""A transaction of thousands of elements takes a tenth of a second; the kernel may be busy with somebody else's."""

MISSING = "there is no nft (in PATH), and without it neither NAT nor published ports; apt install nftables"

_ENVIRONMENT = {"LC_ALL": "C"}
_REACHES_FAMILY = f"inet {TABLE}"
_TEXT_TYPES = frozenset({"ifname"})


class NftMissingError(Exception):
    """There is no nft on this host."""


def find_nft() -> str | None:
    """The path of nft(8), None if PATH leads to none."""
    return shutil.which("nft")


def look_at_table() -> FirewallState:
    """The table as it is; an empty state where there is none. Blocks for milliseconds.

    `NftMissingError` without nft, `ObservationError` where it or the kernel refuses.
    """
    done = _run(["-j", "list", "table", "inet", TABLE], "")
    if done.returncode != 0:
        if "No such file or directory" in done.stderr:
            return FirewallState()
        raise ObservationError("nft", _words(done.stderr))
    try:
        return parse_table(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError, IndexError) as e:
        raise ObservationError("nft", f"its listing cannot be read: {e!r}") from e


def change_table(action: ChangeFirewall) -> int:
    """Do one transaction; the pid of the nft that did it, as its events name it. Blocks for milliseconds.

    `PermanentError` without nft, or where the kernel cannot do it; `TransientError` where the table is not as it was
    seen; `OutcomeUnknownError` where nft did not end.
    """
    return apply_text(transaction(action))


def forget_ended(elements: Iterable[Element]) -> int:
    """Delete these elements; answer and errors as `change_table`."""
    return apply_text("\n".join(_element_lines("delete", elements)))


def apply_text(text: str) -> int:
    """Have nft do what a text says, whole or not at all; answer and errors as `change_table`."""
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
        message = f"nft: {words}; the kernel needs nf_tables with nat, masquerade, fib and conntrack"
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


def transaction(action: ChangeFirewall) -> str:
    """What nft reads for an action."""
    if action.gone:
        return f"delete table {_REACHES_FAMILY}"
    if action.whole:
        # Added first, because what is not there cannot be deleted; all of it is one transaction.
        head = [f"add table {_REACHES_FAMILY}", f"delete table {_REACHES_FAMILY}", *_table_lines()]
        return "\n".join([*head, *_element_lines("add", action.add)])
    return "\n".join([*_element_lines("delete", action.remove), *_element_lines("add", action.add)])


def _table_lines() -> Iterator[str]:
    yield f"table {_REACHES_FAMILY} {{"
    yield from (_set_text(shape) for shape in SETS)
    yield from (_chain_text(chain) for chain in CHAINS)
    yield "}"


def _set_text(shape: SetShape) -> str:
    kind, value = ("map", f" : {shape.value}") if shape.value else ("set", "")
    return f"{kind} {shape.name} {{ type {shape.key}{value}; {'flags interval; ' if shape.interval else ''}}}"


def _chain_text(chain: Chain) -> str:
    hook = f"type {chain.type} hook {chain.hook} priority {chain.priority}; policy accept;\n" if chain.type else ""
    rules = "\n".join(f'{rule.text} comment "{rule.comment}"' for rule in chain.rules)
    return f"chain {chain.name} {{\n{hook}{rules}\n}}"


def _element_lines(verb: str, elements: Iterable[Element]) -> Iterator[str]:
    """One command for each set."""
    by_set: dict[str, list[str]] = {}
    for element in elements:
        written = f"{element.key} : {element.value}" if element.value else element.key
        by_set.setdefault(element.set, []).append(written)
    for name, written_ones in by_set.items():
        yield f"{verb} element {_REACHES_FAMILY} {name} {{ {', '.join(written_ones)} }}"


def parse_table(listing: Mapping[str, Any]) -> FirewallState:
    """The state that a listing tells of; `ValueError`, `KeyError` or the like for what is none."""
    lines: set[str] = set()
    elements: set[Element] = set()
    places: dict[str, int] = {}
    for entry in listing["nftables"]:
        for kind, body in entry.items():
            match kind:
                case "table" if body.get("flags"):
                    lines.add(f"table {body['flags']}")
                case "set" | "map":
                    lines.add(_seen_set_line(body))
                    elements |= set(_elements_of(body))
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
    return FirewallState(frozenset(lines) or frozenset({"table"}), frozenset(elements))


def _seen_set_line(body: Mapping[str, Any]) -> str:
    flags = body.get("flags", [])
    line = set_line(body["name"], " . ".join(_types(body)), body.get("map", ""), interval=flags == ["interval"])
    return line if flags in ([], ["interval"]) else f"{line} {flags}"


def _seen_chain_line(body: Mapping[str, Any]) -> str:
    line = chain_line(body["name"], body.get("type", ""), body.get("hook", ""), body.get("prio"))
    return line if body.get("policy", "accept") == "accept" else f"{line} {body['policy']}"


def _types(body: Mapping[str, Any]) -> list[str]:
    return [body["type"]] if isinstance(body["type"], str) else list(body["type"])


def _elements_of(body: Mapping[str, Any]) -> Iterator[Element]:
    types = _types(body)
    for entry in body.get("elem", []):
        key, value = entry if isinstance(entry, list) else (entry, "")
        yield Element(body["name"], _written(key, types), _written(value, []) if value != "" else "")


def _written(value: Any, types: list[str]) -> str:
    """A key or a value as `agent.core.firewall.Element` has it, from nft's JSON of it."""
    if isinstance(value, dict) and "elem" in value:  # with a counter, a timeout or a comment: none of ours has one
        return f"{_written(value['elem']['val'], types)} with more"
    parts = value["concat"] if isinstance(value, dict) and "concat" in value else [value]
    named = [*types, *[""] * len(parts)]
    return " . ".join(_part(part, type_) for part, type_ in zip(parts, named, strict=False))


def _part(part: Any, type_: str) -> str:
    if isinstance(part, dict) and "prefix" in part:
        return f"{part['prefix']['addr']}/{part['prefix']['len']}"
    if isinstance(part, dict) and "range" in part:
        first, last = part["range"]
        return _network(first, last) if isinstance(first, str) else f"{first}-{last}"
    return f'"{part}"' if type_ in _TEXT_TYPES else str(part)


def _network(first: str, last: str) -> str:
    """A range of addresses as the network that it is; else as a range, which is none of ours."""
    ends = ipaddress.ip_address(first), ipaddress.ip_address(last)
    networks = list(ipaddress.summarize_address_range(*ends)) if ends[0].version == ends[1].version else []
    return str(networks[0]) if len(networks) == 1 else f"{first}-{last}"
