"""What the doctor can find: each kind with its story, of which docs/doctor.md is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.core.conditions import Condition


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing outside of our state that breaks guests, or will.

    `name` is one of `KINDS`. `what` says what, and where: the rule, file or parameter. `why` says what it does to
    guests. `commands` mend it, each a line of sh; none where it is
    a unit that has to be edited, which `why` says then.
    """

    name: str
    resource: str
    what: str
    why: str
    commands: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same one at the next look, though whom it hits may change."""
        return self.name, self.resource, self.what

    @property
    def condition(self) -> Condition:
        """The same as `vmhost status` shows it."""
        mend = f"; {' && '.join(self.commands)}" if self.commands else ""
        return Condition(self.resource, self.name, self.name, f"{self.what}: {self.why}{mend}")

    def as_json(self) -> Mapping[str, object]:
        """Plain data for JSON."""
        return {
            "finding": self.name,
            "resource": self.resource,
            "what": self.what,
            "why": self.why,
            "commands": list(self.commands),
        }


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of finding: when it is told, when not, and how what its command does is kept over a reboot."""

    told: str
    never: str
    kept: str


KINDS: Mapping[str, Kind] = {
    "ForeignDrop": Kind(
        "A rule, or a chain's policy, in a table of somebody else drops what is forwarded for a bridge with `nat` or "
        "`ipv6` or for a published port, what haproxy is to carry, what a "
        "bridge with `dhcp` or `dns` is asked, or what passes a bridge of ours: nftables, "
        "iptables in both its forms, and the families `bridge` and `netdev`. Docker, ufw and firewalld are named",
        "Only what is dropped whatever its port or its peer may be: a rule that may let it pass counts as passing. "
        "Sets are looked into; of matches of iptables that nft does not tell, only those of connection states are "
        "guessed at. Where guests leave by another way than the default route's, as by a VPN, the kernel tells so. "
        "What is accepted in one table can still be dropped in another, so each is looked at",
        "Save the rules with the tool that made them (`netfilter-persistent save`, `/etc/nftables.conf`); Docker makes "
        "its chain `DOCKER-USER` once and keeps what is in it until the host's next boot; ufw and firewalld keep it",
    ),
    "BridgeFiltered": Kind(
        "`net.bridge.bridge-nf-call-iptables` (or `-ip6tables`) is on, and rules of somebody else, which are meant for "
        "what is routed, drop frames that are only bridged between two ports of a bridge, or masquerade them",
        "The parameter alone is none: it is 1 in each new network namespace, and harms nobody without such rules",
        "A file in `/etc/sysctl.d`; it is set anew whenever the module `br_netfilter` is loaded. Docker sets it to 1 "
        "for its own networks, and Kubernetes wants it, so where they are found the command admits the frames instead",
    ),
    "ForwardingOff": Kind(
        "The kernel does not forward what comes in by a bridge with `nat` or published ports, or by the link of the "
        "default route, although the agent sets it; or it was switched off three times within ten minutes, and a line "
        "in `sysctl.d` sets it to 0. That line is named",
        "A line that sets it to 0 and is never applied while the agent runs is none: what it does at the host's start "
        "is put right by the agent",
        "The command comments the line out",
    ),
    "RpFilter": Kind(
        "Strict reverse path filtering (`rp_filter` 1) drops what a guest sends, because the host's route to its "
        "address leads elsewhere than to its bridge, or what comes in for a published port by a second link with a "
        "default route. The kernel itself is asked, with a packet's addresses and the link that it comes in by",
        "Never where the way back is the way in, as with NAT behind one uplink; nor with loose filtering (2)",
        "A file in `/etc/sysctl.d`; a line in one that sets 1 is named",
    ),
    "SecondDhcpServer": Kind(
        "Another DHCP server answers on a bridge with `dhcp`: it is asked for an offer (DHCPDISCOVER from a random MAC "
        "that is never requested, so no lease is taken). `vmhost doctor` asks, ten seconds after the last time at the "
        "soonest; the agent by itself asks after its start, and once an hour",
        "The bridge's own server is not asked, since what the host itself sends on a bridge is not its own to hear",
        "The command drops what servers say on that port, until nftables is flushed; better is to end the other server",
    ),
    "MtuPath": Kind(
        "A port or tap takes smaller packets than its bridge, so what is larger is lost there without a word; or a "
        "NIC's unit gives it a larger `mtu` than its bridge has, which its guest then uses; or the link of the default "
        "route and a bridge with `nat` or published ports differ in MTU, and a rule of somebody else drops the ICMP by "
        "which the host tells senders of it",
        "Never for differing MTUs that ICMP can tell of; a host's link that is a larger port is none",
        "The unit's `mtu`, or the configuration of the link's owner",
    ),
    "PortAddressed": Kind(
        "A link that is a port of a bridge has an address. The kernel answers for it, but what comes in on a port goes "
        "to the bridge: the host is not reached by it",
        "Link-local addresses are none",
        "`addresses` of the bridge's unit, and the address taken out of the configuration that put it on the port",
    ),
}
"""By name, in the order in which they are shown."""
