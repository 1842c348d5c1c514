"""What the kernel counts of a QEMU: time, delay, memory, pressure (proc_pid_stat(5), sched-stats.rst, psi.rst).

All of it is read from memory, in some 20 µs a file, and so without a thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CGROUPS = "/sys/fs/cgroup"


@dataclass(frozen=True, slots=True)
class ProcessTimes:
    """A process with all its threads: seconds in its own code, in the kernel, and in a guest's; memory in RAM."""

    user_s: float
    system_s: float
    guest_s: float
    resident_bytes: int


def read_times(pid: int, start_time: int) -> ProcessTimes | None:
    """The times of the process that has this pid and start time (field 22 of its stat), None if it is gone.

    The kernel counts a guest's time within user time as well; here it is not.
    """
    try:
        # Field 2, the name, may hold blanks and parentheses; what follows the last one begins with field 3.
        values = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        if int(values[19]) != start_time:
            return None
        guest = int(values[40])
        return ProcessTimes(
            user_s=max(0, int(values[11]) - guest) / _TICKS,
            system_s=int(values[12]) / _TICKS,
            guest_s=guest / _TICKS,
            resident_bytes=int(values[21]) * _PAGE_BYTES,
        )
    except (OSError, IndexError):
        return None


def read_delay_s(pid: int, threads: Iterable[int]) -> float | None:
    """How long these threads of a process were ready to run and had no CPU; None where the kernel does not count it."""
    delays = []
    for thread in set(threads):
        try:
            delays.append(int(_read(f"/proc/{pid}/task/{thread}/schedstat").split()[1]))
        except (OSError, IndexError):
            continue  # it is gone, or CONFIG_SCHED_INFO is missing
    return sum(delays) / 1e9 if delays else None


def find_control_group(pid: int) -> Path | None:
    """The folder of a process's control group (v2), None if it is gone, or there are none."""
    try:
        lines = _read(f"/proc/{pid}/cgroup").decode(errors="surrogateescape").splitlines()
    except OSError:
        return None
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    return None if path == "/" else Path(_CGROUPS + path)


def read_pressure(group: Path) -> Mapping[str, float]:
    """How long something in a control group waited for a resource, in seconds by `cpu`, `memory`, `io`.

    Nothing where the kernel does not count it (CONFIG_PSI, `psi=0`).
    """
    found = {}
    for resource in ("cpu", "memory", "io"):
        try:
            some = _read(f"{group}/{resource}.pressure").split(b"\n", 1)[0]
        except OSError:
            continue
        total = some.rpartition(b"total=")[2]
        if some.startswith(b"some ") and total.isdigit():
            found[resource] = int(total) / 1e6
    return found


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
