"""Where a card is that rtnetlink knows only by a bus of its driver's own: a virtio card is `virtio2` on `virtio`.

Its driver tells the PCI address beneath (linux/ethtool.h: ETHTOOL_GDRVINFO; drivers/net/virtio_net.c:
virtnet_get_drvinfo, which asks the transport: drivers/virtio/virtio_pci_common.c: vp_bus_name).
"""

from __future__ import annotations

import array
import fcntl
import re
import socket
import struct

SIOCETHTOOL = 0x8946
ETHTOOL_GDRVINFO = 3
_SIZE = 196
_BUS_INFO = slice(100, 132)
"""Of struct ethtool_drvinfo: cmd, driver[32], version[32], fw_version[32], bus_info[32], …"""

_PLACE = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", re.ASCII)


def place_of(link: str, known: str) -> str:
    """The PCI address of a link's card; empty where there is none. `known`: as rtnetlink has it, `BUS/NAME`."""
    if "/" not in known:
        return known
    buffer = array.array("B", struct.pack("=I", ETHTOOL_GDRVINFO) + bytes(_SIZE - 4))
    address, _ = buffer.buffer_info()
    request = struct.pack("16sP16x", link.encode(errors="surrogateescape")[:15], address)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
            fcntl.ioctl(asking, SIOCETHTOOL, request)
    except OSError:  # it went meanwhile, or its driver does not say
        return ""
    found = buffer.tobytes()[_BUS_INFO].split(b"\0", 1)[0].decode(errors="replace").lower()
    return found if _PLACE.fullmatch(found) else ""
