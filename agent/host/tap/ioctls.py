"""The numbers of what is asked of taps (linux/if_tun.h), and what follows from a refusal."""

from __future__ import annotations

import errno

from agent.core.errors import ActionError, PermanentError, TransientError

TUN_DEVICE = "/dev/net/tun"

TUNSETPERSIST = 0x400454CB
TUNSETIFF = 0x400454CA
TUNSETOWNER = 0x400454CC
TUNSETOFFLOAD = 0x400454D0
TUNSETQUEUE = 0x400454D9
TUNGETIFF = 0x800454D2
TUNGETVNETHDRSZ = 0x800454D7
TUNSETVNETHDRSZ = 0x400454D8

IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_MULTI_QUEUE = 0x0100
IFF_DETACH_QUEUE = 0x0400
TAP_FLAGS = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR

TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN = 1, 2, 4, 8


def translated(error: OSError, what: str) -> ActionError:
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
