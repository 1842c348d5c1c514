"""What the kernel is to have for the IPv6 modes of bridges: from specs and links to routes, proxies and parameters.

With `ndp-proxy` the provider takes the whole prefix for on-link: it solicits each guest's address on the uplink, where
nobody of that address is. So the host answers there in its stead (a proxy neighbour), and leads what comes to the
bridge (a route to the one address). On the bridge it answers for what guests with the whole prefix on-link solicit in
vain: the host's own addresses, its gateway, and guests of other such bridges.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from agent.core.desired import BridgeSpec, VmSpec
from agent.core.marks import bridge_resource, is_own_bridge, vm_resource
from agent.core.observed import LinkState
from agent.core.routing.ipv6 import NDP_PROXY, Ipv6State, Place, conf, proxy_delay


class Guest6(NamedTuple):
    """An IPv6 address of a guest's NIC on a bridge with `ndp-proxy`."""

    address: str
    bridge: str
    vm: str
    nic: str


class Finding6(NamedTuple):
    """A condition to tell; `deviates` as for `Draft.tell`."""

    resource: str
    type: str
    message: str
    deviates: bool = True


@dataclass(slots=True)
class Wanted6:
    """All that is wanted; `certain` False: it is not known which link leads out of a bridge, or a bridge is to come,
    so nothing is unwanted.

    `settings` in an order that is safe: a link heeds router advertisements also while it forwards (`accept_ra` 2)
    before any forwards, or the kernel would drop the host's own default route (ip-sysctl.rst, net/ipv6/addrconf.c).
    """

    routes: set[Place] = field(default_factory=set)
    proxies: set[Place] = field(default_factory=set)
    settings: dict[str, int] = field(default_factory=dict)
    findings: list[Finding6] = field(default_factory=list)
    certain: bool = True


def guests_by_proxy(bridges: Mapping[str, BridgeSpec], vms: Mapping[str, VmSpec]) -> tuple[Guest6, ...]:
    """The guests' addresses that bridges with `ndp-proxy` are to lead to, in the order of `vms`."""
    names = {name for name, bridge in bridges.items() if bridge.ipv6 == NDP_PROXY}
    if not names:
        return ()
    return tuple(
        Guest6(address, nic.bridge, vm, nic.id)
        for vm, spec in vms.items()
        for nic in spec.nics
        if nic.bridge in names
        for address in nic.address
        if ":" in address
    )


def uplinks6(bridges: Iterable[BridgeSpec], state: Ipv6State | None) -> frozenset[str]:
    """The links by which bridges with an `ipv6` lead out: those that they name, or that of the default route."""
    default = state.uplink if state is not None else ""
    return frozenset(bridge.uplink or default for bridge in bridges if bridge.ipv6) - {""}


def wanted_ipv6(
    bridges: Mapping[str, BridgeSpec], guests: Iterable[Guest6], links: Mapping[str, LinkState], state: Ipv6State
) -> Wanted6:
    """What these bridges and guests ask of the kernel, as far as their links are there."""
    wanted = Wanted6()
    modes = {name: b for name, b in bridges.items() if b.ipv6 and name in links and is_own_bridge(links[name])}
    wanted.certain = not any(bridge.ipv6 and name not in links for name, bridge in bridges.items())
    if modes:
        wanted.settings.update((name, 2) for name in _heeding(links, state, uplinks6(modes.values(), state)))
    for name in modes:
        # Its neighbour advertisements must call it a router, or guests drop their default route (RFC 4861 7.2.5).
        wanted.settings[conf(name, "forwarding")] = 1
    by_proxy = [bridge for bridge in modes.values() if bridge.ipv6 == NDP_PROXY]
    uplinks = {bridge.name: up for bridge in by_proxy if (up := _uplink(wanted, bridge, links, state)) is not None}
    for link in sorted({*uplinks, *(up.name for up in uplinks.values())}):
        wanted.settings[conf(link, "forwarding")] = 1
        wanted.settings[conf(link, "proxy_ndp")] = 1
        wanted.settings[proxy_delay(link)] = 0
    led = list(_led(wanted, guests, uplinks, links, state))
    for guest in led:
        wanted.routes.add(Place(guest.address, guest.bridge))
        wanted.proxies.add(Place(guest.address, uplinks[guest.bridge].name))
    for bridge, uplink in uplinks.items():
        elsewhere = {one.address for one in led if one.bridge != bridge and uplinks[one.bridge].name == uplink.name}
        wanted.proxies |= {Place(address, bridge) for address in elsewhere | set(_beyond(uplink, state))}
    return wanted


def _heeding(links: Mapping[str, LinkState], state: Ipv6State, uplinks: frozenset[str]) -> Iterator[str]:
    """The links that take routes from router advertisements.

    Of our bridges, where guests could send them, only one that leads out.
    """
    for name, link in links.items():
        concerned = name in uplinks or (link.master is None and prefixes(link) and not is_own_bridge(link))
        if concerned and state.settings.get(conf(name, "accept_ra")) == 1:
            yield conf(name, "accept_ra")


def _uplink(wanted: Wanted6, bridge: BridgeSpec, links: Mapping[str, LinkState], state: Ipv6State) -> LinkState | None:
    """The link on which the provider looks for the guests of a bridge; None, and told, where there is none."""
    name = bridge.uplink or state.uplink
    link = links.get(name)
    if link is not None and link.master is None and name != bridge.name and prefixes(link):
        return link
    if not name:
        why = 'there is no IPv6 default route, so which link leads out is not known; name it: uplink = "eth0"'
    elif link is None:
        why = f"there is no link {name}, its uplink"
    elif link.master is not None:
        master = next((one.name for one in links.values() if one.ifindex == link.master), "another link")
        why = f'{name} is a port of {master}, which has its addresses: uplink = "{master}"'
    elif name == bridge.name:
        why = f'the IPv6 default route leads into {name} itself; name the link that leads out: uplink = "eth0"'
    else:
        why = f"{name}, its uplink, has no IPv6 address with a prefix that guests' addresses could be of"
    wanted.certain = False
    wanted.findings.append(Finding6(bridge_resource(bridge.name), "UplinkMissing", why))
    return None


def prefixes(link: LinkState) -> frozenset[ipaddress.IPv6Network]:
    """The IPv6 networks that a link is in, without link-local ones."""
    found = (ipaddress.ip_interface(a.address) for a in link.addresses if not a.link_local and ":" in a.address)
    return frozenset(
        one.network for one in found if isinstance(one, ipaddress.IPv6Interface) and one.network.prefixlen < 128
    )


def _led(
    wanted: Wanted6,
    guests: Iterable[Guest6],
    uplinks: Mapping[str, LinkState],
    links: Mapping[str, LinkState],
    state: Ipv6State,
) -> Iterator[Guest6]:
    """The guests' addresses that can be led to; each that cannot is told."""
    of_host = {a.address.partition("/")[0]: link.name for link in links.values() for a in link.addresses}
    taken: dict[str, Guest6] = {}
    networks = {up.name: prefixes(up) for up in uplinks.values()}
    for one in guests:
        uplink = uplinks.get(one.bridge)
        if uplink is None:
            continue
        resource, rival = vm_resource(one.vm), taken.get(one.address)
        if one.address in of_host:
            message = f"{one.address} of {one.nic} is this host's own, on {of_host[one.address]}; take another one"
        elif one.address == state.gateway:
            # Answering for it would cut off whoever else has that gateway.
            message = f"{one.address} of {one.nic} is the gateway of this host's default route; take another one"
        elif rival is not None:
            message = f"{one.address} of {one.nic} is the address of {rival.vm}'s {rival.nic}; change one of them"
        elif not _is_within(one.address, networks[uplink.name]):
            inside = ", ".join(sorted(map(str, networks[uplink.name])))
            message = (
                f"{one.address} of {one.nic} is not of {inside}, which is on {uplink.name}: nobody looks for it there"
            )
            wanted.findings.append(Finding6(resource, "NotInSubnet", message, deviates=False))
            continue
        else:
            taken[one.address] = one
            yield one
            continue
        wanted.findings.append(Finding6(resource, "AddressTaken", message, deviates=False))


@lru_cache(8192)
def _is_within(address: str, networks: frozenset[ipaddress.IPv6Network]) -> bool:
    return any(ipaddress.ip_address(address) in network for network in networks)


def _beyond(uplink: LinkState, state: Ipv6State) -> Iterator[str]:
    """What guests with the whole prefix on-link look for on their bridge, in vain: the host and its gateway."""
    networks = prefixes(uplink)
    own = [a.address.partition("/")[0] for a in uplink.addresses if not a.link_local and ":" in a.address]
    gateway = [state.gateway] if state.gateway and state.uplink == uplink.name else []
    for address in (*own, *gateway):
        if _is_within(address, networks):
            yield address


def networks6(bridge: BridgeSpec) -> tuple[ipaddress.IPv6Network, ...]:
    """The IPv6 networks of a bridge's own addresses, without link-local ones."""
    found = (ipaddress.ip_interface(one) for one in bridge.addresses if ":" in one)
    return tuple(
        dict.fromkeys(
            one.network for one in found if isinstance(one, ipaddress.IPv6Interface) and not one.is_link_local
        )
    )
