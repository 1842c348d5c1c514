"""What rules of iptables ask of connection tracking: `nft -j` gives only the match's name, nft's own words tell it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from agent.core.doctor.rules import TRANSLATED, Chain, Json, Rule, Ruleset, only, rule_text

STATEFUL = frozenset({"conntrack", "state"})
"""Matches of iptables that look at the state of a connection."""

States = Mapping[tuple[str, str, int], Json]
"""By family, table and handle, nft's match that stands for one of iptables."""

_OPENING = re.compile(r"(?:table (\S+) (\S+)|chain \S+) \{")
_QUOTED = re.compile(r'"[^"]*"')
_ASKED = re.compile(r"\bct (\S+) (! ?)?([a-z]+(?:,[a-z]+)*) ")
_HANDLE = re.compile(r" # handle (\d+)$")


def parse_states(listing: str) -> States:
    """What `nft -a list ruleset` tells, of rules that ask for one thing of conntrack, and that nft could translate."""
    found: dict[tuple[str, str, int], Json] = {}
    family = table = ""
    for line in listing.splitlines():
        opening, handle = _OPENING.match(line.strip()), _HANDLE.search(line)
        if opening is not None:
            family, table = opening[1] or family, opening[2] or table
        elif handle is not None:
            asked = _ASKED.findall(bare := _QUOTED.sub('""', line))
            if len(asked) == len(re.findall(r"\bct ", bare)) == 1 and asked[0][0] in {"state", "status"}:
                key, negated, words = asked[0]
                state = {"op": "!=" if negated else "in", "left": {"ct": {"key": key}}, "right": words.split(",")}
                # Beside `DNAT` it leaves the states out (nftables 1.0.6 says `ct status dnat` of `NEW,DNAT`).
                unclear = {"xt": {"type": "match", "name": "unclear" if negated else TRANSLATED}}
                found[family, table, int(handle[1])] = {"match": state} if key == "state" else unclear
    return found


def _is_untold(expression: Json) -> bool:
    kind, body = only(expression)
    return kind == "xt" and body.get("type") == "match" and body.get("name") in STATEFUL


def has_untold_states(ruleset: Ruleset) -> bool:
    """Whether rules look at the state of a connection by a match of iptables."""
    return any(_is_untold(one) for chain in ruleset.chains for rule in chain.rules for one in rule.expressions)


def with_states(ruleset: Ruleset, states: States) -> Ruleset:
    """The same rules, with what nft's words tell in the place of iptables' matches."""
    chains = (replace(one, rules=tuple(_told(one, rule, states) for rule in one.rules)) for one in ruleset.chains)
    return replace(ruleset, chains=tuple(chains))


def _told(chain: Chain, rule: Rule, states: States) -> Rule:
    state = states.get((chain.family, chain.table, rule.handle))
    if state is None or sum(map(_is_untold, rule.expressions)) != 1:
        return rule
    told = tuple(state if _is_untold(one) else one for one in rule.expressions)
    return replace(rule, expressions=told, text=rule_text(told))
