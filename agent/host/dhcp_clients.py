"""Who leases a link its addresses: DHCP clients and network managers of this network namespace, by their processes.

dhclient(8), dhcpcd(8) and udhcpc are known by their command line, systemd-networkd by the lease that it keeps
(/run/systemd/netif/leases/IFINDEX), NetworkManager by the state of the device (/run/NetworkManager/devices/IFINDEX).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

NETWORKD = Path("/run/systemd/netif/leases")
NETWORK_MANAGER = Path("/run/NetworkManager/devices")
CLIENTS = frozenset({"dhclient", "dhcpcd", "udhcpc", "udhcpc6", "dhcp6c", "connmand"})
_MANAGED = re.compile(r"^managed=(true|full|1)\s*$", re.MULTILINE)


def find_clients(link: str, ifindex: int) -> tuple[str, ...]:
    """The clients that serve this link, each with its pid; in some ten milliseconds among a thousand processes."""
    found = []
    for pid, argv in _processes():
        names = {os.path.basename(word) for word in argv[:2]}
        program = next(iter(sorted(names & CLIENTS)), "")
        if program:
            others = [word for word in argv[1:] if not word.startswith("-") and "/" not in word]
            if link in others or any(word.startswith(f"{link}.") for word in others) or _serves_all(program, argv):
                found.append(f"{program} (pid {pid})")
        if "systemd-networkd" in names and (NETWORKD / str(ifindex)).exists():
            found.append(f"systemd-networkd (pid {pid})")
        if "NetworkManager" in names and _managed(ifindex):
            found.append(f"NetworkManager (pid {pid}; nmcli device set {link} managed no)")
    return tuple(found)


def _serves_all(program: str, argv: list[str]) -> bool:
    """Whether a client was told no link: then it takes all."""
    return program in {"dhcpcd", "dhclient", "connmand"} and all(word.startswith("-") for word in argv[1:])


def _managed(ifindex: int) -> bool:
    try:
        return _MANAGED.search((NETWORK_MANAGER / str(ifindex)).read_text()) is not None
    except (OSError, UnicodeDecodeError):
        return False


def _processes() -> Iterator[tuple[int, list[str]]]:
    """All processes of this network namespace with their command lines."""
    own = os.stat("/proc/self/ns/net").st_ino
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            argv = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
            if argv[0] and os.stat(f"/proc/{name}/ns/net").st_ino == own:
                yield int(name), [word.decode(errors="replace") for word in argv if word]
        except OSError:
            continue  # it has just ended, or is not to be looked at
