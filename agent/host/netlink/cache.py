"""The cache of links: what the kernel said last of each, and looks at the whole that correct it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from agent.core.netlink import Message
from agent.core.observed import AddressState, IngressState, LinkState, QdiscState
from agent.core.vlans import PortVlans
from agent.host.netlink import messages as said
from agent.host.netlink import traffic
from agent.host.netlink.bus import place_of
from agent.host.netlink.vlans import RTM_DELVLAN, RTM_NEWVLAN, vlan_index


class LinkCache:
    """Links by ifindex with their addresses and disciplines. A link message is a full statement about one link.

    A message about filters is none: those are `unread` until somebody looks at them and calls `put_filters`.

    While a look at the whole is under way (`begin_look` to `end_look`) it is remembered what events were about: the
    look may have seen an older state of those, so it does not touch them.
    """

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self._links: dict[int, LinkState] = {}
        self._addresses: dict[int, dict[str, AddressState]] = {}
        self._roots: dict[int, QdiscState] = {}
        self._ingress_kinds: dict[int, str] = {}
        self._ingress: dict[int, IngressState] = {}
        self._places: dict[tuple[int, str], str] = {}
        self._unread: set[int] = set()
        self._vlans: dict[int, PortVlans] = {}
        self._unread_vlans: set[int] = set()
        self._touched: set[int] = set()
        self._touched_addresses: set[int] = set()
        self._touched_traffic: set[int] = set()
        self._stated: set[str] = set()
        self._snapshot: Mapping[str, LinkState] | None = None

    @property
    def snapshot(self) -> Mapping[str, LinkState]:
        """All links by name, immutable; the same object until something changes."""
        if self._snapshot is None:
            self._snapshot = MappingProxyType({link.name: link for link in self._links.values()})
        return self._snapshot

    def take_stated(self) -> frozenset[str]:
        """The names of links that events stated since the last call: also where nothing kept here changed."""
        stated, self._stated = frozenset(self._stated), set()
        return stated

    def get(self, ifindex: int) -> LinkState | None:
        """The link of this ifindex, if there is one."""
        return self._links.get(ifindex)

    def apply(self, message: Message) -> None:
        """Take in one event."""
        name = said.EVENT_NAMES.get(message.type)
        if name is None:
            return
        self.events[name] += 1
        if message.type in {said.RTM_NEWADDR, said.RTM_DELADDR}:
            self._apply_address(message)
        elif message.type in {RTM_NEWVLAN, RTM_DELVLAN}:
            self._doubt_vlans_of(vlan_index(message))
        elif message.type >= traffic.RTM_NEWQDISC:
            self._apply_traffic(message)
        else:
            self._apply_link(message)

    def _apply_link(self, message: Message) -> None:
        family, ifindex = said.link_index(message)
        if family != 0:
            # A bridge's word about its port (AF_BRIDGE): DELLINK means that it left, and a NEWLINK follows.
            isolated = said.port_isolation(message) if message.type == said.RTM_NEWLINK else None
            link = self._links.get(ifindex)
            if link is not None and isolated is not None and isolated is not link.isolated:
                self._touched.add(ifindex)
                self._put(replace(link, isolated=isolated))
            return
        self._touched.add(ifindex)
        if message.type == said.RTM_DELLINK:
            self._touched_addresses.add(ifindex)
            self._forget(ifindex)
        elif (link := said.link_state(message)) is not None:
            self._stated.add(link.name)
            self._put(link)

    def _apply_address(self, message: Message) -> None:
        stated = said.address_state(message)
        if stated is None:
            return
        ifindex, address = stated
        self._touched_addresses.add(ifindex)
        known = self._addresses.setdefault(ifindex, {})
        if message.type == said.RTM_NEWADDR:
            known[address.address] = address
        else:
            known.pop(address.address, None)
        self._show_addresses(ifindex)

    def _apply_traffic(self, message: Message) -> None:
        ifindex, parent = traffic.place_of(message)
        new = message.type == traffic.RTM_NEWQDISC
        if message.type in {traffic.RTM_NEWTFILTER, traffic.RTM_DELTFILTER}:
            self._unread |= {ifindex} & self._ingress_kinds.keys()
        elif parent == traffic.ROOT:
            self._touched_traffic.add(ifindex)
            self._put_root(ifindex, traffic.qdisc_state(message) if new and traffic.is_chosen(message) else None)
        elif parent == traffic.INGRESS:
            self._touched_traffic.add(ifindex)
            self._put_ingress_kind(ifindex, traffic.kind_of(message) if new else None)

    def _put_root(self, ifindex: int, root: QdiscState | None) -> None:
        if root == self._roots.get(ifindex):
            return
        if root is None:
            del self._roots[ifindex]
        else:
            self._roots[ifindex] = root
        self._show(ifindex)

    def _put_ingress_kind(self, ifindex: int, kind: str | None) -> None:
        if kind is None:
            self._ingress_kinds.pop(ifindex, None)
            self._ingress.pop(ifindex, None)
            self._show(ifindex)
        else:
            self._ingress_kinds[ifindex] = kind
            self._unread.add(ifindex)

    def take_unread(self) -> list[tuple[int, str]]:
        """The own taps whose filters changed since the last call, each with the kind of its ingress discipline."""
        unread, self._unread = self._unread, set()
        return [
            (ifindex, kind)
            for ifindex in sorted(unread)
            if (kind := self._ingress_kinds.get(ifindex)) is not None
            and (link := self._links.get(ifindex)) is not None
            and link.alias.startswith("vmhost:tap/")
        ]

    def put_filters(self, ifindex: int, ingress: IngressState) -> None:
        """Take in what an own tap does to frames that come in, just read."""
        if self._ingress.get(ifindex) != ingress:
            self._ingress[ifindex] = ingress
            self._show(ifindex)

    def ingress_kind(self, ifindex: int) -> str | None:
        """The kind of a link's ingress discipline, None when it has none."""
        return self._ingress_kinds.get(ifindex)

    def end_traffic_look(self, disciplines: Iterable[tuple[int, QdiscState | str]]) -> None:
        """Take in a look at all disciplines, except of links that events were about since `begin_look`."""
        roots: dict[int, QdiscState] = {}
        kinds: dict[int, str] = {}
        for ifindex, seen in disciplines:
            if isinstance(seen, str):
                kinds[ifindex] = seen
            else:
                roots[ifindex] = seen
        for ifindex in (self._roots.keys() | roots.keys()) - self._touched_traffic:
            self._put_root(ifindex, roots.get(ifindex))
        for ifindex in (self._ingress_kinds.keys() | kinds.keys()) - self._touched_traffic:
            self._put_ingress_kind(ifindex, kinds.get(ifindex))

    def _show(self, ifindex: int) -> None:
        link = self._links.get(ifindex)
        if link is not None:
            self._put(link)

    def _put(self, link: LinkState) -> None:
        ifindex = link.ifindex
        known = self._addresses.get(ifindex)
        link = replace(link, addresses=tuple(known.values())) if known else link
        if "/" in link.place:  # on a bus that is not PCI's: asked once, because a card never moves
            key = (ifindex, link.place)
            if key not in self._places:
                self._places[key] = place_of(link.name, link.place)
            link = replace(link, place=self._places[key])
        root, ingress = self._roots.get(ifindex), self._ingress.get(ifindex)
        vlans = self._vlans_of(link)
        if link.root is not root or link.ingress is not ingress or link.vlans is not vlans:
            link = replace(link, root=root, ingress=ingress, vlans=vlans)
        before = self._links.get(link.ifindex)
        if before != link:
            self._links[link.ifindex] = link
            self._snapshot = None
            if link.bridging is not None and (before is None or before.bridging != link.bridging):
                for port in [one for one in self._links.values() if one.master == ifindex]:
                    self._doubt_vlans_of(port.ifindex)

    def _heeds_vlans(self, link: LinkState) -> bool:
        """Whether it is a bridge that heeds VLANs, or a port of one."""
        bridge = link if link.kind == "bridge" else self._links.get(link.master or 0)
        return bridge is not None and bridge.bridging is not None and bridge.bridging.filtering

    def _vlans_of(self, link: LinkState) -> PortVlans | None:
        """What is known of what it carries; where it should be and is not, it is to be read."""
        before = self._links.get(link.ifindex)
        if not self._heeds_vlans(link) or (before is not None and before.master != link.master):
            self._vlans.pop(link.ifindex, None)
        known = self._vlans.get(link.ifindex)
        if known is None and self._heeds_vlans(link):
            self._unread_vlans.add(link.ifindex)
        return known

    def _doubt_vlans_of(self, ifindex: int) -> None:
        link = self._links.get(ifindex)
        if link is not None and self._heeds_vlans(link):
            self._unread_vlans.add(ifindex)

    def doubt_vlans(self) -> None:
        """Have what every port carries read again."""
        for ifindex in self._links:
            self._doubt_vlans_of(ifindex)

    def take_unread_vlans(self) -> list[int]:
        """The ports, and bridges, whose VLANs changed since the last call, as far as is known."""
        unread, self._unread_vlans = self._unread_vlans, set()
        return sorted(unread & self._links.keys())

    def put_vlans(self, ifindex: int, vlans: PortVlans | None) -> None:
        """Take in what a port carries, or a bridge itself, just read; None: it could not be."""
        link = self._links.get(ifindex)
        if vlans is None or link is None or not self._heeds_vlans(link):
            self._vlans.pop(ifindex, None)
        elif self._vlans.get(ifindex) != vlans:
            self._vlans[ifindex] = vlans
        self._show(ifindex)
        self._unread_vlans.discard(ifindex)

    def _forget(self, ifindex: int) -> None:
        for kept in (self._addresses, self._roots, self._ingress_kinds, self._ingress, self._vlans):
            kept.pop(ifindex, None)
        self._places = {key: place for key, place in self._places.items() if key[0] != ifindex}
        if self._links.pop(ifindex, None) is not None:
            self._snapshot = None

    def _show_addresses(self, ifindex: int) -> None:
        link = self._links.get(ifindex)
        if link is not None:
            self._put(replace(link, addresses=tuple(self._addresses.get(ifindex, {}).values())))

    def begin_look(self) -> None:
        """Remember from here on what events are about."""
        self._touched.clear()
        self._touched_addresses.clear()
        self._touched_traffic.clear()

    def end_look(self, links: Iterable[LinkState], addresses: Iterable[tuple[int, AddressState]]) -> None:
        """Take in a look at everything, except what events were about since it began."""
        seen = {link.ifindex: link for link in links}
        held: dict[int, dict[str, AddressState]] = {}
        for ifindex, address in addresses:
            held.setdefault(ifindex, {})[address.address] = address
        for ifindex in self._links.keys() - seen.keys() - self._touched:
            self._forget(ifindex)
        for ifindex in (self._addresses.keys() | held.keys()) - self._touched_addresses:
            self._addresses[ifindex] = held.get(ifindex, {})
        for ifindex, link in seen.items():
            if ifindex not in self._touched:
                self._put(link)
            self._show_addresses(ifindex)

    def put(self, link: LinkState) -> None:
        """Take in one link, just read; its addresses stay as they are known."""
        self._touched.add(link.ifindex)
        self._put(link)

    def put_addresses(self, ifindex: int, addresses: Iterable[AddressState]) -> None:
        """Take in all addresses of one link, just read."""
        self._touched_addresses.add(ifindex)
        self._addresses[ifindex] = {address.address: address for address in addresses}
        self._show_addresses(ifindex)
