"""Which link an entry of a bridge's `ports` means: by its name, another one of it, its MAC, or its place on the bus.

Only what may be a card is found by MAC or place: a bridge, a bond, a VLAN or a macvlan has the MAC of what it lies on.
A link is remembered by its number (ifindex), which never changes and is given to no other in a boot of the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.core.desired import BridgeSpec
from agent.core.observed import LinkState, Observed

BY_MAC, BY_PLACE = "mac:", "pci:"

NO_CARDS = frozenset(
    {
        *("bridge", "bond", "team", "vrf", "hsr", "ifb"),
        *("vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec", "netkit"),
        *("vxlan", "geneve", "gre", "gretap", "ip6gre", "ip6gretap", "erspan", "ip6erspan", "wireguard"),
    }
)
"""Kinds of links that lie on others or hold others, and may have their MAC. A veth or a tap may stand for a card."""


class Trouble(NamedTuple):
    """Why an entry has no link, or which of several it has: a condition's type, and its words."""

    type: str
    message: str


@dataclass(slots=True)
class Ports:
    """What entries find, by bridge and entry."""

    links: dict[tuple[str, str], LinkState] = field(default_factory=dict)
    troubles: dict[tuple[str, str], Trouble] = field(default_factory=dict)

    def of(self, bridge: str) -> Mapping[str, LinkState]:
        """The links of a bridge's entries, by name."""
        return {link.name: link for (name, _), link in self.links.items() if name == bridge}


def is_card(link: LinkState) -> bool:
    """Whether a link may be a card, and is not ours."""
    return link.kind not in NO_CARDS and not link.alias.startswith("vmhost:")


def hardware_mac(link: LinkState) -> str:
    """A link's MAC as it was made, where the kernel knows that (IFLA_PERM_ADDRESS), else the one that it has."""
    return link.permanent_mac or link.mac


def find_candidates(entry: str, links: Mapping[str, LinkState]) -> list[LinkState]:
    """The links that an entry may mean, in the order of their numbers; by name there is at most one."""
    if entry.startswith(BY_MAC):
        mac = entry.removeprefix(BY_MAC)
        found = [link for link in links.values() if hardware_mac(link) == mac and is_card(link)]
    elif entry.startswith(BY_PLACE):
        place = entry.removeprefix(BY_PLACE)
        found = [link for link in links.values() if link.place == place and is_card(link)]
    elif entry in links:
        return [links[entry]]
    else:
        found = [link for link in links.values() if link.altnames and entry in link.altnames]
    return sorted(found, key=lambda link: link.ifindex)


def find_port(entry: str, links: Mapping[str, LinkState]) -> LinkState | None:
    """The one link that an entry means; None where there is none, or more than one."""
    found = find_candidates(entry, links)
    return found[0] if len(found) == 1 else None


def find_ports(bridges: Mapping[str, BridgeSpec], observed: Observed) -> Ports:
    """What the entries of all these bridges find, no link for two of them.

    An entry that finds nothing keeps what it put into its bridge, as long as that stays there: it was renamed. A link
    that several bridges want is of the one that has it, else of the first by name.
    """
    ports = Ports()
    wanted: dict[int, list[tuple[str, str]]] = {}
    for name, bridge in sorted(bridges.items()):
        for entry in bridge.ports:
            link = _fit(ports, bridge, entry, observed)
            if link is not None:
                ports.links[name, entry] = link
                wanted.setdefault(link.ifindex, []).append((name, entry))
    for places in wanted.values():
        if len(places) > 1:
            _share(ports, places, observed.links)
    return ports


def _fit(ports: Ports, bridge: BridgeSpec, entry: str, observed: Observed) -> LinkState | None:
    found = find_candidates(entry, observed.links)
    if len(found) == 1:
        return found[0]
    kept = _kept(bridge.name, entry, observed)
    if found:
        ports.troubles[bridge.name, entry] = Trouble("PortAmbiguous", _ambiguous(bridge.name, entry, found, kept))
        return kept  # nothing is cut off for a doubt
    if kept is None:
        ports.troubles[bridge.name, entry] = Trouble("PortMissing", _missing(bridge.name, entry, observed.links))
    return kept


def _kept(bridge: str, entry: str, observed: Observed) -> LinkState | None:
    """The link that this entry once put into its bridge and that is still there, whatever it is called by now."""
    index, master = observed.cards.get((entry, bridge)), observed.links.get(bridge)
    if index is None or master is None:
        return None
    members = (link for link in observed.links.values() if link.master == master.ifindex)
    return next((link for link in members if link.ifindex == index), None)


def _ambiguous(bridge: str, entry: str, found: list[LinkState], kept: LinkState | None) -> str:
    names = " and ".join(link.name for link in found)
    other = "name it by its place, pci:…, or by a name" if entry.startswith(BY_MAC) else "name it by its mac:…"
    so = f"{kept.name} stays in {bridge}" if kept is not None else f"none is put into {bridge}"
    return f"{entry} is {names}, so {so}; {other}"


def _missing(bridge: str, entry: str, links: Mapping[str, LinkState]) -> str:
    then = f"it is enslaved to {bridge} when it appears"
    if entry.startswith(BY_MAC):
        mac = entry.removeprefix(BY_MAC)
        for link in links.values():
            if link.mac == mac and is_card(link):
                why = f"{link.name} has that address now, but its own is {hardware_mac(link)}"
                return f'there is no card of {entry}; {why}: write "mac:{hardware_mac(link)}" if it is meant'
        return f"there is no card of {entry}; {then}"
    if entry.startswith(BY_PLACE):
        return f"there is no card at {entry} whose place its driver tells; {then}"
    return f"there is no link {entry}; {then}"


def _share(ports: Ports, places: list[tuple[str, str]], links: Mapping[str, LinkState]) -> None:
    """Leave a link to one entry of those that mean it, and tell the others."""
    link = ports.links[places[0]]
    having = next((one for one in places if one[0] in links and links[one[0]].ifindex == link.master), places[0])
    for place in places:
        if place == having:
            continue
        del ports.links[place]
        other = f"{having[1]} of {having[0]}"
        message = f"{place[1]} is {link.name}, which is {other} already; take one of the two out"
        ports.troubles[place] = Trouble("Conflict", message)


def port_names(bridges: Mapping[str, BridgeSpec], ports: Ports) -> Iterator[tuple[str, str]]:
    """Bridges with the names that their ports have, or, of one that is to come by its name, will have."""
    for (bridge, _), link in ports.links.items():
        yield bridge, link.name
    for bridge, spec in bridges.items():
        for entry in spec.ports:
            if (bridge, entry) not in ports.links and not entry.startswith((BY_MAC, BY_PLACE)):
                yield bridge, entry
