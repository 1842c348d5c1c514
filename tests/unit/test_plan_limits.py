"""The limits of running guests: exactly what is planned, and what is told where they cannot be applied."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.actions import LimitVm, StopVm
from agent.core.desired import Desired, Limits, VmSpec
from agent.core.device_actions import TakeOver
from agent.core.edits.digest import digest, pending_changes
from agent.core.limits import next_in_turn, tasks_needed
from agent.core.model.host import apply
from agent.core.observed import HostState, Observed, VmState
from agent.core.planner.draft import Plan
from agent.core.planner.repairs import Ledger, look
from agent.core.planning import plan
from agent.core.preconditions import PreconditionError
from agent.core.reasons import Reason
from agent.core.tell.describe import describe
from agent.core.tell.show import Setting, settings_of_vm

GIVEN = Limits(cpu_weight=200, cpu_quota_us=1_500_000, io_weight=50, tasks=90)
PLAIN = VmSpec("web", "uuid-web", 1_900_000_000, "web.toml")
LIMITED = replace(PLAIN, limits=GIVEN)
UNIT = "vmhost-vm-web.service"
RUNNING = VmState(PLAIN, True, 4711, run_state="running", unit=UNIT, limits=Limits())
CHILD = replace(RUNNING, unit="", limits=None)
ALL = frozenset({"cpu", "cpuset", "io", "memory", "pids"})
HOST = HostState(boot_id="now", services=True, controllers=ALL)


def decided(wanted: VmSpec, state: VmState, host: HostState = HOST) -> Plan:
    return plan(Desired(vms={"web": wanted}), Observed(vms={"web": state}, host=host), 100.0)


def limit(limits: Limits, reason: Reason) -> LimitVm:
    return LimitVm("vm/web/limits", reason, "web", "uuid-web", limits)


def test_an_edit_is_applied_to_the_running_guest_by_one_action_and_waits_for_nothing() -> None:
    edit = limit(GIVEN, Reason.WANTED)
    found = decided(LIMITED, RUNNING)
    assert found.actions == (edit,)
    assert edit.disruption == "none"
    assert describe(edit) == "limits of web: cpu-weight = 200, cpu-quota = 150%, io-weight = 50, tasks = 90"
    assert pending_changes(PLAIN, LIMITED) == ()
    assert digest(PLAIN) == digest(LIMITED)
    after = apply(Observed(vms={"web": RUNNING}, host=HOST), edit).vms["web"]
    assert decided(LIMITED, after) == Plan()
    back = limit(Limits(), Reason.WANTED)
    assert decided(PLAIN, after).actions == (back,)
    assert describe(back) == "limits of web: none"


@pytest.mark.parametrize("step", [1, -1])
def test_what_else_an_edit_changes_is_taken_over_beside_it_in_any_order(step: int) -> None:
    edited, observed = replace(LIMITED, description="the shop"), Observed(vms={"web": RUNNING}, host=HOST)
    actions = decided(edited, RUNNING).actions
    assert {type(action) for action in actions} == {TakeOver, LimitVm}
    for action in actions[::step]:
        observed = apply(observed, action)
    assert observed.vms["web"] == replace(RUNNING, spec=edited, limits=GIVEN)
    assert decided(edited, observed.vms["web"]) == Plan()


def test_what_somebody_else_set_is_put_back_and_counts_as_a_repair() -> None:
    limited = replace(RUNNING, spec=LIMITED, limits=GIVEN)
    changed = replace(limited, limits=replace(GIVEN, cpu_weight=None, tasks=500))
    heal = limit(GIVEN, Reason.SETTINGS)
    assert decided(LIMITED, changed).actions == (heal,)
    assert decided(PLAIN, replace(RUNNING, limits=GIVEN)).actions == (limit(Limits(), Reason.SETTINGS),)
    desired, ledger = Desired(vms={"web": LIMITED}), Ledger()
    repaired = []
    for at_s, state in enumerate([limited, changed, limited]):
        observed = Observed(vms={"web": state}, host=HOST)
        ledger, repairs = look(ledger, plan(desired, observed, at_s), desired, observed, at_s)
        repaired += [(repair.resource, repair.reason) for repair in repairs]
    assert repaired == [("vm/web/limits", Reason.SETTINGS)]


def test_an_edit_while_no_agent_ran_is_no_repair() -> None:
    desired, edited = Desired(vms={"web": LIMITED}), Observed(vms={"web": RUNNING}, host=HOST)
    ledger, _ = look(Ledger(), plan(desired, edited, 0.0), desired, edited, 0.0)
    after = apply(edited, limit(GIVEN, Reason.WANTED))
    _, repairs = look(ledger, plan(desired, after, 1.0), desired, after, 1.0)
    assert repairs == ()


def test_a_guest_that_is_just_being_looked_at_is_waited_for() -> None:
    found = decided(LIMITED, replace(RUNNING, limits=None, limits_awaited=True))
    assert (found.actions, found.awaited) == ((), frozenset({"vm/web/limits"}))


def test_what_could_not_be_looked_at_is_set_only_if_something_is_wanted() -> None:
    unknown = replace(RUNNING, limits=None)
    assert decided(LIMITED, unknown).actions == (limit(GIVEN, Reason.WANTED),)
    assert decided(PLAIN, unknown) == Plan()


def test_a_qemu_keeps_the_tasks_that_it_was_launched_with_cpus_for() -> None:
    big = replace(RUNNING, spec=replace(PLAIN, cpus=16))
    wanted = replace(PLAIN, cpus=2, limits=Limits(tasks=tasks_needed(2)))
    armed = replace(big, reboot_ends=True)
    assert decided(wanted, armed).actions == (limit(Limits(tasks=tasks_needed(16)), Reason.WANTED),)


def test_one_that_is_to_stop_is_not_limited_first() -> None:
    (stop,) = decided(replace(LIMITED, enabled=False), RUNNING).actions
    assert isinstance(stop, StopVm)


def test_a_child_is_never_limited() -> None:
    with pytest.raises(PreconditionError):
        apply(Observed(vms={"web": CHILD}, host=HOST), limit(GIVEN, Reason.WANTED))


QUOTA = replace(PLAIN, limits=Limits(cpu_quota_us=500_000))
NO_SERVICE = "not applied: its QEMU was started as a child of the agent, not as a service of its own; "
RUN_AS = "run the agent as vmhost-agent.service, then "
LACK = "not applied: this host's control groups v2 lack the controller"
BOOT = "(/sys/fs/cgroup/cgroup.controllers); boot it with what is missing, or remove what needs it"


@pytest.mark.parametrize(
    ("wanted", "state", "host", "message"),
    [
        (
            LIMITED,
            CHILD,
            replace(HOST, services=False),
            f"cpu-weight, cpu-quota, io-weight, tasks are {NO_SERVICE}{RUN_AS}`vmhost restart web`",
        ),
        (QUOTA, CHILD, HOST, f"cpu-quota is {NO_SERVICE}`vmhost restart web`"),
        (
            LIMITED,
            replace(RUNNING, limits=GIVEN, spec=LIMITED),
            replace(HOST, controllers=frozenset({"cpu"})),
            f"io-weight, tasks are {LACK}s io and pids {BOOT}",
        ),
        (
            QUOTA,
            replace(RUNNING, limits=QUOTA.limits, spec=QUOTA),
            replace(HOST, controllers=frozenset()),
            f"cpu-quota is {LACK} cpu {BOOT}",
        ),
    ],
)
def test_limits_that_are_not_applied_are_told(wanted: VmSpec, state: VmState, host: HostState, message: str) -> None:
    found = decided(wanted, state, host)
    assert [(c.resource, c.type, c.message) for c in found.conditions] == [
        ("vm/web/limits", "LimitsNotApplied", message)
    ]
    assert (found.actions, found.deviating) == ((), frozenset({"vm/web/limits"}))


@pytest.mark.parametrize("host", [HOST, replace(HOST, controllers=frozenset()), replace(HOST, services=False)])
@pytest.mark.parametrize("state", [RUNNING, CHILD])
def test_without_a_key_nothing_is_told(state: VmState, host: HostState) -> None:
    assert decided(PLAIN, state, host) == Plan()


def test_controllers_that_nobody_looked_at_are_not_missing() -> None:
    limited = replace(RUNNING, limits=GIVEN, spec=LIMITED)
    assert decided(LIMITED, limited, replace(HOST, controllers=None)) == Plan()


def test_both_sides_are_shown() -> None:
    observed = Observed(vms={"web": replace(RUNNING, limits=Limits(cpu_weight=7))}, host=HOST)
    shown = {one.key: one for one in settings_of_vm("web", Desired(vms={"web": LIMITED}), observed)}
    assert shown["cpu-weight"] == Setting("cpu-weight", "200", "7")
    assert shown["cpu-quota"] == Setting("cpu-quota", "150%", "")


def test_all_have_their_turn_before_any_has_it_again() -> None:
    names = ["a", "b", "c", "d", "e"]
    assert next_in_turn(names, "", 2) == ["a", "b"]
    assert next_in_turn(names, "b", 2) == ["c", "d"]
    assert next_in_turn(names, "d", 2) == ["e", "a"]
    assert next_in_turn(["a", "c"], "b", 5) == ["c", "a"]
    assert next_in_turn([], "b", 5) == []
