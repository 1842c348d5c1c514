"""What a guest waits for before it is started: those that it goes `after`, and its bridges."""

from __future__ import annotations

from collections.abc import Iterator

from agent.core.desired import VmSpec
from agent.core.marks import is_own_bridge, vm_resource
from agent.core.observed import Intent, Reach
from agent.core.planner.draft import Draft
from agent.core.references import PATH, RUNNING, TCP, guests_of, place


def tell_what_is_missing(draft: Draft, spec: VmSpec) -> bool:
    """Tell each thing that a guest has to wait for; whether there is none. What was not looked at yet is asked for."""
    resource, missing = vm_resource(spec.name), False
    for reason, message in (*_predecessors(draft, spec), *_places(draft, spec), *_bridges(draft, spec)):
        draft.tell(resource, "Waiting", message, reason=reason)
        missing = True
    return not missing


def _predecessors(draft: Draft, spec: VmSpec) -> Iterator[tuple[str, str]]:
    vms = draft.observed.vms
    for name in guests_of(spec.after):
        state = vms.get(name)
        if state is None or not state.alive or state.run_state != "running":
            yield "Waiting", f"waits for vm {name} to run{_what_keeps(draft, name)}"
            continue
        wanted = draft.wanted.get(name, state.spec)
        if wanted.ready == RUNNING:
            continue
        reach = draft.ask(vm_resource(spec.name), wanted.ready)
        if reach.ok:
            continue
        _tell_late(draft, wanted, reach)
        yield "NotReady", f"waits for vm {name} to be ready: {_silence(draft, wanted.ready, reach)}"


def _what_keeps(draft: Draft, name: str) -> str:
    """Why a guest will not run by itself, if that is so, and what helps."""
    intent, wanted = draft.observed.intents.get(name, Intent()), draft.wanted.get(name)
    if intent.hold is not None:
        return f", which is held (`vmhost release {name}`)"
    if intent.stopped:
        return f", which its operator stopped (`vmhost start {name}`)"
    if wanted is not None and not wanted.enabled:
        return ", which its unit disables (enabled = false)"
    return f", which its operator paused (`vmhost resume {name}`)" if intent.paused else ""


def _tell_late(draft: Draft, spec: VmSpec, reach: Reach) -> None:
    """Tell that a guest, for which another one waits, is not ready although its time is up."""
    late_s = reach.since_s + spec.ready_timeout_s
    if draft.now_s < late_s:
        draft.wake_at(late_s)
        return
    message = f"it runs and is not ready after {spec.ready_timeout_s:g} s: {_silence(draft, spec.ready, reach)}"
    draft.tell(vm_resource(spec.name), "NotReady", f"{message}; those that go after it wait on")


def _silence(draft: Draft, reference: str, reach: Reach) -> str:
    return f"{place(reference)} takes no connections ({_so_far(draft, reach)})"


def _so_far(draft: Draft, reach: Reach) -> str:
    """Why something is not there, if the kernel said, and how long it has been waited for."""
    why = f"{reach.why}, " if reach.why else ""
    return f"{why}for {draft.now_s - reach.since_s:.0f} s"


def _places(draft: Draft, spec: VmSpec) -> Iterator[tuple[str, str]]:
    for reference in spec.after:
        if not reference.startswith((PATH, TCP)):
            continue
        reach = draft.ask(vm_resource(spec.name), reference)
        if reach.ok:
            continue
        if reference.startswith(PATH):
            yield "PathMissing", f"waits for {place(reference)} to exist ({_so_far(draft, reach)})"
        else:
            yield "Unreachable", f"waits for {place(reference)} to take connections ({_so_far(draft, reach)})"


def _bridges(draft: Draft, spec: VmSpec) -> Iterator[tuple[str, str]]:
    links = draft.observed.links
    for name in sorted({nic.bridge for nic in spec.nics if not nic.direct}):
        link = links.get(name)
        if link is None or not is_own_bridge(link) or not link.up:
            yield "Waiting", f"waits for bridge {name}"
