"""Who leases a link its addresses: DHCP clients and network managers of this network namespace, by their processes.

dhclient(8), dhcpcd(8) and udhcpc are known by their command line (`core.uplinks.clients`), systemd-networkd by the
lease that it keeps (/run/systemd/netif/leases/IFINDEX), NetworkManager by the state of the device
(/run/NetworkManager/devices/IFINDEX).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from agent.core.uplinks.clients import client_serving

NETWORKD = Path("/run/systemd/netif/leases")
NETWORK_MANAGER = Path("/run/NetworkManager/devices")
DHCPCD_CONF = Path("/etc/dhcpcd.conf")
_MANAGED = re.compile(r"^managed=(true|full|1)\s*$", re.MULTILINE)


def find_clients(link: str, ifindex: int) -> tuple[str, ...]:
    """The clients that serve this link, each with its pid; in some ten milliseconds among a thousand processes."""
    found, conf = [], _text(DHCPCD_CONF)
    for pid, argv in _processes():
        program = client_serving(argv, link, conf)
        if program:
            by_itself = argv[0].startswith("dhcpcd: [")  # it takes all links that it is not told to leave alone
            remedy = f"; denyinterfaces {link} in {DHCPCD_CONF}, and restart it" if by_itself else ""
            found.append(f"{program} (pid {pid}{remedy})")
        name = os.path.basename(argv[0])
        if name == "systemd-networkd" and (NETWORKD / str(ifindex)).exists():
            found.append(f"systemd-networkd (pid {pid})")
        if name == "NetworkManager" and _managed(ifindex):
            found.append(f"NetworkManager (pid {pid}; nmcli device set {link} managed no)")
    return tuple(found)


def _managed(ifindex: int) -> bool:
    return _MANAGED.search(_text(NETWORK_MANAGER / str(ifindex))) is not None


def _text(path: Path) -> str:
    """What a file says; empty where there is none, or none that is a text."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


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
