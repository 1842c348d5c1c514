"""The frontier for guests while the host is down: each is stopped when no other that goes `after` it runs.

With a budget (`HostState.down_by_s`) all of them together have only so much time. Each guest has its own `stop-timeout`
as long as those that stop after it have theirs too; where the budget is too short for that, it has an equal share of
what is left. Once the budget is over nobody waits for anybody, and what runs is ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.core.marks import vm_resource
from agent.core.observed import VmState
from agent.core.planner.draft import Draft
from agent.core.planner.vms import exit_reason_of_remains, plan_leftover, plan_stop
from agent.core.reasons import Reason
from agent.core.references import guests_of

Rest = tuple[int, float]

MESSAGE = "the host is down: no guest starts before `vmhost up`, or the host's next boot"


def plan_down(draft: Draft, wanted: Mapping[str, object]) -> None:
    """Stop all guests, also those that their operator holds, in the reverse order of `after`, and start none.

    Of those that wait for each other in a circle, which no unit asks for but two versions of one may, none waits.
    """
    vms, by_s = draft.observed.vms, draft.observed.host.down_by_s
    for name in wanted:
        draft.tell(vm_resource(name), "HostDown", MESSAGE, deviates=False)
    running = {name: state for name, state in vms.items() if state.alive and exit_reason_of_remains(state) is None}
    waits = _followers(running)
    nobody_waits = (bool(running) and all(waits.values())) or (by_s is not None and by_s <= draft.now_s)
    left_s = None if by_s is None else max(0.0, by_s - draft.now_s)
    rests = _rests(running) if left_s is not None else {}
    for name, state in vms.items():
        if name not in running:
            plan_leftover(draft, name, state)
        elif waits[name] and not nobody_waits:
            message = f"stops when {', '.join(waits[name])} has stopped"
            draft.tell(vm_resource(name), "Waiting", message)
            draft.wake_at(by_s)
        else:
            timeout_s = _timeout_s(name, running, rests, left_s)
            plan_stop(draft, name, state, Reason.HOST_DOWN, timeout_s, unit_asked=False)


def _followers(running: Mapping[str, VmState]) -> Mapping[str, Sequence[str]]:
    """Who, of those that run, goes after each."""
    found: dict[str, list[str]] = {name: [] for name in running}
    for other, state in running.items():
        for name in guests_of(state.spec.after):
            if name in found:
                found[name].append(other)
    return found


def _timeout_s(name: str, running: Mapping[str, VmState], rests: Mapping[str, Rest], left_s: float | None) -> float:
    """How long a guest may take to shut itself down, of what is left of the budget."""
    own_s = running[name].spec.stop_timeout_s
    if left_s is None:
        return own_s
    count, later_s = rests[name]
    return min(own_s, max(left_s - later_s, left_s / (count + 1)))


def _rests(running: Mapping[str, VmState]) -> Mapping[str, Rest]:
    """For each guest, of those that can only stop after it: how many in a row at most, and how long they may take.

    Without recursion: a thousand guests may stand in one row. Whoever closes a circle counts for nothing in it.
    """
    before = {name: [one for one in guests_of(state.spec.after) if one in running] for name, state in running.items()}
    known: dict[str, Rest] = {}
    for name in running:
        stack, on_stack = [name], {name}
        while stack:
            top = stack[-1]
            following = next((one for one in before[top] if one not in known and one not in on_stack), None)
            if following is not None:
                stack.append(following)
                on_stack.add(following)
                continue
            rests = [(known.get(one, (0, 0.0)), running[one].spec.stop_timeout_s) for one in before[top]]
            count = max((rest[0] + 1 for rest, _ in rests), default=0)
            known[top] = count, max((rest[1] + own_s for rest, own_s in rests), default=0.0)
            on_stack.discard(stack.pop())
    return known
