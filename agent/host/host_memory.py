"""What memory the host has left for guests, and what each QEMU has taken of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from agent.core.errors import ObservationError
from agent.core.observed import HostMemory

SLICE = "vmhost.slice"
"""systemd's slice of the guests, which an operator may give a limit of its own."""

_AVAILABLE = re.compile(r"^MemAvailable:\s*(\d+) kB$", re.MULTILINE)
_INACTIVE = re.compile(r"^inactive_file (\d+)$", re.MULTILINE)
_PAGE_BYTES = 4096
"""Of x86, which is all that this agent runs guests on (proc(5): statm counts pages)."""


def look_at_memory(
    pids: Iterable[int], *, kvm: bool, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> HostMemory:
    """What is available now, of the host or of the slice if that is less, and what these processes have of it.

    Available is what the kernel holds possible without swapping (proc(5), MemAvailable); of the slice, its limit less
    what it uses, its inactive file pages aside (Linux, cgroup-v2: memory.max, .high, .current, .stat).
    Reads no disk, so it does not block. Raises ObservationError if the kernel does not say.
    """
    resident = {pid: taken for pid in pids if (taken := _anonymous_bytes(proc, pid)) is not None}
    try:
        match = _AVAILABLE.search((proc / "meminfo").read_text())
    except OSError as error:
        raise ObservationError(str(proc / "meminfo"), error.strerror or str(error)) from error
    if match is None:
        raise ObservationError(str(proc / "meminfo"), "there is no MemAvailable in it")
    available, source = int(match[1]) << 10, "the host's memory"
    left = _left_in_slice(cgroups / SLICE)
    if left is not None and left < available:
        available, source = left, f"the limit of {SLICE}"
    return HostMemory(available, resident, kvm, source)


def _left_in_slice(group: Path) -> int | None:
    """What a control group may still take; None without one, or without a limit."""
    try:
        limits = [(group / name).read_text().strip() for name in ("memory.max", "memory.high")]
        current = int((group / "memory.current").read_text())
        inactive = _INACTIVE.search((group / "memory.stat").read_text())
    except OSError:
        return None
    set_ones = [int(limit) for limit in limits if limit != "max"]
    if not set_ones:
        return None
    return max(0, min(set_ones) - current + (int(inactive[1]) if inactive else 0))


def _anonymous_bytes(proc: Path, pid: int) -> int | None:
    """A process's memory that no other has; None if it is gone. Its program's own pages are shared by all QEMUs."""
    try:
        _, resident, shared, *_ = (proc / str(pid) / "statm").read_text().split()
    except (OSError, ValueError):
        return None
    return (int(resident) - int(shared)) * _PAGE_BYTES
