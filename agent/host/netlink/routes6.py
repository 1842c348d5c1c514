"""Routes to single IPv6 addresses, and proxy neighbours: what IPv6 modes need of rtnetlink(7), linux/neighbour.h.

Of a change of routes the kernel tells; of proxy neighbours it tells nothing, also when it drops those of a link that
goes down (net/core/neighbour.c: pneigh_ifdown_and_unlock), so they are looked at.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import struct
from collections.abc import Callable, Iterable, Mapping

from agent.core.errors import ActionError, ObservationError, OutcomeUnknownError, PermanentError, TransientError
from agent.core.netlink import NLM_F_ACK, NLM_F_DUMP, Message, attributes
from agent.core.routing.ipv6 import PROTOCOL, Ipv6State, Place
from agent.core.routing.ipv6_actions import ChangeIpv6
from agent.host.netlink.wire import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Asking,
    EventSocket,
    Ignoring,
    KernelRefusedError,
    NoAnswerError,
    RawRequest,
    Writable,
)

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RT_TABLE_MAIN, RTN_UNICAST = 254, 1
RTM_F_FIB_MATCH = 0x2000
NTF_PROXY, NUD_PERMANENT = 0x08, 0x80
GROUPS = (11, 25)
"""RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_NETCONF (linux/rtnetlink.h)."""

OUTSIDE = "2000::"
"""The first address of what is global unicast (RFC 4291): where a route leads to it, the internet is."""

_RTMSG = struct.Struct("=BBBBBBBBI")
"""Family, lengths of destination and source, TOS, table, protocol, scope, type, flags (linux/rtnetlink.h)."""
_NDMSG = struct.Struct("=BxxxiHBB")
"""Family, ifindex, state, flags, type (linux/neighbour.h)."""
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH = 1, 4, 5, 9
_NDA_DST, _NDA_PROTOCOL = 1, 12
_NO_ROUTE = (*(errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL), errno.EOPNOTSUPP, errno.EAFNOSUPPORT)
"""The last two: a kernel without IPv6."""
_GONE = (errno.ESRCH, errno.ENOENT, errno.ENODEV)
_DATAGRAMS_AT_ONCE = 64


class Routes6(Asking):
    """Looks at and changes routes and proxy neighbours of the network namespace that it is entered in."""

    def look(self, addresses: Iterable[str], names: Mapping[int, str]) -> Ipv6State:
        """All that is ours and the way out, and where other routes to these addresses lead; without parameters.

        About 0.1 ms, and 0.03 ms for each address that we have no route to. `names` are those of links, by ifindex.
        Raises ObservationError.
        """
        try:
            routes = frozenset(self._own_routes(names))
            proxies, foreign = self._proxies(names)
            uplink, gateway = self._way_to(OUTSIDE, names, length=None)
            led = {place.address for place in routes}
            elsewhere = {
                one: found for one in addresses if one not in led and (found := self._way_to(one, names, length=128))[0]
            }
        except (OSError, KernelRefusedError, NoAnswerError) as e:
            raise ObservationError("netlink", f"IPv6 routes: {e}") from e
        return Ipv6State(routes, proxies, {one: link for one, (link, _) in elsewhere.items()}, foreign, uplink, gateway)

    def proxies(self, names: Mapping[int, str]) -> tuple[frozenset[Place], frozenset[Place]]:
        """The proxy neighbours that are ours, and those that are not, in 0.05 ms. Raises ObservationError."""
        try:
            return self._proxies(names)
        except (OSError, KernelRefusedError, NoAnswerError) as e:
            raise ObservationError("netlink", f"proxy neighbours: {e}") from e

    def change(self, action: ChangeIpv6) -> None:
        """Add and remove what an action says, each for itself; then raise the first error, if any.

        Already there, or already gone, is fine. Somebody else's route or neighbour of that address: TransientError with
        reason Conflict, and it stays. A link that is gone: TransientError with reason LinkGone.
        """
        errors: list[ActionError] = []
        adding = {place.address for place in action.add_routes}
        moving = tuple(place for place in action.remove_routes if place.address in adding)
        for places, change in (
            (moving, self._remove_route),  # the kernel takes no second one to the same address (net/ipv6/ip6_fib.c)
            (action.add_routes, self._add_route),
            (action.add_proxies, self._add_proxy),
            (action.remove_routes, self._remove_route),
            (action.remove_proxies, self._remove_proxy),
        ):
            for place in places:
                try:
                    change(place)
                except ActionError as error:
                    errors.append(error)
                except KernelRefusedError as e:
                    errors.append(_translated(e, place))
                except NoAnswerError as e:
                    errors.append(OutcomeUnknownError(f"{place.address} on {place.link}: {e}"))
                except OSError as e:
                    errors.append(TransientError(f"{place.address} on {place.link}: {e}"))
        if errors:
            raise errors[0]

    def _add_route(self, place: Place) -> None:
        message = _route(place)
        try:
            self._requests.ask(RTM_NEWROUTE, message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
        except KernelRefusedError as e:
            if e.number != errno.EEXIST or place not in self._own_routes(_names_of(place)):
                raise

    def _remove_route(self, place: Place) -> None:
        with Ignoring(*_GONE):
            self._requests.ask(RTM_DELROUTE, _route(place))

    def _add_proxy(self, place: Place) -> None:
        """The kernel would give an entry that is there another owner without a word, so it is looked for first."""
        owner = self._owner_of_proxy(place)
        if owner is None:
            self._requests.ask(RTM_NEWNEIGH, _neighbour(place), NLM_F_ACK | NLM_F_CREATE)
        elif owner != PROTOCOL:
            raise TransientError(f"the neighbour {place.address} on {place.link} is not ours", reason="Conflict")

    def _remove_proxy(self, place: Place) -> None:
        with Ignoring(*_GONE):
            if self._owner_of_proxy(place) == PROTOCOL:
                self._requests.ask(RTM_DELNEIGH, _neighbour(place))

    def _owner_of_proxy(self, place: Place) -> int | None:
        """The protocol number of a proxy neighbour, 0 for one without, None where there is none."""
        query = RawRequest(_NDMSG.pack(socket.AF_INET6, _ifindex(place), 0, NTF_PROXY, 0), (_NDA_DST, _packed(place)))
        with Ignoring(errno.ENOENT):
            for message in self._requests.ask(RTM_GETNEIGH, query, NLM_F_ACK):
                return int.from_bytes(attributes(message.body, 12).get(_NDA_PROTOCOL, b""), "little")
        return None

    def _own_routes(self, names: Mapping[int, str]) -> list[Place]:
        query = RawRequest(_RTMSG.pack(socket.AF_INET6, 0, 0, 0, RT_TABLE_MAIN, PROTOCOL, 0, 0, 0))
        found = []
        for message in self._requests.ask(RTM_GETROUTE, query, NLM_F_DUMP):
            about = attributes(message.body, 12)
            if message.type == RTM_NEWROUTE and message.body[1] == 128 and message.body[5] == PROTOCOL:
                index = _index(about.get(_RTA_OIF))
                found.append(Place(str(ipaddress.IPv6Address(about[_RTA_DST])), names.get(index, f"link {index}")))
        return found

    def _proxies(self, names: Mapping[int, str]) -> tuple[frozenset[Place], frozenset[Place]]:
        query = RawRequest(_NDMSG.pack(socket.AF_INET6, 0, 0, NTF_PROXY, 0))
        own: set[Place] = set()
        foreign: set[Place] = set()
        for message in self._requests.ask(RTM_GETNEIGH, query, NLM_F_DUMP):
            if message.type != RTM_NEWNEIGH or message.body[0] != socket.AF_INET6 or not message.body[10] & NTF_PROXY:
                continue
            about, index = attributes(message.body, 12), _index(message.body[4:8])
            place = Place(str(ipaddress.IPv6Address(about[_NDA_DST])), names.get(index, f"link {index}"))
            (own if about.get(_NDA_PROTOCOL) == bytes([PROTOCOL]) else foreign).add(place)
        return frozenset(own), frozenset(foreign)

    def _way_to(self, address: str, names: Mapping[int, str], *, length: int | None) -> tuple[str, str]:
        """The link and the gateway of the route to an address, or of one of just this length; empty for none.

        One that leads nowhere (`unreachable`, `blackhole`) the kernel does not tell from none.
        """
        header = _RTMSG.pack(socket.AF_INET6, 128, 0, 0, 0, 0, 0, 0, RTM_F_FIB_MATCH)
        query = RawRequest(header, (_RTA_DST, ipaddress.IPv6Address(address).packed))
        try:
            (message,) = self._requests.ask(RTM_GETROUTE, query, NLM_F_ACK)
        except KernelRefusedError as e:
            if e.number in _NO_ROUTE:
                return "", ""
            raise
        if length is not None and (message.body[1] != length or message.body[4] != RT_TABLE_MAIN):
            return "", ""
        return _next_hop(message, names) if message.body[7] == RTN_UNICAST else ("", "")


def _next_hop(message: Message, names: Mapping[int, str]) -> tuple[str, str]:
    """The link and the gateway of a route, of one with several the first (struct rtnexthop, linux/rtnetlink.h)."""
    about = attributes(message.body, 12)
    if _RTA_MULTIPATH in about and len(about[_RTA_MULTIPATH]) >= 8:
        hop = about[_RTA_MULTIPATH]
        (size,) = struct.unpack_from("=H", hop)
        about = {_RTA_OIF: hop[4:8], **attributes(hop[:size], 8)}
    index, gateway = _index(about.get(_RTA_OIF)), about.get(_RTA_GATEWAY)
    return names.get(index, ""), str(ipaddress.IPv6Address(gateway)) if gateway else ""


async def watch_routes6(changed: Callable[[], None]) -> None:
    """Call `changed` whenever a route of ours, to one address, or the default one may have changed, or what forwards.

    Until cancelled. Raises ObservationError.
    """
    try:
        events = EventSocket(GROUPS)
    except OSError as e:
        raise ObservationError("netlink", f"IPv6 routes cannot be heard of: {e}") from e
    loop, number = asyncio.get_running_loop(), events.fileno()
    loop.add_reader(number, _hear, events, changed)
    try:
        await asyncio.Event().wait()
    finally:
        loop.remove_reader(number)
        events.close()


def _hear(events: EventSocket, changed: Callable[[], None]) -> None:
    concerned = False
    for _ in range(_DATAGRAMS_AT_ONCE):
        try:
            batch = events.read()
        except OSError:  # ENOBUFS: some were lost
            concerned = True
            continue
        if batch is None:
            break
        concerned |= any(map(_concerns_us, batch))
    if concerned:
        changed()


def _concerns_us(message: Message) -> bool:
    if message.type not in {RTM_NEWROUTE, RTM_DELROUTE}:
        return True
    length, table, protocol = message.body[1], message.body[4], message.body[5]
    return protocol == PROTOCOL or (table == RT_TABLE_MAIN and length in {0, 128})


def _route(place: Place) -> Writable:
    header = _RTMSG.pack(socket.AF_INET6, 128, 0, 0, RT_TABLE_MAIN, PROTOCOL, 0, RTN_UNICAST, 0)
    return RawRequest(header, (_RTA_DST, _packed(place)), (_RTA_OIF, struct.pack("=i", _ifindex(place))))


def _neighbour(place: Place) -> Writable:
    header = _NDMSG.pack(socket.AF_INET6, _ifindex(place), NUD_PERMANENT, NTF_PROXY, 0)
    return RawRequest(header, (_NDA_DST, _packed(place)), (_NDA_PROTOCOL, bytes([PROTOCOL])))


def _packed(place: Place) -> bytes:
    return ipaddress.IPv6Address(place.address).packed


def _names_of(place: Place) -> Mapping[int, str]:
    return {_ifindex(place): place.link}


def _ifindex(place: Place) -> int:
    try:
        return socket.if_nametoindex(place.link)
    except OSError as e:
        raise KernelRefusedError(errno.ENODEV, "") from e


def _index(value: bytes | None) -> int:
    return int(struct.unpack("=i", value)[0]) if value else 0


def _translated(error: KernelRefusedError, place: Place) -> ActionError:
    """What follows from the kernel's refusal."""
    what = f"{place.address} on {place.link}"
    if error.number == errno.ENODEV:
        return TransientError(f"there is no link {place.link} any more", reason="LinkGone")
    if error.number == errno.EACCES:  # net/ipv6/route.c: ip6_route_info_create
        what = f"{what}: IPv6 is switched off on {place.link}"
        return PermanentError(f"{what}; sysctl -w net.ipv6.conf.{place.link}.disable_ipv6=0", reason="Ipv6Off")
    if error.number == errno.EPERM:
        return PermanentError(f"{what}: not permitted; the agent needs CAP_NET_ADMIN", reason="NotPermitted")
    if error.number == errno.EEXIST:
        return TransientError(f"a route to {place.address} that is not ours is there already", reason="Conflict")
    return TransientError(f"{what}: {error}")
