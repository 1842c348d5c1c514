"""Whether a neighbour is there, by ARP or ND: the kernel is told to use an entry of its table, and asks (NTF_USE).

This needs CAP_NET_ADMIN only, where a question of one's own would need CAP_NET_RAW (linux/neighbour.h, rtnetlink(7)).
"""

from __future__ import annotations

import errno
import ipaddress
import struct

from agent.core.errors import ObservationError
from agent.core.netlink import NLM_F_ACK, Message, split
from agent.core.uplinks import attributes as a
from agent.host.netlink.wire import NLM_F_CREATE, Ignoring, KernelRefusedError, NoAnswerError, RawRequest, RequestSocket

RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH, RTM_GETROUTE = 28, 29, 30, 26
NTF_USE, NUD_REACHABLE, NUD_STALE_OR_ASKED = 0x01, 0x02, 0x04 | 0x08 | 0x10
RTN_UNICAST = 1


class Asked:
    """A neighbour that is asked for until it answers. Raises ObservationError where the kernel cannot be asked."""

    def __init__(self, ifindex: int, address: str) -> None:
        ip = ipaddress.ip_address(address.partition("%")[0])
        self._family = a.AF_INET if ip.version == 4 else a.AF_INET6
        self._ifindex = ifindex
        self._address = [(a.NDA_DST, ip.packed)]
        self.address = address

    def _body(self, flags: int = 0) -> bytes:
        return a.join(a.NEIGHBOUR.pack(self._family, self._ifindex, 0, flags, 0), self._address)

    def forget(self) -> None:
        """Have the kernel forget what it knew, so that only a new answer counts; what somebody set by hand stays."""
        if self._state() & a.NUD_PERMANENT:
            return
        self._ask(RTM_DELNEIGH, NLM_F_ACK, Ignoring(errno.ENOENT, errno.ESRCH))

    def has_answered(self) -> bool:
        """Have it asked, and say whether it has answered since `forget`."""
        state = self._state()
        if state & NUD_REACHABLE:
            return True
        if not state & a.NUD_PERMANENT:
            self._ask(RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE, Ignoring(), NTF_USE)
        return False

    def _state(self) -> int:
        for message in self._ask(RTM_GETNEIGH, NLM_F_ACK, Ignoring(errno.ENOENT)):
            state: int = a.NEIGHBOUR.unpack_from(message.body)[2]
            return state
        return 0

    @property
    def is_set_by_hand(self) -> bool:
        """Whether the kernel never asks for it."""
        return bool(self._state() & a.NUD_PERMANENT)

    def _ask(self, kind: int, how: int, fine: Ignoring, flags: int = 0) -> list[Message]:
        try:
            with RequestSocket() as requests, fine:
                return requests.ask(kind, RawRequest(self._body(flags)), how)
        except (OSError, KernelRefusedError, NoAnswerError) as error:
            raise ObservationError("netlink", f"neighbour {self.address}: {error}") from error
        return []


def is_on_link(address: str, ifindex: int) -> bool:
    """Whether the kernel would send to an address over this link, without a gateway. Raises ObservationError."""
    ip = ipaddress.ip_address(address)
    family, bits = (a.AF_INET, 32) if ip.version == 4 else (a.AF_INET6, 128)
    asked = a.join(a.ROUTE.pack(family, bits, 0, 0, 0, 0, 0, 0, 0), [(a.RTA_DST, ip.packed)])
    try:
        with RequestSocket() as requests, Ignoring(errno.ENETUNREACH, errno.EHOSTUNREACH):
            for message in requests.ask(RTM_GETROUTE, RawRequest(asked)):
                about = dict(split(message.body, a.ROUTE.size))
                out = struct.unpack("=i", about.get(a.RTA_OIF, bytes(4)))[0]
                return out == ifindex and a.RTA_GATEWAY not in about and a.RTA_VIA not in about
    except (OSError, KernelRefusedError, NoAnswerError) as error:
        raise ObservationError("netlink", f"route to {address}: {error}") from error
    return False
