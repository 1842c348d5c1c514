"""The leases of a DHCP server, as dnsmasq keeps them in its file."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

_TIME = re.compile(r"[0-9]{1,20}", re.ASCII)
_MAC = re.compile(r"(?:[0-9a-f]{2}-)?([0-9a-f]{2}(?::[0-9a-f]{2}){5})", re.ASCII)
"""Other hardware than Ethernet is written with its type before it (dnsmasq, lease.c)."""


@dataclass(frozen=True, slots=True)
class Lease:
    """An IPv4 address that a client has until `expires_s` (Unix time, 0: for ever); `name` is empty if it has none."""

    mac: str
    address: str
    name: str = ""
    expires_s: int = 0


def parse_leases(text: str) -> tuple[Lease, ...]:
    """The IPv4 leases of a lease file (dnsmasq(8), --dhcp-leasefile): time, MAC, address, name, client id in a line.

    What is torn, because it is being written just now, is left out: the writer's end is seen as a change again. So is
    whatever is no time, MAC or address: whoever has the server in his hand may write anything.
    """
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) != 5 or _TIME.fullmatch(words[0]) is None or not _is_ipv4(words[2]):
            continue
        mac = _MAC.fullmatch(words[1].lower())
        if mac is not None:
            found.append(Lease(mac[1], words[2], "" if words[3] == "*" else words[3], int(words[0])))
    return tuple(found)


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def unexpired(leases: tuple[Lease, ...], unix_s: float) -> tuple[Lease, ...]:
    """The leases that hold at a time: the server takes the others out only when it comes by."""
    return tuple(lease for lease in leases if not lease.expires_s or lease.expires_s > unix_s)
