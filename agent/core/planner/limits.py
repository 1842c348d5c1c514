"""The frontier for the limits of running guests: set on the unit at once, or told why they are not applied."""

from __future__ import annotations

from agent.core.actions import LimitVm
from agent.core.desired import Limits, VmSpec
from agent.core.limits import CONTROLLERS, limit_values, wanted_limits
from agent.core.marks import limits_resource
from agent.core.observed import VmState
from agent.core.planner.draft import Draft
from agent.core.reasons import Reason

NO_LIMITS = Limits()


def plan_limits(draft: Draft, spec: VmSpec, state: VmState) -> None:
    """Plan what makes the limits of a running guest as its unit says; a key that is not there is the default."""
    if spec.limits != NO_LIMITS:
        keys = [key for key, value in limit_values(spec.limits).items() if value]
        _tell_not_applied(draft, spec.name, state, keys)
    if not state.unit:
        return
    if state.limits_awaited:
        draft.wait_for_answer(limits_resource(spec.name))
        return
    wanted = wanted_limits(spec, state.spec)
    # What nobody could look at is set blindly if anything is wanted: it fails, or is as it should be.
    if state.limits != wanted and (state.limits is not None or wanted != NO_LIMITS):
        reason = Reason.SETTINGS if wanted == state.spec.limits else Reason.WANTED
        draft.propose(LimitVm(limits_resource(spec.name), reason, spec.name, state.spec.uuid, wanted))


def _tell_not_applied(draft: Draft, name: str, state: VmState, keys: list[str]) -> None:
    host, resource = draft.observed.host, limits_resource(name)
    if not state.unit:
        start = "" if host.services else "run the agent as vmhost-agent.service, then "
        message = (
            f"{_listed(keys)} not applied: its QEMU was started as a child of the agent, not as a service of its own; "
            f"{start}`vmhost restart {name}`"
        )
        draft.tell(resource, "LimitsNotApplied", message)
        return
    if host.controllers is None:
        return
    missing = [key for key in keys if CONTROLLERS[key] not in host.controllers]
    if missing:
        controllers = sorted({CONTROLLERS[key] for key in missing})
        lack = f"lack the controller{'s' if len(controllers) > 1 else ''} {' and '.join(controllers)}"
        message = (
            f"{_listed(missing)} not applied: this host's control groups v2 {lack} "
            "(/sys/fs/cgroup/cgroup.controllers); boot it with what is missing, or remove what needs it"
        )
        draft.tell(resource, "LimitsNotApplied", message)


def _listed(keys: list[str]) -> str:
    return f"{', '.join(keys)} {'are' if len(keys) > 1 else 'is'}"
