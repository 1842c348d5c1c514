"""The clock of all decisions: CLOCK_BOOTTIME, which goes on over a suspend and which nobody sets (clock_gettime(2))."""

from __future__ import annotations

import time
from pathlib import Path


def now_s() -> float:
    """Seconds since the host booted."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def machine_id() -> str:
    """The host's identity (machine-id(5)); the boot's where it has none, so that derived MACs change with each boot."""
    try:
        return Path("/etc/machine-id").read_text().strip() or boot_id()
    except OSError:
        return boot_id()


def boot_id() -> str:
    """Which boot of the host this is (random(4), /proc/sys/kernel/random/boot_id)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
