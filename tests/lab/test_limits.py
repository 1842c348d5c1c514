"""Limits of guests under a real systemd: the unit has what its file says, and QEMU is never touched for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from agent.core.desired import VmSpec
from agent.core.limits import CONTROLLERS
from agent.core.planner.room import memory_max_bytes
from tests.lab.service import UNIT, Installed

pytestmark = pytest.mark.timeout(600)  # the first one boots the lab and its guests

FILE = "/etc/vmhost.d/limited.toml"
GUEST = (
    '[vm.limited]\nmemory = "32M"\naccel = "tcg"\nstop-timeout = "1s"\n'  # it has no system that hears a power button
)
GIVEN = 'cpu-weight = 200\ncpu-quota = "150%"\nio-weight = 50\ntasks = 90\n'
AS_GIVEN = {"CPUWeight": "200", "CPUQuotaPerSecUSec": "1.500000s", "IOWeight": "50", "TasksMax": "90"}
UNSET = {"CPUWeight": "[not set]", "CPUQuotaPerSecUSec": "infinity", "IOWeight": "[not set]"}


def properties(installed: Installed) -> Mapping[str, str]:
    said = installed.lab.output(f"systemctl show -p {','.join(AS_GIVEN)} vmhost-vm-limited.service")
    return dict(line.split("=", 1) for line in said.splitlines())


def defaults(installed: Installed) -> Mapping[str, str]:
    tasks = installed.lab.output("systemctl show -p DefaultTasksMax --value").strip()
    return {**UNSET, "TasksMax": tasks}


def times_limited(installed: Installed) -> int:
    """How often the present agent has set the guest's limits."""
    return len([event for event in installed.events() if "limits of limited" in event["message"]])


def save(installed: Installed, keys: str) -> None:
    installed.lab.write(FILE, (GUEST + keys).encode())


@pytest.fixture
def limited(installed: Installed) -> Iterator[Installed]:
    """A guest with all limits, which runs."""
    save(installed, GIVEN)
    try:
        installed.lab.output("vmhost wait running limited --timeout 60", timeout_s=80)
        installed.wait_settled()
        yield installed
    finally:
        installed.lab.output("rm -f /etc/vmhost.d/limited.toml")
        installed.lab.output(f"systemctl start {UNIT}")
        installed.wait_settled()
        installed.wait_gone({"limited"})


def guest(installed: Installed) -> Mapping[str, object]:
    (found,) = [vm for vm in installed.status()["vms"] if vm["name"] == "limited"]
    return dict(found)


def test_a_unit_is_limited_as_its_file_says_and_edits_need_no_restart(limited: Installed) -> None:
    assert properties(limited) == AS_GIVEN
    pid = limited.pids()["limited"]
    save(limited, "cpu-weight = 10\ntasks = 120\n")
    limited.wait_settled()
    assert properties(limited) == {**UNSET, "CPUWeight": "10", "TasksMax": "120"}
    save(limited, "")
    limited.wait_settled()
    assert properties(limited) == defaults(limited)
    assert guest(limited)["pending"] == []
    assert guest(limited)["in_sync"] is True
    assert limited.pids()["limited"] == pid


def test_its_memory_is_bounded_far_above_its_need(limited: Installed) -> None:
    most = limited.lab.output("systemctl show -p MemoryMax --value vmhost-vm-limited.service").strip()
    assert most == str(memory_max_bytes(VmSpec("limited", "u", 1, memory_mib=32, accel="tcg"), kvm=False))


def test_an_edit_while_the_agent_is_down_is_applied_when_it_is_back(limited: Installed) -> None:
    pid = limited.pids()["limited"]
    limited.lab.output(f"systemctl stop {UNIT}")
    save(limited, 'cpu-quota = "25%"\n')
    assert properties(limited) == AS_GIVEN
    limited.lab.output(f"systemctl start {UNIT}")
    limited.wait_settled()
    assert properties(limited) == {**defaults(limited), "CPUQuotaPerSecUSec": "250ms"}
    assert limited.pids()["limited"] == pid


def test_what_somebody_sets_by_hand_is_put_back(limited: Installed) -> None:
    pid, before = limited.pids()["limited"], times_limited(limited)
    limited.lab.output("systemctl set-property vmhost-vm-limited.service CPUWeight=9000 TasksMax=infinity")
    limited.lab.wait_until(lambda: times_limited(limited) > before, "it to be noticed")
    limited.wait_settled()
    assert properties(limited) == AS_GIVEN
    assert limited.pids()["limited"] == pid


def test_a_restarted_guest_has_the_limits_of_its_file_and_no_others(limited: Installed) -> None:
    save(limited, "cpu-weight = 10\n")
    limited.wait_settled()
    limited.lab.output("vmhost restart limited", timeout_s=90)
    limited.wait_settled()
    assert properties(limited) == {**defaults(limited), "CPUWeight": "10"}


def test_controllers_that_are_missing_are_told_while_a_key_needs_them(limited: Installed) -> None:
    there = limited.lab.output("cat /sys/fs/cgroup/cgroup.controllers", check=False).split()
    missing = sorted({one for one in CONTROLLERS.values() if one not in there})
    told = [c for c in guest(limited)["conditions"] if c["type"] == "LimitsNotApplied"]  # type: ignore[attr-defined]
    assert len(told) == bool(missing)
    for condition in told:
        assert f" {' and '.join(missing)} (/sys/fs/cgroup/cgroup.controllers)" in condition["message"]
    save(limited, "")
    limited.wait_settled()
    assert guest(limited)["conditions"] == []
