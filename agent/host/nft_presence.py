"""Asks the kernel whether tables of nftables are there at all: NFT_MSG_GETTABLE (linux/netfilter/nf_tables.h).

That takes 0.1 ms, where nft(8) takes a process for each table. After `nft flush ruleset` there is nothing else to know.
"""

from __future__ import annotations

import errno
import socket
import struct

from agent.core.netlink import NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, errno_of, framed, messages, packed
from agent.core.routing.ruleset import Ruleset, Table

_NETLINK_NETFILTER = 12
_GETTABLE = (10 << 8) | 1
"""NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE."""
_FAMILIES = {"inet": 1, "bridge": 7}
"""NFPROTO_INET, NFPROTO_BRIDGE (linux/netfilter.h)."""
_TABLE_NAME = 1


class NftPresence:
    """Asks of some tables, over a socket that stays open until `close`: to close one waits until the kernel has freed
    what was just deleted, 10 ms and more after a flush (nft_rcv_nl_event in net/netfilter/nf_tables_api.c).

    The kernel looks without any lock (NFNL_CB_RCU), and has queued its answer when the question is sent: nothing waits.
    """

    def __init__(self, ruleset: Ruleset) -> None:
        self._ruleset = ruleset
        self._socket: socket.socket | None = None

    def are_absent(self) -> bool:
        """Whether the kernel says of each of the tables that there is none, in the network namespace of who asks first.

        False also where it does not say: then nft(8) is to be asked, which has words for what is wrong. Raises nothing.
        """
        try:
            if self._socket is None:
                self._socket = _opened()
            return all(_error_of(self._socket, table) == errno.ENOENT for table in self._ruleset.tables)
        except OSError:
            self.close()  # an answer that is left must be of no other question
            return False

    def close(self) -> None:
        """Close the socket; the next question opens another one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _opened() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    kernel = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
    try:
        kernel.bind((0, 0))
    except OSError:
        kernel.close()
        raise
    return kernel


def _error_of(kernel: socket.socket, table: Table) -> int:
    """The kernel's answer to a question for a table: its errno, 0 if it is no error."""
    body = struct.pack("=BBH", _FAMILIES[table.family], 0, 0) + packed(_TABLE_NAME, table.name.encode() + b"\0")
    kernel.send(framed(_GETTABLE, NLM_F_REQUEST | NLM_F_ACK, 1, body))
    while True:
        for message, _, _ in messages(kernel.recv(1 << 16)):
            if message.type == NLMSG_ERROR:  # a refusal, or the acknowledgement, which comes after the answer
                return errno_of(message)
