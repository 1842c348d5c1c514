"""What becomes of a packet in somebody else's rules: told only where it is certain.

A packet is known in part: what nobody knows of it (its port, where it goes) may match or not, and so may what is not
understood of a rule. So each chain has a set of possible ends, and only one whose every end is a drop drops for sure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agent.core.doctor.rules import TRANSLATED, Chain, Json, Rule, Ruleset, only
from agent.core.doctor.states import STATEFUL
from agent.core.doctor.values import MAX_MEMBERS, PROTOCOLS, Span, SpanSet, bare, is_named, span_set

MAX_STEPS = 60_000
"""Rules looked at for one kind of finding, half a second of a thread; more is told as not examined."""

MAX_DEPTH = 16
"""How deep chains jump (net/netfilter/nf_tables: NFT_JUMP_STACK_SIZE)."""

FAMILIES = {4: ("ip", "inet"), 6: ("ip6", "inet")}


KnownSets = dict[int, tuple[Sequence[Json], SpanSet]]
"""What is in sets of addresses, by the identity of their members."""


class TooManyRulesError(Exception):
    """There are more rules than are worth looking at."""


@dataclass(frozen=True, slots=True)
class Packet:
    """What is known of a packet. `what` says it for people; `version` 0: it is no IP packet.

    `fields`: `iifname` `oifname` `ibrname` `l4proto` `dport` `sport` `state` `status` `icmp`, each a text or a number,
    and `saddr` `daddr` as spans; what is not there is not known. `status` is `dnat` or another word for what is not
    translated. `inward`: it is on its way to the bridge.
    """

    what: str
    version: int
    fields: Mapping[str, object]
    inward: bool = False


@dataclass(frozen=True, slots=True)
class Cause:
    """What ended a packet's way: a rule, or a chain's policy where `rule` is None.

    `base` is the chain at the hook, and `place` the place in it of the rule that led here.
    """

    base: Chain
    chain: Chain
    rule: Rule | None
    place: int


@dataclass(slots=True)
class Steps:
    """Counts the rules that were looked at, of one ruleset, and remembers its sets: a list of blocked addresses has
    thousands."""

    left: int = MAX_STEPS
    sets: KnownSets = field(default_factory=dict)
    jumps: dict[tuple[str, str, bool], Mapping[str, Chain]] = field(default_factory=dict)

    def step(self, number: int = 1) -> None:
        """Raises TooManyRulesError after too many."""
        self.left -= number
        if self.left < 0:
            raise TooManyRulesError

    def jumps_of(self, ruleset: Ruleset, base: Chain) -> Mapping[str, Chain]:
        """The chains that one may jump to, of the same rules each time: Kubernetes makes thousands."""
        if base.place not in self.jumps:
            self.jumps[base.place] = ruleset.jumps_of(base)
        return self.jumps[base.place]

    def set_of(self, members: Sequence[Json]) -> SpanSet:
        """The addresses of a set."""
        if id(members) not in self.sets:
            self.sets[id(members)] = members, span_set(members)  # kept, so that no other gets its id
        return self.sets[id(members)][1]


@dataclass(slots=True)
class _Ends:
    """How a packet may leave a chain: `falls` off its end, or returns."""

    accepts: bool = False
    falls: bool = False
    translates: list[Cause] = field(default_factory=list)
    drops: list[Cause] = field(default_factory=list)

    def take(self, other: _Ends) -> None:
        self.accepts |= other.accepts
        self.translates += other.translates
        self.drops += other.drops


def sure_drop(ruleset: Ruleset, base: Chain, packet: Packet, steps: Steps) -> Cause | None:
    """What drops the packet in a chain at a hook; None where it may pass. Of several the last, which leaves no way."""
    ends = _ends_of(ruleset, base, packet, steps)
    return ends.drops[-1] if ends.drops and not ends.accepts and not ends.translates else None


def sure_pass(ruleset: Ruleset, base: Chain, packet: Packet, steps: Steps) -> bool:
    """Whether nothing in a chain at a hook can drop the packet."""
    return not _ends_of(ruleset, base, packet, steps).drops


def sure_translation(ruleset: Ruleset, base: Chain, packet: Packet, steps: Steps) -> Cause | None:
    """What gives the packet another source address, for sure."""
    ends = _ends_of(ruleset, base, packet, steps)
    return ends.translates[-1] if ends.translates and not ends.accepts and not ends.drops else None


def _ends_of(ruleset: Ruleset, base: Chain, packet: Packet, steps: Steps) -> _Ends:
    ends = _Walk(ruleset, base, packet, steps).ends(base, None, 0)
    if ends.falls:
        if base.policy == "drop":
            ends.drops.append(Cause(base, base, None, len(base.rules)))
        else:
            ends.accepts = True
    return ends


class _Walk:
    """One packet's way through a chain at a hook and those that it jumps to."""

    def __init__(self, ruleset: Ruleset, base: Chain, packet: Packet, steps: Steps) -> None:
        self._ruleset = ruleset
        self._base = base
        self._chains = steps.jumps_of(ruleset, base)
        self._packet = packet
        self._steps = steps

    def ends(self, chain: Chain, place: int | None, depth: int) -> _Ends:
        """How the packet may leave a chain; `place` is that of the base chain's rule, None within that one itself."""
        ends = _Ends()
        for number, rule in enumerate(chain.rules):
            self._steps.step()
            matches, verdict = self._judge(rule)
            if matches is False:
                continue
            taken = self._carry_out(verdict, chain, rule, number if place is None else place, depth)
            if taken is None:
                continue
            ends.take(taken)
            goes_on = taken.falls and verdict[0] != "goto" and verdict[0] != "return"
            ends.falls |= taken.falls and not goes_on
            if matches is True and not goes_on:
                return ends
        ends.falls = True
        return ends

    def _judge(self, rule: Rule) -> tuple[bool | None, tuple[str, Json]]:
        """Whether a rule matches, as far as that is known, and what it does then."""
        matches: bool | None = True
        for expression in rule.expressions:
            kind, body = only(expression)
            match kind:
                case "match":
                    truth = self._truth(body)
                case "xt" if body.get("type", "match") == "match":  # nft before 1.0.6 names neither type nor match
                    truth = _guess(body.get("name", ""), rule, self._packet)
                case "limit" | "quota" | "connlimit" | "ct count" | "meter" | "set" | "map":
                    truth = None  # also `update @seen { ip saddr limit rate … }`, which matches as its limit does
                case "vmap":
                    return (None if matches is None else matches), self._from_map(body)
                case "accept" | "drop" | "reject" | "jump" | "goto" | "return" | "queue":
                    return matches, (kind, body)
                case "masquerade" | "snat":
                    return matches, ("nat", body)
                case "xt":
                    return matches, _xt_verdict(body.get("name", ""))
                case _:
                    continue
            if truth is False:
                return False, ("continue", None)
            matches = None if truth is None else matches
        return matches, ("continue", None)

    def _carry_out(self, verdict: tuple[str, Json], chain: Chain, rule: Rule, place: int, depth: int) -> _Ends | None:
        """The ends of a verdict; None where the packet goes on to the next rule as if there were none."""
        cause = Cause(self._base, chain, rule, place)
        match verdict[0]:
            case "accept":
                return _Ends(accepts=True)
            case "drop" | "reject":
                return _Ends(drops=[cause])
            case "nat":
                return _Ends(translates=[cause])
            case "return":
                return _Ends(falls=True)
            case "maybe" | "queue":
                return _Ends(accepts=True, drops=[cause], falls=True)
            case "jump" | "goto":
                target = self._chains.get(str((verdict[1] or {}).get("target")))
                if target is None or depth >= MAX_DEPTH:
                    return _Ends(accepts=True, drops=[cause], falls=True)
                return self.ends(target, place, depth + 1)
            case _:
                return None

    def _from_map(self, body: Json) -> tuple[str, Json]:
        """The verdict that a map has for the packet; one that is not certain may be anything."""
        entries = self._members(body.get("data"))
        if entries is None:
            return "maybe", None
        for entry in entries:
            self._steps.step()
            if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], dict)):
                return "maybe", None
            truth = self._truth({"op": "==", "left": body.get("key"), "right": entry[0]})
            if truth is None:
                return "maybe", None
            if truth:
                return next(iter(entry[1].items()))
        return "continue", None

    def _members(self, value: Json) -> Sequence[Json] | None:
        """The elements of a set, written out or by its name."""
        if isinstance(value, str) and value.startswith("@"):
            return self._ruleset.sets.get((self._base.family, self._base.table, value[1:]))
        if isinstance(value, dict) and "set" in value:
            return value["set"] if isinstance(value["set"], list) else [value["set"]]
        return None

    def _truth(self, body: Json) -> bool | None:
        op = body.get("op", "==")
        left, right = body.get("left"), body.get("right")
        if _is_of_other_version(left, self._packet.version):
            return False
        if _is_of_other_protocol(left, self._packet.fields.get("l4proto")):
            return False
        truth = self._equals(left, right)
        if op in {"==", "in"}:
            return truth
        return None if truth is None or op != "!=" else not truth

    def _equals(self, left: Json, right: Json) -> bool | None:
        members = self._members(right)
        if members is None and isinstance(right, str) and right.startswith("@"):
            return None
        if members is None and isinstance(right, list):
            members = right
        if members is not None:
            return self._is_member(left, members)
        if isinstance(left, dict) and "concat" in left:
            if not (isinstance(right, dict) and "concat" in right and len(left["concat"]) == len(right["concat"])):
                return None
            parts = [self._equals(*one) for one in zip(left["concat"], right["concat"], strict=True)]
            return False if False in parts else None if None in parts else True
        known = _known(left, self._packet)
        if known is None or (left.get("ct", {}).get("key") == "status" and right != "dnat"):
            return None
        return is_named(known, right)

    def _is_member(self, left: Json, members: Sequence[Json]) -> bool | None:
        """Whether a set has what a rule looks at."""
        if not members:
            return False
        known = _known(left, self._packet)
        concatenated = isinstance(left, dict) and "concat" in left
        if len(members) > MAX_MEMBERS or (known is None and not concatenated):
            return None
        if isinstance(known, Span):
            return self._steps.set_of(members).holds(known)
        self._steps.step(len(members))
        truths = [self._equals(left, bare(one)) for one in members]
        return True if True in truths else None if None in truths else False


def _known(left: Json, packet: Packet) -> object | None:
    """What a rule looks at, as far as it is known of the packet."""
    kind, body = only(left)
    if not isinstance(body, dict):
        return None
    key = str(body.get("key", body.get("field", "")))
    match kind:
        case "meta" if key in {"nfproto", "protocol"}:
            return _version_word(key, packet.version)
        case "meta":
            return packet.fields.get({"iif": "iifname", "oif": "oifname"}.get(key, key))
        case "ct":
            return packet.fields.get(key) if key in {"state", "status"} else None
        case "payload":
            return _header_field(str(body.get("protocol")), key, packet)
        case _:
            return None


def _version_word(key: str, version: int) -> str | None:
    if key == "protocol":
        return {4: "ip", 6: "ip6", 0: "arp"}[version]
    return f"ipv{version}" if version else None


def _header_field(protocol: str, key: str, packet: Packet) -> object | None:
    if key in {"protocol", "nexthdr"} and protocol in {"ip", "ip6"}:
        return packet.fields.get("l4proto")
    if protocol in {"icmp", "icmpv6"} and key == "type":
        return packet.fields.get("icmp")
    known = protocol in _HEADERS and key in {"saddr", "daddr", "dport", "sport"}
    return packet.fields.get(key) if known else None


_HEADERS = frozenset({"ip", "ip6", "tcp", "udp", "th", "sctp", "udplite", "dccp"})


def _is_of_other_version(left: Json, version: int) -> bool:
    """Whether a rule looks at a header that the packet has not: then it matches neither with `==` nor with `!=`."""
    if not (isinstance(left, dict) and isinstance(left.get("payload"), dict)):
        return False
    wanted = {"ip": 4, "icmp": 4, "ip6": 6, "icmpv6": 6, "arp": 0}.get(str(left["payload"].get("protocol")))
    return wanted is not None and wanted != version


def _is_of_other_protocol(left: Json, protocol: object) -> bool:
    if protocol is None or not (isinstance(left, dict) and isinstance(left.get("payload"), dict)):
        return False
    wanted = str(left["payload"].get("protocol"))
    return wanted in {"tcp", "udp", "icmp", "icmpv6"} and PROTOCOLS.get(wanted, wanted) != protocol


NEUTRAL = frozenset({"comment"})


def _guess(name: str, rule: Rule, packet: Packet) -> bool | None:
    """Whether a match of iptables matches, whose words nft does not tell, nor `agent.core.doctor.states`.

    Firewalls admit answers with `--ctstate RELATED,ESTABLISHED`, and drop what is `INVALID`: so it is read, unless the
    rule has our link or our addresses in it.
    """
    if name in NEUTRAL:
        return True
    if name == TRANSLATED and packet.fields.get("status", "dnat") == "dnat":
        return True if "status" in packet.fields else None
    if name not in STATEFUL | {TRANSLATED} or "state" not in packet.fields or _names_ends(rule, packet):
        return None
    accepts = any(isinstance(one, dict) and ("accept" in one or "jump" in one) for one in rule.expressions)
    return accepts and packet.fields["state"] == "established"


def _names_ends(rule: Rule, packet: Packet) -> bool:
    """Whether a rule is about a link of the packet, or about all that its addresses may be."""
    if names_link(rule, links_of(packet)):
        return True
    bodies = [only(one)[1] for one in rule.expressions if only(one)[0] == "match"]
    asked = [(one.get("op"), _known(one.get("left"), packet), one.get("right")) for one in bodies]
    return any(op == "==" and isinstance(known, Span) and is_named(known, right) for op, known, right in asked)


def links_of(packet: Packet) -> frozenset[str]:
    """The links that a packet is known to come and go by."""
    return frozenset(str(packet.fields[key]) for key in ("iifname", "oifname") if key in packet.fields)


def names_link(rule: Rule, links: frozenset[str]) -> bool:
    """Whether a rule is about one of these links."""
    bodies = [only(one)[1] for one in rule.expressions if only(one)[0] == "match"]
    return any(one.get("op") == "==" and str(one.get("right")) in links for one in bodies)


def _xt_verdict(name: str) -> tuple[str, Json]:
    if name == "REJECT":
        return "reject", None
    if name in {"MASQUERADE", "SNAT"}:
        return "nat", None
    return "maybe" if name in {"NFQUEUE", "TARPIT", "SYNPROXY", "STEAL"} else "continue", None
