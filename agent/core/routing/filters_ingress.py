"""What a guest may send at all: the chains that frames pass where they enter a bridge, and where they leave it.

They are part of the tables in `agent.core.routing.filters`, whose sets they look into.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from agent.core.routing.ruleset import Chain, Rule


class Dropped(StrEnum):
    """Why a frame of a guest, or one for it, is dropped; the set that counts it, and the label of its metric."""

    MAC = "mac"
    IPV4 = "ipv4"
    IPV6 = "ipv6"
    DHCP = "dhcp"
    RA = "ra"
    DENY = "deny"


CLIENT = "@th,288,48"
"""Whom a DHCP client asks for: `chaddr` (RFC 2131), of which nft(8) knows nothing."""

_FOREIGN_TARGET = "@th,64,128 != @own_targets"


def _drop(match: str, reason: Dropped, why: str) -> Rule:
    """A rule that drops and counts what matches and comes from a tap that is held to it.

    `match` begins with `meta protocol` where it reads beyond Ethernet: what nft(8) puts there by itself is the
    ethertype as it was sent, and a tag (`8021q`, also one for no VLAN, which receivers take off) hides that.
    """
    return Rule(f"{match} iifname @{reason} drop", why)


NESTED = "meta protocol { 8021q, 8021ad }"
"""A tag behind the one that the kernel took off: it takes that off as well, but behind us (net/core/dev.c)."""


UNTAGGED = ("ether type != 8021q", "vlan id 0-1")
"""Frames in the network without tags, where the host serves: also those with a tag for no VLAN, or with that of it."""


def _no_dhcp_by_ports(way: str) -> Iterator[Rule]:
    """What is in a VLAN has servers of its own, on either side of the port."""
    for tag in UNTAGGED:
        for match in ("meta protocol ip udp dport { 67, 68 }", "meta protocol ip6 udp dport { 546, 547 }"):
            yield Rule(f"{tag} {match} {way} @ports counter drop", "DHCP stays on its bridge")


INGRESS = Chain(
    "ingress",
    (
        _drop("iifname . ether saddr != @macs", Dropped.MAC, "frames of somebody else"),
        *(_drop(NESTED, one, "tags that hide what is within") for one in (Dropped.MAC, Dropped.RA, Dropped.DHCP)),
        _drop("meta protocol arp iifname . arp saddr ether != @macs", Dropped.MAC, "ARP of somebody else"),
        _drop(
            "meta protocol arp arp saddr ip != 0.0.0.0 iifname . arp saddr ip != @own4",
            Dropped.IPV4,
            "ARP for another address",
        ),
        _drop(
            "meta protocol arp arp saddr ip 0.0.0.0 iifname . arp daddr ip != @own4",
            Dropped.IPV4,
            "who asks for an address before having it",
        ),
        _drop(
            f"meta protocol ip udp dport 67 iifname . {CLIENT} != @own_clients", Dropped.MAC, "DHCP for somebody else"
        ),
        _drop("meta protocol ip udp dport 67 ip frag-off & 0x2000 != 0", Dropped.MAC, "DHCP in pieces hides for whom"),
        _drop(
            "meta protocol ip ip saddr != 0.0.0.0 iifname . ip saddr != @own4",
            Dropped.IPV4,
            "packets of another address",
        ),
        _drop(
            "meta protocol ip ip saddr 0.0.0.0 udp dport != 67", Dropped.IPV4, "without an address one asks for DHCP"
        ),
        _drop(
            "meta protocol ip ip saddr 0.0.0.0 meta l4proto tcp", Dropped.IPV4, "without an address one asks for DHCP"
        ),
        _drop(
            "meta protocol ip6 ip6 saddr != :: ip6 saddr != fe80::/10 iifname . ip6 saddr != @own6",
            Dropped.IPV6,
            "packets of another address",
        ),
        _drop(
            "meta protocol ip6 ip6 saddr @claimed6 iifname . ip6 saddr != @own6",
            Dropped.IPV6,
            "link-local addresses of somebody else",
        ),
        Rule("meta protocol ip6 icmpv6 type nd-neighbor-advert jump neighbours", "who says to have an address"),
        Rule(
            "meta protocol ip6 ip6 saddr :: icmpv6 type nd-neighbor-solicit jump neighbours", "who is about to have one"
        ),
        _drop("meta protocol ip udp dport 68", Dropped.DHCP, "guests serve no DHCP"),
        _drop("meta protocol ip6 udp dport 546", Dropped.DHCP, "guests serve no DHCP"),
        _drop("meta protocol ip6 udp sport 547", Dropped.DHCP, "guests serve no DHCP"),
        _drop("meta protocol ip6 icmpv6 type { nd-router-advert, nd-redirect }", Dropped.RA, "guests are no routers"),
        *_no_dhcp_by_ports("iifname"),
    ),
    "filter",
    "prerouting",
    -300,
)
NEIGHBOURS = Chain(
    "neighbours",
    (
        _drop(f"@th,64,16 & 0xffc0 != 0xfe80 iifname . {_FOREIGN_TARGET}", Dropped.IPV6, "an address of somebody else"),
        _drop(
            f"@th,64,128 @claimed_targets iifname . {_FOREIGN_TARGET}",
            Dropped.IPV6,
            "a link-local address of somebody else",
        ),
    ),
)
EGRESS = Chain(
    "egress",
    (*_no_dhcp_by_ports("oifname"),),
    "filter",
    "postrouting",
    -200,
)

STRAYS = Chain("strays", (Rule("iifname @taps counter drop", "sent past the bridge"),), "filter", "prerouting", -300)
"""What is sent to 802.1's own groups (01:80:c2:00:00:00 to 0f) passes no chain of the bridge: its link takes it, and
with it what it holds for this host, with any source, or routes (net/bridge/br_input.c). Honest guests send no IP there.
"""
