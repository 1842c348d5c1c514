"""What the firewall is to hold: from the specs of bridges and guests, and the links that there are, to elements."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import ip_address, ip_network

from agent.core.desired import BridgeSpec, NicSpec, VmSpec
from agent.core.observed import LinkState
from agent.core.routing.firewall import EVERYWHERE6, ForwardingState, Opening, Routing, is_plain_name
from agent.core.routing.ipv6 import NAT66, NDP_PROXY
from agent.core.routing.ipv6_wanted import guests_by_proxy, networks6
from agent.core.routing.publications import Publication, publication
from agent.core.routing.ruleset import Element

VERSIONS = (4, 6)


@dataclass(frozen=True, slots=True)
class Forward:
    """One published port or range of a guest, towards its address of one IP version on one bridge.

    `element` is what it is in the firewall. One that is `carried` leads from IPv6 to an IPv4 address: haproxy does that
    (`core.planner.proxy`), and its element is in no table.
    """

    vm: str
    text: str
    version: int
    target: str
    bridge: str
    element: Element

    @property
    def what(self) -> Publication:
        """What is published."""
        return publication(self.text)

    @property
    def carried(self) -> bool:
        """Whether packets cannot lead there, but a program has to."""
        return version_of(self.target) != self.version


@dataclass(frozen=True, eq=False)
class Published:
    """The forwards of one guest; the same object as long as they are the same, so that it is cheap to compare."""

    forwards: tuple[Forward, ...]


Asked = tuple[tuple[BridgeSpec, ...], tuple[Published, ...], tuple[tuple[str, str], ...]]
"""Bridges, what is published of guests, and the guests' addresses that are led to bridges one by one."""


@dataclass(frozen=True, eq=False)
class Wish:
    """What units and guests ask of the host's routing; all that does not depend on what the kernel forwards by now.

    `routed` are the bridges that have to do with it, `nat` those of them with NAT, `modes` those with `ipv6`.
    `elements` are those of bridges and of passages, `published` those of `forwards`. `carried`: those that are for
    haproxy, none of which is in `forwards`. `lost`: forwards that another guest's stands in the way of, with that one,
    and `served`: that a bridge's own DNS or DHCP does, in words. `unreachable`: forwards whose target is in no subnet
    of its bridge. `bound`: forwards that listen on one address.
    """

    nat: tuple[BridgeSpec, ...] = ()
    modes: tuple[BridgeSpec, ...] = ()
    routed: tuple[BridgeSpec, ...] = ()
    forwards: tuple[Forward, ...] = ()
    elements: frozenset[Element] = frozenset()
    published: frozenset[Element] = frozenset()
    carried: tuple[Forward, ...] = ()
    lost: tuple[tuple[Forward, Forward], ...] = ()
    served: tuple[tuple[Forward, str], ...] = ()
    unreachable: tuple[Forward, ...] = ()
    bound: tuple[Forward, ...] = ()

    def routes(self, version: int) -> bool:
        """Whether packets of this IP version are to be forwarded at all."""
        return bool(self.nat if version == 4 else self.modes) or any(one.version == version for one in self.forwards)


def published_by(vm: str, spec: VmSpec) -> Published:
    """The forwards of a guest: of each IP version to the first address that one of its NICs has.

    Where it has an IPv4 address only, what is published over IPv6 leads to that.
    """
    return _published_by(vm, spec.publish, tuple(_target(spec.nics, version) for version in VERSIONS))


@lru_cache(8192)
def _published_by(vm: str, texts: tuple[str, ...], targets: tuple[tuple[str, str] | None, ...]) -> Published:
    found: list[Forward] = []
    for text in texts:
        what = publication(text)
        for version, target in zip(VERSIONS, targets, strict=True):
            if target is not None and version in what.versions:
                bridge, address = target
                found.append(Forward(vm, text, version, address, bridge, _forward_element(what, version, address)))
        if targets[0] is not None and targets[1] is None and 6 in what.versions and what.can_be_carried:
            bridge, address = targets[0]
            found.append(Forward(vm, text, 6, address, bridge, Element("carried", f"{vm} {text}", address)))
    return Published(tuple(found))


def _forward_element(what: Publication, version: int, target: str) -> Element:
    kind = f"{'ranges' if what.is_range else 'ports'}{version}{'_at' if what.address else ''}"
    ports = f"{what.first}-{what.last}" if what.is_range else str(what.first)
    key = f"{what.proto} . {ports}"
    value = target if what.is_range else f"{target} . {what.guest_port}"
    return Element(kind, f"{what.address} . {key}" if what.address else key, value)


def _target(nics: Iterable[NicSpec], version: int) -> tuple[str, str] | None:
    """The bridge of the first NIC that has an address of an IP version, and that address."""
    return next(((nic.bridge, one) for nic in nics for one in nic.address if version_of(one) == version), None)


def version_of(address: str) -> int:
    """The IP version of an address or a network, as it is written."""
    return 6 if ":" in address else 4


def wish_of(bridges: Mapping[str, BridgeSpec], vms: Mapping[str, VmSpec]) -> Wish:
    """What these bridges and guests ask for; `vms` in the order in which a port that two want is given out.

    The same object as the last time where nothing changed: with hundreds of ports that is most of a pass.
    """
    return _wish(*asked_of(bridges, vms))


def asked_of(bridges: Mapping[str, BridgeSpec], vms: Mapping[str, VmSpec]) -> Asked:
    """All that a wish is made of: equal for equal wishes, and compared without making them."""
    published = tuple(published_by(vm, spec) for vm, spec in vms.items() if spec.publish)
    led = tuple((guest.bridge, guest.address) for guest in guests_by_proxy(bridges, vms))
    return tuple(bridges.values()), published, led


@lru_cache(4)
def _wish(bridges: tuple[BridgeSpec, ...], published: tuple[Published, ...], led: tuple[tuple[str, str], ...]) -> Wish:
    fitting: list[Forward] = []
    lost: list[tuple[Forward, Forward]] = []
    served: list[tuple[Forward, str]] = []
    taken = _Taken()
    serving = [one for bridge in bridges for one in _served(bridge)]
    for one in (forward for guest in published for forward in guest.forwards):
        rival, server = taken.rival(one), _server(serving, one)
        if server:
            served.append((one, server))
        elif rival is not None:
            lost.append((one, rival))
        else:
            taken.put(one)
            fitting.append(one)
    kept = [one for one in fitting if not one.carried]
    carried = [one for one in fitting if one.carried]
    plain = [bridge for bridge in bridges if is_plain_name(bridge.name)]
    used = {forward.bridge for forward in kept}
    nat = tuple(bridge for bridge in plain if bridge.nat)
    modes = tuple(bridge for bridge in plain if bridge.ipv6)
    routed = tuple(bridge for bridge in plain if bridge.nat or bridge.ipv6 or bridge.name in used)
    own = {bridge.name: _own_networks(bridge, led) for bridge in routed}
    networks = {
        name: [ip_network(one) for ones in by_version.values() for one in ones] for name, by_version in own.items()
    }
    targets = {(one.bridge, one.target) for one in kept}  # a guest's ports lead to one address mostly
    outside = {(name, ip) for name, ip in targets if not any(ip_address(ip) in n for n in networks.get(name, ()))}
    return Wish(
        nat,
        modes,
        routed,
        tuple(kept),
        frozenset({*_bridge_elements(nat, modes, own), *_passing(carried, kept)}),
        frozenset(forward.element for forward in kept),
        tuple(carried),
        tuple(lost),
        tuple(served),
        tuple(one for one in kept if (one.bridge, one.target) in outside),
        tuple(one for one in kept if one.what.address),
    )


def _served(bridge: BridgeSpec) -> Iterator[tuple[Publication, str]]:
    """What a bridge serves on its own addresses: a published port would lead its guests' questions elsewhere."""
    own = [one.partition("/")[0] for one in bridge.addresses]
    if bridge.dns is not None:
        yield from ((Publication(proto, 53, 53, 53, one), f"{bridge.name}'s dns") for one in own for proto in _BOTH)
    if bridge.dhcp is not None:
        yield from ((Publication("udp", 67, 67, 67, one), f"{bridge.name}'s dhcp") for one in own if ":" not in one)


_BOTH = ("tcp", "udp")


def _server(serving: Iterable[tuple[Publication, str]], one: Forward) -> str:
    """Which bridge's service a forward would take packets from, in words; empty for none."""
    for what, whose in serving:
        at_all = (
            replace(what, listen=one.what.listen) if one.version in what.versions and not one.what.address else what
        )
        if at_all.meets(one.what):
            return whose
    return ""


def _passing(carried: Iterable[Forward], kept: Iterable[Forward]) -> Iterator[Element]:
    """One address goes before all of them: what comes there for haproxy is kept from another guest's `80`.

    It leads to where it leads anyway, this host, which looks nowhere else then.
    """
    bound = [one for one in carried if one.what.address]
    every = [one.what for one in kept if bound and one.version == 6 and not one.what.address]
    for one in bound:
        what = replace(one.what, guest_port=one.what.first)
        if any(what.meets(replace(other, listen=what.listen)) for other in every):
            yield _forward_element(what, 6, what.address)


class _Taken:
    """Which ports are given out; ranges are few, and are gone through."""

    def __init__(self) -> None:
        self._single: dict[tuple[int, str, str, int], Forward] = {}
        self._ranges: list[Forward] = []

    def put(self, one: Forward) -> None:
        """Give out what a forward publishes."""
        what = one.what
        if what.is_range:
            self._ranges.append(one)
        else:
            self._single[one.version, what.proto, what.address, what.first] = one

    def rival(self, one: Forward) -> Forward | None:
        """Who has some of it already."""
        what = one.what
        found = self._single.get((one.version, what.proto, what.address, what.first))
        others = [*self._single.values(), *self._ranges] if what.is_range else self._ranges
        return found or next((x for x in others if x.version == one.version and x.what.meets(what)), None)


def subnets(bridge: BridgeSpec, version: int) -> Iterator[str]:
    """The networks that a bridge's own addresses are in, none within another."""
    networks = (ipaddress.ip_interface(address).network for address in bridge.addresses)
    if version == 4:
        yield from map(_written, ipaddress.collapse_addresses(n for n in networks if n.version == 4))
    else:
        yield from map(_written, ipaddress.collapse_addresses(networks6(bridge)))


def _written(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    """A network as nft prints it: one of a single address without its length."""
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _own_networks(bridge: BridgeSpec, led: Iterable[tuple[str, str]]) -> Mapping[int, tuple[str, ...]]:
    """What belongs to a bridge, by IP version: its subnets, or the guests' addresses that are led there one by one."""
    if bridge.ipv6 == NDP_PROXY:
        addresses = tuple(dict.fromkeys(address for name, address in led if name == bridge.name))
        return {4: tuple(subnets(bridge, 4)), 6: addresses}
    return {version: tuple(subnets(bridge, version)) for version in VERSIONS}


def _bridge_elements(
    nat: Iterable[BridgeSpec], modes: Iterable[BridgeSpec], own: Mapping[str, Mapping[int, tuple[str, ...]]]
) -> Iterator[Element]:
    """What the firewall holds of bridges."""
    for bridge in nat:
        name = _quoted(bridge.name)
        yield Element("inside", name)
        yield from (Element("nat4", f"{name} . {network}") for network in subnets(bridge, 4))
    for bridge in modes:
        name = _quoted(bridge.name)
        yield Element("inside6", name)
        kind = "nat6" if bridge.ipv6 == NAT66 else "reached6"
        yield from (Element(kind, f"{name} . {network}") for network in own[bridge.name][6])
    for link, by_version in own.items():
        for version, networks in by_version.items():
            yield from (Element(f"subnets{version}", f"{_quoted(link)} . {network}") for network in networks)


def _quoted(name: str) -> str:
    return f'"{name}"'


def wanted_openings(
    wish: Wish,
    links: Mapping[str, LinkState],
    forwarding: ForwardingState,
    routing: Routing,
    version: int,
    uplinks: frozenset[str] = frozenset(),
) -> frozenset[str]:
    """The links on which forwarding is to be switched on by us: none that somebody else did, nor if for the whole host.

    Packets come in by links that have an address, by `uplinks`, which may have none, and by bridges that are routed.
    """
    if not wish.routes(version):
        return frozenset()
    routed = {bridge.name for bridge in wish.routed if bridge.name in links}
    named = {name for name in uplinks & links.keys() if version == 6 and is_plain_name(name)}
    concerned = frozenset(routed | named | outer_links(links, version))
    if version == 6 and forwarding.links6 is None:
        return frozenset() if forwarding.all6 and EVERYWHERE6 not in routing.opened else concerned
    if forwarding.all4 if version == 4 else forwarding.all6:
        return frozenset()
    on = forwarding.links4 if version == 4 else forwarding.links6 or {}
    return frozenset(name for name in concerned if not on.get(name) or Opening(version, name) in routing.opened)


def outer_links(links: Mapping[str, LinkState], version: int) -> frozenset[str]:
    """The links by which packets for a guest come to this host: those with an address that others can reach."""
    return frozenset(
        link.name
        for link in links.values()
        if link.master is None
        and link.name != "lo"
        and is_plain_name(link.name)
        and any(not a.link_local and version_of(a.address) == version for a in link.addresses)
    )


def opening_elements(opened: Iterable[str], version: int) -> Iterator[Element]:
    """What the firewall holds of links on which forwarding is, or is to be, switched on by us."""
    return (Element(f"opened{version}", _quoted(name)) for name in opened)


def same_elements(names: Iterable[str], links: Mapping[str, LinkState]) -> Iterator[Element]:
    """The bridges among these links, as pairs."""
    for name in names:
        link = links.get(name)
        if link is None or link.kind == "bridge":
            yield Element("same", f"{_quoted(name)} . {_quoted(name)}")


def mac_elements(names: Iterable[str], links: Mapping[str, LinkState]) -> Iterator[Element]:
    """The MACs of the bridges among these links, which are their ports' as well: frames to those are the host's own."""
    bridges = {link.ifindex: name for name in names if (link := links.get(name)) is not None and link.kind == "bridge"}
    for link in links.values() if bridges else ():
        name = bridges.get(link.ifindex) or bridges.get(link.master or 0)
        if name is not None and link.mac:
            yield Element("macs", f"{_quoted(name)} . {link.mac}")


def name_of(key: str) -> str:
    """The link that an element's key begins with."""
    return key.split('"')[1] if key.startswith('"') else key.split(" . ", maxsplit=1)[0]


@lru_cache(16_384)  # asked for all of hundreds in each pass until it is ended
def ended_element(element: Element) -> Element | None:
    """What remembers that connections of a forward are to be ended, None for an element that is no forward."""
    if not element.set.startswith(("ports", "ranges")):
        return None
    version = 6 if "6" in element.set else 4
    proto, ports = element.key.split(" . ")[-2:]
    first, _, last = ports.partition("-")
    address, _, guest_port = element.value.partition(" . ")
    return Element(f"ended{version}", f"{proto} . {first} . {last or first} . {address} . {guest_port or first}")
