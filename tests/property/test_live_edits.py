"""Edits of a running guest, one after the other and each broken off anywhere: the same end, and the same QEMU."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.actions import LaunchVm, StopVm
from agent.core.desired import BridgeSpec, Desired, DiskSpec, NicSpec, VmSpec
from agent.core.model import apply
from agent.core.observed import DiskState, HostState, Observed
from agent.core.planning import plan
from agent.core.qemu_argv import disk_node, nic_id
from tests.property.test_planning import dices, settle

BRIDGES = {name: BridgeSpec(name, f"02:00:00:00:00:0{number}") for number, name in enumerate(("br-a", "br-b"))}
PATHS = {name: f"/srv/{name}.raw" for name in ("root", "data", "more")}
HOST = Observed(disks={path: DiskState(False, True, False) for path in PATHS.values()}, host=HostState(boot_id="boot"))


@st.composite
def units(draw: st.DrawFn) -> Desired:
    """A guest with any NICs and disks; each name has its place, two names share one."""
    nics = [
        NicSpec(
            name,
            draw(st.sampled_from(sorted(BRIDGES))),
            draw(st.sampled_from(["02:00:00:00:01:00", "02:00:00:00:01:01"])),
            f"web-{name}",
            slot,
            mtu=draw(st.sampled_from([1400, 1500])),
        )
        for name, slot in (("n0", 0), ("n1", 1), ("n2", 1), ("n9", 99))
        if draw(st.booleans())
    ]
    if {"n1", "n2"} <= {nic.id for nic in nics}:
        nics = [nic for nic in nics if nic.id != "n2"]
    disks = [
        DiskSpec(name, path, "raw", 3 + number, size_bytes=draw(st.sampled_from([1 << 20, 2 << 20])))
        for number, (name, path) in enumerate(PATHS.items())
        if draw(st.booleans())
    ]
    memory = draw(st.sampled_from([128, 256]))
    return Desired(BRIDGES, {"web": VmSpec("web", "u", 1, memory_mib=memory, nics=tuple(nics), disks=tuple(disks))})


def plugged(observed: Observed) -> set[str]:
    devices = observed.vms["web"].devices
    assert devices is not None
    return {device for device in devices if not device.startswith("slot-")}


@given(first=units(), edits=st.lists(units(), min_size=1, max_size=3), dice=dices)
@settings(max_examples=200, deadline=None)
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
    assert all(ended.disks[d.path].size_bytes in (None, 2 << 20, d.size_bytes) for d in state.spec.disks)
    restarted, _ = settle(edits[-1], replace(ended, vms={}), start_s=2000.0)
    assert restarted.vms["web"].spec == wanted
