"""What the kernel says of its memory; and a limit of the slice, which this machine's control groups may not have."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from agent.core.errors import ObservationError
from agent.core.observed import HostMemory
from agent.host.host_memory import look_at_memory

GIB = 1 << 30
NO_SLICE = Path("/nonexistent")


def test_the_real_kernel_says_what_is_left_and_what_a_process_has() -> None:
    before = look_at_memory([os.getpid(), 1 << 30], kvm=True, cgroups=NO_SLICE)
    with mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as taken:
        untouched = look_at_memory([os.getpid()], kvm=True, cgroups=NO_SLICE)
        taken.write(b"x" * (64 << 20))
        touched = look_at_memory([os.getpid()], kvm=True, cgroups=NO_SLICE)
    assert before.resident_bytes.keys() == {os.getpid()}
    assert before.source == "the host's memory"
    assert before.kvm
    assert 0 < before.available_bytes < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    own = [seen.resident_bytes[os.getpid()] for seen in (untouched, touched)]
    assert own[1] - own[0] > 60 << 20  # this process may give something back meanwhile, and kernels count by and by


def fill(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


MEMINFO = {"meminfo": f"MemTotal: 9 kB\nMemAvailable:    {8 << 20} kB\n"}


def slice_of(limit: str, current: int, inactive: int, high: str = "max") -> dict[str, str]:
    values = {
        "max": limit,
        "high": high,
        "current": str(current),
        "stat": f"anon 1\ninactive_file {inactive}\nactive_file 7\n",
    }
    return {f"cgroups/vmhost.slice/memory.{name}": f"{value}\n".replace("\n\n", "\n") for name, value in values.items()}


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ({}, HostMemory(8 * GIB)),
        (slice_of("max", GIB, 0), HostMemory(8 * GIB)),
        (slice_of(str(20 * GIB), GIB, 0), HostMemory(8 * GIB)),
        (slice_of(str(4 * GIB), 3 * GIB, GIB // 2), HostMemory(GIB * 3 // 2, source="the limit of vmhost.slice")),
        (slice_of("max", 3 * GIB, 0, str(4 * GIB)), HostMemory(GIB, source="the limit of vmhost.slice")),
        (slice_of(str(5 * GIB), 3 * GIB, 0, str(4 * GIB)), HostMemory(GIB, source="the limit of vmhost.slice")),
        (slice_of(str(4 * GIB), 5 * GIB, 0), HostMemory(0, source="the limit of vmhost.slice")),
    ],
)
def test_the_slice_s_limit_counts_where_it_is_less(tmp_path: Path, group: dict[str, str], expected: HostMemory) -> None:
    fill(tmp_path, {**MEMINFO, **group})
    assert look_at_memory([], kvm=False, proc=tmp_path, cgroups=tmp_path / "cgroups") == expected


def test_a_kernel_that_does_not_say_is_an_error_of_observation(tmp_path: Path) -> None:
    with pytest.raises(ObservationError, match=r"meminfo: No such file or directory"):
        look_at_memory([], kvm=False, proc=tmp_path)
    fill(tmp_path, {"meminfo": "MemTotal: 9 kB\n"})
    with pytest.raises(ObservationError, match=r"meminfo: there is no MemAvailable in it"):
        look_at_memory([], kvm=False, proc=tmp_path)
