"""What the kernel counts of a process: this one, a child, and one that is gone."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from agent.host.process_times import find_control_group, read_delay_s, read_pressure, read_times


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_times_and_memory_grow_as_they_are_used() -> None:
    own, started = os.getpid(), start_time(os.getpid())
    began_s = time.process_time()
    before = read_times(own, started)
    assert before is not None
    kept = bytearray(os.urandom(1 << 20) * 64)
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    after = read_times(own, started)
    spent_s = time.process_time() - began_s
    assert after is not None
    assert after.user_s + after.system_s - before.user_s - before.system_s == pytest.approx(spent_s, abs=0.1)
    assert after.resident_bytes - before.resident_bytes > len(kept) // 2
    assert after.guest_s == 0.0
    assert read_times(own, started + 1) is None, "another process of the same pid"


def test_a_process_that_is_gone_has_no_times_delay_or_group() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert read_times(gone.pid, 1) is None
    assert read_delay_s(gone.pid, [gone.pid]) is None
    assert find_control_group(gone.pid) is None


def test_delay_is_that_of_these_threads_which_share_a_cpu() -> None:
    over = threading.Event()
    crowd = [subprocess.Popen(["taskset", "-c", "0", "sh", "-c", "while :; do :; done"]) for _ in range(2)]
    try:
        deadline = time.monotonic() + 30.0
        while (read_delay_s(crowd[0].pid, [crowd[0].pid, crowd[0].pid]) or 0.0) < 0.05:
            assert time.monotonic() < deadline
            over.wait(0.02)
    finally:
        for one in crowd:
            one.kill()
            one.wait()


def test_pressure_is_read_where_the_kernel_counts_it(tmp_path: Path) -> None:
    assert read_pressure(tmp_path) == {}
    line = "some avg10=0.00 avg60=0.00 avg300=0.00 total={0}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"
    for resource, total in (("cpu", 1_500_000), ("io", 250)):
        (tmp_path / f"{resource}.pressure").write_text(line.format(total))
    (tmp_path / "memory.pressure").write_text("what")
    assert read_pressure(tmp_path) == {"cpu": 1.5, "io": 0.00025}
