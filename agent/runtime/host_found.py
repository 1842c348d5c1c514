"""What an agent finds of its host as it starts: QEMU, and what kernel, systemd and packages offer."""

from __future__ import annotations

import os
from dataclasses import dataclass

from agent.core.errors import ActionError
from agent.core.observed import HostState
from agent.host.processes import find_qemu
from agent.host.tap import vhost_problem
from agent.runtime.clock import boot_id
from agent.runtime.limits import controllers_here
from agent.runtime.services import absent_programs
from agent.runtime.starts import Starts


@dataclass(frozen=True, slots=True)
class QemuFound:
    """The host's QEMU: its path and version, or the problem that there is with it."""

    path: str | None = None
    version: str = ""
    problem: str = ""


async def look_for_qemu() -> QemuFound:
    """Look for QEMU; that there is none, or one that is too old, is a finding, not an error."""
    try:
        qemu = await find_qemu()
    except ActionError as error:
        return QemuFound(problem=str(error))
    return QemuFound(qemu.path, qemu.version)


def start_slots() -> int:
    """How many guests may start at once: twice the cores, more would only wait for each other."""
    return 2 * len(os.sched_getaffinity(0))


def host_at_start(qemu: QemuFound, starts: Starts) -> HostState:
    """What is known of the host before the first look at anything else."""
    return HostState(
        boot_id(),
        qemu.path,
        qemu.problem,
        start_slots(),
        services=starts.as_services,
        controllers=controllers_here(),
        absent=absent_programs(),
        vhost_problem=vhost_problem(),
    )
