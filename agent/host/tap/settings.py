"""What a guest negotiated with its NIC, read of a living tap or asked of QEMU, for the tap that replaces it.

What a guest negotiates (checksum and segmentation offloads) reaches the tap by TUNSETOFFLOAD, and the
kernel announces it as an RTM_NEWLINK of the tap when, and only when, it changes something (drivers/net/tun.c:
set_offload calls netdev_update_features; measured). TUNSETVNETHDRSZ alone announces nothing. So
settings are worth reading again upon the tap's link event.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass

from agent.host.tap.ioctls import (
    TUN_F_CSUM,
    TUN_F_TSO4,
    TUN_F_TSO6,
    TUN_F_TSO_ECN,
    TUNGETVNETHDRSZ,
    translated,
)

SIOCETHTOOL = 0x8946
ETHTOOL_GSTRINGS = 0x1B
ETHTOOL_GSSET_INFO = 0x37
ETHTOOL_GFEATURES = 0x3A
ETH_SS_FEATURES = 4
ETH_GSTRING_LEN = 32

_FEATURES = {
    "tx-checksum-ip-generic": TUN_F_CSUM,
    "tx-tcp-segmentation": TUN_F_TSO4,
    "tx-tcp6-segmentation": TUN_F_TSO6,
    "tx-tcp-ecn-segmentation": TUN_F_TSO_ECN,
}
_VIRTIO_FEATURES = {
    "VIRTIO_NET_F_GUEST_CSUM": TUN_F_CSUM,
    "VIRTIO_NET_F_GUEST_TSO4": TUN_F_TSO4,
    "VIRTIO_NET_F_GUEST_TSO6": TUN_F_TSO6,
    "VIRTIO_NET_F_GUEST_ECN": TUN_F_TSO_ECN,
}


@dataclass(frozen=True, slots=True)
class TapSettings:
    """What a guest negotiated with its NIC and its tap must have: the virtio header's size and TUN_F_* flags."""

    header_bytes: int = 10
    offload_flags: int = 0


def read_settings(fd: int, name: str) -> TapSettings:
    """The settings of a living tap, to be given to the one that replaces it.

    The header size comes from the descriptor (TUNGETVNETHDRSZ), the offloads from the link's active features: there is
    no TUNGETOFFLOAD (drivers/net/tun.c: set_offload turns one into the other).
    """
    size = bytearray(4)
    try:
        fcntl.ioctl(fd, TUNGETVNETHDRSZ, size)
        active = _active_features(name)
    except OSError as e:
        raise translated(e, f"read the settings of {name}") from e
    flags = sum(flag for feature, flag in _FEATURES.items() if feature in active)
    return TapSettings(struct.unpack("=i", size)[0], _consistent(flags))


def settings_from_virtio(features: Collection[str]) -> TapSettings:
    """The settings that follow from the features a guest negotiated, by their names in QMP `x-query-virtio-status`.

    The header has 12 bytes where VIRTIO_NET_F_MRG_RXBUF or VIRTIO_F_VERSION_1 is among them, else 10 (virtio 1.2,
    5.1.6). QEMU writes "NAME: what it means"; the part from the colon on is ignored.
    """
    names = {feature.split(":", 1)[0].strip() for feature in features}
    flags = sum(flag for feature, flag in _VIRTIO_FEATURES.items() if feature in names)
    large = bool(names & {"VIRTIO_NET_F_MRG_RXBUF", "VIRTIO_F_VERSION_1"})
    return TapSettings(12 if large else 10, _consistent(flags))


def _consistent(flags: int) -> int:
    """Offload flags that TUNSETOFFLOAD accepts: segmentation needs checksums, ECN needs segmentation."""
    if not flags & TUN_F_CSUM:
        return 0
    return flags if flags & (TUN_F_TSO4 | TUN_F_TSO6) else flags & ~TUN_F_TSO_ECN


def _active_features(name: str) -> set[str]:
    """The names of a link's active features (ETHTOOL_GFEATURES, whose blocks have 32 bits each)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        if not _feature_names:
            _feature_names.extend(_read_feature_names(any_socket.fileno(), name))
        names = _feature_names
        blocks = (len(names) + 31) // 32
        answer = bytearray(struct.pack("=II", ETHTOOL_GFEATURES, blocks) + bytes(16 * blocks))
        _ethtool(any_socket.fileno(), name, answer)
    active: set[str] = set()
    for position, feature in enumerate(names):
        # struct ethtool_get_features_block: available, requested, active, never_changed
        (bits,) = struct.unpack_from("=8xI", answer, 8 + 16 * (position // 32))
        if bits >> (position % 32) & 1:
            active.add(feature)
    return active


_feature_names: list[str] = []
"""Of the running kernel, the same for every link (net/ethtool/common.c: netdev_features_strings), so read once: when a
bridge with many taps is healed, each of them states itself several times."""


def _read_feature_names(any_socket: int, name: str) -> list[str]:
    """The names of feature bits, which differ between kernels (ETHTOOL_GSSET_INFO, ETHTOOL_GSTRINGS)."""
    info = bytearray(struct.pack("=IIQI", ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0))
    _ethtool(any_socket, name, info)
    (count,) = struct.unpack_from("=I", info, 16)
    answer = bytearray(struct.pack("=III", ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count) + bytes(ETH_GSTRING_LEN * count))
    _ethtool(any_socket, name, answer)
    texts = (answer[12 + ETH_GSTRING_LEN * i : 12 + ETH_GSTRING_LEN * (i + 1)] for i in range(count))
    return [bytes(text).split(b"\0", 1)[0].decode() for text in texts]


def _ethtool(any_socket: int, name: str, command: bytearray) -> None:
    """SIOCETHTOOL: `struct ifreq` with a pointer to the command, which the kernel answers in place."""
    buffer = (ctypes.c_char * len(command)).from_buffer(command)
    request = struct.pack("@16sP16x", name.encode(), ctypes.addressof(buffer))
    fcntl.ioctl(any_socket, SIOCETHTOOL, request)
