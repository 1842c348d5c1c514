"""What an operator asks of a guest beside start and stop: pause and resume, hold and release."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.actions import EndVm, LaunchVm, PauseVm, ReleaseVm, ResumeVm
from agent.core.desired import Desired
from agent.core.memory import Memory, with_hold, with_intent, with_new_names, without_guests
from agent.core.model.host import apply
from agent.core.observed import Hold, Intent, NicBackend, NicState, Observed
from agent.core.planner.draft import Plan
from agent.core.planning import plan
from agent.core.preconditions import PreconditionError
from agent.core.reasons import Reason
from agent.core.tell.describe import describe
from agent.core.tell.status import AgentFacts, StatusInputs
from agent.core.tell.vm_display import DisplayState, is_paused_as_asked, is_running_as_asked, vm_display_state
from agent.core.tell.why import WhyInputs, why
from tests.unit.planning_world import (
    ABSENT,
    BRIDGE,
    DB,
    DB_RUNS,
    DESIRED,
    HOST,
    RUNNING,
    SETTLED,
    TAP,
    WEB,
    said,
    types,
    with_links,
    with_vm,
)

PAUSE, RESUME = PauseVm("vm/web", Reason.PAUSE, "web"), ResumeVm("vm/web", Reason.RESUME, "web", 1)
PAUSED, RESUMED = Intent(paused=True), Intent(resume_generation=1)
HOLD = Hold(1000, "2026-01-01T00:00:00+00:00", "looking at its disk")
HELD = Intent(hold=HOLD)
SINCE = "uid 1000 holds it since 2026-01-01T00:00:00+00:00 (looking at its disk)"
SAYS_HELD = (
    "vm/web",
    "Held",
    "Operator",
    f"{SINCE}: the agent leaves it, its taps and its disks alone; `vmhost release web` ends that",
)


def wishing(intent: Intent, observed: Observed = SETTLED) -> Observed:
    return replace(observed, intents={"web": intent})


def test_a_pause_is_done_and_then_no_deviation() -> None:
    decided = plan(DESIRED, wishing(PAUSED), 1.0)
    assert decided.actions == (PAUSE,)
    paused = apply(wishing(PAUSED), PAUSE)
    settled = plan(DESIRED, paused, 2.0)
    message = "paused as its operator asked; `vmhost resume web` lets it go on"
    assert said(settled) == [("vm/web", "Paused", "Asked", message)]
    assert (settled.actions, settled.deviating, settled.awaited) == ((), frozenset(), frozenset())
    with pytest.raises(PreconditionError):
        apply(paused, PAUSE)


def test_a_guest_that_starts_while_it_is_to_be_paused_is_not_let_run() -> None:
    waiting = wishing(PAUSED, with_vm(run_state="prelaunch"))
    decided = plan(DESIRED, waiting, 1.0)
    message = "paused before its first instruction; `vmhost resume web` lets it go on"
    assert (decided.actions, said(decided)) == ((), [("vm/web", "Paused", "Asked", message)])
    assert plan(DESIRED, wishing(Intent(), waiting), 1.0).actions == (ReleaseVm("vm/web", Reason.WANTED, "web"),)
    assert vm_display_state("web", WEB, waiting, ()) is DisplayState.PAUSED
    (launch,) = plan(DESIRED, wishing(replace(PAUSED, resume_generation=3), ABSENT), 1.0).actions
    assert isinstance(launch, LaunchVm)
    assert launch.resume_generation == 3


@pytest.mark.parametrize("run_state", ["paused", "io-error", "watchdog", "running", "debug"])
def test_a_resume_is_answered_once_whatever_paused_it(run_state: str) -> None:
    seen = wishing(RESUMED, with_vm(run_state=run_state))
    assert plan(DESIRED, seen, 1.0).actions == (RESUME,)
    answered = apply(seen, RESUME)
    assert (answered.vms["web"].run_state, answered.vms["web"].resume_generation) == ("running", 1)
    assert plan(DESIRED, answered, 2.0) == Plan()
    again = replace(answered, vms={"web": replace(answered.vms["web"], run_state="paused")})
    assert (plan(DESIRED, again, 3.0).actions, types(plan(DESIRED, again, 3.0))) == ((), [("vm/web", "Paused")])


def test_no_resume_is_tried_where_cont_does_not_help() -> None:
    for run_state in ("prelaunch", "suspended", "inmigrate", "guest-panicked"):
        actions = plan(DESIRED, wishing(RESUMED, with_vm(run_state=run_state)), 1.0).actions
        assert not any(isinstance(action, ResumeVm) for action in actions)


def test_a_pause_keeps_a_guest_from_going_on_when_there_is_space_again() -> None:
    decided = plan(DESIRED, wishing(PAUSED, with_vm(run_state="io-error")), 1.0)
    assert (decided.actions, types(decided)) == ((), [("vm/web", "PausedOnIoError")])
    assert "as its operator asked; `vmhost resume web` tries it" in said(decided)[0][3]


def test_a_guest_that_is_left_as_it_is_stays_paused_all_the_same() -> None:
    nobody_read = Desired(complete=False)
    assert plan(nobody_read, wishing(PAUSED), 1.0).actions == (PAUSE,)


def test_the_later_word_counts() -> None:
    memory = Memory("seed")

    def said_in_turn(*verbs: str) -> Intent:
        found = memory
        for verb in verbs:
            found = with_intent(found, "web", verb)
        return found.intents["web"]

    assert said_in_turn("pause") == Intent(paused=True)
    assert said_in_turn("pause", "resume") == Intent(resume_generation=1)
    assert said_in_turn("pause", "start") == Intent(resume_generation=1)
    assert said_in_turn("start") == Intent()
    assert said_in_turn("pause", "restart") == Intent(generation=1)
    assert said_in_turn("pause", "stop") == Intent(stopped=True)
    held = with_hold(with_intent(memory, "web", "pause"), "web", HOLD)
    assert held.intents["web"] == Intent(paused=True, hold=HOLD)
    assert with_intent(held, "web", "release").intents["web"] == Intent(paused=True)


def test_what_was_asked_goes_with_a_guest_to_its_new_name() -> None:
    memory = replace(Memory("seed"), intents={"a": Intent(paused=True, hold=HOLD, resume_generation=2)})
    moved = with_new_names(memory, {"a": "b"}).intents
    assert moved == {"a": Intent(resume_generation=2), "b": Intent(paused=True, hold=HOLD)}


def test_a_hold_outlives_its_guest_and_its_unit() -> None:
    memory = replace(Memory("seed"), intents={"a": HELD, "b": PAUSED})
    assert without_guests(memory, frozenset()).intents == {"a": HELD}


def test_running_and_paused_mean_as_asked() -> None:
    assert is_running_as_asked(RUNNING, Intent())
    assert not is_running_as_asked(RUNNING, RESUMED)
    assert is_running_as_asked(replace(RUNNING, resume_generation=1), RESUMED)
    paused = replace(RUNNING, run_state="paused")
    assert is_paused_as_asked(paused, PAUSED)
    assert not is_paused_as_asked(paused, Intent())
    assert not is_paused_as_asked(RUNNING, PAUSED)
    assert not is_paused_as_asked(replace(paused, alive=False), PAUSED)
    assert not is_paused_as_asked(None, PAUSED)


def test_actions_say_what_they_do() -> None:
    assert describe(PAUSE) == "pause web, as its operator asked"
    assert describe(RESUME) == "let web go on, as its operator asked"


LOST_TAP = replace(
    with_links(*(link for name, link in SETTLED.links.items() if name != TAP.name)),
    vms={"web": replace(RUNNING, nics={"lan": NicState(NicBackend.DEAD)})},
)


@pytest.mark.parametrize(
    "observed",
    [
        SETTLED,
        ABSENT,
        LOST_TAP,
        with_vm(run_state="prelaunch"),
        with_vm(run_state="guest-panicked"),
        with_vm(run_state="shutdown"),
        with_vm(run_state="paused"),
        with_vm(stopping=True),
        with_vm(run_state=None, unanswered_s=99.0),
    ],
)
def test_nothing_is_done_to_a_held_guest_and_that_is_no_deviation(observed: Observed) -> None:
    for intent in (HELD, replace(HELD, stopped=True), replace(HELD, generation=7, reset_generation=7, paused=True)):
        for desired in (DESIRED, Desired({"br0": BRIDGE}, {"web": replace(WEB, enabled=False)})):
            decided = plan(desired, wishing(intent, observed), 1.0)
            assert (decided.actions, decided.deviating, said(decided)) == ((), frozenset(), [SAYS_HELD])


def test_without_its_unit_it_keeps_running_with_its_tap_and_its_bridge_and_asks_nobody() -> None:
    gone = Desired(retained={"br0": BRIDGE})
    for observed in (SETTLED, with_vm(nics={"lan": NicState(NicBackend.UNKNOWN)})):
        decided = plan(gone, replace(wishing(HELD, observed), max_disruption=0), 1.0)
        assert (decided.actions, decided.approval) == ((), None)
        assert types(decided) == [("bridge/br0", "StillNeeded"), ("vm/web", "Held")]
    assert [type(a).__name__ for a in plan(gone, SETTLED, 1.0).actions] == ["StopVm"]


def test_the_tap_of_a_held_guest_is_not_collected_even_where_nothing_says_that_it_is_used() -> None:
    other = replace(WEB, nics=())
    observed = with_vm(spec=other, nics={})
    assert plan(Desired({"br0": BRIDGE}, {"web": other}), wishing(HELD, observed), 1.0).actions == ()
    assert len(plan(Desired({"br0": BRIDGE}, {"web": other}), observed, 1.0).actions) == 1


def test_an_end_that_is_over_is_written_down_and_not_answered() -> None:
    killed = with_vm(alive=False, run_state=None, exit_reason="killed")
    (end,) = plan(DESIRED, wishing(HELD, killed), 1.0).actions
    assert end == EndVm("vm/web", Reason.EXITED, "web", WEB.uuid, "killed", False)
    after = apply(wishing(HELD, killed), end, 1.0)
    assert [one.reason for one in after.ends["web"]] == ["killed"]
    assert plan(DESIRED, after, 2.0).actions == ()
    released = wishing(Intent(), after)
    assert [type(action).__name__ for action in plan(DESIRED, released, 3.0).actions] == ["LaunchVm"]
    (asked,) = plan(DESIRED, wishing(replace(HELD, stopped=True), killed), 1.0).actions
    assert asked == EndVm("vm/web", Reason.EXITED, "web", WEB.uuid, "host", True)


def test_a_held_guest_is_renamed_and_stays_held() -> None:
    shop = Desired({"br0": BRIDGE}, {"shop": replace(WEB, name="shop")})
    asked = replace(SETTLED, intents={"shop": HELD})
    decided = plan(shop, asked, 1.0)
    assert [type(action).__name__ for action in decided.actions] == ["RenameVm"]
    after = apply(asked, decided.actions[0])
    assert (plan(shop, after, 2.0).actions, types(plan(shop, after, 2.0))) == ((), [("vm/shop", "Held")])


def test_a_hold_of_a_name_that_nobody_has_is_told() -> None:
    decided = plan(Desired(), Observed(host=HOST, intents={"web": HELD}), 1.0)
    assert (decided.actions, types(decided)) == ((), [("vm/web", "Held")])


def test_the_host_going_down_stops_it_all_the_same() -> None:
    decided = plan(DESIRED, wishing(HELD, replace(SETTLED, host=replace(HOST, down=True))), 1.0)
    assert [type(action).__name__ for action in decided.actions] == ["StopVm"]
    assert types(decided) == [("vm/web", "Held"), ("vm/web", "HostDown")]


def test_why_says_what_ends_it() -> None:
    for intent, topic, text in (
        (HELD, "next", "it stays as it is; `vmhost release web` gives it back to the agent"),
        (PAUSED, "wanted", "the operator paused it, and that holds until `vmhost resume`"),
    ):
        observed = wishing(intent)
        decided = plan(DESIRED, observed, 1.0)
        inputs = StatusInputs(
            AgentFacts("1", 1, "", settled=True),
            desired=DESIRED,
            observed=observed,
            plan=decided,
            conditions=[(condition, "") for condition in decided.conditions],
        )
        assert (topic, text) in [(one.topic, one.text) for one in why("vm", "web", WhyInputs(inputs, 1.0))]


def test_the_bridge_that_a_held_guest_would_start_on_stays_though_no_unit_names_it() -> None:
    desired = Desired(vms={"web": WEB}, retained={"br0": BRIDGE})
    assert plan(desired, wishing(HELD, with_links(SETTLED.links["br0"], of=ABSENT)), 1.0).actions == ()


def test_a_held_guest_whose_new_name_is_still_taken_is_left_alone_under_its_old_one() -> None:
    other = replace(DB_RUNS, spec=replace(DB, name="shop"))
    desired = Desired({"br0": BRIDGE}, {"shop": replace(WEB, name="shop")})
    observed = replace(SETTLED, vms={"web": LOST_TAP.vms["web"], "shop": other}, intents={"shop": HELD})
    decided = plan(desired, replace(observed, links={"br0": SETTLED.links["br0"]}), 1.0)
    assert not [action for action in decided.actions if "web" in action.resource]
    assert ("vm/web", "Held", "Operator") in [found[:3] for found in said(decided)]
