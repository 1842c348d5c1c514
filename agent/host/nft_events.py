"""Hears of changes of nftables: netlink of netfilter, group NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h).

Every transaction ends in NEWGEN with the pid of its author (NFTA_GEN_PROC_PID, linux/netfilter/nf_tables.h); what comes
before it names the tables that it touches. So changes of other tables, of which some hosts have many, cost nothing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from agent.core.errors import ObservationError
from agent.core.netlink import attributes, messages
from agent.core.routing.ruleset import Ruleset

NETLINK_NETFILTER = 12
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
SO_RCVBUFFORCE = 33
NFNLGRP_NFTABLES = 7
NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_NEWGEN = 15
FAMILIES = {"inet": 1, "bridge": 7}
"""NFPROTO_INET, NFPROTO_BRIDGE (linux/netfilter.h), by nft(8)'s names."""

BUFFER_BYTES = 4 * 1024 * 1024
"""A transaction of ours with 500 elements overruns the default of 208 KiB."""

DATAGRAMS_AT_ONCE = 64
_RECEIVE_BYTES = 64 * 1024
_NFGENMSG_BYTES = 4


class NftEvents:
    """A socket that hears of every transaction from its making on. Use as a context manager.

    `overruns` counts the times that events were lost. `others`: it hears of all tables but these instead.
    """

    def __init__(self, ruleset: Ruleset, *, others: bool = False) -> None:
        self.overruns = 0
        self._others = others
        self._names = {(FAMILIES[one.family], one.name.encode() + b"\0") for one in ruleset.tables}
        self._touched = False
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        """Open the socket, in the network namespace of the calling thread. Raises ObservationError."""
        try:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
            self._socket.bind((0, 0))
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
            except PermissionError:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        except OSError as e:
            self.close()
            raise ObservationError("nftables", f"its events cannot be heard: {e}") from e
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def shrink(self, size_bytes: int) -> None:
        """Give the socket a smaller buffer, so that a test can make it overrun."""
        if self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)

    async def watch(self, changed: Callable[[int], None]) -> None:
        """Call `changed` with the author's pid after each transaction that touches the tables, until cancelled.

        The pid is 0 after lost events, when nobody knows what happened.
        """
        if self._socket is None:
            raise RuntimeError("watched before it was entered")
        loop, number = asyncio.get_running_loop(), self._socket.fileno()
        loop.add_reader(number, self._read, changed)
        try:
            await asyncio.Event().wait()
        finally:
            loop.remove_reader(number)

    def _read(self, changed: Callable[[int], None]) -> None:
        for pid in self._authors():
            changed(pid)

    def _authors(self) -> Iterator[int]:
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                if self._socket is None:
                    return
                datagram = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS
                self.overruns += 1
                self._touched = False
                yield 0
                continue
            yield from self._parsed(datagram)

    def _parsed(self, datagram: bytes) -> Iterator[int]:
        for message, _, _ in messages(datagram):
            if message.type >> 8 != NFNL_SUBSYS_NFTABLES or len(message.body) < _NFGENMSG_BYTES:
                continue
            said = attributes(message.body, _NFGENMSG_BYTES)
            if message.type & 0xFF != NFT_MSG_NEWGEN:
                # Attribute 1 is the table's name in the messages of tables, chains, rules, sets and elements alike.
                named = (message.body[0], said.get(1, b"")) in self._names
                self._touched |= named is not self._others
            elif self._touched:
                self._touched = False
                yield int.from_bytes(said.get(2, b""), "big")
