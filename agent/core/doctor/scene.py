"""What a doctor looks at: the agent's own wants, and what the kernel and everybody else do beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_interface

from agent.core.desired import BridgeSpec, NicSpec, VmSpec
from agent.core.doctor.rules import Ruleset
from agent.core.observed import LinkState
from agent.core.routing.firewall_wanted import Wish, version_of


@dataclass(frozen=True, slots=True)
class Setter:
    """The line of a file that gives a parameter its value whenever such files are applied (sysctl.d(5))."""

    path: str
    line: int
    value: str

    @property
    def place(self) -> str:
        """`FILE:LINE`."""
        return f"{self.path}:{self.line}"


@dataclass(frozen=True, slots=True)
class RouteQuestion:
    """Would the kernel take a packet in by a link, by `source` and `target`? Without `link`: where does it send it?"""

    target: str
    source: str = ""
    link: str = ""


@dataclass(frozen=True, slots=True)
class RouteAnswer:
    """`refused`: the kernel would drop it. `link` is where it would go, empty if nowhere or unknown."""

    refused: bool = False
    link: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a DHCP server offered: who it says it is, the MAC that it came from, and the bridge's port, if known."""

    server: str
    mac: str
    address: str
    port: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that findings are drawn from.

    `bridges` are those of ours, `vms` the guests as they run or are wanted. `rules` None: not known. `sysctls` and
    `setters` go by name below /proc/sys/net; what is missing is not there. `uplinks`: links of default routes by IP
    version. `offers` goes by bridge. `switched_off`: how often forwarding by a link was switched off lately, by link.
    `carried`: what haproxy carries now (`core.services.haproxy.carries`). `tools` are programs that are installed.
    `unexamined`: what could not be looked at, by finding, and why.
    """

    bridges: Mapping[str, BridgeSpec] = field(default_factory=dict)
    vms: Mapping[str, VmSpec] = field(default_factory=dict)
    links: Mapping[str, LinkState] = field(default_factory=dict)
    wish: Wish = field(default_factory=Wish)
    rules: Ruleset | None = None
    sysctls: Mapping[str, int] = field(default_factory=dict)
    setters: Mapping[str, Setter] = field(default_factory=dict)
    uplinks: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    routes: Mapping[RouteQuestion, RouteAnswer] = field(default_factory=dict)
    offers: Mapping[str, tuple[Offer, ...]] = field(default_factory=dict)
    switched_off: Mapping[str, int] = field(default_factory=dict)
    carried: frozenset[str] = frozenset()
    tools: frozenset[str] = frozenset()
    unexamined: Mapping[str, str] = field(default_factory=dict)

    def nics_on(self, bridge: str) -> Iterable[tuple[str, NicSpec]]:
        """The NICs on a bridge, each with its guest."""
        return [(vm, nic) for vm, spec in self.vms.items() for nic in spec.nics if nic.bridge == bridge]

    def ports_of(self, bridge: str) -> tuple[LinkState, ...]:
        """The links that are enslaved to a bridge."""
        link = self.links.get(bridge)
        if link is None:
            return ()
        return tuple(one for one in self.links.values() if one.master == link.ifindex)

    def versions(self, bridge: BridgeSpec) -> tuple[int, ...]:
        """The IP versions in which packets are forwarded for a bridge."""
        forwarded = {one.version for one in self.wish.forwards if one.bridge == bridge.name}
        own = {4: bridge.nat, 6: bool(bridge.ipv6)}
        return tuple(version for version in (4, 6) if version in forwarded or own[version])


def networks_of(bridge: BridgeSpec, version: int) -> tuple[str, ...]:
    """A bridge's own subnets of an IP version."""
    return tuple(str(ip_interface(one).network) for one in bridge.addresses if version_of(one) == version)


def wanted_sysctls(bridges: Iterable[str], uplinks: Iterable[str]) -> tuple[str, ...]:
    """The parameters that findings look at."""
    names = ["all", *bridges, *uplinks]
    found = [f"ipv4/conf/{name}/{key}" for name in dict.fromkeys(names) for key in ("rp_filter", "forwarding")]
    return (
        *found,
        "ipv4/ip_forward",
        "ipv6/conf/all/forwarding",
        *(f"ipv6/conf/{name}/force_forwarding" for name in dict.fromkeys(names)),
        "bridge/bridge-nf-call-iptables",
        "bridge/bridge-nf-call-ip6tables",
    )


def dotted(name: str) -> str:
    """A parameter as sysctl(8) takes it: `net.ipv4.conf.br-a.forwarding`; with slashes where a link has a dot."""
    full = f"net/{name}"
    return full if "." in full else full.replace("/", ".")
