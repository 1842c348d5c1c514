"""Asks the kernel whether tables of nftables are there at all: NFT_MSG_GETTABLE (linux/netfilter/nf_tables.h).

That takes 0.1 ms, where nft(8) takes a process for each table. After `nft flush ruleset` there is nothing else to know.
"""

from __future__ import annotations

import errno
import socket
import struct

from agent.core.routing.ruleset import Ruleset, Table

_NETLINK_NETFILTER = 12
_GETTABLE = (10 << 8) | 1
"""NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE."""
_REQUEST_ACK = 1 | 4
_NLMSG_ERROR = 2
_FAMILIES = {"inet": 1, "bridge": 7}
"""NFPROTO_INET, NFPROTO_BRIDGE (linux/netfilter.h)."""
_TABLE_NAME = 1
_ANSWER_S = 10.0
"""The kernel answers within the request, but for a transaction of somebody else's that it is busy with."""


def are_absent(ruleset: Ruleset) -> bool:
    """Whether the kernel says of each of the tables that there is none, in the calling thread's network namespace.

    False also where it does not say: then nft(8) is to be asked, which has words for what is wrong. Blocks; raises
    nothing.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as kernel:
            kernel.settimeout(_ANSWER_S)
            kernel.bind((0, 0))
            return all(_error_of(kernel, table) == errno.ENOENT for table in ruleset.tables)
    except OSError:
        return False


def _error_of(kernel: socket.socket, table: Table) -> int | None:
    """The kernel's answer to a question for a table: its errno, None if it is no error."""
    name = table.name.encode() + b"\0"
    body = struct.pack("=BBH", _FAMILIES[table.family], 0, 0)
    body += struct.pack("=HH", 4 + len(name), _TABLE_NAME) + name + bytes(-len(name) % 4)
    kernel.send(struct.pack("=IHHII", 16 + len(body), _GETTABLE, _REQUEST_ACK, 1, 0) + body)
    while True:
        kind, number = struct.unpack_from("=4xH10xi", kernel.recv(1 << 16))
        if kind == _NLMSG_ERROR:  # a refusal, or the acknowledgement, which comes after the answer
            return -number or None
