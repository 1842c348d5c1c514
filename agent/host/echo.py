"""`python -m agent.host.echo LINK SECONDS ADDRESS ...`: whether hosts answer ICMP echo over a link (RFC 792, 4443).

It needs CAP_NET_RAW, which the agent has not: so it is a command beside it. It ends once all have answered, or after so
many seconds, and writes the addresses that have, as a line of JSON.
"""

from __future__ import annotations

import ipaddress
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence

EVERY_S = 0.25
_TYPES = {4: (8, 0), 6: (128, 129)}
"""Echo request and reply."""


def echo_command(link: str, seconds: float, addresses: Sequence[str]) -> Sequence[str]:
    """The command line that asks these hosts."""
    return [sys.executable, "-I", "-m", "agent.host.echo", link, f"{seconds:.1f}", *addresses]


def read_answered(output: str) -> frozenset[str]:
    """Who has answered, from the output of that command; nobody where it says nothing."""
    try:
        return frozenset(json.loads(output))
    except (ValueError, TypeError):
        return frozenset()


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF ^ total


def _request(version: int, identity: int, number: int) -> bytes:
    """An echo request; the kernel fills in the checksum of ICMPv6, which counts addresses (RFC 3542, 3.1)."""
    head = struct.pack("!BBHHH", _TYPES[version][0], 0, 0, identity, number)
    return head[:2] + struct.pack("!H", _checksum(head)) + head[4:] if version == 4 else head


def _opened(link: str, version: int) -> socket.socket:
    family, proto = ((socket.AF_INET, 1), (socket.AF_INET6, 58))[version == 6]
    found = socket.socket(family, socket.SOCK_RAW, proto)
    found.setblocking(False)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode() + b"\0")
    return found


def ask(link: str, seconds: float, addresses: Sequence[str]) -> set[str]:
    """Ask all until all have answered, or the time is over. Raises OSError where nobody can be asked."""
    wanted = {ipaddress.ip_address(one) for one in addresses}
    sockets = {version: _opened(link, version) for version in {one.version for one in wanted}}
    answered: set[str] = set()
    identity, number, until_s = os.getpid() & 0xFFFF, 0, time.monotonic() + seconds
    while len(answered) < len(wanted) and time.monotonic() < until_s:
        number += 1
        for one in wanted:
            try:
                sockets[one.version].sendto(_request(one.version, identity, number & 0xFFFF), (str(one), 0))
            except OSError:
                continue  # no route yet, or no neighbour: asked again
        next_s = min(until_s, time.monotonic() + EVERY_S)
        while (left_s := next_s - time.monotonic()) > 0 and len(answered) < len(wanted):
            for ready in select.select(list(sockets.values()), [], [], left_s)[0]:
                version = 4 if ready.family == socket.AF_INET else 6
                data, sender = ready.recvfrom(2048)
                start = (data[0] & 15) * 4 if version == 4 else 0
                if len(data) < start + 8:
                    continue
                kind, _, _, seen, _ = struct.unpack_from("!BBHHH", data, start)
                source = ipaddress.ip_address(sender[0].partition("%")[0])
                if kind == _TYPES[version][1] and seen == identity and source in wanted:
                    answered.add(str(source))
    return answered


if __name__ == "__main__":
    sys.stdout.write(json.dumps(sorted(ask(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))) + "\n")
