"""Taps by their descriptors: making one, and re-arming the descriptor of one that was deleted under its guest.

Every function is an ioctl or two and never blocks for long. The sources are Documentation/networking/tuntap.rst,
linux/if_tun.h and linux/ethtool.h. Errors are TransientError where another try may help, else PermanentError.

What a guest negotiates with its NIC (checksum and segmentation offloads) reaches the tap by TUNSETOFFLOAD, and the
kernel announces it as an RTM_NEWLINK of the tap when, and only when, it changes something (drivers/net/tun.c:
set_offload calls netdev_update_features; measured). TUNSETVNETHDRSZ alone announces nothing. So
settings are worth reading again upon the tap's link event.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from agent.core.errors import ActionError, PermanentError, TransientError

TUN_DEVICE = "/dev/net/tun"

TUNSETPERSIST = 0x400454CB
TUNSETIFF = 0x400454CA
TUNSETOWNER = 0x400454CC
TUNSETOFFLOAD = 0x400454D0
TUNGETIFF = 0x800454D2
TUNGETVNETHDRSZ = 0x800454D7
TUNSETVNETHDRSZ = 0x400454D8

IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TAP_FLAGS = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR

TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN = 1, 2, 4, 8

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
SYS_PIDFD_GETFD = 438
"""The same number on every architecture that has the call (asm-generic/unistd.h)."""


@dataclass(frozen=True, slots=True)
class TapSettings:
    """What a guest negotiated with its NIC and its tap must have: the virtio header's size and TUN_F_* flags."""

    header_bytes: int = 10
    offload_flags: int = 0


def open_tap(name: str, uid: int) -> int:
    """A new descriptor attached to the tap of this name, which is made if there is none; only `uid` may attach to it.

    A tap that this made goes with its descriptor until `keep`: mark the link first, so that an agent that is killed in
    between leaves nothing unmarked behind. Another descriptor attached already: TransientError with reason Busy.
    Not a tap: PermanentError. (tuntap.rst: 3.2; TUNSETIFF, TUNSETOWNER)
    """
    try:
        fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        raise _translated(e, f"open {TUN_DEVICE}") from e
    try:
        _attach(fd, name, uid)
    except BaseException:
        os.close(fd)
        raise
    return fd


def keep(fd: int) -> None:
    """Let the tap outlive its descriptor (TUNSETPERSIST)."""
    try:
        fcntl.ioctl(fd, TUNSETPERSIST, 1)
    except OSError as e:
        raise _translated(e, "make the tap persistent") from e


def attached_link(fd: int) -> str | None:
    """The name of the tap that a descriptor is attached to; None when that was deleted (TUNGETIFF: EBADFD).

    The name is of the namespace that the tap is in, which may be another than the caller's.
    """
    request = bytearray(40)
    try:
        fcntl.ioctl(fd, TUNGETIFF, request)
    except OSError as e:
        if e.errno == errno.EBADFD:
            return None
        raise _translated(e, "ask a descriptor for its tap") from e
    return bytes(request[:16]).split(b"\0", 1)[0].decode(errors="backslashreplace")


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
        raise _translated(e, f"read the settings of {name}") from e
    flags = sum(flag for feature, flag in _FEATURES.items() if feature in active)
    return TapSettings(struct.unpack("=i", size)[0], _consistent(flags))


def rearm(fd: int, name: str, uid: int, settings: TapSettings) -> None:
    """Attach the descriptor of a deleted tap to a new tap, made with this name, with the settings of the old one.

    Whoever reads the descriptor goes on with it unaware. The tap appears in the namespace where the descriptor was
    opened, goes with the descriptor until `keep`, is down and in no bridge. A descriptor that is attached already:
    PermanentError. (TUNSETIFF on an open file whose tap is gone; TUNSETVNETHDRSZ, TUNSETOFFLOAD)
    """
    _attach(fd, name, uid)
    try:
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("=i", settings.header_bytes))
        fcntl.ioctl(fd, TUNSETOFFLOAD, settings.offload_flags)
    except OSError as e:
        raise _translated(e, f"restore the settings of {name}") from e


def settings_from_virtio(features: Collection[str]) -> TapSettings:
    """The settings that follow from the features a guest negotiated, by their names in QMP `x-query-virtio-status`.

    The header has 12 bytes where VIRTIO_NET_F_MRG_RXBUF or VIRTIO_F_VERSION_1 is among them, else 10 (virtio 1.2,
    5.1.6). QEMU writes "NAME: what it means"; the part from the colon on is ignored.
    """
    names = {feature.split(":", 1)[0].strip() for feature in features}
    flags = sum(flag for feature, flag in _VIRTIO_FEATURES.items() if feature in names)
    large = bool(names & {"VIRTIO_NET_F_MRG_RXBUF", "VIRTIO_F_VERSION_1"})
    return TapSettings(12 if large else 10, _consistent(flags))


def fetch_descriptor(pid: int, fd: int) -> int:
    """A copy of a tap descriptor that another process has open (pidfd_getfd(2)), close-on-exec.

    Needs ptrace rights over the process: PermanentError with reason NotPermitted without them. Process or descriptor
    gone: TransientError. Something else than a tap's descriptor: PermanentError, and the copy is closed.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as e:
        raise _translated(e, f"open process {pid}") from e
    try:
        copy = _pidfd_getfd(pidfd, fd)
    except OSError as e:
        if e.errno == errno.EPERM:
            raise PermanentError(
                f"cannot fetch a descriptor of process {pid}: no ptrace rights over it; the agent needs "
                "CAP_SYS_PTRACE and kernel.yama.ptrace_scope below 3",
                reason="NotPermitted",
            ) from e
        raise _translated(e, f"fetch descriptor {fd} of process {pid}") from e
    finally:
        os.close(pidfd)
    if not _is_tun(copy):
        os.close(copy)
        raise PermanentError(f"descriptor {fd} of process {pid} is not a tap's")
    return copy


def find_descriptor_number(pid: int, name: str) -> int | None:
    """The number under which a process has a tap of this name open, None if it has none or may not be looked at.

    (/proc/PID/fdinfo/N names the tap: drivers/net/tun.c, tun_chr_show_fdinfo)
    """
    try:
        for number in os.listdir(f"/proc/{pid}/fdinfo"):
            with contextlib.suppress(OSError):
                if f"iff:\t{name}\n" in Path(f"/proc/{pid}/fdinfo/{number}").read_text():
                    return int(number)
    except OSError:
        return None
    return None


def _attach(fd: int, name: str, uid: int) -> None:
    """TUNSETIFF and TUNSETOWNER. `struct ifreq` has 40 bytes, a name of 15 and its NUL first."""
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("=16sH22x", name.encode(), TAP_FLAGS))
        fcntl.ioctl(fd, TUNSETOWNER, uid)
    except OSError as e:
        raise _translated(e, f"attach to the tap {name}") from e


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


def _pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2), which Python has no function for; the copy is close-on-exec by itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    copy = int(libc.syscall(SYS_PIDFD_GETFD, pidfd, fd, 0))
    if copy < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return copy


def _is_tun(fd: int) -> bool:
    """Whether a descriptor is one of /dev/net/tun, by its device number (misc major 10, minor 200)."""
    seen = os.fstat(fd)
    return stat.S_ISCHR(seen.st_mode) and (os.major(seen.st_rdev), os.minor(seen.st_rdev)) == (10, 200)


def _translated(error: OSError, what: str) -> ActionError:
    """What follows from a refused system call."""
    match error.errno:
        case errno.EBUSY:
            return TransientError(f"{what}: another process is attached to it", reason="Busy")
        case errno.EPERM | errno.EACCES:
            return PermanentError(f"{what}: not permitted; the agent needs CAP_NET_ADMIN", reason="NotPermitted")
        case errno.EBADFD | errno.ENODEV | errno.ESRCH | errno.EBADF | errno.ENOMEM | errno.EMFILE | errno.EAGAIN:
            return TransientError(f"{what}: {error.strerror}")
        case errno.ENOENT:
            return PermanentError(f"{what}: the kernel has no tun device (modprobe tun)", reason="NoTun")
        case _:
            return PermanentError(f"{what}: {error.strerror}")
