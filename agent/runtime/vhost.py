"""vhost-net for guests that are launched, and for NICs that are plugged. Where there is none they go without."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import structlog

from agent.core.desired import NicSpec, VmSpec
from agent.core.errors import ActionError
from agent.core.qemu.argv import wants_vhost
from agent.host.tap import close_all, open_vhost

log = structlog.get_logger("vmhost.vhost")


def open_vhosts(spec: VmSpec, opened: ExitStack, *, kvm: bool) -> Mapping[str, tuple[int, ...]]:
    """Descriptors of vhost-net for each NIC of a guest that is to have it, by its id; closed with `opened`."""
    found = {nic.id: open_for(spec, nic, opened, kvm=kvm) for nic in spec.nics}
    return {nic: fds for nic, fds in found.items() if fds}


def open_for(spec: VmSpec, nic: NicSpec, opened: ExitStack, *, kvm: bool) -> tuple[int, ...]:
    """Descriptors of vhost-net for one NIC, one a queue; none where it is to have none, or cannot have any.

    A guest that is slower is better than none; that it is, is told by the planner (`VhostMissing`).
    """
    if not wants_vhost(spec, nic, kvm=kvm):
        return ()
    try:
        fds = open_vhost(nic.queues)
    except ActionError as error:
        log.info("a NIC goes without vhost-net", vm=spec.name, nic=nic.id, why=str(error))
        return ()
    opened.callback(close_all, fds)
    return fds
