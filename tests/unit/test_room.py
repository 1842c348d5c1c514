"""Whether the host holds one more guest: the estimate, the sum, and what the planner makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.actions import LaunchVm
from agent.core.desired import Desired, DiskSpec, NicSpec, SerialSpec, VmSpec
from agent.core.edits.digest import digest
from agent.core.model.host import apply
from agent.core.observed import HostMemory, HostState, Observed, VmState
from agent.core.planner.room import MIB, Room, memory_max_bytes, need_bytes, overhead_bytes
from agent.core.planning import plan
from agent.core.preconditions import PreconditionError
from agent.core.tell.forecast import forecast
from tests.unit.planning_world import said

GIB = 1 << 30
BARE = VmSpec("web", "uuid-web", 1_900_000_000, "web.toml", memory_mib=1024, accel="kvm")
TCG = replace(BARE, accel="tcg")
QCOW2 = DiskSpec("root", "/srv/web.qcow2", "qcow2", 0, size_bytes=32 * GIB)
NIC = NicSpec("lan", "br0", "02:00:00:00:00:02", "web-lan", 0)


@pytest.mark.parametrize(
    ("spec", "kvm", "mib"),
    [
        (BARE, True, 20 + 1 + 4),
        (BARE, False, 20 + 1 + 4),
        (TCG, True, 20 + 1 + 64 + 4),
        (replace(BARE, accel="auto"), True, 20 + 1 + 4),
        (replace(BARE, accel="auto"), False, 20 + 1 + 64 + 4),
        (replace(TCG, memory_mib=32), False, 20 + 1 + 16 + 0.125),
        (replace(BARE, cpus=8), True, 20 + 8 + 4),
        (replace(BARE, vnc=True), True, 20 + 1 + 4 + 4),
        (replace(BARE, vnc="127.0.0.1:1"), True, 20 + 1 + 4 + 4),
        (replace(BARE, firmware="uefi"), True, 20 + 1 + 24 + 4),
        (replace(BARE, nics=(NIC,), serials=(SerialSpec("log"),)), True, 20 + 1 + 2 + 4),
        (replace(BARE, disks=(QCOW2,)), True, 20 + 1 + 1 + 4 + 4),
        (replace(BARE, disks=(replace(QCOW2, size_bytes=1 << 43),)), True, 20 + 1 + 1 + 32 + 4),
        (replace(BARE, disks=(replace(QCOW2, size_bytes=None),)), True, 20 + 1 + 1 + 4),
        (replace(BARE, disks=(replace(QCOW2, format="raw"),)), True, 20 + 1 + 1 + 4),
        (replace(BARE, memory_mib=4096), True, 20 + 1 + 16),
    ],
)
def test_the_estimate_of_what_qemu_takes(spec: VmSpec, kvm: bool, mib: float) -> None:
    assert overhead_bytes(spec, kvm=kvm) == mib * MIB
    assert need_bytes(spec, kvm=kvm) == (spec.memory_mib + mib) * MIB


@pytest.mark.parametrize(
    ("spec", "kvm", "mib"),
    [
        # 4096 of its own, 512 and a 16th, 33 for each of two free places, and twice the estimate of QEMU itself: 37.
        (VmSpec("a", "u", 1, memory_mib=4096), True, 4096 + 512 + 256 + 66 + 2 * 37),
        (VmSpec("a", "u", 1, memory_mib=128), True, 128 + 512 + 8 + 66 + 2 * 21.5),
        (VmSpec("a", "u", 1, memory_mib=128, disks=(QCOW2,), hotplug_slots=0), True, 128 + 512 + 8 + 33 + 2 * 26.5),
        # A pc has places without any being kept free: for 24 disks and NICs.
        (VmSpec("a", "u", 1, memory_mib=128, machine="pc"), True, 128 + 512 + 8 + 24 * 33 + 2 * 21.5),
        # Translated code may fill 1 GiB.
        (VmSpec("a", "u", 1, memory_mib=128, accel="tcg"), True, 128 + 512 + 8 + 66 + 1536 + 2 * 85.5),
        (VmSpec("a", "u", 1, memory_mib=128), False, 128 + 512 + 8 + 66 + 1536 + 2 * 85.5),
    ],
)
def test_the_bound_beyond_which_a_qemu_is_ended(spec: VmSpec, kvm: bool, mib: float) -> None:
    assert memory_max_bytes(spec, kvm=kvm) == mib * MIB


def test_two_hundred_small_guests_fit_into_24_gb() -> None:
    assert 200 * need_bytes(replace(TCG, memory_mib=32), kvm=False) < 14 * GIB


def guest(name: str, memory_mib: int = 1024, **more: object) -> VmSpec:
    return replace(BARE, name=name, uuid=f"uuid-{name}", memory_mib=memory_mib, **more)  # type: ignore[arg-type]


NEED_MIB = 1024 + 25
"""Of a guest of 1 GiB."""


def host(available_mib: int, running: tuple[VmState, ...] = (), resident: dict[int, int] | None = None) -> Observed:
    memory = HostMemory(available_mib * MIB, {pid: mib * MIB for pid, mib in (resident or {}).items()}, kvm=True)
    return Observed(vms={state.spec.name: state for state in running}, host=HostState("now", memory=memory))


def run(spec: VmSpec, pid: int) -> VmState:
    return VmState(spec, True, pid, run_state="running")


def launched(desired: list[VmSpec], observed: Observed) -> list[str]:
    decided = plan(Desired({}, {spec.name: spec for spec in desired}), observed, 0.0)
    return [action.spec.name for action in decided.actions if isinstance(action, LaunchVm)]


@pytest.mark.parametrize(
    ("available_mib", "running", "resident", "fits"),
    [
        (NEED_MIB, (), {}, True),
        (NEED_MIB - 1, (), {}, False),
        # One that has touched 400 MiB may still take the rest.
        (2 * NEED_MIB - 400, (run(guest("a"), 1),), {1: 400}, True),
        (2 * NEED_MIB - 401, (run(guest("a"), 1),), {1: 400}, False),
        # One that was started since the look was promised all of it.
        (2 * NEED_MIB - 1, (run(guest("a"), 1),), {}, False),
        # One that took more than was estimated frees nothing by that.
        (NEED_MIB, (run(guest("a"), 1),), {1: 5000}, True),
        # One that is gone has nothing to take.
        (NEED_MIB, (replace(run(guest("a"), 1), alive=False),), {}, True),
        # Who overcommits is promised its memory as all others are.
        (2 * NEED_MIB - 1, (run(guest("a", overcommit=True), 1),), {}, False),
    ],
)
def test_what_is_left(available_mib: int, running: tuple[VmState, ...], resident: dict[int, int], fits: bool) -> None:
    desired = [*(state.spec for state in running if state.alive), guest("new")]
    assert ("new" in launched(desired, host(available_mib, running, resident))) == fits


def test_those_that_are_started_in_one_pass_share_what_is_left() -> None:
    assert launched([guest("a"), guest("b"), guest("c")], host(2 * NEED_MIB)) == ["a", "b"]


def test_a_small_one_goes_past_a_large_one() -> None:
    assert launched([guest("a", 8192), guest("b", 512)], host(1024)) == ["b"]


def test_one_that_is_just_being_started_counts() -> None:
    under_way = replace(host(2 * NEED_MIB - 1), in_flight={"vm/a": "launch-vm vm/a"})
    assert launched([guest("a"), guest("b")], under_way) == []
    assert launched([guest("a"), guest("b")], replace(under_way, in_flight={})) == ["a"]


def test_overcommit_starts_it_all_the_same() -> None:
    assert launched([guest("a", overcommit=True)], host(1)) == ["a"]


def test_without_figures_nobody_is_refused() -> None:
    assert launched([guest("a", 1 << 20)], Observed(host=HostState("now"))) == ["a"]


def test_the_sum_is_told_and_looked_at_again() -> None:
    observed = host(3000, (run(guest("db", 2048), 7),), {7: 100})
    decided = plan(Desired({}, {"db": observed.vms["db"].spec, "web": guest("web", 4096)}), observed, 100.0)
    message = (
        "needs 4133 MiB (4096 and 37 for its QEMU), 1023 are left: 3000 of the host's memory, less 1977 that guests "
        "may still take; it starts once there are 4197, or at once with overcommit = true"
    )
    assert said(decided) == [("vm/web", "MemoryShort", "MemoryShort", message)]
    assert decided.wake_at_s == 105.0
    assert decided.deviating == {"vm/web"}


def test_one_that_was_refused_waits_for_a_little_more() -> None:
    short = {"short": frozenset({"web"})}
    assert launched([guest("web")], replace(host(NEED_MIB + 63), **short)) == []  # type: ignore[arg-type]
    assert launched([guest("web")], replace(host(NEED_MIB + 64), **short)) == ["web"]  # type: ignore[arg-type]


def test_the_model_refuses_what_does_not_fit_and_gets_back_what_a_stop_frees() -> None:
    observed = host(NEED_MIB, (run(guest("a"), 1),), {1: NEED_MIB})
    wanted = Desired({}, {"a": replace(guest("a"), enabled=False), "b": guest("b"), "c": guest("c")})
    found = forecast(wanted, observed, 0.0)
    assert [step.action.resource for step in found.steps if isinstance(step.action, LaunchVm)] == ["vm/b", "vm/c"]
    launch = next(step.action for step in found.steps if isinstance(step.action, LaunchVm))
    with pytest.raises(PreconditionError, match="the host can hold b"):
        apply(host(10), launch)


def test_a_forecast_tells_who_stays_without_memory() -> None:
    found = forecast(Desired({}, {"a": guest("a"), "b": guest("b")}), host(NEED_MIB + 100), 0.0)
    assert [condition.resource for condition in found.conditions] == ["vm/b"]
    assert found.conditions[0].type == "MemoryShort"


def test_room_is_booked() -> None:
    room = Room({}, host(NEED_MIB))
    assert room.shortage(guest("a")) is None
    room.take(guest("a"))
    assert room.shortage(guest("b")) is not None


def test_the_key_changes_no_fingerprint() -> None:
    assert digest(guest("a", overcommit=True)) == digest(guest("a"))
