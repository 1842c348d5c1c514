"""The tables that filter what guests send and get: `bridge vmhost`, by tap, and `inet vmhost_filter`, by address.

What is bridged between ports is seen in the first one only, what is routed or ends at this host in both. Chains and
rules never change (`agent.core.routing.ruleset`); a guest is elements. The bridge family tracks no connections on some
kernels, so begun connections are told there by TCP's flags, and for UDP by what passed the other way (`flows`).
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.core.reasons import Disruption, Reason
from agent.core.routing.filters_ingress import CLIENT, EGRESS, INGRESS, NEIGHBOURS, NESTED, STRAYS, Dropped
from agent.core.routing.ruleset import Chain, Element, ElementChange, Rule, Ruleset, RulesetState, SetShape, Table

FILTERS = "filters"
"""The resource: one for the whole host."""

ROUTED = "vmhost_filter"
"""The table in the family `inet`."""

FLOW_LASTS = "2m"
"""How long after its last packet a UDP flow between ports still counts as begun."""


VERDICTS = ("deny", "allow")
DIRECTIONS = ("from", "to")
"""`from`: what is begun towards a guest. `to`: what it begins."""

_HEADER = {4: "ip", 6: "ip6"}
_FRAGMENT = {4: "ip frag-off & 0x1fff != 0", 6: "meta protocol ip6 frag frag-off != 0"}
_DHCP = {4: {"to": "udp sport 68 udp dport 67", "from": "udp sport 67 udp dport 68"}}
_DHCP[6] = {"to": "udp sport 546 udp dport 547", "from": "udp sport 547 udp dport 546"}
_ANSWERS = {
    4: "icmp type { echo-reply, destination-unreachable, time-exceeded, parameter-problem }",
    6: "meta protocol ip6 icmpv6 type { 1-4, echo-reply, 130-137, 143 }",
}
"""Errors, answers, and what IPv6 cannot do without: neighbours, routers, groups (RFC 4890)."""


def list_set(verdict: str, direction: str, kind: str, version: int) -> str:
    """The set of a list's entries; `kind` is `ports` or, for all of IP, `any`."""
    return f"{verdict}_{direction}_{kind}{version}"


def _list_sets(version: int) -> tuple[SetShape, ...]:
    address = f"ipv{version}_addr"
    names = [(verdict, direction) for verdict in VERDICTS for direction in DIRECTIONS]
    return (
        *(
            SetShape(list_set(*one, "ports", version), f"ifname . inet_proto . inet_service . {address}", interval=True)
            for one in names
        ),
        *(SetShape(list_set(*one, "any", version), f"ifname . {address}", interval=True) for one in names),
        SetShape(f"flows{version}", f"ifname . {address} . inet_service . inet_service", lasts=FLOW_LASTS),
    )


def _routed_sets(version: int) -> tuple[SetShape, ...]:
    address = f"ipv{version}_addr"
    guest = f"ifname . {address}"
    names = [(verdict, direction) for verdict in VERDICTS for direction in DIRECTIONS]
    return (
        SetShape(f"routed{version}", guest),
        SetShape(f"apart{version}", f"ifname . ifname . {address}"),
        SetShape(f"routed_{Dropped.DENY}{version}", guest, counted=True),
        *(SetShape(f"routed_closed_{direction}{version}", guest) for direction in DIRECTIONS),
        *(
            SetShape(
                f"routed_{list_set(*one, 'ports', version)}",
                f"{guest} . inet_proto . inet_service . {address}",
                interval=True,
            )
            for one in names
        ),
        *(SetShape(f"routed_{list_set(*one, 'any', version)}", f"{guest} . {address}", interval=True) for one in names),
    )


BRIDGE_SETS = (
    *(SetShape(reason.value, "ifname", counted=True) for reason in Dropped),
    SetShape("macs", "ifname . ether_addr"),
    SetShape("own4", "ifname . ipv4_addr"),
    SetShape("own6", "ifname . ipv6_addr"),
    SetShape("own_targets", "iifname . @th,64,128", raw=True),
    SetShape("own_clients", f"iifname . {CLIENT}", raw=True),
    SetShape("claimed6", "ipv6_addr"),
    SetShape("claimed_targets", "@th,64,128", raw=True),
    SetShape("ports", "ifname"),
    SetShape("listed", "ifname"),
    SetShape("alone", "ifname"),
    *(SetShape(f"closed_{direction}", "ifname") for direction in DIRECTIONS),
    *_list_sets(4),
    *_list_sets(6),
)
"""`mac`, `ipv4`, `ipv6`, `dhcp`, `ra`, `deny`: the taps that are held to that, which count what is dropped.

`macs`, `own4`, `own6`: what a tap may be the source of; `own_targets` the same for neighbour discovery, as nft 1.0.6
names no field of it, and `own_clients` for whom DHCP is asked for. `claimed6`, `claimed_targets`: link-local addresses
of bridges and guests, nobody else's. `ports`: links by which no DHCP leaves or enters. `listed`: taps with entries of
`allow` or `deny`; `alone`: those of them that have no address by which the other table could know them. `closed`: only
what is allowed passes.
"""

ROUTED_SETS = (SetShape("taps", "ifname"), *_routed_sets(4), *_routed_sets(6))
"""`taps`: those that are filtered in any way; as links of this host they bring nothing. `apart`: addresses of isolated
NICs, behind their bridge, twice: what came in by it and would leave by it.
"""


def _judged(name: str, link: str, direction: str, *conditions: str) -> tuple[Rule, ...]:
    """Rules that send what fulfils one of some conditions to be judged by the lists of its tap."""
    return tuple(
        Rule(f"{condition} {link} @{name} jump {direction}{version}", f"{where} ({name})")
        for condition, where, version in (
            ("meta protocol ip", "IPv4", 4),
            ("meta protocol ip6", "IPv6", 6),
            *((condition, "link-local", 6) for condition in conditions),
        )
    )


def _link_local(link: str, direction: str, match: str) -> Rule:
    why = "the other table knows no link-local address"
    return Rule(f"meta protocol ip6 {match} fe80::/10 {link} @listed jump {direction}6", why)


_HOOKS = (
    Chain(
        "between",
        (
            Rule(f"{NESTED} iifname @listed goto denied_to", "tags that hide what is within"),
            Rule(f"{NESTED} oifname @listed goto denied_from", "tags that hide what is within"),
            *_judged("listed", "iifname", "to"),
            *_judged("listed", "oifname", "from"),
        ),
        "filter",
        "forward",
        -200,
    ),
    Chain(
        "into",
        (
            Rule(f"{NESTED} iifname @listed goto denied_to", "tags that hide what is within"),
            *_judged("alone", "iifname", "to"),
            _link_local("iifname", "to", "ip6 saddr"),
        ),
        "filter",
        "input",
        -200,
    ),
    Chain(
        "out",
        (*_judged("alone", "oifname", "from"), _link_local("oifname", "from", "ip6 daddr")),
        "filter",
        "output",
        -200,
    ),
)


def _lists(direction: str, version: int) -> tuple[Chain, ...]:
    """The chains that judge what a guest begins (`to`), or what is begun towards it (`from`), where it is bridged."""
    tap, peer = ("iifname", "daddr") if direction == "to" else ("oifname", "saddr")
    ip, here, there = _HEADER[version], *(("sport", "dport") if direction == "to" else ("dport", "sport"))
    key = f"{tap} . {ip} {peer} . th {here} . th {there}"
    flow = f"@flows{version} {{ {key} }}"
    entry = {
        "any": f"{tap} . {ip} {peer}",
        "ports": f"{tap} . meta l4proto . th dport . {ip} {peer}",
    }
    denied, begun = f"denied_{direction}", f"begun_{direction}{version}"
    return (
        Chain(begun, (Rule(f"meta l4proto udp update {flow}", "its answers pass"),)),
        Chain(
            f"{direction}{version}",
            (
                Rule(f"{_FRAGMENT[version]} return", "goes with its first fragment"),
                Rule("tcp flags & (syn | ack) != syn return", "begun before"),
                Rule(f"{_ANSWERS[version]} return", "answers, errors, neighbours"),
                Rule(f"{_DHCP[version][direction]} return", "DHCP has its own rules"),
                Rule(f"meta l4proto udp {key} @flows{version} update {flow} return", "begun before"),
                *(
                    Rule(f"{match} @{list_set('deny', direction, kind, version)} goto {denied}", f"deny ({kind})")
                    for kind, match in entry.items()
                ),
                *(
                    Rule(f"{match} @{list_set('allow', direction, kind, version)} goto {begun}", f"allow ({kind})")
                    for kind, match in entry.items()
                ),
                Rule(f"{tap} @closed_{direction} goto {denied}", "only what is allowed"),
                Rule(f"goto {begun}", "no list says no"),
            ),
        ),
    )


def _denied(direction: str) -> Chain:
    link = "iifname" if direction == "to" else "oifname"
    rules = (Rule(f"{link} @{Dropped.DENY} drop", "counted"), Rule("drop", "the rest"))
    return Chain(f"denied_{direction}", rules)


def _routed(direction: str, version: int) -> tuple[Chain, ...]:
    """As `_lists`, where packets are routed or end at this host: connections are tracked there."""
    link, guest, peer = ("iifname", "saddr", "daddr") if direction == "to" else ("oifname", "daddr", "saddr")
    ip, denied = _HEADER[version], f"denied_{direction}{version}"
    who = f"{link} . {ip} {guest}"
    entry = {
        "any": f"{who} . {ip} {peer}",
        "ports": f"{who} . meta l4proto . th dport . {ip} {peer}",
    }
    rules = [
        Rule("ct state established,related return", "begun before"),
        Rule(f"{_DHCP[version][direction]} return", "DHCP has its own rules"),
        *(
            Rule(f"{match} @routed_{list_set(verdict, direction, kind, version)} {then}", f"{verdict} ({kind})")
            for verdict, then in (("deny", f"goto {denied}"), ("allow", "return"))
            for kind, match in entry.items()
        ),
        Rule(f"{who} @routed_closed_{direction}{version} goto {denied}", "only what is allowed"),
    ]
    if version == 6:
        rules.insert(1, Rule(f"{_ANSWERS[6]} return", "answers, errors, neighbours"))
    counted = Rule(f"{who} @routed_{Dropped.DENY}{version} drop", "counted")
    return Chain(denied, (counted, Rule("drop", "the rest"))), Chain(f"{direction}{version}", tuple(rules))


def _routed_hook(name: str, direction: str, priority: int) -> Chain:
    link, guest = ("iifname", "saddr") if direction == "to" else ("oifname", "daddr")
    rules = tuple(
        Rule(f"{link} . {_HEADER[version]} {guest} @routed{version} jump {direction}{version}", f"IPv{version}")
        for version in (4, 6)
    )
    return Chain(name, rules, "filter", name, priority)


_APART = Chain(
    "apart",
    (
        Rule("ct status dnat return", "a published port is everybody's"),
        *(
            Rule(
                f"iifname . oifname . {ip} saddr @apart{version} iifname . oifname . {ip} daddr @apart{version} "
                "counter drop",
                f"this host leads no isolated guest to another ({ip})",
            )
            for version, ip in _HEADER.items()
        ),
    ),
    "filter",
    "forward",
    -10,
)

_VERSIONED = [(direction, version) for direction in DIRECTIONS for version in (4, 6)]
FILTERING = Ruleset(
    (
        Table(
            "bridge",
            "vmhost",
            BRIDGE_SETS,
            (
                *(_denied(direction) for direction in DIRECTIONS),
                *(chain for one in _VERSIONED for chain in _lists(*one)),
                NEIGHBOURS,
                INGRESS,
                EGRESS,
                *_HOOKS,
            ),
        ),
        Table(
            "inet",
            ROUTED,
            ROUTED_SETS,
            (
                *(chain for one in _VERSIONED for chain in _routed(*one)),
                STRAYS,
                _APART,
                _routed_hook("forward", "to", -5),
                _routed_hook("input", "to", -5),
                _routed_hook("postrouting", "from", 50),
            ),
        ),
    )
)
"""What a guest begins is judged where its target is known (after published ports are translated), and what is begun
towards it where its link is: this host's own connections to a published port have another one before."""


@dataclass(frozen=True, slots=True)
class FilterState(RulesetState):
    """Both tables as they were seen."""

    @property
    def is_intact(self) -> bool:
        """Whether their chains, rules and sets are ours as this version makes them."""
        return self.skeleton == FILTERING.skeleton


@dataclass(frozen=True, slots=True)
class Filters:
    """What was seen of the filters; `state` None where it is not known, and `problem` why it will not be by itself."""

    state: FilterState | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ChangeFilters:
    """Change elements of both tables in one transaction (`ElementChange`)."""

    resource: str
    reason: Reason
    add: tuple[Element, ...] = ()
    remove: tuple[Element, ...] = ()
    whole: bool = False
    gone: bool = False
    disruption: Disruption = Disruption.NONE

    @property
    def elements(self) -> ElementChange:
        """What it is in nftables."""
        return ElementChange(self.add, self.remove, self.whole, self.gone)
