"""vhost-net: the kernel itself carries frames between a guest's queues and its tap (drivers/vhost/net.c)."""

from __future__ import annotations

import os
import stat

from agent.core.errors import PermanentError
from agent.host.tap.queues import close_all

VHOST_DEVICE = "/dev/vhost-net"


def vhost_problem(device: str = VHOST_DEVICE) -> str:
    """What keeps guests from vhost-net here, empty for nothing: the device is missing, of another kind, or closed."""
    try:
        close_all(open_vhost(1, device))
    except PermanentError as error:
        return str(error)
    return ""


def open_vhost(queues: int, device: str = VHOST_DEVICE) -> tuple[int, ...]:
    """New descriptors for as many queues; whoever uses one first owns it. PermanentError `VhostMissing` without any."""
    fds: list[int] = []
    try:
        if not stat.S_ISCHR(os.stat(device).st_mode):
            raise PermanentError(f"{device} is no character device", reason="VhostMissing")
        fds.extend(os.open(device, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK) for _ in range(queues))
    except OSError as error:
        close_all(fds)
        way_out = "; `modprobe vhost_net` brings it" if isinstance(error, FileNotFoundError) else ""
        raise PermanentError(f"{device}: {error.strerror}{way_out}", reason="VhostMissing") from error
    return tuple(fds)
