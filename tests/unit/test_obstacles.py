"""An edit that could not be started: what stands in its way, and that nothing takes the running guest down for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from agent.core.actions import ChangeReboot, EndVm, LaunchVm, StopVm
from agent.core.desired import Apply, Desired, DiskSpec, VmSpec
from agent.core.edits.digest import digest
from agent.core.edits.pending import pending_of
from agent.core.memory import Memory, with_refusal, without_lacks
from agent.core.model.host import apply
from agent.core.observed import DiskState, Hold, HostMemory, HostState, Intent, Observed, Refusal, VmState
from agent.core.planner.draft import Plan
from agent.core.planner.fallback import with_lack
from agent.core.planner.obstacles import Obstacle, edited, obstacle, refused_message
from agent.core.planner.room import MIB, Room, need_bytes
from agent.core.planning import plan
from agent.core.qemu.argv import devices_at_launch
from agent.core.reasons import Reason

ROOT = DiskSpec("root", "/srv/a.raw", "raw", 0)
CD = DiskSpec("cd", "/iso/a.iso", "raw", 1, media="cdrom", bus="sata", read_only=True)
WEB = VmSpec("web", "u", 1_900_000_000, "web.toml", disks=(ROOT,), kernel="/boot/a", initrd="/boot/a.img")
RUNS = VmState(WEB, True, 4711, run_state="running", devices=devices_at_launch(WEB))
ARMED = replace(RUNS, reboot_ends=True)
MOVED = replace(WEB, disks=(replace(ROOT, path="/srv/b.raw"),))
SIZED = replace(WEB, disks=(replace(ROOT, path="/srv/b.raw", size_bytes=1 << 20),))
KERNEL = replace(WEB, kernel="/boot/b")
BIG = replace(WEB, memory_mib=4096)
THERE = DiskState(exists=True, folder_exists=True, known=True)
GONE = DiskState(exists=False, folder_exists=True, known=True)
NEVER = DiskState(exists=False, folder_exists=True, known=False)
NOWHERE = DiskState(exists=False, folder_exists=False, known=False)
ARM = ChangeReboot("vm/web/reboot", Reason.EDITED, "web", "u", ends=True)


def seen(
    disk: DiskState | None = None, files: Mapping[str, bool] | None = None, available_mib: int | None = None
) -> Observed:
    """A host on which the edit's disk and files to boot from are so, those that it runs with deleted meanwhile."""
    disks = {"/srv/a.raw": GONE} if disk is None else {"/srv/a.raw": GONE, "/srv/b.raw": disk}
    memory = None if available_mib is None else HostMemory(available_mib * MIB, {4711: 100 * MIB}, kvm=True)
    boot_files = {"/boot/a": False, "/boot/a.img": False, **(files or {})}
    return Observed(disks=disks, files=boot_files, host=HostState(boot_id="now", memory=memory))


@pytest.mark.parametrize(
    ("wanted", "observed", "found"),
    [
        (WEB, seen(), None),
        (replace(WEB, cpus=2), seen(), None),
        (MOVED, seen(THERE), None),
        (MOVED, seen(GONE), ("DiskMissing", "/srv/b.raw is not there")),
        (MOVED, seen(NEVER), ("DiskMissing", "/srv/b.raw is not there, and without size = it is not created")),
        (MOVED, seen(NOWHERE), ("DiskMissing", "/srv/b.raw is not there, nor is its folder")),
        (MOVED, seen(), ("Unknown", "it is not known yet whether /srv/b.raw is there")),
        (SIZED, seen(NEVER), None),
        (SIZED, seen(GONE), ("DiskMissing", "/srv/b.raw is not there")),
        (SIZED, seen(NOWHERE), ("DiskMissing", "/srv/b.raw is not there, nor is its folder")),
        (replace(WEB, disks=(ROOT, replace(CD, path="/srv/b.raw", size_bytes=1))), seen(NEVER), ("DiskMissing", "")),
        (replace(WEB, disks=(ROOT, replace(CD, path=""))), seen(), None),
        (replace(WEB, disks=(replace(ROOT, cache="none"),)), seen(), None),
        (KERNEL, seen(files={"/boot/b": True}), None),
        (KERNEL, seen(files={"/boot/b": False}), ("FileMissing", "kernel = /boot/b is no file that is there")),
        (KERNEL, seen(), ("Unknown", "")),
        (replace(WEB, initrd="/boot/b"), seen(files={"/boot/b": False}), ("FileMissing", "initrd = /boot/b is no")),
        (replace(WEB, kernel=None, initrd=None), seen(), None),
        (replace(KERNEL, disks=MOVED.disks), seen(files={"/boot/b": False}), ("FileMissing", "")),
        (BIG, seen(), None),
        (BIG, seen(available_mib=8192), None),
        (BIG, seen(available_mib=1000), ("MemoryShort", "it needs 4134 MiB, 1100 would be left without it: 1000 of ")),
        (replace(BIG, overcommit=True), seen(available_mib=0), None),
        (replace(WEB, memory_mib=128), seen(available_mib=0), None),
    ],
)
def test_what_is_in_the_way_of_an_edit(wanted: VmSpec, observed: Observed, found: tuple[str, str] | None) -> None:
    observed = replace(observed, vms={"web": RUNS})
    result = obstacle(wanted, RUNS, observed, Room({"web": wanted}, observed))
    assert (result is None) == (found is None)
    if result is not None and found is not None:
        assert result.reason == found[0]
        assert result.message.startswith(found[1])
        assert result.known == (found[0] != "Unknown")


def test_a_disk_that_it_lacks_is_one_that_it_does_not_run_with() -> None:
    lacks = replace(RUNS, devices=frozenset())
    found = obstacle(WEB, lacks, seen(), Room({}, seen()))
    assert found == Obstacle("DiskMissing", "/srv/a.raw is not there")


def test_its_own_memory_is_its_again_and_that_of_others_is_not() -> None:
    other = replace(RUNS, spec=replace(WEB, name="db", uuid="v", memory_mib=1024), pid=7)
    need = need_bytes(BIG, kvm=True)
    promised = need_bytes(other.spec, kvm=True)
    for spare, short in ((0, False), (-1, True)):
        memory = HostMemory(need + promised - 100 * MIB + spare, {4711: 100 * MIB}, kvm=True)
        world = Observed(vms={"web": RUNS, "db": other}, host=HostState("now", memory=memory))
        room = Room({}, world)
        assert (room.shortage_instead(BIG, RUNS) is not None) == short
        again = replace(world, short=frozenset({"web"}))
        assert Room({}, again).shortage_instead(BIG, RUNS) is not None, "once short, a little more is waited for"


def test_only_edited_guests_are_looked_at() -> None:
    running = {"web": RUNS, "gone": RUNS}
    assert edited({"web": WEB}, running) == []
    assert edited({"web": replace(WEB)}, running) == []
    assert edited({"web": BIG}, running) == [(BIG, RUNS)]


def decided(wanted: VmSpec, state: VmState | None, observed: Observed, intent: Intent | None = None) -> Plan:
    vms = {} if state is None else {"web": state}
    intents = {} if intent is None else {"web": intent}
    return plan(Desired(vms={"web": wanted}), replace(observed, vms=vms, intents=intents), 100.0)


EDITS = [
    (MOVED, seen(GONE), seen(THERE), 101.0),
    (KERNEL, seen(files={"/boot/b": False}), seen(files={"/boot/b": True}), 101.0),
    (BIG, seen(available_mib=1000), seen(available_mib=9999), 105.0),
]


@pytest.mark.parametrize(("wanted", "without", "mended", "wake_at_s"), EDITS, ids=["disk", "kernel", "memory"])
def test_while_it_could_not_be_started_nothing_ends_it(
    wanted: VmSpec, without: Observed, mended: Observed, wake_at_s: float
) -> None:
    found = decided(wanted, RUNS, without)
    assert found.actions == ()
    (told,) = found.conditions
    assert (told.resource, told.type) == ("vm/web", "EditUnstartable")
    assert "it runs on as it is" in told.message
    assert "`vmhost stop web` and `start` do anyway" in told.message
    assert (found.deviating, found.awaited, found.wake_at_s) == (frozenset(), frozenset(), wake_at_s)
    assert pending_of(RUNS, wanted)
    assert decided(wanted, ARMED, without).actions == (replace(ARM, ends=False),)
    cleared = decided(wanted, RUNS, mended)
    assert (cleared.actions, cleared.conditions) == ((ARM,), ())

    at_once, taken = replace(wanted, apply=Apply.RESTART), replace(RUNS, spec=replace(WEB, apply=Apply.RESTART))
    assert decided(at_once, taken, without).actions == ()
    assert decided(at_once, taken, without).approval is None
    (stop,) = decided(at_once, taken, mended).actions
    assert isinstance(stop, StopVm)


@pytest.mark.parametrize("wanted", [MOVED, KERNEL])
def test_what_is_not_known_yet_is_waited_for(wanted: VmSpec) -> None:
    at_once, taken = replace(wanted, apply=Apply.RESTART), replace(RUNS, spec=replace(WEB, apply=Apply.RESTART))
    for spec, state in ((wanted, RUNS), (at_once, taken), (wanted, replace(RUNS, alive=False, exit_reason="crash"))):
        found = decided(spec, state, seen())
        assert (found.actions, found.conditions) == ((), ())
        assert found.awaited == {"vm/web"}


def test_two_that_are_restarted_at_once_share_what_is_left() -> None:
    specs = {name: replace(BIG, name=name, uuid=name, apply=Apply.RESTART, disks=()) for name in ("a", "b")}
    before = {name: replace(spec, memory_mib=512) for name, spec in specs.items()}
    states = {
        name: replace(RUNS, spec=spec, pid=n, devices=frozenset()) for n, (name, spec) in enumerate(before.items(), 1)
    }
    memory = HostMemory(6000 * MIB, {}, kvm=True)
    world = Observed(vms=states, host=HostState("now", memory=memory))
    found = plan(Desired(vms=specs), world, 100.0)
    assert [action.resource for action in found.actions if isinstance(action, StopVm)] == ["vm/a"]
    assert [(c.resource, c.type, c.reason) for c in found.conditions] == [("vm/b", "EditUnstartable", "MemoryShort")]
    stopping = replace(
        world, vms={**states, "a": replace(states["a"], stopping=True)}, in_flight={"vm/a": "stop-vm vm/a"}
    )
    assert not any(isinstance(one, StopVm) for one in plan(Desired(vms=specs), stopping, 101.0).actions)


@pytest.mark.parametrize(("wanted", "without"), [(one[0], one[1]) for one in EDITS], ids=["disk", "kernel", "memory"])
@pytest.mark.parametrize("rebooted", [False, True])
def test_one_that_ends_by_itself_is_started_as_it_ran(wanted: VmSpec, without: Observed, rebooted: bool) -> None:
    there = replace(without, disks={**without.disks, "/srv/a.raw": THERE})
    ended = replace(ARMED, run_state="shutdown", rebooted=True) if rebooted else replace(RUNS, alive=False)
    (end,) = decided(wanted, ended, there).actions
    assert isinstance(end, EndVm)
    lacks = end.lacks
    assert lacks is not None
    assert (lacks.digest, lacks.former, lacks.missing, end.rebooted) == (digest(wanted), WEB, True, rebooted)
    world = apply(replace(there, vms={"web": ended}), end, 100.0)
    found = plan(Desired(vms={"web": wanted}), world, 200.0)
    (launch,) = found.actions
    assert isinstance(launch, LaunchVm)
    assert (launch.spec, launch.instead_of) == (WEB, digest(wanted))
    (told,) = found.conditions
    assert told.type == "FellBack"
    assert told.message.endswith("; it is started as it last ran, and its edit waits")
    assert lacks.said in told.message
    world = apply(world, launch, 200.0)
    (release,) = plan(Desired(vms={"web": wanted}), world, 200.0).actions
    world = apply(world, release, 200.0)
    assert world.refused == {}
    assert [c.type for c in plan(Desired(vms={"web": wanted}), world, 200.0).conditions] == ["EditUnstartable"]


@pytest.mark.parametrize(
    ("wanted", "intent"),
    [(replace(MOVED, fallback=False), None), (replace(MOVED, uuid="v"), None), (MOVED, Intent(stopped=True))],
    ids=["fallback = false", "another guest", "stopped by its operator"],
)
def test_when_it_is_not(wanted: VmSpec, intent: Intent | None) -> None:
    (end,) = decided(wanted, replace(RUNS, alive=False), seen(GONE), intent).actions
    assert isinstance(end, EndVm)
    assert end.lacks is None


def test_a_held_guest_that_crashed_comes_back_as_it_ran_too() -> None:
    held = Intent(hold=Hold(0, "2026-01-01T00:00:00+00:00"))
    (end,) = decided(MOVED, replace(RUNS, alive=False), seen(GONE), held).actions
    assert isinstance(end, EndVm)
    assert end.lacks is not None


def test_a_disk_that_was_never_plugged_is_no_part_of_how_it_ran() -> None:
    more = DiskSpec("more", "/srv/b.raw", "raw", 3)
    wanted = replace(WEB, disks=(ROOT, more))
    state = replace(RUNS, spec=wanted, alive=False)
    (end,) = decided(wanted, state, seen(GONE)).actions
    assert isinstance(end, EndVm)
    assert end.lacks is not None
    assert end.lacks.former.disks == (ROOT,)


def test_what_was_missing_counts_for_one_start_only() -> None:
    lack = Refusal(digest(MOVED), "it is not there", WEB, times=2, missing=True)
    refusal = replace(lack, missing=False)
    assert with_lack({}, "u", lack) == {"u": lack}
    assert with_lack({"u": lack}, "u", None) == {}
    assert with_lack({"u": refusal}, "u", None) == {"u": refusal}
    memory = Memory("s", refused={"u": lack})
    assert without_lacks(memory, {"u"}).refused == {}
    assert without_lacks(memory, {"v"}) is memory
    refused = with_refusal(memory, WEB, "no", None, fell_back=True).refused["u"]
    assert refused.former_refused, "QEMU would not start with that one either: it waits for what its unit says"


def test_the_line_that_refuses_a_restart() -> None:
    assert refused_message("web", Obstacle("DiskMissing", "/x is not there")) == (
        "web could not be started again as its unit says: /x is not there; mend that or its unit, or `vmhost stop web` "
        "and `vmhost start web` all the same"
    )
    unknown = Obstacle("Unknown", "it is not known yet whether /x is there", known=False)
    assert refused_message("web", unknown).endswith("web would need it to start again; try again, or mend its unit")
