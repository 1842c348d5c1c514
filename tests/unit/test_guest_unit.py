"""A guest's unit: its name, and what follows from its spec."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.desired import Limits, VmSpec
from agent.core.guest_unit import (
    LIMIT_PROPERTIES,
    UNSET,
    UnitRights,
    is_guest_unit,
    limit_properties,
    limits_of,
    unit_name,
    unit_properties,
)
from agent.core.planner.room import memory_max_bytes
from agent.host.processes import ExitStatus
from agent.host.systemd import UnitStatus, runs_as_service
from agent.runtime.service_starts import exit_status

RIGHTS = UnitRights("/run/vmhost", "/run/vmhost/vms/web", ("/srv/vmlinuz",), kvm=False, max_descriptors=4096)


def properties(spec: VmSpec, rights: UnitRights = RIGHTS) -> dict[str, object]:
    return {name: value for name, _, value in unit_properties(spec, ["/usr/bin/python3", "-I"], ["A=b"], rights)}


def spec(**keys: object) -> VmSpec:
    return replace(VmSpec(name="web", uuid="u", uid=7), **keys)  # type: ignore[arg-type]


def test_its_name() -> None:
    assert [unit_name("web"), unit_name("web", 2)] == ["vmhost-vm-web.service", "vmhost-vm-web.2.service"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vmhost-vm-web.service", True),
        ("vmhost-vm-a_b-c.12.service", True),
        ("vmhost-vm-.service", False),
        ("vmhost-agent.service", False),
        ("vmhost-vm-web.slice", False),
        ("xvmhost-vm-web.service", False),
    ],
)
def test_what_is_a_guests_unit(name: str, *, expected: bool) -> None:
    assert is_guest_unit(name) is expected


def test_it_sees_its_own_folder_and_files_only() -> None:
    found = properties(spec())
    assert found["TemporaryFileSystem"] == [["/run/vmhost", "ro,mode=0711"]]
    assert found["BindPaths"] == [["/run/vmhost/vms/web", "/run/vmhost/vms/web", False, 16384]]
    assert found["BindReadOnlyPaths"] == [["/srv/vmlinuz", "/srv/vmlinuz", False, 16384]]
    assert (found["DeviceAllow"], found["RestrictAddressFamilies"]) == ([], [True, ["AF_UNIX"]])


def test_no_list_is_empty_that_systemd_takes_for_a_reset() -> None:
    assert "BindReadOnlyPaths" not in properties(spec(), replace(RIGHTS, files=()))


def test_kvm_and_a_display_on_an_address_are_let_in() -> None:
    with_kvm = properties(spec(), replace(RIGHTS, kvm=True))
    assert with_kvm["DeviceAllow"] == [["/dev/kvm", "rw"]]
    assert ["/dev/kvm", "/dev/kvm", False, 16384] in with_kvm["BindPaths"]  # type: ignore[operator]
    assert properties(spec(vnc=True))["RestrictAddressFamilies"] == [True, ["AF_UNIX"]]
    families = properties(spec(vnc="127.0.0.1:1"))["RestrictAddressFamilies"]
    assert families == [True, ["AF_UNIX", "AF_INET", "AF_INET6"]]


def test_extra_args_may_name_files_and_devices_and_win_no_privilege() -> None:
    found = properties(spec(extra_args=("-device", "vfio-pci,host=1:0.0")))
    assert not found.keys() & {"ProtectSystem", "ProtectHome", "DevicePolicy", "RestrictAddressFamilies"}
    assert found["NoNewPrivileges"] is True
    assert found["CapabilityBoundingSet"] == 1 << 6 | 1 << 7 | 1 << 8


def test_a_unit_starts_with_the_limits_that_are_given_and_no_others() -> None:
    assert not properties(spec()).keys() & set(LIMIT_PROPERTIES)
    limited = properties(spec(limits=Limits(cpu_weight=200, cpu_quota_us=1_500_000, io_weight=50, tasks=90)))
    assert {name: limited[name] for name in LIMIT_PROPERTIES} == {
        "CPUWeight": 200,
        "CPUQuotaPerSecUSec": 1_500_000,
        "IOWeight": 50,
        "TasksMax": 90,
    }


def test_its_memory_is_bounded_far_above_what_it_may_need() -> None:
    assert properties(spec())["MemoryMax"] == memory_max_bytes(spec(), kvm=False)
    assert properties(spec(), replace(RIGHTS, kvm=True))["MemoryMax"] == memory_max_bytes(spec(), kvm=True)
    with_more = properties(spec(extra_args=("-device", "nobody-knows"), limits=Limits(cpu_weight=200)))
    assert "MemoryMax" not in with_more
    assert with_more["CPUWeight"] == 200


@pytest.mark.parametrize(
    ("limits", "values"),
    [
        (Limits(), [UNSET, UNSET, UNSET, 28909]),
        (Limits(cpu_weight=1), [1, UNSET, UNSET, 28909]),
        (Limits(200, 10_000, 10_000, 90), [200, 10_000, 10_000, 90]),
    ],
)
def test_a_limit_that_is_taken_back_is_the_default_again(limits: Limits, values: list[int]) -> None:
    found = limit_properties(limits, 28909)
    assert found == tuple((name, "t", value) for name, value in zip(LIMIT_PROPERTIES, values, strict=True))
    assert limits_of({name: value for name, _, value in found}, 28909) == limits


def test_what_others_set_is_seen() -> None:
    values = dict.fromkeys(LIMIT_PROPERTIES, UNSET)
    assert limits_of(values, 28909) == Limits(tasks=UNSET)
    assert limits_of(values | {"CPUWeight": 0, "TasksMax": 28909}, 28909) == Limits(cpu_weight=0)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (UnitStatus("active", 9, has_ended=True, code=0, signal=None, result="success"), "host"),
        (UnitStatus("failed", 9, has_ended=True, code=1, signal=None, result="exit-code"), "crash"),
        (UnitStatus("failed", 9, has_ended=True, code=None, signal=9, result="signal"), "killed"),
        (UnitStatus("failed", 9, has_ended=True, code=None, signal=9, result="oom-kill"), "oom"),
        (UnitStatus("failed", 9, has_ended=True, code=None, signal=11, result="core-dump"), "crash"),
    ],
)
def test_how_it_ended(status: UnitStatus, reason: str) -> None:
    assert exit_status(status).reason == reason
    assert exit_status(status) == ExitStatus(status.code, status.signal, oom=reason == "oom")


def test_a_process_that_no_service_manager_started_is_no_service() -> None:
    assert not runs_as_service({})
    assert not runs_as_service({"SYSTEMD_EXEC_PID": "1", "INVOCATION_ID": "x"})
