"""What tables of nftables are made of: sets, chains and rules that never change, and elements that do.

One changed thing of a unit is a few changed elements, so a change costs the same however many there are, and no
connection and no counter suffers from it. Tables whose chains, rules or sets are other than ours were changed by
somebody else, or made by another version, and are replaced in one transaction (nft(8): what one `nft -f` does is done
whole or not at all).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple


class Element(NamedTuple):
    """An element of a set, or of a map with its `value`, both as nft(8) writes them: `tcp . 80`, `10.0.0.2 . 8080`."""

    set: str
    key: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class SetShape:
    """A set, or a map where `value` is not empty; `interval`: its elements may be networks and ranges of ports.

    `counted`: each element counts the packets that it was found for. `lasts`: rules put elements in as packets pass,
    which stay that long (nft(8)'s time) after the last; such elements are nobody's wish and are not looked at.
    `raw`: the key is expressions (`typeof`), and its parts are numbers, hexadecimal ones of more than 8 bytes.
    """

    name: str
    key: str
    value: str = ""
    interval: bool = False
    counted: bool = False
    lasts: str = ""
    raw: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, and what it is for, which is its comment."""

    text: str
    why: str

    @property
    def comment(self) -> str:
        """What tells the rule from any other, also from one of another version with the same purpose."""
        return f"{self.why} #{hashlib.sha256(self.text.encode()).hexdigest()[:6]}"


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain; `type`, `hook` and `priority` where packets come to it by themselves. Its policy is always `accept`."""

    name: str
    rules: tuple[Rule, ...]
    type: str = ""
    hook: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """A table without its elements."""

    family: str
    name: str
    sets: tuple[SetShape, ...]
    chains: tuple[Chain, ...]

    @property
    def reach(self) -> str:
        """Its family and its name, as nft(8) wants them."""
        return f"{self.family} {self.name}"

    @property
    def skeleton(self) -> frozenset[str]:
        """The table as lines that a listing is compared with (`agent.host.nft`)."""
        lines = {"table", *map(set_line, self.sets)}
        for chain in self.chains:
            lines.add(chain_line(chain.name, chain.type, chain.hook, chain.priority if chain.type else None))
            lines |= {rule_line(chain.name, place, rule.comment) for place, rule in enumerate(chain.rules)}
        return frozenset(f"{self.reach}: {line}" for line in lines)


@dataclass(frozen=True)
class Ruleset:
    """Tables that are looked at, made and changed together; no two of their sets have one name."""

    tables: tuple[Table, ...]

    @cached_property
    def skeleton(self) -> frozenset[str]:
        """All tables without their elements, as lines."""
        return frozenset().union(*(table.skeleton for table in self.tables))

    @cached_property
    def table_of(self) -> Mapping[str, Table]:
        """The table of each set, by the set's name."""
        return {one.name: table for table in self.tables for one in table.sets}

    @cached_property
    def shapes(self) -> Mapping[str, SetShape]:
        """The sets by their names."""
        return {one.name: one for table in self.tables for one in table.sets}

    def shaped(self, state: RulesetState) -> frozenset[Element]:
        """The elements of those sets that are as this version makes them."""
        lines = {one.name: f"{table.reach}: {set_line(one)}" for table in self.tables for one in table.sets}
        return frozenset(element for element in state.elements if lines.get(element.set) in state.skeleton)


def set_line(shape: SetShape) -> str:
    """What is compared of a set."""
    value, interval = f" : {shape.value}" if shape.value else "", " interval" if shape.interval else ""
    key = shape.key if not shape.raw else "raw"
    more = f"{' counted' if shape.counted else ''}{' timeout' if shape.lasts else ''}"
    return f"set {shape.name} {key}{value}{interval}{more}"


def chain_line(name: str, type_: str, hook: str, priority: int | None) -> str:
    """What is compared of a chain."""
    return f"chain {name}" if priority is None else f"chain {name} {type_} {hook} {priority}"


def rule_line(chain: str, place: int, comment: str) -> str:
    """What is compared of a rule: its place and its comment. A rule has no other name, and prints as nft likes to."""
    return f"rule {chain} {place} {comment}"


@dataclass(frozen=True, slots=True)
class RulesetState:
    """Tables as they were seen: their skeleton, empty if there is none, and the elements of their sets."""

    skeleton: frozenset[str] = frozenset()
    elements: frozenset[Element] = frozenset()

    @property
    def exists(self) -> bool:
        """Whether there is a table of our name."""
        return bool(self.skeleton)

    def of(self, name: str) -> tuple[Element, ...]:
        """The elements of one set."""
        return by_set(self.elements).get(name, ())


@lru_cache(16)
def by_set(elements: frozenset[Element]) -> Mapping[str, tuple[Element, ...]]:
    """Elements by their set; asked for in every pass, and a frozen set has its hash once and for all."""
    found: dict[str, list[Element]] = {}
    for element in elements:
        found.setdefault(element.set, []).append(element)
    return {name: tuple(ones) for name, ones in found.items()}


@dataclass(frozen=True, slots=True)
class ElementChange:
    """A transaction: elements to `remove` first, then to `add`.

    `whole`: the tables are made anew, whatever they were, and hold `add` then. `gone`: they are deleted.
    """

    add: tuple[Element, ...] = ()
    remove: tuple[Element, ...] = ()
    whole: bool = False
    gone: bool = False


def after_change(
    ruleset: Ruleset, seen: RulesetState, change: ElementChange
) -> tuple[frozenset[str], frozenset[Element]]:
    """Skeleton and elements after a change that was done: nft's word that it was is the kernel's, for all of it."""
    if change.gone:
        return frozenset(), frozenset()
    if change.whole:
        return ruleset.skeleton, frozenset(change.add)
    return seen.skeleton, seen.elements.difference(change.remove).union(change.add)
