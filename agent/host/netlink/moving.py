"""A port and its bridge as the kernel has them, as bytes; and moving what one carries to the other, and back.

Wraps rtnetlink(7). Everything here blocks: a look takes 0.3 ms, a move some ten, most of it the kernel's waiting in
netdev_rx_handler_register and in what a bridge does with a new port; up to 0.2 s more where it is late to send.
In the network namespace of the calling thread.
"""

from __future__ import annotations

import contextlib
import errno
import struct
import time
from collections.abc import Callable, Iterator, Sequence

from agent.core.errors import ObservationError, TransientError
from agent.core.netlink import split
from agent.core.uplinks import attributes as a
from agent.core.uplinks.carried import LinkPicture, on_link
from agent.core.uplinks.moves import Move
from agent.core.uplinks.order import Request, begin, carry, put_back
from agent.core.vlans import PortVlans
from agent.host.netlink.raw import dump, send_all
from agent.host.netlink.vlans import RTM_SETLINK, added_vlans
from agent.host.netlink.wire import Ignoring, KernelRefusedError, NoAnswerError, RawRequest, RequestSocket

RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETNEIGH, RTM_GETRULE = 18, 22, 26, 30, 34
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER = 1, 3, 4, 10
IFF_UP, IFF_RUNNING, IFF_LOWER_UP = 1, 0x40, 0x10000
NDA_IFINDEX, FRA_IIFNAME, FRA_OIFNAME = 8, 3, 17
ROUNDS = 6
"""How often put back looks again at most; three are usual: addresses, what the kernel made of them, nothing."""

RUNNING_LOOKS, RUNNING_LOOK_S = 200, 0.001
"""A bridge gets its queue within some milliseconds; with STP not before its port forwards, half a minute later."""

_LINK = struct.Struct("=BxHiII")
_ABSENT = Ignoring(errno.ENODEV, errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
"""The link is gone, or the kernel has no IPv6, or no policy rules."""

Send = Callable[[Sequence[Request]], None]


def picture_of(name: str, ifindex: int = 0) -> LinkPicture | None:
    """A link with its tables, by its ifindex or by its name; None if there is none. Raises ObservationError."""
    try:
        with RequestSocket() as requests:
            return _picture(requests, name, ifindex)
    except (OSError, KernelRefusedError, NoAnswerError) as error:
        raise ObservationError("netlink", f"{name}: {error}") from error


def _picture(requests: RequestSocket, name: str, ifindex: int) -> LinkPicture | None:
    head = _LINK.pack(0, 0, ifindex, 0, 0)
    asked = head if ifindex else a.join(head, [(IFLA_IFNAME, name.encode() + b"\0")])
    with _ABSENT:
        (link,) = requests.ask(RTM_GETLINK, RawRequest(asked))[:1]
        _, _, index, flags, _ = _LINK.unpack_from(link.body)
        about = dict(split(link.body, _LINK.size))
        return LinkPicture(
            index,
            about[IFLA_IFNAME].rstrip(b"\0").decode(errors="replace"),
            about.get(IFLA_ADDRESS, b""),
            struct.unpack("=I", about.get(IFLA_MASTER, bytes(4)))[0],
            bool(flags & IFF_UP),
            struct.unpack("=I", about[IFLA_MTU])[0],
            bool(flags & IFF_LOWER_UP),
            tuple(_addresses(requests, index)),
            tuple(_routes(requests, index)),
            tuple(_neighbours(requests, index)),
        )
    return None


def _addresses(requests: RequestSocket, ifindex: int) -> Iterator[bytes]:
    for family in (a.AF_INET, a.AF_INET6):
        with _ABSENT:
            for message in dump(requests, RTM_GETADDR, a.ADDRESS.pack(family, 0, 0, 0, ifindex)):
                if a.ADDRESS.unpack_from(message.body)[4] == ifindex:
                    yield a.bare_address(message.body)


def _routes(requests: RequestSocket, ifindex: int) -> Iterator[bytes]:
    about = [(a.RTA_OIF, struct.pack("=i", ifindex))]
    for family in (a.AF_INET, a.AF_INET6):
        with _ABSENT:
            asked = a.join(a.ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), about)
            for message in dump(requests, RTM_GETROUTE, asked):
                if not a.ROUTE.unpack_from(message.body)[8] & a.RTM_F_CLONED:
                    yield a.bare_route(message.body)


def _neighbours(requests: RequestSocket, ifindex: int) -> Iterator[bytes]:
    """Those that somebody set: with a MAC of their own, or answered for by this host."""
    about = [(NDA_IFINDEX, struct.pack("=I", ifindex))]
    for family in (a.AF_INET, a.AF_INET6):
        for flags in (0, a.NTF_PROXY):
            with _ABSENT:
                for message in dump(requests, RTM_GETNEIGH, a.join(a.NEIGHBOUR.pack(family, 0, 0, flags, 0), about)):
                    _, index, state, seen, _ = a.NEIGHBOUR.unpack_from(message.body)
                    if index == ifindex and (state & a.NUD_PERMANENT or seen & a.NTF_PROXY):
                        yield a.bare_neighbour(message.body)


def rules_naming(name: str) -> tuple[str, ...]:
    """The policy rules that name a link (`ip rule`), as their priorities; none where that cannot be asked."""
    found = []
    with contextlib.suppress(OSError, KernelRefusedError, NoAnswerError), RequestSocket() as requests:
        for family in (a.AF_INET, a.AF_INET6):
            with _ABSENT:
                for message in dump(requests, RTM_GETRULE, struct.pack("=BBBBBBBBI", family, *[0] * 8)):
                    about = dict(split(message.body, 12))
                    named = {about.get(kind, b"").rstrip(b"\0") for kind in (FRA_IIFNAME, FRA_OIFNAME)}
                    if name.encode() in named:
                        priority = struct.unpack("=I", about.get(6, bytes(4)))[0]
                        found.append(f"ip {'-6 ' if family == a.AF_INET6 else ''}rule {priority}")
    return tuple(found)


def move_to_bridge(move: Move, mtu: int | None, vlans: PortVlans | None = None, send: Send = send_all) -> None:
    """Bring what the port carries to its bridge. Raises TransientError; whoever called puts back then.

    The port goes first: whatever follows is carried out also where a request before it was refused. `vlans`: what it
    carries in a bridge that heeds them, without which nothing of it would pass.
    """
    port, bridge = picture_of(move.port.name, move.port.ifindex), picture_of(move.bridge, move.bridge_was.ifindex)
    if port is None or bridge is None:
        raise TransientError(f"{move.port.name if port is None else move.bridge} is gone", reason="LinkGone")
    with _told(f"move what {port.name} carries to {bridge.name}"):
        tags = [Request(RTM_SETLINK, 0, added_vlans(port.ifindex, vlans))] if vlans is not None else []
        if first := [*begin(port, bridge, mtu), *tags]:
            send(first)
            _wait_until_it_sends(bridge.ifindex)
        send(carry(move.port, port, bridge))


def _wait_until_it_sends(ifindex: int) -> None:
    """Wait until a bridge that had no port before passes on what it is given; 0.2 s at most.

    It has a carrier as soon as it has a port, and a queue when a worker of the kernel has come to that
    (net/core/link_watch.c): whatever is sent until then is dropped, and announcements are sent once. Looks are counted,
    and not the time: a host that stood still meanwhile gave that worker none either.
    """
    with RequestSocket() as requests:
        for _ in range(RUNNING_LOOKS):
            if _flags(requests, ifindex) & IFF_RUNNING:
                return
            time.sleep(RUNNING_LOOK_S)


def _flags(requests: RequestSocket, ifindex: int) -> int:
    (link, *_) = requests.ask(RTM_GETLINK, RawRequest(_LINK.pack(0, 0, ifindex, 0, 0)))
    return int(_LINK.unpack_from(link.body)[3])


def put_all_back(move: Move, send: Send = send_all) -> str:
    """Have the port and its bridge be as they were; may be broken off and begun again at any point.

    Returns what could not be put back, empty if all is as it was. Raises TransientError if the kernel refuses.
    """
    with _told(f"put back what {move.port.name} carried"):
        for _ in range(ROUNDS):
            with RequestSocket() as sock:
                port, bridge = _find(sock, move.port), _find(sock, move.bridge_was)
            if port is None:
                return f"{move.port.name} is gone, and its addresses with it"
            requests = put_back(_was(move, port), move.bridge_was, port, bridge)
            if not requests:
                return ""
            send(requests)
    return f"{move.port.name} changes all the while"


def _find(requests: RequestSocket, was: LinkPicture) -> LinkPicture | None:
    """A link by the number that it had, whatever it is called by now; by its name where it was away and came back."""
    return _picture(requests, was.name, was.ifindex) or _picture(requests, was.name, 0)


def _was(move: Move, port: LinkPicture) -> LinkPicture:
    """The port as it was, by the number and name that it has now: a card that was away comes back with another."""
    same = (move.port.ifindex, move.port.name) == (port.ifindex, port.name)
    return move.port if same else on_link(move.port, port.ifindex, port.name)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, KernelRefusedError, NoAnswerError) as error:
        raise TransientError(f"{what}: {error}", reason="MoveFailed") from error
