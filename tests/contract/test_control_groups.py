"""What the kernel says of its control groups; files stand in for v2, which may not be mounted here."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.errors import ObservationError
from agent.host.control_groups import look_at_controllers


def test_the_controllers_of_v2_are_listed(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    assert look_at_controllers(tmp_path) == {"cpuset", "cpu", "io", "memory", "pids"}


def test_without_v2_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    assert look_at_controllers(tmp_path) == frozenset()


def test_what_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").mkdir()
    with pytest.raises(ObservationError, match=r"cgroup\.controllers"):
        look_at_controllers(tmp_path)


def test_the_real_kernel_is_understood() -> None:
    known = {"cpu", "cpuset", "io", "memory", "pids", "hugetlb", "rdma", "misc", "dmem"}
    assert look_at_controllers() <= known
