"""What the filters are to hold: from the specs of bridges and guests to elements, of which each NIC has its own."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from agent.core.desired import BridgeSpec, NicSpec, VmSpec
from agent.core.observed import LinkState, NicBackend, VmState
from agent.core.routing.filter_entries import closes, list_elements
from agent.core.routing.filters import DIRECTIONS
from agent.core.routing.filters_ingress import Dropped
from agent.core.routing.firewall import is_plain_name
from agent.core.routing.ruleset import Element
from agent.core.vlans import is_tagged

GATEWAY = "fe80::1"
"""The link-local address that routers are given by hand."""

_NO_BRIDGE = BridgeSpec("", "")


@dataclass(frozen=True, eq=False)
class NicWish:
    """What one NIC asks of the filters; the same object as long as that is the same, so that it is cheap to compare.

    `leaving` are those for a bridge that its tap is still in and is to leave: nothing waits for them.
    `taken`: those of its addresses that are its bridge's own. `nameless`: the firewall cannot name its tap.
    `is_asked`: its unit asks for it in so many words.
    """

    vm: str
    nic: NicSpec
    elements: frozenset[Element] = frozenset()
    leaving: frozenset[Element] = frozenset()
    taken: tuple[str, ...] = ()
    nameless: bool = False
    is_asked: bool = False


@dataclass(frozen=True, eq=False)
class FilterWish:
    """What all units and guests ask for. `nics` by guest and NIC, only those that ask for anything."""

    elements: frozenset[Element] = frozenset()
    nics: Mapping[tuple[str, str], NicWish] = field(default_factory=dict)


def filter_wish(
    bridges: Mapping[str, BridgeSpec],
    specs: Mapping[str, VmSpec],
    vms: Mapping[str, VmState],
    links: Mapping[str, LinkState],
    ports: tuple[tuple[str, str], ...] | None = None,
) -> FilterWish:
    """What bridges and guests ask for: `specs` are those to be started, `vms` those that run, as they run.

    `ports` are bridges with the names that their ports have (`planner.ports.port_names`), None for as units call them.

    A tap that is still in another bridge than it is to be in is filtered for both. The same object as the last time
    where nothing changed.
    """
    found: list[NicWish] = []
    free: list[tuple[str, str]] = []
    indexes = {name: link.ifindex for name in bridges if (link := links.get(name)) is not None}
    for name, state in vms.items():
        for nic in (*state.spec.nics, *state.leaving_nics):
            if nic.direct:
                continue  # its frames pass no bridge
            backend = state.nics.get(nic.id)
            attached = backend is not None and backend.backend is NicBackend.ATTACHED
            present = (backend.link if backend is not None and attached else None) or nic.tap
            link = links.get(present)
            left = None
            if link is not None and link.master is not None and link.master != indexes.get(nic.bridge):
                left = _bridge_of(link.master, bridges, links)
            wish = _nic_wish(name, nic, bridges.get(nic.bridge, _NO_BRIDGE), present, left)
            if wish is not None:
                found.append(wish)
            else:
                free.append((nic.bridge, nic.mac))
    for name, spec in specs.items():
        for nic in spec.nics if name not in vms else ():
            if nic.direct:
                continue
            wish = _nic_wish(name, nic, bridges.get(nic.bridge, _NO_BRIDGE), nic.tap)
            if wish is not None:
                found.append(wish)
            else:
                free.append((nic.bridge, nic.mac))
    if ports is None:
        ports = tuple((bridge.name, port) for bridge in bridges.values() for port in bridge.ports)
    return _wish(tuple(bridges.values()), tuple(found), tuple(free) if found else (), ports)


@lru_cache(4)
def _wish(
    bridges: tuple[BridgeSpec, ...],
    nics: tuple[NicWish, ...],
    free: tuple[tuple[str, str], ...],
    ports: tuple[tuple[str, str], ...],
) -> FilterWish:
    """`free` are bridge and MAC of NICs that ask for nothing; their link-local addresses are nobody else's either."""
    elements = {element for nic in nics for element in (*nic.elements, *nic.leaving)}
    held = {wish.nic.bridge for wish in nics if Dropped.IPV6 in _guards(wish.nic, _NO_BRIDGE)}
    for place, mac in (*free, *((wish.nic.bridge, wish.nic.mac) for wish in nics)) if held else ():
        if place in held:
            elements.update(_claims(link_local(mac)))
    for bridge in bridges:
        if bridge.name in held:
            elements.update(_claims(GATEWAY), _claims(link_local(bridge.mac)))
        if bridge.dhcp is not None and not bridge.dhcp.ports:
            names = (port for name, port in ports if name == bridge.name)
            elements.update(Element("ports", _quoted(port)) for port in names if is_plain_name(port))
    return FilterWish(frozenset(elements), {(wish.vm, wish.nic.id): wish for wish in nics})


def guarded_ports(elements: Iterable[Element]) -> frozenset[str]:
    """The ports by which no DHCP passes, among all elements."""
    return frozenset(one.key.strip('"') for one in elements if one.set == "ports")


def _bridge_of(ifindex: int, bridges: Mapping[str, BridgeSpec], links: Mapping[str, LinkState]) -> BridgeSpec | None:
    name = next((link.name for link in links.values() if link.ifindex == ifindex), None)
    return bridges.get(name, BridgeSpec(name, "")) if name is not None else None


def _nic_wish(
    vm: str, nic: NicSpec, bridge: BridgeSpec, present: str, left: BridgeSpec | None = None
) -> NicWish | None:
    """What a NIC asks for; `present` is the name that its tap has by now, `left` a bridge that it is still in."""
    if not (nic.address or nic.anti_spoof or nic.allow or nic.deny or _is_served(bridge) or left is not None):
        return None  # nearly always, and for a thousand guests in each pass
    return _cached_wish(vm, nic, bridge, present, left)


@lru_cache(8192)
def _cached_wish(vm: str, nic: NicSpec, bridge: BridgeSpec, present: str, left: BridgeSpec | None) -> NicWish | None:
    is_asked = bool(nic.anti_spoof or nic.allow or nic.deny)
    taps = {nic.tap, present}
    if not all(map(is_plain_name, taps)):
        return NicWish(vm, nic, nameless=True, is_asked=is_asked)
    elements = _on(nic, bridge, taps)
    leaving = _on(replace(nic, bridge=left.name), left, taps) - elements if left is not None else frozenset()
    of_bridge = {one.partition("/")[0] for one in bridge.addresses}
    of_bridge |= {one.partition("/")[0] for vlan in bridge.vlans for one in vlan.addresses}
    taken = tuple(one for one in nic.address if one in of_bridge)
    wish = NicWish(vm, nic, elements, leaving, taken, is_asked=is_asked)
    return wish if elements or leaving or taken else None


def _on(nic: NicSpec, bridge: BridgeSpec, taps: Iterable[str]) -> frozenset[Element]:
    return frozenset(element for tap in taps for element in _elements(nic, bridge, _quoted(tap)))


def own_elements(vm: str, nic: NicSpec) -> frozenset[Element]:
    """What a NIC asks for on any bridge."""
    wish = _nic_wish(vm, nic, _NO_BRIDGE, nic.tap)
    return wish.elements if wish is not None else frozenset()


def _is_served(bridge: BridgeSpec) -> bool:
    """Whether the host itself gives addresses, or is the router, on a bridge: then nobody else is."""
    return bridge.dhcp is not None or bool(bridge.ipv6)


def _guards(nic: NicSpec, bridge: BridgeSpec) -> frozenset[Dropped]:
    """What of a NIC is dropped at its bridge, apart from its lists."""
    found: set[Dropped] = set()
    if nic.held:
        found.add(Dropped.MAC)
        if nic.address:
            found |= {Dropped.IPV4, Dropped.IPV6}
    if nic.held or _is_served(bridge):
        found |= {one for one in (Dropped.DHCP, Dropped.RA) if one.value not in nic.serves}
    return frozenset(found)


def _elements(nic: NicSpec, bridge: BridgeSpec, tap: str) -> Iterator[Element]:
    guards = _guards(nic, bridge)
    if guards or nic.allow or nic.deny:
        yield Element("taps", tap)
    yield from (Element(guard.value, tap) for guard in sorted(guards))
    if Dropped.MAC in guards:
        yield Element("macs", f"{tap} . {nic.mac}")
        yield Element("own_clients", f"{tap} . {int(nic.mac.replace(':', ''), 16)}")
    own = addresses_of(nic, bridge)
    if Dropped.IPV6 in guards:
        for address in own:
            yield Element(f"own{_version(address)}", f"{tap} . {address}")
            if _version(address) == 6:
                yield Element("own_targets", f"{tap} . {_raw(address)}")
        local = link_local(nic.mac)
        yield Element("own6", f"{tap} . {local}")
        yield Element("own_targets", f"{tap} . {_raw(local)}")
    if nic.isolated and is_plain_name(nic.bridge):
        links = [_quoted(link) for link in (nic.bridge, *(vlan.name for vlan in bridge.vlans)) if is_plain_name(link)]
        both = [f"{one} . {other}" for one in links for other in links]
        yield from (Element(f"apart{_version(one)}", f"{pair} . {one}") for one in own for pair in both)
    if nic.allow or nic.deny:
        # In a VLAN it comes to this host by another link than its bridge: its tap is what it is known by.
        known = Dropped.IPV4 in guards and is_plain_name(nic.bridge) and not is_tagged(nic)
        yield from _listed(nic, tap, own if known else ())


def _listed(nic: NicSpec, tap: str, own: tuple[str, ...]) -> Iterator[Element]:
    """What lists are; packets that are routed are told by the `own` addresses of a NIC that is held to them."""
    yield Element("listed", tap)
    yield Element(Dropped.DENY.value, tap)
    if not own:
        yield Element("alone", tap)
    closed = [direction for direction in DIRECTIONS if closes(nic.allow, direction)]
    yield from (Element(f"closed_{direction}", tap) for direction in closed)
    for version in (4, 6):
        routed = tuple(f"{_quoted(nic.bridge)} . {one}" for one in own if _version(one) == version)
        for who in routed:
            yield Element(f"routed{version}", who)
            yield Element(f"routed_{Dropped.DENY}{version}", who)
            yield from (Element(f"routed_closed_{direction}{version}", who) for direction in closed)
        for verdict, texts in (("allow", nic.allow), ("deny", nic.deny)):
            yield from list_elements(verdict, texts, version, tap, routed)


def addresses_of(nic: NicSpec, bridge: BridgeSpec) -> tuple[str, ...]:
    """The addresses of a NIC: its static ones, and what IPv6 makes of its MAC in the bridge's own prefixes (SLAAC)."""
    made = (
        _with_mac(network, nic.mac)
        for one in bridge.addresses
        if ":" in one and (network := ipaddress.IPv6Interface(one).network).prefixlen == 64
    )
    return tuple(dict.fromkeys((*nic.address, *made)))


def _with_mac(network: ipaddress.IPv6Network, mac: str) -> str:
    """The address with the modified EUI-64 of a MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    number = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(network.network_address + int.from_bytes(number, "big"))


def link_local(mac: str) -> str:
    """The link-local address of a MAC."""
    return _with_mac(ipaddress.IPv6Network("fe80::/64"), mac) if mac else GATEWAY


def _claims(address: str) -> Iterable[Element]:
    return (Element("claimed6", address), Element("claimed_targets", _raw(address)))


def _raw(address: str) -> str:
    """An address as nft writes a number of 16 bytes."""
    return f"0x{int(ipaddress.IPv6Address(address)):032x}"


def _version(address: str) -> int:
    return 6 if ":" in address else 4


def _quoted(name: str) -> str:
    return f'"{name}"'
