"""One dnsmasq for each bridge that asks for DHCP, DNS or an IPv6 mode: its configuration, from bridge and NICs.

dnsmasq reads hosts and static leases again at SIGHUP and keeps all leases meanwhile; for the rest it is started anew,
within some ten milliseconds, and finds its leases in the file (dnsmasq(8)).
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent.core.desired import BridgeSpec, Desired, DhcpSpec, NicSpec
from agent.core.marks import bridge_resource
from agent.core.observed import Observed
from agent.core.services.dnsmasq6 import leased6, ra_lines, serves_dhcp6
from agent.core.services.spec import RUN_DIR, FileEffect, ServiceFile, ServiceSpec

PROGRAM = "dnsmasq"
CONF, STATIC, HOSTS = "dnsmasq.conf", "static-leases", "hosts"
SPARE_LEASES = 1000
"""Leases that dnsmasq may keep beyond the addresses of its range: those of guests with an address outside of it."""

MAX_LABEL = 63
"""The most characters between the dots of a name (RFC 1035)."""

NAMELESS = "nameless"
"""The tag of guests' NICs that have no name."""

_NO_NAME = re.compile(r"|[0-9]+[smhdw]?|ignore|infinite", re.ASCII | re.IGNORECASE)
"""What is no name in a line of static leases (dnsmasq(8), --dhcp-host)."""


@dataclass(frozen=True, slots=True)
class LeaseHost:
    """A NIC on a bridge that is served: under `name` its guest is found. `macs`: its wanted one, and that it runs with.

    `addresses` are its static ones; `nic` says whose it is, in words.
    """

    nic: str
    name: str
    macs: tuple[str, ...]
    addresses: tuple[str, ...] = ()


def is_served(bridge: BridgeSpec) -> bool:
    """Whether a bridge asks for a dnsmasq."""
    return bridge.dhcp is not None or bridge.dns is not None or bool(bridge.ipv6)


def service_name(bridge: str) -> str:
    """The name of a bridge's service."""
    return f"{PROGRAM}-{bridge}"


@dataclass(frozen=True, slots=True)
class Served:
    """What follows from a bridge and the NICs on it: its service, its hosts, and the addresses that two of them have
    (the address, who is given it, and who is not)."""

    spec: ServiceSpec
    hosts: tuple[LeaseHost, ...]
    taken: tuple[tuple[str, str, str], ...] = ()


def served_bridges(desired: Desired, observed: Observed, bridges: Mapping[str, BridgeSpec]) -> Mapping[str, Served]:
    """Those of these bridges that ask for DHCP, DNS or an IPv6 mode, by name."""
    asking = {name: bridge for name, bridge in bridges.items() if is_served(bridge)}
    if not asking:
        return {}
    nics = _nics_on(frozenset(asking), desired, observed)
    return {name: _remembered(bridge, nics.get(name, [])) for name, bridge in asking.items()}


def dnsmasq_services(
    desired: Desired, observed: Observed, bridges: Mapping[str, BridgeSpec]
) -> Mapping[str, ServiceSpec]:
    """The services of these bridges, by name."""
    return {served.spec.name: served.spec for served in served_bridges(desired, observed, bridges).values()}


_Nic = tuple[str, NicSpec, str]
"""A guest's name, its NIC as wanted, and the MAC that it runs with."""

_KNOWN: dict[str, tuple[BridgeSpec, list[_Nic], Served]] = {}
"""What was made last for each bridge: a pass in which nothing changed compares a thousand NICs, and makes nothing."""

_MOST_KNOWN = 512


def _remembered(bridge: BridgeSpec, nics: list[_Nic]) -> Served:
    known = _KNOWN.get(bridge.name)
    if known is not None and known[0] == bridge and known[1] == nics:
        return known[2]
    hosts = tuple(_named(sorted(nics, key=lambda one: one[0])))
    served = Served(dnsmasq_spec(bridge, hosts), hosts, tuple(addresses_taken_twice(bridge, hosts)))
    if len(_KNOWN) >= _MOST_KNOWN:
        _KNOWN.clear()
    _KNOWN[bridge.name] = bridge, nics, served
    return served


def _nics_on(bridges: frozenset[str], desired: Desired, observed: Observed) -> Mapping[str, list[_Nic]]:
    """The NICs on some bridges: of wanted guests, and of those that only run.

    A guest that runs with another MAC than its unit says by now keeps its address under both.
    """
    nics: dict[str, list[_Nic]] = {bridge: [] for bridge in bridges}
    for vm, spec in desired.vms.items():
        state = observed.vms.get(vm)
        runs = {nic.id: nic.mac for nic in state.spec.nics} if state is not None and state.spec is not spec else {}
        for nic in spec.nics:
            if nic.bridge in bridges:
                nics[nic.bridge].append((vm, nic, runs.get(nic.id, nic.mac)))
    for vm, state in observed.vms.items():
        if vm not in desired.vms and state.alive:
            for nic in state.spec.nics:
                if nic.bridge in bridges:
                    nics[nic.bridge].append((vm, nic, nic.mac))
    return nics


def _named(nics: Iterable[_Nic]) -> Iterator[LeaseHost]:
    """A guest's first NIC on a bridge has its name, others NAME-NIC; names that differ in case only are one to DNS.

    One whose names are others' already, or too long for a label, has none.
    """
    taken: set[str] = set()
    for vm, nic, mac in nics:
        names = (vm, f"{vm}-{nic.id}")
        name = next((name for name in names if name.lower() not in taken and len(name) <= MAX_LABEL), "")
        taken.add(name.lower())
        yield LeaseHost(f"{vm}'s {nic.id}", name, tuple(dict.fromkeys((nic.mac, mac))), nic.address)


def dnsmasq_spec(bridge: BridgeSpec, hosts: tuple[LeaseHost, ...]) -> ServiceSpec:
    """The service of one bridge."""
    leases = bridge.dhcp is not None or serves_dhcp6(bridge, _addresses(hosts))
    files = [ServiceFile(CONF, _conf(bridge, hosts))]
    capabilities = ["net_bind_service"]
    if leases:
        files.append(ServiceFile(STATIC, _lines(_static_leases(bridge, hosts)), FileEffect.RELOAD))
    if leases or bridge.ipv6:
        # To answer whom has no address yet (SIOCSARP), to ask whether somebody has the one that is offered (ping), and
        # for router advertisements (ICMPv6).
        capabilities += ["net_admin", "net_raw"]
    if bridge.dns is not None:
        files.append(ServiceFile(HOSTS, _lines(_hosts(bridge, hosts)), FileEffect.RELOAD))
    conf = f"--conf-file={RUN_DIR}/{CONF}"
    return ServiceSpec(
        name=service_name(bridge.name),
        owner=bridge_resource(bridge.name),
        program=PROGRAM,
        argv=(conf,),
        test=("--test", conf),
        files=tuple(files),
        capabilities=tuple(capabilities),
        started=": started, version",
        kept=f"leases/{bridge.name}" if leases else "",
        link=bridge.name,
        addresses=tuple(sorted(bridge.addresses)),
        shown=tuple(bridge_keys(bridge).items()),
    )


def bridge_keys(bridge: BridgeSpec) -> Mapping[str, str]:
    """What a bridge's unit says of DHCP and DNS, by key."""
    found = {}
    if bridge.dhcp is not None:
        found["dhcp.range"] = f"{bridge.dhcp.first} {bridge.dhcp.last}"
        found["dhcp.lease"] = f"{bridge.dhcp.lease_s} s"
    if bridge.dns is not None:
        upstream = bridge.dns.upstream
        found["dns.upstream"] = "the host's" if upstream is None else " ".join(upstream) or "none"
        found["dns.domain"] = bridge.dns.domain
    return found


def pool_size(bridge: BridgeSpec, hosts: Sequence[LeaseHost]) -> int:
    """How many addresses a bridge's DHCP server has to give: those of its range, and static ones outside of it."""
    if bridge.dhcp is None:
        return 0
    first, last = _range(bridge.dhcp)
    static = {int(ipaddress.IPv4Address(one)) for host in hosts if (one := leased_address(bridge, host))}
    return last - first + 1 + sum(not first <= one <= last for one in static)


def leased_address(bridge: BridgeSpec, host: LeaseHost) -> str:
    """The static IPv4 address that a host is given there, empty for none: one that lies in a network of the bridge."""
    return next((one for one in host.addresses if ":" not in one and _is_within(bridge, one)), "")


def addresses_taken_twice(bridge: BridgeSpec, hosts: Sequence[LeaseHost]) -> Iterator[tuple[str, str, str]]:
    """Static addresses that more than one has: the address, who is given it, and who is not."""
    own = {one.partition("/")[0]: f"{bridge.name} itself" for one in bridge.addresses}
    for host in hosts:
        for address in (leased_address(bridge, host), *leased6(bridge, host.addresses)):
            if address in own:
                yield address, own[address], host.nic
            elif address:
                own[address] = host.nic


def _is_within(bridge: BridgeSpec, address: str) -> bool:
    return any(ipaddress.ip_address(address) in network for network in _networks(bridge.addresses))


@functools.lru_cache(512)
def _networks(addresses: tuple[str, ...]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_interface(one).network for one in addresses)


def _range(dhcp: DhcpSpec) -> tuple[int, int]:
    return int(ipaddress.IPv4Address(dhcp.first)), int(ipaddress.IPv4Address(dhcp.last))


def _addresses(hosts: Iterable[LeaseHost]) -> tuple[str, ...]:
    return tuple(address for host in hosts for address in host.addresses)


def _conf(bridge: BridgeSpec, hosts: Sequence[LeaseHost]) -> str:
    lines = [
        f"# Made by vmhost-agent for {bridge.name}; whatever is written here is lost.",
        "keep-in-foreground",
        "pid-file",
        "log-facility=-",
        f"interface={bridge.name}",
        "except-interface=lo",
        "bind-interfaces",
        "no-hosts",
    ]
    lines += _dns_lines(bridge) if bridge.dns is not None else ["port=0"]
    addresses = _addresses(hosts)
    if bridge.dhcp is not None:
        lines += _dhcp_lines(bridge, bridge.dhcp)
    lines += ra_lines(bridge, addresses)
    if bridge.dhcp is not None or serves_dhcp6(bridge, addresses):
        lines += _lease_lines(bridge)
    return _lines(lines)


def _dns_lines(bridge: BridgeSpec) -> Iterator[str]:
    """Names without a dot, and those of the domain, are asked of nobody else."""
    dns = bridge.dns
    if dns is None:
        return
    yield from (f"addn-hosts={RUN_DIR}/{HOSTS}", "domain-needed", "bogus-priv", "cache-size=1000")
    if dns.upstream is not None:
        yield "no-resolv"
        yield from (f"server={server}" for server in dns.upstream)
    if dns.domain:
        yield from (f"domain={dns.domain}", f"local=/{dns.domain}/", "expand-hosts")


def _dhcp_lines(bridge: BridgeSpec, dhcp: DhcpSpec) -> Iterator[str]:
    first = ipaddress.IPv4Address(dhcp.first)
    mask = next(network.netmask for network in _networks(bridge.addresses) if first in network)
    yield f"dhcp-range={dhcp.first},{dhcp.last},{mask},{dhcp.lease_s}"


def _lease_lines(bridge: BridgeSpec) -> Iterator[str]:
    """`/dev/stdin` because the state directory, where leases are kept, is closed to dnsmasq's user."""
    low, high = _range(bridge.dhcp) if bridge.dhcp is not None else (0, -1)
    yield f"dhcp-lease-max={high - low + 1 + SPARE_LEASES}"
    yield "dhcp-leasefile=/dev/stdin"
    yield f"dhcp-hostsfile={RUN_DIR}/{STATIC}"
    # A client that is no guest of ours must not take the name of one, nor must a guest that has no name.
    yield from ("dhcp-ignore-names=tag:!known", f"dhcp-ignore-names=tag:{NAMELESS}")
    if bridge.dhcp is not None and not bridge.ports:
        # Nobody else is there who might know of a lease that we do not.
        yield "dhcp-authoritative"


def _static_leases(bridge: BridgeSpec, hosts: Sequence[LeaseHost]) -> Iterator[str]:
    lost = {nic for _, _, nic in addresses_taken_twice(bridge, hosts)}
    for host in hosts:
        kept = host.nic not in lost
        address = leased_address(bridge, host) if kept and bridge.dhcp is not None else ""
        others = [f"[{one}]" for one in leased6(bridge, host.addresses)] if kept else []
        name = _lease_name(bridge, host.name)
        yield ",".join(part for part in (*host.macs, address, *others, name or f"set:{NAMELESS}") if part)


def _lease_name(bridge: BridgeSpec, name: str) -> str:
    """A name as dnsmasq takes it for one: with the domain where it would be a lease time or a word of dnsmasq's own;
    empty where there is none."""
    if not _NO_NAME.fullmatch(name):
        return name
    return f"{name}.{bridge.dns.domain}" if name and bridge.dns is not None and bridge.dns.domain else ""


def _hosts(bridge: BridgeSpec, hosts: Sequence[LeaseHost]) -> Iterator[str]:
    lost = {nic for _, _, nic in addresses_taken_twice(bridge, hosts)}
    for host in hosts:
        if host.name and host.nic not in lost:
            yield from (f"{address} {host.name}" for address in host.addresses)


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
