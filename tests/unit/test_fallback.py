"""What QEMU refuses: when it is believed, what is started instead, and when it is asked again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.actions import LaunchVm
from agent.core.desired import Apply, Desired, DiskSpec, NicSpec, Restart, VmSpec
from agent.core.edits.digest import digest
from agent.core.memory import Memory, with_refusal, without_guests, without_refusal
from agent.core.observed import DiskState, HostState, Observed, Refusal, VmState
from agent.core.planner.draft import Plan
from agent.core.planner.fallback import refusal_of, start_of, starts_of
from agent.core.planning import plan
from agent.core.qemu.argv import devices_at_launch
from tests.unit.planning_world import BRIDGE, BRIDGE_LINK, TAP, types

RAN = VmSpec("web", "u", 1_900_000_000, "web.toml")
EDITED = replace(RAN, cpu="no-such-model")
SAID = "qemu: unable to find CPU model 'no-such-model'"
REFUSED = Refusal(digest(EDITED), SAID, RAN, times=2)
HOST = HostState(boot_id="now")
EMPTY = Memory(seed="s")


def refuse(memory: Memory, spec: VmSpec, former: VmSpec | None = RAN, *, fell_back: bool = False) -> Memory:
    return with_refusal(memory, spec, SAID, former, fell_back=fell_back)


def test_qemu_is_asked_twice_before_it_is_believed() -> None:
    once = refuse(EMPTY, EDITED)
    assert once.refused["u"] == replace(REFUSED, times=1)
    assert start_of(EDITED, once.refused).spec == EDITED
    twice = refuse(once, EDITED)
    assert twice.refused["u"] == REFUSED
    start = start_of(EDITED, twice.refused)
    assert (start.spec, start.instead_of) == (RAN, digest(EDITED))


@pytest.mark.parametrize("former", [None, EDITED], ids=["never ran", "ran as it is wanted"])
def test_without_another_spec_that_ran_there_is_nothing_to_fall_back_to(former: VmSpec | None) -> None:
    assert refuse(refuse(EMPTY, EDITED, former), EDITED, former) == EMPTY


def test_another_edit_is_counted_anew() -> None:
    other = replace(EDITED, cpu="nor-this")
    assert refuse(refuse(EMPTY, EDITED), other).refused["u"].times == 1


def test_where_neither_starts_only_the_wanted_one_is_tried() -> None:
    memory = refuse(refuse(refuse(EMPTY, EDITED), EDITED), RAN, fell_back=True)
    assert memory.refused["u"].former_refused
    assert start_of(EDITED, memory.refused).spec == EDITED
    assert refuse(EMPTY, RAN, fell_back=True) == EMPTY


@pytest.mark.parametrize(
    "wanted",
    [replace(EDITED, cpu="qemu64"), replace(EDITED, fallback=False), replace(EDITED, uuid="v")],
    ids=["mended", "fallback = false", "another guest"],
)
def test_when_what_is_wanted_is_tried(wanted: VmSpec) -> None:
    assert refusal_of(wanted, {"u": REFUSED}) is None
    assert refusal_of(replace(wanted, cpu="no-such-model", fallback=True, uuid="u"), {"u": REFUSED}) == REFUSED


def test_a_refusal_is_forgotten_when_asked_and_with_its_guest() -> None:
    memory = replace(EMPTY, refused={"u": REFUSED})
    assert without_refusal(memory, "u") == EMPTY
    assert without_refusal(memory, "v") is memory
    assert without_guests(memory, frozenset({"web"})) is memory
    assert without_guests(memory, frozenset()) == EMPTY


def test_what_qemu_does_not_see_is_as_the_unit_says() -> None:
    nic, disk = NicSpec("lan", "br0", "m", "web-lan", 0), DiskSpec("root", "/d/a.raw", "raw", 1, size_bytes=1 << 20)
    wanted = replace(
        EDITED,
        name="new",
        restart=Restart.ALWAYS,
        stop_timeout_s=5.0,
        nics=(
            replace(nic, bridge="br1", tap="other", mac="n", rate_in_bps=10**6),
            NicSpec("more", "br1", "o", "web-more", 2),
        ),
        disks=(replace(disk, size_bytes=2 << 20, cache="none"),),
    )
    refusal = replace(REFUSED, digest=digest(wanted), former=replace(RAN, nics=(nic,), disks=(disk,)))
    found = start_of(wanted, {"u": refusal}).spec
    assert (found.name, found.restart, found.stop_timeout_s, found.cpu) == ("new", Restart.ALWAYS, 5.0, None)
    assert found.nics == (replace(nic, bridge="br1", tap="other", rate_in_bps=10**6),)
    assert found.disks == (replace(disk, size_bytes=2 << 20),)
    moved = replace(wanted, disks=(replace(disk, path="/d/b.raw", size_bytes=2 << 20),))
    assert start_of(moved, {"u": replace(refusal, digest=digest(moved))}).spec.disks == (disk,)


def test_the_same_objects_where_nothing_was_refused() -> None:
    wanted = {"web": EDITED}
    assert starts_of(wanted, {}) is wanted
    assert starts_of(wanted, {"u": REFUSED}) == {"web": RAN}


def decided(wanted: VmSpec, *states: VmState) -> Plan:
    vms = {state.spec.name: state for state in states}
    return plan(Desired(vms={"web": wanted}), Observed(vms=vms, host=HOST, refused={"u": REFUSED}), 100.0)


def test_it_is_started_as_it_ran_and_the_edit_stays_told() -> None:
    found = decided(EDITED)
    (launch,) = found.actions
    assert isinstance(launch, LaunchVm)
    assert (launch.spec, launch.instead_of) == (RAN, digest(EDITED))
    message = f"QEMU refuses its edited unit: {SAID}; it runs as it last ran. Mend the unit, or "
    (told,) = found.conditions
    assert (told.type, told.message) == ("FellBack", f"{message}`vmhost restart web` tries it again")
    runs = VmState(RAN, True, 4711, run_state="running", devices=devices_at_launch(RAN))
    after = decided(EDITED, runs)
    assert (after.actions, types(after)) == ((), [("vm/web", "FellBack")]), "nothing a reboot could apply"
    at_once = replace(EDITED, apply=Apply.RESTART)
    taken = replace(runs, spec=replace(RAN, apply=Apply.RESTART))
    assert decided(at_once, taken).actions == (), "nor a restart"
    assert types(decided(replace(RAN, cpu="qemu64"), runs)) == []


def test_the_bridge_and_the_disks_of_what_ran_are_waited_for_and_not_those_of_the_edit() -> None:
    former = replace(RAN, nics=(NicSpec("lan", "br0", "m", "web-lan", 0),))
    wanted = replace(EDITED, disks=(DiskSpec("more", "/gone.raw", "raw", 3),))
    refusal = Refusal(digest(wanted), SAID, former, times=2)
    world = Observed(
        links={"br0": BRIDGE_LINK},
        disks={"/gone.raw": DiskState(exists=False, folder_exists=False, known=True)},
        host=HOST,
        refused={"u": refusal},
    )
    found = plan(Desired({}, {"web": wanted}, retained={"br0": BRIDGE}), world, 100.0)
    assert [action.resource for action in found.actions] == ["tap/web/lan"]
    armed = replace(world, links={**world.links, "web-lan": TAP})
    (launch,) = plan(Desired({}, {"web": wanted}, retained={"br0": BRIDGE}), armed, 100.0).actions
    assert isinstance(launch, LaunchVm), "its tap is as wanted as those of its unit"
    assert types(found) == [("bridge/br0", "StillNeeded"), ("vm/web", "FellBack")]
