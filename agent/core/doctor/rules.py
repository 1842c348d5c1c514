"""Somebody's firewall as it was listed (libnftables-json(5), iptables-save(8)), and how its rules read as text."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.core.routing.filters import FILTERING
from agent.core.routing.firewall import NAT

OWN = frozenset((table.family, table.name) for table in (*NAT.tables, *FILTERING.tables))
"""Our tables: family and name."""

Json = Any
"""What json.loads gave; a rule's expressions are looked at one by one, and what is not understood is `maybe`."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule. `handle` is nft's name for it, 0 where it has none; `text` as its own tool writes it."""

    expressions: tuple[Json, ...]
    text: str
    handle: int = 0


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain, with a `hook` where packets come to it by themselves. `legacy`: of iptables before nftables."""

    family: str
    table: str
    name: str
    rules: tuple[Rule, ...] = ()
    type: str = ""
    hook: str = ""
    priority: int = 0
    policy: str = "accept"
    devices: tuple[str, ...] = ()
    legacy: bool = False

    @property
    def place(self) -> tuple[str, str, bool]:
        """Where its neighbours are, to which it may jump."""
        return self.family, self.table, self.legacy

    @property
    def where(self) -> str:
        """Its name for people."""
        kind = " (iptables-legacy)" if self.legacy else ""
        return f"chain {self.name} of table {self.family} {self.table}{kind}"


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All tables but our own. `sets` go by family, table and name; a chain by its place and its name."""

    chains: tuple[Chain, ...] = ()
    sets: Mapping[tuple[str, str, str], tuple[Json, ...]] = field(default_factory=dict)

    def bases(self, families: Iterable[str], hooks: Iterable[str]) -> Iterator[Chain]:
        """The chains at these hooks, in the order in which packets come to them."""
        wanted = set(families)
        for hook in hooks:
            found = [one for one in self.chains if one.hook == hook and one.family in wanted]
            yield from sorted(found, key=lambda one: one.priority)

    def jumps_of(self, base: Chain) -> Mapping[str, Chain]:
        """The chains that one may jump to."""
        return {one.name: one for one in self.chains if one.place == base.place}

    def has_chain(self, base: Chain, name: str) -> bool:
        """Whether there is such a chain beside this one."""
        return any(one.name == name and one.place == base.place for one in self.chains)


def parse_ruleset(listing: Mapping[str, Json]) -> Ruleset:
    """The foreign part of `nft -j list ruleset`; `ValueError`, `KeyError` or the like for what is none."""
    rules: dict[tuple[str, str, str], list[Rule]] = {}
    bodies: list[Mapping[str, Json]] = []
    sets: dict[tuple[str, str, str], tuple[Json, ...]] = {}
    for entry in listing["nftables"]:
        for kind, body in entry.items():
            if kind == "metainfo" or (body["family"], body.get("table", body.get("name"))) in OWN:
                continue
            if kind == "chain":
                bodies.append(body)
            elif kind == "rule":
                made = Rule(tuple(body.get("expr", ())), rule_text(body.get("expr", ())), int(body["handle"]))
                rules.setdefault((body["family"], body["table"], body["chain"]), []).append(made)
            elif kind in {"set", "map"}:
                sets[body["family"], body["table"], body["name"]] = tuple(body.get("elem", ()))
    return Ruleset(tuple(_chain(body, rules) for body in bodies), sets)


def _chain(body: Mapping[str, Json], rules: Mapping[tuple[str, str, str], Sequence[Rule]]) -> Chain:
    key = body["family"], body["table"], body["name"]
    devices = body.get("dev", ())
    return Chain(
        *key,
        tuple(rules.get(key, ())),
        type=body.get("type", ""),
        hook=body.get("hook", ""),
        priority=int(body.get("prio", 0)),
        policy=body.get("policy", "accept"),
        devices=(devices,) if isinstance(devices, str) else tuple(devices),
    )


def rule_text(expressions: Iterable[Json]) -> str:
    """A rule about as nft writes it."""
    return " ".join(text for text in map(_expression_text, expressions) if text) or "(empty)"


def _expression_text(expression: Json) -> str:
    kind, body = only(expression)
    match kind:
        case "match":
            op = "" if body.get("op") in {"==", "in"} else f"{body.get('op')} "
            left, right = _value_text(body.get("left")), _value_text(body.get("right"))
            is_name = left.endswith("name") and isinstance(body.get("right"), str)
            return f'{left} {op}"{right}"' if is_name else f"{left} {op}{right}"
        case "jump" | "goto":
            return f"{kind} {body.get('target')}"
        case "xt":
            return f"xt {body.get('type')} {body.get('name')}"
        case "vmap":
            return f"{_value_text(body.get('key'))} vmap …"
        case "counter" | "comment":
            return ""
        case _:
            return kind


def _value_text(value: Json) -> str:
    if isinstance(value, list):
        return ",".join(map(_value_text, value))
    if not isinstance(value, dict):
        return str(value)
    kind, body = only(value)
    if kind in {"meta", "ct"}:
        bare = kind == "meta" and body.get("key") in {"iifname", "oifname", "iif", "oif"}
        return str(body.get("key")) if bare else f"{kind} {body.get('key')}"
    if kind == "payload":
        return f"{body.get('protocol', '@')} {body.get('field', '…')}"
    return _constant_text(kind, body)


def _constant_text(kind: str, body: Json) -> str:
    match kind:
        case "prefix":
            return f"{body.get('addr')}/{body.get('len')}"
        case "range":
            return "-".join(map(str, body))
        case "set":
            return f"{{ {', '.join(map(_value_text, body if isinstance(body, list) else [body]))} }}"
        case "concat":
            return " . ".join(map(_value_text, body))
        case _:
            return kind


def only(expression: Json) -> tuple[str, Json]:
    """The one key of an expression, and what it holds."""
    if isinstance(expression, dict) and expression:
        kind, body = next(iter(expression.items()))
        return str(kind), body if body is not None else {}
    return str(expression), {}


HOOKS = {
    "PREROUTING": "prerouting",
    "INPUT": "input",
    "FORWARD": "forward",
    "OUTPUT": "output",
    "POSTROUTING": "postrouting",
}
"""The hooks of iptables' own chains; a user's chain has none."""


def parse_legacy(saved: str, family: str) -> Ruleset:
    """What iptables-legacy-save wrote, `family` `ip` or `ip6`. What of a rule is not understood, is `maybe`."""
    chains: dict[tuple[str, str], Chain] = {}
    rules: dict[tuple[str, str], list[Rule]] = {}
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":"):
            name, policy, *_ = line[1:].split()
            hook = HOOKS.get(name, "")
            kind = "nat" if table == "nat" else "filter"
            chains[table, name] = Chain(
                family, table, name, type=kind if hook else "", hook=hook, policy=policy.lower(), legacy=True
            )
        elif line.startswith("-A "):
            words = shlex.split(line)
            rules.setdefault((table, words[1]), []).append(Rule(tuple(_legacy_expressions(words[2:], family)), line))
    made = [
        Chain(
            one.family,
            one.table,
            one.name,
            tuple(rules.get(key, ())),
            one.type,
            one.hook,
            policy=one.policy if one.hook else "accept",
            legacy=True,
        )
        for key, one in chains.items()
    ]
    return Ruleset(tuple(made))


TRANSLATED = "conntrack of what is translated"
"""The name of a match of iptables with `DNAT` or `SNAT` among its states, mostly beside `RELATED,ESTABLISHED`."""

_UNDERSTOOD = frozenset({"comment", "tcp", "udp", "conntrack", "state"})


def _legacy_expressions(words: Sequence[str], family: str) -> Iterator[Json]:
    """The words of a rule as nft's expressions."""
    negated = False
    place = 0
    proto = ""
    while place < len(words):
        word = words[place]
        value = words[place + 1] if place + 1 < len(words) else ""
        place += 1
        if word == "!":
            negated = True
            continue
        op = "!=" if negated else "=="
        negated = False
        if word == "-p":
            proto = value
        left = _legacy_left(word, value, family, proto)
        if left is not None:
            yield {"match": {"op": op, "left": left, "right": _legacy_right(word, value)}}
        elif word in {"-j", "-g"}:
            yield _legacy_verdict(word, value)
            return  # what follows are words of its target
        elif word in {"--ctstate", "--state"}:
            yield {"xt": {"type": "match", "name": word if "NEW" in value else TRANSLATED}}
        elif word != "--comment" and (word != "-m" or value not in _UNDERSTOOD):
            yield {"xt": {"type": "match", "name": word}}
            continue
        place += 1


def _legacy_left(word: str, value: str, family: str, proto: str) -> Json | None:
    match word:
        case "-i":
            return {"meta": {"key": "iifname"}}
        case "-o":
            return {"meta": {"key": "oifname"}}
        case "-s":
            return {"payload": {"protocol": family, "field": "saddr"}}
        case "-d":
            return {"payload": {"protocol": family, "field": "daddr"}}
        case "-p":
            return {"meta": {"key": "l4proto"}}
        case "--dport" | "--sport":
            return {"payload": {"protocol": proto or "th", "field": word[2:]}}
        case "--ctstate" | "--state" if not {"DNAT", "SNAT"} & set(value.split(",")):
            return {"ct": {"key": "state"}}
        case _:
            return None


def _legacy_right(word: str, value: str) -> Json:
    if word in {"-i", "-o"}:
        return f"{value[:-1]}*" if value.endswith("+") else value
    if word in {"-s", "-d"}:
        address, _, length = value.partition("/")
        return {"prefix": {"addr": address, "len": int(length)}} if length.isdigit() else address
    if word in {"--dport", "--sport"}:
        first, colon, last = value.partition(":")
        return {"range": [int(first or 0), int(last or 65535)]} if colon else int(value)
    if word in {"--ctstate", "--state"}:
        return [one.lower() for one in value.split(",")]
    return value


def _legacy_verdict(word: str, target: str) -> Json:
    if target in {"ACCEPT", "DROP", "RETURN"}:
        return {target.lower(): None}
    if target.isupper() and target in {"REJECT", "MASQUERADE", "SNAT", "DNAT", "REDIRECT", "LOG", "MARK", "TCPMSS"}:
        return {"xt": {"type": "target", "name": target}}
    return {"goto" if word == "-g" else "jump": {"target": target}}
