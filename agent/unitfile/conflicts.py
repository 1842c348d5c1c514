"""What two resources cannot both have: names, uuids, MAC addresses, written disks, VNC displays, links of the kernel.

Whoever held something before keeps it; where nobody did, nobody gets it, so that the outcome depends on no order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.core.routing.publications import Publication, publication
from agent.core.text import printable
from agent.unitfile.claims import Claim, KeyPath, Reference
from agent.unitfile.parse import ParsedUnit
from agent.unitfile.positions import position_of
from agent.unitfile.values import quoted

SHARED = frozenset({"read-only", "direct"})
"""Roles in which several may have the same."""

Identity = tuple[str, str | None, str, str, str]


@dataclass(slots=True)
class Side:
    """One file with its versions: `new` as it is now, `good` the last one without errors, `chosen` the one that runs.

    `claims` and `good_claims` are those of the versions, with the defaults filled in.
    """

    path: str
    new: ParsedUnit
    good: ParsedUnit | None
    chosen: ParsedUnit | None
    claims: tuple[Claim, ...] = ()
    good_claims: tuple[Claim, ...] = ()
    why: list[Finding] = field(default_factory=list)
    retried: bool = False
    _good_identities: frozenset[Identity] | None = None
    _good_references: frozenset[tuple[str, ...]] | None = None

    def had(self, claim: Claim) -> bool:
        """Whether the last good version made this claim as well."""
        if self._good_identities is None:
            self._good_identities = frozenset(map(identity_of, self.good_claims))
        return identity_of(claim) in self._good_identities

    def had_reference(self, reference: Reference) -> bool:
        """Whether the last good version names the same from the same place."""
        if self._good_references is None:
            good = self.good.references if self.good is not None else ()
            self._good_references = frozenset(old[:4] for old in good)
        return reference[:4] in self._good_references

    @property
    def runs_last_good(self) -> bool:
        """Whether an older version runs than the one that is in the directory."""
        return self.chosen is not None and self.chosen is not self.new


class Finding(NamedTuple):
    """An error between files: in which file, at which key, and whether even the last good version has it.

    `follows`: it is only there because another file has errors, and not worth telling beside errors of its own.
    """

    side: Side
    where: KeyPath
    problem: str
    hint: str = ""
    spoils_good: bool = False
    follows: bool = False


class _Held(NamedTuple):
    """A claim as it takes part; `rank` 0 for the incumbent of a name, 1 for what ran before, 2 for the rest."""

    rank: int
    path: str
    order: int
    claim: Claim
    side: Side
    is_new: bool


def identity_of(claim: Claim) -> Identity:
    """What makes two claims the same claim, wherever in the file they stand."""
    return claim.kind, claim.key, claim.resource, claim.device, claim.role


def find_conflicts(sides: Iterable[Side], incumbents: Mapping[str, str]) -> Iterator[Finding]:
    """The claims that are lost to another claim, in files whose order does not matter."""
    for group in _contested(sides):
        resources = {claim.resource for _, _, claim, _ in group}
        kind, key = group[0][2].kind, group[0][2].key
        alone = len(resources) == 1 and len({side.path for side, *_ in group}) == len(group)
        if (alone and kind != "name") or all(claim.role in SHARED for _, _, claim, _ in group):
            continue
        incumbent = incumbents.get(key or "") if kind == "name" else None
        if incumbent not in {side.path for side, *_ in group}:
            incumbent = None
        yield from _losers(sorted(_ranked(member, incumbent) for member in group))


_Member = tuple[Side, int, Claim, bool]


def _contested(sides: Iterable[Side]) -> list[list[_Member]]:
    """The claims that more than one makes, in groups."""
    first: dict[tuple[str, str | None], _Member] = {}
    ports: list[_Member] = []
    groups: dict[tuple[str, str | None], list[_Member]] = {}
    for side in sides:
        for order, (claim, is_new) in enumerate(_claims_of(side)):
            key = (claim.kind, claim.key)
            member = (side, order, claim, is_new)
            if claim.kind == "port":
                ports.append(member)
                continue
            earlier = first.setdefault(key, member)
            if earlier is not member:
                groups.setdefault(key, [earlier]).append(member)
    return [*groups.values(), *_crowded(ports)]


def _crowded(ports: list[_Member]) -> Iterator[list[_Member]]:
    """Published ports in groups that may meet within, and never without; a port that is alone is in none."""
    group: list[_Member] = []
    proto, last = "", 0
    for member in sorted(ports, key=lambda member: (_published(member[2]).proto, _published(member[2]).first)):
        what = _published(member[2])
        if what.proto != proto or what.first > last:
            if len(group) > 1:
                yield group
            group, proto, last = [], what.proto, 0
        group.append(member)
        last = max(last, what.last)
    if len(group) > 1:
        yield group


def _published(claim: Claim) -> Publication:
    return publication(claim.key or "")


def _claims_of(side: Side) -> Iterator[tuple[Claim, bool]]:
    """The new version's claims, also when it was rejected, and what the older one that runs holds besides."""
    for claim in side.claims:
        yield claim, True
    if side.runs_last_good:
        same = frozenset(map(identity_of, side.claims))
        for claim in side.good_claims:
            if identity_of(claim) not in same:
                yield claim, False


def _ranked(member: _Member, incumbent: str | None) -> _Held:
    side, order, claim, is_new = member
    if incumbent is not None:
        rank = 0 if side.path == incumbent else 2
    else:
        rank = 1 if side.chosen is not None and (not is_new or side.had(claim)) else 2
    return _Held(rank, side.path, order, claim, side, is_new)


def _losers(group: list[_Held]) -> Iterator[Finding]:
    for place, held in enumerate(group):
        rival = _rival(group, place)
        if rival is not None:
            spoils_good = held.rank < 2 or (held.side.runs_last_good and held.side.had(held.claim))
            yield Finding(held.side, held.claim.where, *_words(held, rival), spoils_good)


def _rival(group: list[_Held], place: int) -> _Held | None:
    """Who keeps what this one claims, or shares its loss; the group is in order of rank, path and order in the file."""
    held = group[place]
    for other_place, rival in enumerate(group):
        if held.rank < 2 and other_place >= place:
            return None
        if other_place == place or not _rivals(held, rival):
            continue
        if rival.rank < 2 or rival.path != held.path or rival.order < held.order:
            return rival
    return None


def _rivals(one: _Held, other: _Held) -> bool:
    if one.claim.role == other.claim.role and one.claim.role in SHARED:
        return False
    if one.claim.kind == "port" and not _published(one.claim).meets(_published(other.claim)):
        return False
    if _is_upon(one.claim, other.claim) or _is_upon(other.claim, one.claim):
        return False
    if one.path == other.path:
        return one.is_new == other.is_new
    return one.claim.kind == "name" or one.claim.resource != other.claim.resource


def _is_upon(user: Claim, vlan: Claim) -> bool:
    """Whether one claim makes a VLAN link, and the other has it as a port of a bridge or puts a direct NIC on it."""
    return user.role in {"port", "direct"} and vlan.role == "vlan" and vlan.resource.startswith("vlan/")


def _words(held: _Held, rival: _Held) -> tuple[str, str]:
    claim, elsewhere = held.claim, f" in {printable(rival.path)}" if rival.path != held.path else ""
    if claim.kind == "name":
        header = f"[{claim.resource.replace('/', '.')}]"
        if rival.rank < 2:
            return f"{header} is already defined{elsewhere}", "rename or remove one of them"
        return f"{header} is also defined{elsewhere}", "neither is used until one is renamed or removed"
    problem, hint = _SENTENCES[claim.kind](claim, rival.claim)
    if claim.kind == "port" and elsewhere:
        elsewhere += f":{_line_of(rival)}"
    return f"{problem}{elsewhere}", hint


def _line_of(held: _Held) -> int:
    """The line of a claim in the version that makes it."""
    version = held.side.new if held.is_new or held.side.good is None else held.side.good
    return position_of(version.data, held.claim.where)[0]


def _disk_words(claim: Claim, rival: Claim) -> tuple[str, str]:
    hint = "a disk that is written to belongs to one guest"
    return f"disk {quoted(claim.key or '')} is also {_owner(rival)}", hint


def _mac_words(claim: Claim, rival: Claim) -> tuple[str, str]:
    return f"MAC address {claim.key} is also that of {_owner(rival)}", _default_hint(claim, "mac")


def _uuid_words(claim: Claim, rival: Claim) -> tuple[str, str]:
    return f"uuid {claim.key} is also that of {_owner(rival)}", ""


def _link_words(claim: Claim, rival: Claim) -> tuple[str, str]:
    whose = {"tap": "the tap of", "port": "a port of", "vlan": "the VLAN link of", "direct": "the link that carries"}
    owned = {"tap", "vlan", "direct"}
    owner = _owner(rival) if rival.role in owned else f"[{rival.resource.replace('/', '.')}]"
    words = f"{claim.role} {quoted(claim.key or '')} is also {whose.get(rival.role, 'the name of')} {owner}"
    return words, _link_hint(claim, rival)


def _link_hint(claim: Claim, rival: Claim) -> str:
    """The kernel gives what comes to a link to its bridge or to the macvtaps on it, never to both."""
    if claim.role == "direct" and rival.role in {"port", "bridge"}:
        name = rival.resource.partition("/")[2]
        return f"bridge = {quoted(name)} puts the NIC there"
    if {claim.role, rival.role} == {"direct", "vlan"}:  # the host's own VLAN link, out of whose reach the NIC would be
        vlan = claim if claim.role == "vlan" else rival
        name, number = vlan.resource.partition("/")[2], vlan.device.partition("/")[2]
        return f"in VLAN {number} of {name} the NIC is by bridge = {quoted(name)} and vlan = {number}"
    return _default_hint(claim, "name" if claim.role == "vlan" and claim.device else "tap")


def _vlan_words(claim: Claim, rival: Claim) -> tuple[str, str]:
    link, _, number = (claim.key or "").rpartition("/")
    return f"VLAN {number} of {quoted(link)} is also that of {_owner(rival)}", "a link has one VLAN link for each"


def _display_words(claim: Claim, rival: Claim) -> tuple[str, str]:
    return f"display {claim.key} is also that of {_owner(rival)}", "take another number, or vnc = true for a socket"


def _port_words(claim: Claim, rival: Claim) -> tuple[str, str]:
    as_what = "" if claim.key == rival.key else f" as {rival.key}"
    return f"{claim.key} is also published by {_owner(rival)}{as_what}", "publish another port of the host"


_SENTENCES: Mapping[str, Callable[[Claim, Claim], tuple[str, str]]] = {
    "disk": _disk_words,
    "mac": _mac_words,
    "uuid": _uuid_words,
    "link": _link_words,
    "vlan": _vlan_words,
    "display": _display_words,
    "port": _port_words,
}


def _default_hint(claim: Claim, key: str) -> str:
    derived = claim.where[-1] != key and (key in {"mac", "name"} or claim.role == "tap")
    return f"it is the default; set {key} to another one" if derived else ""


def _owner(claim: Claim) -> str:
    parts = (
        *claim.resource.split("/", 1),
        *(claim.device.split("/", 1) if claim.role != "port" and claim.device else ()),
    )
    return f"[{'.'.join(parts)}]"
