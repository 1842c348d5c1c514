"""The kernel's main table of routes: what is ours there by its protocol number, and what stands in our way.

A request to delete an IPv4 route without a metric takes the first of any metric (net/ipv4/fib_semantics.c:
fib_nh_match looks at the metric only where one is given). So what is to go is looked for immediately before, and the
request names all that it has: gateway, link and protocol number too.
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
from agent.core.routing.routes import PROTOCOL, Key, Route, RoutesState, lead_text, route_text
from agent.core.routing.routes_wanted import ChangeRoutes
from agent.host.netlink.wire import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Asking,
    EventSocket,
    KernelRefusedError,
    NoAnswerError,
    RawRequest,
)

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
NLM_F_REPLACE = 0x100
RT_TABLE_MAIN, RTN_UNICAST, RTM_F_CLONED = 254, 1, 0x200
RT_SCOPE_UNIVERSE, RT_SCOPE_NOWHERE = 0, 255
GROUPS = (7, 11)
"""RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE (linux/rtnetlink.h)."""

MAX_ROUTES = 50_000
"""Of a host with more, who stands in the way is told by the kernel's refusal alone."""

_RTMSG = struct.Struct("=BBBBBBBBI")
"""Family, lengths of destination and source, TOS, table, protocol, scope, type, flags (linux/rtnetlink.h)."""
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY = 1, 4, 5, 6
_NO_FAMILY = {errno.EOPNOTSUPP, errno.EAFNOSUPPORT}
_GONE = {errno.ESRCH, errno.ENOENT, errno.ENODEV}
_DATAGRAMS_AT_ONCE = 64
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class MainTable(Asking):
    """Looks at and changes routes of the network namespace that it is entered in."""

    def look(self, keys: Iterable[Key], names: Mapping[int, str]) -> RoutesState:
        """What is ours, and what somebody else has for keys that we have nothing for; `names` of links by ifindex.

        0.1 ms, and 0.01 ms for each route of the host where a key is missing. Raises ObservationError.
        """
        try:
            own = frozenset(self._own(names))
            missing = frozenset(keys) - {route.key for route in own}
            return RoutesState(own, self._foreign(missing, names) if missing else {})
        except (OSError, KernelRefusedError, NoAnswerError) as e:
            raise ObservationError("netlink", f"routes: {e}") from e

    def _own(self, names: Mapping[int, str]) -> list[Route]:
        found = []
        for family in _FAMILIES:
            query = RawRequest(_RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, PROTOCOL, 0, 0, 0))
            try:
                answer = self._requests.ask(RTM_GETROUTE, query, NLM_F_DUMP)
            except KernelRefusedError as e:
                if e.number not in {*_NO_FAMILY, errno.ENOENT}:
                    raise
                continue
            found += [_route(one, names) for one in answer if _protocol(one) == PROTOCOL]
        return found

    def _foreign(self, keys: frozenset[Key], names: Mapping[int, str]) -> dict[Key, str]:
        found: dict[Key, str] = {}
        for family in {socket.AF_INET6 if ":" in key.to else socket.AF_INET for key in keys}:
            query = RawRequest(_RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0))
            self._requests.send(RTM_GETROUTE, query, NLM_F_DUMP)
            count, done = 0, False
            while not done:
                part, done = self._requests.receive()
                count += len(part)
                for one in part if count <= MAX_ROUTES else ():
                    if _protocol(one) not in {None, PROTOCOL}:
                        route = _route(one, names)
                        if route.key in keys:
                            found[route.key] = lead_text(route.via, route.link)
        return found

    def change(self, action: ChangeRoutes) -> None:
        """Do what an action says, each for itself; then raise the first error, if any.

        Already there, or already gone, is fine. Somebody else's route in the way: TransientError with reason Conflict.
        What the kernel refuses: TransientError with reason RouteRefused, in its words, tried again after half a minute;
        others to the same destination then stay.
        """
        names = {action.ifindex: action.link}
        errors: list[ActionError] = []
        refused: set[str] = set()
        for routes, change in ((action.add, self._add), (action.swap, self._swap), (action.remove, self._remove)):
            for route in routes:
                if change == self._remove and route.to in refused:
                    continue
                try:
                    change(route, action.ifindex, names)
                except ActionError as error:
                    errors.append(error)
                    refused.add(route.to)
                except KernelRefusedError as e:
                    errors.append(_translated(e, route))
                    refused.add(route.to)
                except NoAnswerError as e:
                    errors.append(OutcomeUnknownError(f"{_text(route)}: {e}"))
                    refused.add(route.to)
                except OSError as e:
                    errors.append(TransientError(f"{_text(route)}: {e}"))
                    refused.add(route.to)
        if errors:
            raise errors[0]

    def _add(self, route: Route, ifindex: int, names: Mapping[int, str]) -> None:
        try:
            self._requests.ask(RTM_NEWROUTE, _request(route, ifindex), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
        except KernelRefusedError as e:
            if e.number != errno.EEXIST or route not in self._own(names):
                raise

    def _swap(self, route: Route, ifindex: int, names: Mapping[int, str]) -> None:
        """Replace a route of ours in one go, or make it where that went with its bridge meanwhile; the kernel would
        replace the first of its key, whosesoever."""
        foreign = self._foreign(frozenset({route.key}), names)
        if foreign:
            raise TransientError(f"{_text(route)}: one that is not ours {foreign[route.key]}", reason="Conflict")
        self._requests.ask(RTM_NEWROUTE, _request(route, ifindex), NLM_F_ACK | NLM_F_REPLACE | NLM_F_CREATE)

    def _remove(self, route: Route, ifindex: int, names: Mapping[int, str]) -> None:
        if route not in self._own(names):
            return
        try:
            self._requests.ask(RTM_DELROUTE, _request(route, ifindex, RT_SCOPE_NOWHERE), NLM_F_ACK)
        except KernelRefusedError as e:
            if e.number not in _GONE:
                raise


def _protocol(message: Message) -> int | None:
    """Whose a route of the main table is; None for what is no such route."""
    if message.type != RTM_NEWROUTE or len(message.body) < _RTMSG.size:
        return None
    _, _, _, _, table, protocol, _, _, flags = _RTMSG.unpack_from(message.body)
    return None if table != RT_TABLE_MAIN or flags & RTM_F_CLONED else int(protocol)


def _route(message: Message, names: Mapping[int, str]) -> Route:
    family, length = message.body[0], message.body[1]
    about = attributes(message.body, _RTMSG.size)
    size = 4 if family == socket.AF_INET else 16
    to = ipaddress.ip_address(about.get(_RTA_DST, bytes(size)))
    via, index = about.get(_RTA_GATEWAY), int.from_bytes(about.get(_RTA_OIF, b""), "little")
    return Route(
        f"{to}/{length}",
        int.from_bytes(about.get(_RTA_PRIORITY, b""), "little"),
        str(ipaddress.ip_address(via)) if via is not None else "",
        names.get(index, f"link {index}"),
    )


def _request(route: Route, ifindex: int, scope: int = RT_SCOPE_UNIVERSE) -> RawRequest:
    network = ipaddress.ip_network(route.to)
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    header = _RTMSG.pack(family, network.prefixlen, 0, 0, RT_TABLE_MAIN, PROTOCOL, scope, RTN_UNICAST, 0)
    about = [(_RTA_DST, network.network_address.packed)] if network.prefixlen else []
    if route.via:
        about.append((_RTA_GATEWAY, ipaddress.ip_address(route.via).packed))
    about.append((_RTA_OIF, struct.pack("=i", ifindex)))
    if route.metric:
        about.append((_RTA_PRIORITY, struct.pack("=I", route.metric)))
    return RawRequest(header, *about)


def _text(route: Route) -> str:
    return f"route {route_text(route.to, route.metric, route.via)} dev {route.link}"


def _translated(error: KernelRefusedError, route: Route) -> ActionError:
    """What follows from the kernel's refusal."""
    what = _text(route)
    if error.number == errno.ENODEV:
        return TransientError(f"{what}: there is no link {route.link} any more", reason="LinkGone")
    if error.number == errno.ENETDOWN:
        return TransientError(f"{what}: {route.link} is down", reason="LinkDown")
    if error.number == errno.EPERM:
        return PermanentError(f"{what}: not permitted; the agent needs CAP_NET_ADMIN", reason="NotPermitted")
    if error.number == errno.EEXIST:
        return TransientError(f"{what}: one that is not ours is there already", reason="Conflict")
    if error.number in {*_GONE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EBUSY}:
        return TransientError(f"{what}: {error}")
    why = "the gateway must be in a network of the bridge's addresses; what was there before stays"
    return TransientError(f"{what}: the kernel refuses it ({error}); {why}", reason="RouteRefused", retry_after_s=30.0)


async def watch_main_table(concerns: Callable[[str], bool], changed: Callable[[], None]) -> None:
    """Call `changed` whenever a route of ours changed, or one to a destination that `concerns` us. Until cancelled.

    Raises ObservationError. Of IPv4 routes that go because their link went down the kernel tells nothing
    (net/ipv4/fib_frontend.c: fib_disable_ip); of the link it does.
    """
    try:
        events = EventSocket(GROUPS)
    except OSError as e:
        raise ObservationError("netlink", f"routes cannot be heard of: {e}") from e
    loop, number = asyncio.get_running_loop(), events.fileno()
    loop.add_reader(number, _hear, events, concerns, changed)
    try:
        await asyncio.Event().wait()
    finally:
        loop.remove_reader(number)
        events.close()


def _hear(events: EventSocket, concerns: Callable[[str], bool], changed: Callable[[], None]) -> None:
    concerned = False
    for _ in range(_DATAGRAMS_AT_ONCE):
        try:
            batch = events.read()
        except OSError:  # ENOBUFS: some were lost
            concerned = True
            continue
        if batch is None:
            break
        concerned = concerned or any(_is_about(message, concerns) for message in batch)
    if concerned:
        changed()


def _is_about(message: Message, concerns: Callable[[str], bool]) -> bool:
    if message.type not in {RTM_NEWROUTE, RTM_DELROUTE}:
        return False
    protocol = _protocol(Message(RTM_NEWROUTE, message.body))
    return protocol is not None and (protocol == PROTOCOL or concerns(_route(message, {}).to))
