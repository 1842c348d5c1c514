"""Whatever operators ask in a row, and whatever is interrupted: the last word holds, and a held guest is untouched."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.actions import EndVm, RenameVm, StopVm
from agent.core.desired import Desired, VmSpec
from agent.core.memory import Memory, with_hold, with_intent
from agent.core.model.host import apply
from agent.core.observed import Hold, HostState, Intent, Observed, Reach, VmState
from agent.core.planning import plan
from agent.core.references import guests_of
from tests.property.faults import faults, inflict
from tests.property.worlds import dices, hosts, settle, wishes

VERBS = ("start", "stop", "restart", "pause", "resume", "hold", "release")
HOLD = Hold(0, "2026-01-01T00:00:00+00:00")
asked = st.lists(st.tuples(st.sampled_from(VERBS), st.integers(0, 2)), max_size=8)


def ask(memory: Memory, name: str, verb: str) -> Memory:
    return with_hold(memory, name, HOLD) if verb == "hold" else with_intent(memory, name, verb)


def some_of(observed: Observed, desired: Desired, dice: Random, now_s: float) -> Observed:
    """The world after some of what may be done now: the agent may die after any of it."""
    frontier = list(plan(desired, observed, now_s).actions)
    for action in dice.sample(frontier, dice.randint(0, len(frontier))):
        observed = apply(observed, action, now_s)
    return observed


@given(desired=wishes(), host=hosts(), words=asked, dice=dices)
@settings(max_examples=200)
def test_the_last_word_holds_wherever_the_earlier_ones_were_interrupted(
    desired: Desired, host: Observed, words: list[tuple[str, int]], dice: Random
) -> None:
    desired = replace(desired, vms={n: replace(s, enabled=True, after=()) for n, s in desired.vms.items()})
    observed, _ = settle(desired, host)
    memory, names = Memory("seed"), sorted(observed.vms)
    for number, (verb, which) in enumerate(words if names else []):
        memory = ask(memory, names[which % len(names)], verb)
        observed = some_of(replace(observed, intents=memory.intents), desired, dice, 1000.0 + number)
    settled, _ = settle(desired, observed, dice, start_s=5000.0)
    for name in names:
        intent, state = memory.intents.get(name), settled.vms.get(name)
        if intent is None or intent.hold is not None:
            continue
        if intent.stopped:
            assert state is None
            continue
        assert state is not None
        assert state.run_state in ({"paused", "prelaunch"} if intent.paused else {"running"})
        assert (state.generation, intent.paused or state.resume_generation) == (
            intent.generation,
            intent.paused or intent.resume_generation,
        )
    assert plan(desired, settled, 9000.0).actions == ()


@given(first=wishes(), second=wishes(), host=hosts(), wrong=faults, dice=dices)
@settings(max_examples=150)
def test_nothing_of_a_held_guest_is_touched_whatever_breaks_and_whatever_the_units_say(
    first: Desired, second: Desired, host: Observed, wrong: list[tuple[str, int]], dice: Random
) -> None:
    settled, _ = settle(first, host)
    held = {name for name in settled.vms if dice.random() < 0.5}
    hurt = replace(settled, intents={name: Intent(hold=HOLD) for name in held})
    for kind, which in wrong:
        hurt = inflict(hurt, kind, which)
    second = replace(second, retained={n: s for n, s in first.bridges.items() if n not in second.bridges})
    after, done = settle(second, hurt, dice, start_s=5000.0)
    for action in done:
        owner = action.resource.partition("/")[2].partition("/")[0]
        assert not action.resource.startswith(("vm/", "tap/")) or owner not in held or isinstance(action, EndVm)
    for name in held:
        assert (name in after.vms) is hurt.vms[name].alive
        if name in after.vms:
            assert after.vms[name] == hurt.vms[name]
            assert {nic.bridge for nic in hurt.vms[name].spec.nics} & hurt.links.keys() <= after.links.keys()
    assert not any(isinstance(action, RenameVm) for action in done)


@st.composite
def rows(draw: st.DrawFn) -> dict[str, VmState]:
    """Guests that go after any others, also in circles."""
    names = [f"g{n}" for n in range(draw(st.integers(1, 6)))]
    specs = [
        VmSpec(
            name,
            f"u-{name}",
            1,
            stop_timeout_s=float(draw(st.integers(0, 90))),
            after=tuple(f"vm:{one}" for one in draw(st.sets(st.sampled_from(names)))),
        )
        for name in names
    ]
    return {spec.name: VmState(spec, True, 1, run_state="running") for spec in specs}


@given(vms=rows(), budget_s=st.floats(0.0, 200.0), dice=dices)
@settings(max_examples=200)
def test_all_are_down_within_the_budget_each_as_late_as_it_may(
    vms: dict[str, VmState], budget_s: float, dice: Random
) -> None:
    """Each guest takes all the time that it is given, or less."""
    observed = Observed(vms=vms, host=HostState("boot", down=True, down_by_s=100.0 + budget_s))
    now_s, ends = 100.0, dict[str, tuple[float, StopVm]]()
    while observed.vms:
        busy = {f"vm/{name}": f"stop-vm vm/{name}" for name in ends}
        decided = plan(Desired(), replace(observed, in_flight=busy), now_s)
        for action in decided.actions:
            assert isinstance(action, StopVm)
            assert action.timeout_s <= vms[action.vm].spec.stop_timeout_s
            ends[action.vm] = now_s + action.timeout_s * dice.choice((1.0, dice.random())), action
        assert ends, "nobody stops"
        name = min(ends, key=lambda one: ends[one][0])
        now_s, action = ends.pop(name)
        assert now_s <= 100.0 + budget_s + 1e-6
        observed = apply(observed, action, now_s)


@given(desired=wishes(), host=hosts(), ready=st.sets(st.sampled_from(["one", "two", "three"])), dice=dices)
@settings(max_examples=100)
def test_nobody_starts_before_those_that_it_goes_after_are_ready(
    desired: Desired, host: Observed, ready: set[str], dice: Random
) -> None:
    ports = {name: f"tcp:10.0.0.1:{n}" for n, name in enumerate(("one", "two", "three"), 1)}
    desired = replace(desired, vms={n: replace(s, ready=ports[n]) for n, s in desired.vms.items()})
    seen = {ports[name]: Reach(name in ready, 0.0) for name in ports}
    observed = host
    for number in range(60):
        observed = some_of(replace(observed, reachable=seen), desired, dice, float(number))
    for state in observed.vms.values():
        assert set(guests_of(state.spec.after)) <= ready
