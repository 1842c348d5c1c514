"""Edits of a running guest, one after the other and each broken off anywhere: the same end, and the same QEMU."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.actions import LaunchVm, StopVm
from agent.core.desired import BridgeSpec, Desired, DiskSpec, NicSpec, VmSpec
from agent.core.edits.tuning import medium_key, untold
from agent.core.model.host import apply
from agent.core.observed import DiskState, HostState, Observed, VmState
from agent.core.planning import plan
from agent.core.qemu.argv import disk_node, drive_node, nic_id
from tests.property.worlds import dices, settle

BRIDGES = {name: BridgeSpec(name, f"02:00:00:00:00:0{number}") for number, name in enumerate(("br-a", "br-b"))}
PATHS = {name: f"/srv/{name}.raw" for name in ("root", "data", "more")}
MEDIA = ("", "/srv/a.iso", "/srv/b.iso")
LOOKS = {path: DiskState(path in MEDIA, True, False) for path in (*PATHS.values(), *MEDIA[1:])}
HOST = Observed(disks=LOOKS, host=HostState(boot_id="boot"))


@st.composite
def units(draw: st.DrawFn) -> Desired:
    """A guest with any NICs and disks; each name has its place, two names share one."""
    nics = [
        NicSpec(
            name,
            draw(st.sampled_from(sorted(BRIDGES))),
            f"02:00:00:00:0{slot % 9}:{draw(st.sampled_from([name[1:] + digit for digit in '01']))}",
            f"web-{name}",
            slot,
            mtu=draw(st.sampled_from([1400, 1500])),
            link=draw(st.sampled_from(["up", "down"])),
        )
        for name, slot in (("n0", 0), ("n1", 1), ("n2", 1), ("n9", 99))
        if draw(st.booleans())
    ]
    if {"n1", "n2"} <= {nic.id for nic in nics}:
        nics = [nic for nic in nics if nic.id != "n2"]
    disks = [
        DiskSpec(
            name,
            path,
            "raw",
            3 + number,
            size_bytes=draw(st.sampled_from([1 << 20, 2 << 20])),
            iops=draw(st.none() | st.integers(1, 2)),
        )
        for number, (name, path) in enumerate(PATHS.items())
        if draw(st.booleans())
    ]
    if draw(st.booleans()):
        path = draw(st.sampled_from(MEDIA))
        disks.append(DiskSpec("cd", path, "raw", 6, read_only=True, media="cdrom"))
    cpus = draw(st.integers(1, 3))
    spec = VmSpec(
        "web",
        "u",
        1,
        cpus=cpus,
        max_cpus=draw(st.none() | st.integers(cpus, 3)),
        memory_mib=draw(st.sampled_from([128, 256])),
        balloon_mib=draw(st.none() | st.sampled_from([64, 128])),
        nics=tuple(nics),
        disks=tuple(disks),
    )
    return Desired(BRIDGES, {"web": spec})


def plugged(observed: Observed) -> set[str]:
    devices = observed.vms["web"].devices
    assert devices is not None
    return {device for device in devices if not device.startswith(("slot-", "balloon"))}


def assert_is_told(state: VmState, first: VmSpec, wanted: VmSpec) -> None:
    """The guest has every limit, cable and medium of its unit, and as many CPUs as it has room for."""
    assert untold(state) == ()
    kept = [nic.id for nic in state.spec.nics]
    assert {nic.id: nic.link for nic in state.spec.nics} == {n.id: n.link for n in wanted.nics if n.id in kept}
    assert [(disk.id, disk.iops) for disk in state.spec.disks] == [(disk.id, disk.iops) for disk in wanted.disks]
    assert state.spec.balloon_mib == wanted.balloon_mib
    drives = {disk.id: drive_node(disk) for disk in wanted.disks if disk.media == "cdrom"}
    assert state.media == drives
    assert {key: node for key, node in state.tuned.items() if key.startswith("medium/")} == {
        medium_key(drive): node for drive, node in drives.items()
    }
    assert first.cpus <= state.spec.cpus <= (first.max_cpus or first.cpus)
    assert state.cpus == (None if first.max_cpus is None else state.spec.cpus)
    if first.max_cpus is not None and first.cpus <= wanted.cpus <= first.max_cpus:
        assert state.spec.cpus >= wanted.cpus


@given(first=units(), edits=st.lists(units(), min_size=1, max_size=3), dice=dices)
@settings(max_examples=200)
def test_live_edits_end_the_same_wherever_they_are_broken_off(
    first: Desired, edits: list[Desired], dice: Random
) -> None:
    started, _ = settle(first, HOST)
    broken_off = started
    for edit in edits:
        for _ in range(dice.randint(0, 4)):
            actions = plan(edit, broken_off, 100.0).actions
            assert not any(isinstance(action, StopVm | LaunchVm) for action in actions)
            if actions:
                broken_off = apply(broken_off, dice.choice(actions), 100.0)
    ended, done = settle(edits[-1], broken_off, dice, start_s=1000.0)
    assert not any(isinstance(action, StopVm | LaunchVm) for action in done)
    state, wanted = ended.vms["web"], edits[-1].vms["web"]
    assert state.pid == started.vms["web"].pid
    assert (state.leaving_nics, state.leaving_disks) == ((), ())
    assert plugged(ended) == {*(nic_id(n.id) for n in state.spec.nics), *(disk_node(d.id) for d in state.spec.disks)}
    taps = {link.name for link in ended.links.values() if link.alias.startswith("vmhost:tap/")}
    assert taps == {nic.tap for nic in state.spec.nics}
    assert {nic.id for nic in wanted.nics} - {nic.id for nic in state.spec.nics} <= {"n9"}
    assert {disk.id for disk in wanted.disks} == {disk.id for disk in state.spec.disks}
    bridges = {nic.id: (nic.bridge, nic.mtu) for nic in wanted.nics}
    assert all((nic.bridge, nic.mtu) == bridges[nic.id] for nic in state.spec.nics)
    assert state.spec.memory_mib == first.vms["web"].memory_mib
    assert all(ended.disks[d.path].size_bytes in (None, 2 << 20, d.size_bytes) for d in state.spec.disks if d.path)
    assert_is_told(state, first.vms["web"], wanted)
    restarted, _ = settle(edits[-1], replace(ended, vms={}), start_s=2000.0)
    assert restarted.vms["web"].spec == wanted
