"""The frontier for guests while the host is down: each is stopped when no other that goes `after` it runs."""

from __future__ import annotations

from collections.abc import Mapping

from agent.core.draft import Draft
from agent.core.marks import vm_resource
from agent.core.observed import VmState
from agent.core.plan_vms import exit_reason_of_remains, plan_leftover, plan_stop
from agent.core.reasons import Reason

MESSAGE = "the host is down: no guest starts before `vmhost up`, or the host's next boot"


def plan_down(draft: Draft, wanted: Mapping[str, object]) -> None:
    """Stop all guests in the reverse order of `after`, and start none. Of those that wait for each other in a circle,
    which no unit asks for but two versions of one may, none waits."""
    vms = draft.observed.vms
    for name in wanted:
        draft.tell(vm_resource(name), "HostDown", MESSAGE, deviates=False)
    running = {name: state for name, state in vms.items() if state.alive and exit_reason_of_remains(state) is None}
    waits = {name: _followers(name, running) for name in running}
    circular = bool(running) and all(waits.values())
    for name, state in vms.items():
        if name not in running:
            plan_leftover(draft, name, state)
        elif waits[name] and not circular:
            message = f"stops when {', '.join(waits[name])} has stopped"
            draft.tell(vm_resource(name), "Waiting", message)
        else:
            plan_stop(draft, name, state, Reason.HOST_DOWN, state.spec.stop_timeout_s, unit_asked=False)


def _followers(name: str, running: Mapping[str, VmState]) -> list[str]:
    return [other for other, state in running.items() if f"vm:{name}" in state.spec.after or name in state.spec.after]
