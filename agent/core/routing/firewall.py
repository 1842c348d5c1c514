"""The table `inet vmhost` of nftables: what it always is, and what changes in it, which is elements of its sets only.

One changed forward is one changed element. Chains and rules never change while an agent of one version runs
(`agent.core.routing.ruleset`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.core.routing.ruleset import Chain, Element, Rule, Ruleset, RulesetState, SetShape, Table, by_set

TABLE = "vmhost"
"""In the family `inet`."""

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@=+#~-]{0,14}", re.ASCII)
"""Names of links that mean themselves in quotes: nft(8) knows no escapes there, and a `*` at the end is a pattern."""


def is_plain_name(name: str) -> bool:
    """Whether the table can name a link."""
    return _PLAIN.fullmatch(name) is not None


_PORT = "inet_proto . inet_service"


def _family_sets(version: int) -> tuple[SetShape, ...]:
    address = f"ipv{version}_addr"
    return (
        SetShape(f"subnets{version}", f"ifname . {address}", interval=True),
        SetShape(f"opened{version}", "ifname"),
        SetShape(f"ports{version}", _PORT, f"{address} . inet_service"),
        SetShape(f"ports{version}_at", f"{address} . {_PORT}", f"{address} . inet_service"),
        SetShape(f"ranges{version}", _PORT, address, interval=True),
        SetShape(f"ranges{version}_at", f"{address} . {_PORT}", address, interval=True),
        SetShape(f"ended{version}", f"{_PORT} . inet_service . {address} . inet_service"),
    )


SETS = (
    SetShape("inside", "ifname"),
    SetShape("same", "ifname . ifname"),
    SetShape("macs", "ifname . ether_addr"),
    SetShape("nat4", "ifname . ipv4_addr", interval=True),
    SetShape("inside6", "ifname"),
    SetShape("nat6", "ifname . ipv6_addr", interval=True),
    SetShape("reached6", "ifname . ipv6_addr", interval=True),
    *_family_sets(4),
    *_family_sets(6),
)
"""`inside`: bridges with `nat`, and `nat4` their own subnets. `inside6`: bridges with `ipv6`; `nat6` are the subnets of
those with nat66, `reached6` what is led to the others: prefixes, or guests' addresses. `subnets`: what belongs to each
bridge that is routed. `same`: each bridge with itself, because frames that are only bridged come by here as well where
br_netfilter is on.

`macs`: what a frame is sent to that is for this host, and so is routed, on bridges that are opened and have no NAT:
such an uplink must not lead back to where a packet came from.

`opened`: links on which we switched forwarding on. `ports` and `ranges`: what is published, `_at` one address.
`ended`: forwards that were taken away and whose connections are still to be ended: protocol, first and last port, the
guest's address and its first port. No intervals, because those must not overlap, and two that went may.
"""


def _dnat(version: int) -> tuple[Rule, ...]:
    ip = "ip" if version == 4 else "ip6"
    at, port = f"{ip} daddr . meta l4proto . th dport", "meta l4proto . th dport"
    return tuple(
        Rule(f"dnat {ip} to {key} map @{name}", f"published {words}")
        for key, name, words in (
            (at, f"ports{version}_at", f"ports of one IPv{version} address"),
            (at, f"ranges{version}_at", f"port ranges of one IPv{version} address"),
            (port, f"ports{version}", f"IPv{version} ports"),
            (port, f"ranges{version}", f"IPv{version} port ranges"),
        )
    )


_TO_THIS_HOST = Rule("fib daddr type local jump published", "what is sent to this host")

CHAINS = (
    Chain(
        "published",
        (
            Rule("ip daddr 127.0.0.0/8 return", "loopback is this host's own"),
            Rule("ip6 daddr ::1 return", "loopback is this host's own"),
            *_dnat(4),
            *_dnat(6),
        ),
    ),
    Chain("prerouting", (_TO_THIS_HOST,), "nat", "prerouting", -100),
    Chain("output", (_TO_THIS_HOST,), "nat", "output", -100),
    Chain(
        "postrouting",
        (
            Rule(
                "ct status dnat oifname . ip saddr @subnets4 iifname . ip saddr @subnets4 masquerade",
                "a guest reaches a neighbour's published port by this host, and the answer must come back this way",
            ),
            Rule(
                "ct status dnat oifname . ip6 saddr @subnets6 iifname . ip6 saddr @subnets6 masquerade",
                "a guest reaches a neighbour's published port by this host, and the answer must come back this way",
            ),
            Rule("oifname . ip saddr @subnets4 return", "stays on its bridge"),
            Rule("oifname . ip6 saddr @subnets6 return", "stays on its bridge"),
            Rule("iifname . ip saddr @nat4 masquerade", "from a bridge's own subnets to elsewhere"),
            Rule("iifname . ip6 saddr @nat6 masquerade", "from a bridge's own subnets to elsewhere"),
        ),
        "nat",
        "postrouting",
        100,
    ),
    Chain(
        "forward",
        (
            Rule("iifname . oifname @same iifname . ether daddr != @macs accept", "stays on its bridge"),
            Rule("iifname @inside udp dport { 67, 68, 546, 547 } counter drop", "DHCP passes no NAT"),
            Rule("oifname @inside udp dport { 67, 68, 546, 547 } counter drop", "DHCP passes no NAT"),
            Rule("ct state established,related accept", "answers"),
            Rule("ct status dnat accept", "published"),
            Rule("iifname @inside ct state invalid counter drop", "would leave with its inner address"),
            Rule("meta nfproto ipv4 oifname @inside counter drop", "into a bridge with nat comes what is published"),
            Rule("iifname . ip saddr @nat4 accept", "from a bridge's own subnets to elsewhere"),
            Rule("meta nfproto ipv4 iifname @inside counter drop", "from a bridge with nat go its own subnets"),
            Rule(
                "iifname @inside6 iifname . ip6 saddr != @subnets6 counter drop", "not from its bridge's own addresses"
            ),
            Rule("ct state invalid iifname . ip6 saddr @nat6 counter drop", "would leave with its inner address"),
            Rule("oifname . ip6 daddr @reached6 accept", "to a guest's own address"),
            Rule(
                "meta nfproto ipv6 oifname @inside6 counter drop", "into a bridge with ipv6 comes what is for its own"
            ),
            Rule("meta nfproto ipv6 iifname @inside6 accept", "from a bridge's own addresses to elsewhere"),
            Rule("meta nfproto ipv4 iifname @opened4 counter drop", "forwards for its guests only"),
            Rule("meta nfproto ipv6 iifname @opened6 counter drop", "forwards for its guests only"),
        ),
        "filter",
        "forward",
        0,
    ),
)
"""Nothing that is neither from, nor to, nor opened for a guest of ours is ever dropped here."""


NAT = Ruleset((Table("inet", TABLE, SETS, CHAINS),))
SKELETON = NAT.skeleton


@dataclass(frozen=True, slots=True)
class FirewallState(RulesetState):
    """The table as it was seen."""

    @property
    def is_intact(self) -> bool:
        """Whether its chains, rules and sets are ours as this version makes them."""
        return self.skeleton == SKELETON

    @property
    def ours(self) -> frozenset[Element]:
        """The elements of sets that are as this version makes them: a table of our name may hold anything else."""
        return self.elements if self.is_intact else NAT.shaped(self)

    def of(self, name: str) -> tuple[Element, ...]:
        """The elements of one set, none if it is not ours."""
        return by_set(self.ours).get(name, ())

    @property
    def ended(self) -> tuple[Element, ...]:
        """What says that connections are to be ended."""
        return (*self.of("ended4"), *self.of("ended6"))


@dataclass(frozen=True, slots=True)
class ForwardingState:
    """Where the kernel forwards packets, by the link that they come in by (ip-sysctl.rst).

    `all4`, `all6`: somebody switched it on for the host as a whole. `links6` is `force_forwarding`, None where the
    kernel has none (before Linux 6.17): then IPv6 is forwarded everywhere or nowhere. `accept_ra` as the kernel has it,
    of links that heed router advertisements.
    """

    all4: bool = False
    all6: bool = False
    links4: Mapping[str, bool] = field(default_factory=dict)
    links6: Mapping[str, bool] | None = None
    accept_ra: Mapping[str, int] = field(default_factory=dict)


class Opening(NamedTuple):
    """Forwarding of an IP version by a link, or by `all` of them."""

    version: int
    link: str


EVERYWHERE6 = Opening(6, "all")


@dataclass(frozen=True, slots=True)
class Routing:
    """What was seen of all that NAT and published ports depend on; None where it is not known.

    `problem`: why the firewall is not known, and will not be by itself. `opened` is what this agent, or one before it,
    switched on in this boot. `holders`: who of the host's own processes has a
    published port (by its text), empty for nobody; what is not in it has not been looked at. None: nobody looks.
    """

    firewall: FirewallState | None = None
    forwarding: ForwardingState | None = None
    problem: str = ""
    opened: frozenset[Opening] = frozenset()
    holders: Mapping[str, str] | None = None

    def translates(self, bridge: str) -> bool:
        """Whether there is NAT for a bridge by now."""
        return self.firewall is not None and any(one.key == f'"{bridge}"' for one in self.firewall.of("inside"))
