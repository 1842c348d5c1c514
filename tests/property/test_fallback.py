"""Edits that QEMU may refuse, broken off anywhere, and guests that reboot: what ran once runs in the end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.actions import Action, LaunchVm, StopVm
from agent.core.desired import Apply, Desired, Restart, VmSpec
from agent.core.edits.digest import digest
from agent.core.edits.pending import pending_of
from agent.core.memory import Memory, with_refusal, without_refusal
from agent.core.model.host import apply
from agent.core.observed import HostState, Observed
from agent.core.planner.fallback import REFUSED_TIMES
from agent.core.planning import plan

CPUS = ("good", "better", "bad", "worse")
REFUSED = frozenset({"bad", "worse"})
HOST = Observed(host=HostState(boot_id="boot"))
dices = st.integers(0, 1 << 30).map(Random)


@st.composite
def units(draw: st.DrawFn) -> VmSpec:
    return VmSpec(
        "web",
        "u",
        1,
        cpu=draw(st.sampled_from(CPUS)),
        memory_mib=draw(st.sampled_from([128, 256])),
        restart=draw(st.sampled_from(Restart)),
        apply=draw(st.sampled_from(Apply)),
        fallback=draw(st.sampled_from([True, True, False])),
    )


@dataclass
class World:
    """The model host with a QEMU that refuses some processors, and what the agent remembers of that."""

    observed: Observed = HOST
    memory: Memory = field(default_factory=lambda: Memory(seed="s"))
    ran: VmSpec | None = None
    refusals: int = 0
    now_s: float = 0.0

    def do(self, action: Action) -> None:
        if isinstance(action, LaunchVm) and action.spec.cpu in REFUSED:
            self.refusals += 1
            fell_back = bool(action.instead_of)
            self.memory = with_refusal(self.memory, action.spec, "no such cpu", self.ran, fell_back=fell_back)
        else:
            self.observed = apply(self.observed, action, self.now_s)
            if isinstance(action, LaunchVm):
                self.ran = action.spec
                self.memory = self.memory if action.instead_of else without_refusal(self.memory, "u")
        self.observed = replace(self.observed, refused=self.memory.refused)

    def settle(self, wanted: VmSpec, steps: int = 60) -> list[Action]:
        """Everything that is done until nothing is left, or until `steps`."""
        done: list[Action] = []
        desired = Desired(vms={"web": wanted})
        for _ in range(steps):
            self.now_s += 1.0
            actions = plan(desired, self.observed, self.now_s).actions
            if not actions:
                break
            for action in actions:
                self.do(action)
                done.append(action)
        return done

    def reboot(self) -> bool:
        """Have the guest reboot; whether that ends its QEMU."""
        state = self.observed.vms["web"]
        if state.reboot_ends:
            ended = replace(state, run_state="shutdown", rebooted=True)
            self.observed = replace(self.observed, vms={"web": ended})
        return bool(state.reboot_ends)


@given(edits=st.lists(units(), min_size=1, max_size=4), dice=dices)
@settings(max_examples=300)
def test_a_guest_that_ran_once_runs_on_whatever_is_edited(edits: list[VmSpec], dice: Random) -> None:
    world = World()
    first = VmSpec("web", "u", 1, cpu="good", memory_mib=128)
    world.settle(first)
    for wanted in (replace(edit, fallback=True) for edit in edits):
        before, refusals = world.observed.vms["web"], world.refusals
        done = world.settle(wanted, dice.choice([1, 2, 3, 60]))
        done += world.settle(wanted)
        state = world.observed.vms["web"]
        assert state.run_state == "running"
        if wanted.apply is Apply.ASK:
            assert not any(isinstance(action, StopVm | LaunchVm) for action in done)
            assert (state.spec.cpu, state.spec.memory_mib) == (before.spec.cpu, before.spec.memory_mib)
        applies = world.reboot()
        known = world.memory.refused.get("u")
        assert applies is (bool(pending_of(state, wanted)) and (known is None or known.digest != digest(wanted)))
        world.settle(wanted)
        state = world.observed.vms["web"]
        assert state.run_state == "running"
        assert world.refusals - refusals in (0, REFUSED_TIMES), "neither believed too soon nor asked for ever"
        if wanted.cpu not in REFUSED:
            assert pending_of(state, wanted) == ()
        else:
            assert state.spec.cpu in {"good", "better"}
            assert not state.reboot_ends
        assert world.settle(wanted) == []


@given(wanted=units(), ran=st.booleans())
@settings(max_examples=100)
def test_without_fallback_or_a_former_spec_the_wanted_one_is_tried_and_no_other(wanted: VmSpec, ran: bool) -> None:
    world = World()
    if ran:
        world.settle(replace(wanted, cpu="good", fallback=False))
        world.observed = replace(world.observed, vms={})
    wanted = replace(wanted, fallback=not ran, cpu="bad")
    done = world.settle(wanted, 10)
    assert len(done) == 10, "again and again"
    assert all(isinstance(action, LaunchVm) and action.spec == wanted for action in done)
