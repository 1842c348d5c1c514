"""A stop that was begun is finished as what it was, whoever wants the guest by then; and which approvals are left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.actions import EndVm, StopVm
from agent.core.desired import Desired
from agent.core.observed import Intent, Observed
from agent.core.planner.approval import approval_key, still_asked
from agent.core.planning import plan
from agent.core.reasons import Reason
from tests.unit.planning_world import DB, DB_RUNS, DESIRED, RUNNING, SETTLED, WEB, types, with_vm

STOP = StopVm("vm/web", Reason.UNWANTED, "web", WEB.uuid, WEB.stop_timeout_s, unit_asked=False)
GONE = replace(DESIRED, vms={})
KEYS = frozenset({approval_key(RUNNING), approval_key(DB_RUNS)})


@pytest.mark.parametrize("desired", [DESIRED, GONE])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_stop_that_was_begun_is_finished_and_asked_of_nobody_again(desired: Desired, stopped: bool) -> None:
    observed = replace(with_vm(stopping=True), intents={"web": Intent(stopped=stopped)}, max_disruption=0)
    assert plan(desired, observed, 100.0).actions == (STOP,)


@pytest.mark.parametrize("desired", [DESIRED, GONE])
def test_what_a_guest_does_while_it_is_stopped_is_no_end_of_its_own(desired: Desired) -> None:
    end = EndVm("vm/web", Reason.EXITED, "web", WEB.uuid, "host", asked=True)
    for changes in ({"alive": False, "exit_reason": "killed"}, {"run_state": "guest-panicked"}):
        assert plan(desired, with_vm(stopping=True, **changes), 100.0).actions == (end,)


def test_an_operators_stop_of_a_guest_whose_unit_is_gone_is_none_of_the_units() -> None:
    observed = replace(SETTLED, intents={"web": Intent(stopped=True)}, max_disruption=0)
    assert plan(GONE, observed, 100.0).actions == (STOP,)


def test_extra_arguments_are_told_of_a_guest_that_is_kept_as_well() -> None:
    held = replace(GONE, unresolved_files=frozenset({WEB.file}))
    observed = with_vm(spec=replace(WEB, extra_args=("-device", "edu")))
    assert ("vm/web", "Unsupported") in types(plan(held, observed, 100.0))


def test_an_approval_lasts_as_long_as_the_stop_that_it_allows_is_asked_for() -> None:
    both = replace(SETTLED, vms={"web": RUNNING, "db": DB_RUNS})
    neither, one = Desired(), replace(DESIRED, vms={"web": WEB})
    assert still_asked(KEYS, neither, both) == KEYS
    assert still_asked(KEYS, one, both) == {approval_key(DB_RUNS)}
    assert still_asked(KEYS, replace(neither, complete=False), both) == frozenset()
    assert still_asked(frozenset(), neither, both) == frozenset()
    assert still_asked(KEYS, neither, replace(both, vms={"db": DB_RUNS})) == {approval_key(DB_RUNS)}


def test_an_approval_that_is_being_carried_out_is_not_taken_back() -> None:
    both: Observed = replace(SETTLED, vms={"web": RUNNING, "db": DB_RUNS}, in_flight={"vm/db": "stop-vm vm/db"})
    assert still_asked(KEYS, Desired(vms={"web": WEB, "db": DB}), both) == {approval_key(DB_RUNS)}


def test_a_guest_whose_file_is_broken_or_whose_name_is_wanted_is_not_gone() -> None:
    broken = replace(GONE, unresolved_files=frozenset({WEB.file}))
    assert still_asked(KEYS, broken, SETTLED) == frozenset()
    another = replace(WEB, uuid="another")
    assert still_asked(KEYS, replace(DESIRED, vms={"web": another}), SETTLED) == frozenset()
