"""Edits that need what may not be there, files that come and go, crashes and reboots: a guest that ran runs on."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.actions import StopVm
from agent.core.desired import Apply, Desired, DiskSpec, Restart, VmSpec
from agent.core.edits.pending import pending_of
from agent.core.model.host import apply
from agent.core.observed import DiskState, HostMemory, HostState, Observed
from agent.core.planner.room import MIB
from agent.core.planning import plan

FIRST = VmSpec("web", "u", 1, kernel="/boot/0", disks=(DiskSpec("root", "/srv/0", "raw", 0),), restart=Restart.ALWAYS)
FILES = ("1", "2")
dices = st.integers(0, 1 << 30).map(Random)


@st.composite
def units(draw: st.DrawFn) -> VmSpec:
    disk = DiskSpec("root", f"/srv/{draw(st.sampled_from(('0', *FILES)))}", "raw", 0)
    return replace(
        FIRST,
        disks=(disk,),
        kernel=f"/boot/{draw(st.sampled_from(('0', *FILES)))}",
        memory_mib=draw(st.sampled_from([512, 512, 4096])),
        apply=draw(st.sampled_from(Apply)),
    )


def host(there: set[str], large: bool) -> Observed:
    """What the guest began with is always there."""
    there = {*there, "/srv/0", "/boot/0"}
    return Observed(
        disks={f"/srv/{n}": DiskState(f"/srv/{n}" in there, True, True) for n in ("0", *FILES)},
        files={f"/boot/{n}": f"/boot/{n}" in there for n in ("0", *FILES)},
        host=HostState("boot", memory=HostMemory((9999 if large else 1000) * MIB, kvm=True)),
    )


def settle(wanted: VmSpec, world: Observed, now_s: float, steps: int = 60) -> tuple[Observed, list[object], float]:
    done: list[object] = []
    for _ in range(steps):
        found = plan(Desired(vms={"web": wanted}), world, now_s)
        if not found.actions and (found.wake_at_s is None or (found.wake_at_s < now_s + 6 and "web" in world.vms)):
            break
        for action in found.actions:
            world = apply(world, action, now_s)
            done.append(action)
        now_s = now_s + 0.1 if found.actions else max(now_s, found.wake_at_s or now_s)
    return world, done, now_s


@given(edits=st.lists(units(), min_size=1, max_size=4), dice=dices)
@settings(max_examples=300)
def test_a_guest_that_ran_runs_on_whatever_is_not_there(edits: list[VmSpec], dice: Random) -> None:
    world, _, now_s = settle(FIRST, host(set(), large=False), 1000.0)
    for wanted in edits:
        there = {f"{folder}/{n}" for folder in ("/srv", "/boot") for n in FILES if dice.random() < 0.5}
        large = world.vms["web"].spec.memory_mib > 512 or dice.random() < 0.5
        seen = host(there | used(world), large)
        world = replace(seen, vms=world.vms, refused=world.refused, ends=world.ends)
        before = world.vms["web"].spec
        world, done, now_s = settle(wanted, world, now_s)
        if wanted.apply is Apply.ASK:
            assert not any(isinstance(action, StopVm) for action in done)
        for event in dice.choices(["crash", "reboot", "none"], k=2):
            state = world.vms["web"]
            assert (state.alive, state.run_state) == (True, "running")
            could = pending_of(state, wanted) and state.reboot_ends
            if event == "crash":
                world = replace(world, vms={"web": replace(state, alive=False, exit_reason="crash")})
            elif event == "reboot" and state.reboot_ends:
                world = replace(world, vms={"web": replace(state, run_state="shutdown", rebooted=True)})
            world, done, now_s = settle(wanted, world, now_s + 1000)
            state = world.vms["web"]
            assert (state.alive, state.run_state) == (True, "running"), (event, before, wanted)
            if could and event != "none":
                assert pending_of(state, wanted) == (), "what could be started was"
            assert world.refused == {}


def used(world: Observed) -> set[str]:
    spec = world.vms["web"].spec
    return {str(spec.kernel), *(disk.path for disk in spec.disks)}
