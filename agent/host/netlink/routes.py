"""Questions about routes, and which port of a bridge a MAC is behind (rtnetlink(7))."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping

from pyroute2.netlink.rtnl.ndmsg import ndmsg  # type: ignore[import-untyped]
from pyroute2.netlink.rtnl.rtmsg import rtmsg  # type: ignore[import-untyped]

from agent.core.doctor.scene import RouteAnswer, RouteQuestion
from agent.core.errors import ObservationError
from agent.core.netlink import NLM_F_DUMP, Message, attributes
from agent.host.netlink.wire import KernelRefusedError, NoAnswerError, RequestSocket

RTM_GETROUTE, RTM_GETNEIGH = 26, 30
RTN_UNICAST = 1
RT_TABLE_MAIN = 254
RTM_F_CLONED = 0x200
MAX_ROUTES = 50_000
"""A host with more of them is a router of its own kind; its default routes are not looked for."""

_RTA_OIF, _RTA_MULTIPATH = 4, 9
_NDA_LLADDR = 2
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def find_uplinks() -> Mapping[int, tuple[str, ...]]:
    """The links of default routes by IP version, of the main table: others are for what somebody marks, as a VPN does.

    Blocks for milliseconds. Raises ObservationError.
    """
    try:
        with RequestSocket() as requests:
            return {version: tuple(dict.fromkeys(_defaults(requests, version))) for version in _FAMILIES}
    except (OSError, KernelRefusedError, NoAnswerError) as e:
        raise ObservationError("netlink", f"routes cannot be read: {e}") from e


def _defaults(requests: RequestSocket, version: int) -> Iterator[str]:
    message = rtmsg()
    message["family"] = _FAMILIES[version]
    requests.send(RTM_GETROUTE, message, NLM_F_DUMP)
    count, done = 0, False
    while not done:
        try:
            part, done = requests.receive()
        except KernelRefusedError as e:
            if e.number in {errno.EOPNOTSUPP, errno.EAFNOSUPPORT}:  # without IPv6
                return
            raise
        count += len(part)
        if count > MAX_ROUTES:
            raise ObservationError("netlink", f"more than {MAX_ROUTES} routes")
        for one in part:
            _, prefix, _, _, table, _, _, kind, flags = struct.unpack_from("=8BI", one.body)
            if (prefix, table, kind) == (0, RT_TABLE_MAIN, RTN_UNICAST) and not flags & RTM_F_CLONED:
                yield from _names(_next_hops(one))


def _next_hops(route: Message) -> Iterator[int]:
    found = attributes(route.body, 12)
    if _RTA_OIF in found:
        yield int.from_bytes(found[_RTA_OIF], "little")
    hops = found.get(_RTA_MULTIPATH, b"")
    place = 0
    while place + 8 <= len(hops):
        length, _, _, ifindex = struct.unpack_from("=HBBi", hops, place)
        yield ifindex
        place += max((length + 3) & ~3, 8)


def _names(indexes: Iterable[int]) -> Iterator[str]:
    for index in indexes:
        try:
            yield socket.if_indextoname(index)
        except OSError:  # it went meanwhile
            continue


def ask_routes(questions: Iterable[RouteQuestion]) -> Mapping[RouteQuestion, RouteAnswer]:
    """What the kernel answers, 0.05 ms each: as `ip route get`. What it says nothing of is left out.

    With the link that a packet comes in by, it is the decision that the kernel makes for such a packet: EXDEV where
    reverse path filtering drops it (net/ipv4/fib_frontend.c: __fib_validate_source), which kernels from 6.14 on tell as
    EINVAL, as all else that they drop (net/ipv4/route.c: inet_rtm_getroute).
    """
    found: dict[RouteQuestion, RouteAnswer] = {}
    try:
        with RequestSocket() as requests:
            for question in questions:
                answer = _ask(requests, question)
                if answer is not None:
                    found[question] = answer
    except (OSError, NoAnswerError) as e:
        raise ObservationError("netlink", f"routes cannot be asked for: {e}") from e
    return found


def _ask(requests: RequestSocket, question: RouteQuestion) -> RouteAnswer | None:
    message = rtmsg()
    version = 6 if ":" in question.target else 4
    bits = 32 if version == 4 else 128
    message["family"], message["dst_len"] = _FAMILIES[version], bits
    message["attrs"] = [("RTA_DST", question.target)]
    try:
        if question.source:
            message["src_len"] = bits
            message["attrs"].append(("RTA_SRC", question.source))
        if question.link:
            message["attrs"].append(("RTA_IIF", socket.if_nametoindex(question.link)))
        answer = requests.ask(RTM_GETROUTE, message)
    except KernelRefusedError as e:
        return RouteAnswer(refused=True) if e.number in {errno.EXDEV, errno.EINVAL} else None
    except OSError:  # the link is gone
        return None
    return RouteAnswer(link=next(_names(_next_hops(answer[0])), "")) if answer else None


def find_ports(macs: Iterable[str]) -> Mapping[str, str]:
    """The port that each of these MACs was last heard on, by any bridge. Raises ObservationError."""
    wanted = {bytes.fromhex(mac.replace(":", "")): mac for mac in macs}
    message = ndmsg()
    message["family"] = socket.AF_BRIDGE if hasattr(socket, "AF_BRIDGE") else 7
    try:
        with RequestSocket() as requests:
            answer = requests.ask(RTM_GETNEIGH, message, NLM_F_DUMP)
    except (OSError, KernelRefusedError, NoAnswerError) as e:
        raise ObservationError("netlink", f"bridges' MACs cannot be read: {e}") from e
    found: dict[str, str] = {}
    for one in answer:
        mac = attributes(one.body, 12).get(_NDA_LLADDR, b"")
        if mac in wanted:
            for name in _names(struct.unpack_from("=i", one.body, 4)):
                found[wanted[mac]] = name
    return found
