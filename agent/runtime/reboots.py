"""Whether a guest that ended its QEMU rebooted, which QEMU has no run state for."""

from __future__ import annotations

from pathlib import Path

from agent.host.logs import shut_itself_down
from agent.host.processes import Process

REBOOT_CAUSES = frozenset({"guest-reset", "host-qmp-system-reset"})
"""QMP SHUTDOWN reasons of a guest whose reboot ended its QEMU (`set-action`, `reboot=shutdown`)."""


def has_rebooted(heard: str | None, process: Process | None, log: Path) -> bool:
    """Whether a guest's end was a reboot: `heard` is the reason of its SHUTDOWN event, None if nobody listened.

    Of one that nobody heard, QEMU's log tells, where a poweroff leaves a line and a reboot none. Without a log that
    says so the guest is taken to have rebooted: one too many runs rather than one too few.
    """
    if heard is not None or process is None:
        return heard in REBOOT_CAUSES
    return not shut_itself_down(process.pid, log)
