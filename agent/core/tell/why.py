"""Why a guest or a bridge is as it is: from its line in a unit file to what happens next, in a person's words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent.core.conditions import NOTICES, Condition
from agent.core.desired import VmSpec
from agent.core.marks import bridge_resource, is_own_bridge, vm_resource
from agent.core.observed import Attempt, Intent, VmState
from agent.core.planner.policy import next_start_s, streak, wants_to_run
from agent.core.planner.ports import find_ports
from agent.core.references import guests_of
from agent.core.services.dnsmasq import bridge_keys, service_name
from agent.core.tell.show import UnitText
from agent.core.tell.status import Owners, StatusInputs
from agent.core.tell.vm_display import vm_display_state

EVENTS_TOLD = 12
ENDS_TOLD = 5


@dataclass(frozen=True, slots=True)
class Statement:
    """One link of the chain. `topic`: `unit`, `wanted`, `now`, `end`, `condition`, `attempt`, `event` or `next`."""

    topic: str
    text: str


@dataclass(frozen=True, slots=True)
class WhyInputs:
    """What there is to tell from. `units` are the files that name the resource; `events` are of all resources, in
    their order, as (time, resource, text). `now_s` is CLOCK_BOOTTIME in seconds."""

    status: StatusInputs
    now_s: float
    units: Sequence[UnitText] = ()
    events: Sequence[tuple[str, str, str]] = ()


def why(kind: str, name: str, inputs: WhyInputs) -> tuple[Statement, ...]:
    """The chain of reasons for the present state of one `vm` or `bridge`."""
    resource = vm_resource(name) if kind == "vm" else bridge_resource(name)
    story = _Story(resource, name, inputs)
    return tuple(story.of_vm() if kind == "vm" else story.of_bridge())


class _Story:
    def __init__(self, resource: str, name: str, inputs: WhyInputs) -> None:
        self._resource, self._name, self._inputs = resource, name, inputs
        self._desired, self._observed = inputs.status.desired, inputs.status.observed
        owners = Owners(self._desired, self._observed)
        self._own: Callable[[str], bool] = lambda one: one == resource or owners.of(one) == resource
        self._conditions = [(c, since) for c, since in inputs.status.conditions if self._own(c.resource)]
        self._attempts = {
            key: attempt
            for key, attempt in sorted(self._observed.attempts.items())
            if self._own(key.partition(" ")[2])
            and any(c.resource == key.partition(" ")[2] and c.reason == attempt.reason for c, _ in self._conditions)
        }

    def of_vm(self) -> Iterator[Statement]:
        spec, state = self._desired.vms.get(self._name), self._observed.vms.get(self._name)
        yield from self._units(spec.file if spec is not None else None)
        if spec is not None:
            yield Statement("wanted", self._wish(spec))
        yield Statement("now", self._vm_now(spec, state))
        yield from self._ends()
        yield from self._obstacles()
        yield Statement("next", self._next_of_vm(spec, state))

    def of_bridge(self) -> Iterator[Statement]:
        spec = self._desired.bridges.get(self._name)
        yield from self._units(spec.file if spec is not None else None)
        if spec is not None:
            found = find_ports({spec.name: spec}, self._observed).links
            links = {entry: link.name for (_, entry), link in found.items() if link.name != entry}
            named = (f"{entry} ({links[entry]})" if entry in links else entry for entry in spec.ports)
            ports = f"ports {', '.join(named)}" if spec.ports else "no ports"
            addresses = f"addresses {', '.join(spec.addresses)}" if spec.addresses else "no addresses"
            keys = "".join(f", {key} {value}" for key, value in bridge_keys(spec).items() if value)
            yield Statement("wanted", f"a bridge with {ports}, {addresses}, mtu {spec.mtu}{keys}")
        yield Statement("now", self._bridge_now())
        yield from self._obstacles()
        yield Statement("next", self._next_of_bridge(wanted=spec is not None))

    def _units(self, holder: str | None) -> Iterator[Statement]:
        for unit in self._inputs.units:
            where = f"{unit.path}:{unit.line}"
            mistakes = "; ".join(unit.errors)
            if unit.state == "valid":
                yield Statement("unit", f"{where} defines it")
            elif unit.path == holder:
                yield Statement(
                    "unit", f"{where} defines it and has mistakes, so its last good version holds: {mistakes}"
                )
            elif holder is not None:
                yield Statement("unit", f"{where} names it too, in vain: {mistakes}")
            else:
                yield Statement("unit", f"{where} defines it, but nothing of a file with mistakes begins: {mistakes}")
        if not self._inputs.units:
            text = f"{holder} defined it when it could last be read" if holder else "no unit file names it any more"
            yield Statement("unit", text)

    def _wish(self, spec: VmSpec) -> str:
        observed = self._observed
        intent, ends = observed.intents.get(self._name, Intent()), observed.ends.get(self._name, ())
        if not spec.enabled:
            return "enabled = false, so it is to be off"
        if intent.stopped:
            return "the operator stopped it, and that holds until `vmhost start`"
        policy = f'restart = "{spec.restart}"'
        recent = [end for end in ends if end.boot_id == observed.host.boot_id]
        if not wants_to_run(spec, intent, ends, observed.host.boot_id):
            return f'{policy} does not answer an end by "{recent[-1].reason}", so it stays off'
        if recent and self._name not in observed.vms:
            return f'{policy} answers its end by "{recent[-1].reason}", so it is to run again'
        if intent.paused:
            return "the operator paused it, and that holds until `vmhost resume`"
        after = f", after {', '.join(one.removeprefix('vm:') for one in spec.after)}" if spec.after else ""
        return f"it is to run{after}; {policy} says what follows an end"

    def _vm_now(self, spec: VmSpec | None, state: VmState | None) -> str:
        types = frozenset(c.type for c, _ in self._conditions if c.resource == self._resource)
        word = vm_display_state(self._name, spec, self._observed, types)
        if state is None:
            return f"{word}: no QEMU of it is there"
        if not state.alive:
            return f"{word}: its QEMU ended ({state.exit_reason or 'unknown'}), which is not answered yet"
        said = state.run_state or f"nothing for {state.unanswered_s:.0f} s"
        former = ", with what it last ran with" if "FellBack" in types else ""
        return f"{word}: QEMU runs as pid {state.pid}{former} and says {said}"

    def _bridge_now(self) -> str:
        link = self._observed.links.get(self._name)
        if link is None:
            return "there is no link of this name"
        if not is_own_bridge(link):
            return f"link {link.ifindex} of this name is there, and it is not ours"
        ports = sorted(one.name for one in self._observed.links.values() if one.master == link.ifindex)
        told = f"link {link.ifindex} is {'up' if link.up else 'down'}, with {', '.join(ports) or 'nothing'} in it"
        service = self._observed.services.get(service_name(self._name))
        if service is None:
            return told
        runs = f"runs as pid {service.pid}" if service.alive else "does not run"
        return f"{told}; {service.spec.name} {runs}"

    def _ends(self) -> Iterator[Statement]:
        row = streak(self._observed.ends.get(self._name, ()), self._observed.host.boot_id)
        if not row:
            return
        told = ", ".join(
            f"{end.reason} after {_span(end.ran_s)} ({_span(self._inputs.now_s - end.at_s)} ago)"
            for end in row[-ENDS_TOLD:]
        )
        times = "once" if len(row) == 1 else f"{len(row)} times without a stable run in between"
        yield Statement("end", f"it ended {times}: {told}")

    def _obstacles(self) -> Iterator[Statement]:
        """What is under way, what stands in the way, what was tried, and what happened last."""
        for resource, key in sorted(self._observed.in_flight.items()):
            if self._own(resource):
                yield Statement("now", f"{key.replace(' ', ' of ')} is under way")
        for condition, since in self._conditions:
            where = "" if condition.resource == self._resource else f"{condition.resource}: "
            dated = f" (since {since})" if since else ""
            yield Statement("condition", f"{where}{condition.type}: {condition.message}{dated}")
        yield from self._predecessors()
        for key, attempt in self._attempts.items():
            times = "once" if attempt.failures == 1 else f"{attempt.failures} times in a row"
            yield Statement("attempt", f"{key.replace(' ', ' of ')} failed {times}, last: {attempt.message}")
        own = [event for event in self._inputs.events if self._own(event[1])]
        for time, resource, text in own[-EVENTS_TOLD:]:
            where = "" if resource == self._resource else f"{resource}: "
            yield Statement("event", f"{time} {where}{text}")

    def _predecessors(self) -> Iterator[Statement]:
        """Why those are not there yet that a waiting guest waits for: the first thing in the way of each."""
        spec = self._desired.vms.get(self._name)
        if spec is None or not any(c.type == "Waiting" for c, _ in self._conditions):
            return
        targets = [vm_resource(one) for one in guests_of(spec.after)]
        targets += sorted({bridge_resource(nic.bridge) for nic in spec.nics if not nic.direct})
        for target in targets:
            found = next((c for c, _ in self._inputs.status.conditions if _is_of(c, target)), None)
            if found is not None:
                yield Statement("condition", f"{found.resource} in turn: {found.type}: {found.message}")

    def _next_of_vm(self, spec: VmSpec | None, state: VmState | None) -> str:
        held = self._of_type("Held")
        if held is not None and held.reason == "Operator":
            return f"it stays as it is; `vmhost release {self._name}` gives it back to the agent"
        if held is not None and held.reason == "ApprovalNeeded" and (approval := self._inputs.status.plan.approval):
            if spec is not None and spec.enabled:
                return f"`vmhost approve {approval.id}` restarts it, as does its own reboot; undoing the edit keeps it"
            return f"`vmhost approve {approval.id}` stops it; bringing its unit back keeps it"
        if held is not None or spec is None:
            return self._next_without_spec(state)
        intent, ends = self._observed.intents.get(self._name, Intent()), self._observed.ends.get(self._name, ())
        if not wants_to_run(spec, intent, ends, self._observed.host.boot_id):
            if state is not None:
                return self._next_try() or "it is put away"
            return "set enabled = true in its unit" if not spec.enabled else f"`vmhost start {self._name}` starts it"
        at_s = next_start_s(self._name, ends, self._observed.host.boot_id)
        if state is None and at_s > self._inputs.now_s:
            return f"it is started again in {_span(at_s - self._inputs.now_s)}; `vmhost start {self._name}` does it now"
        return self._next_try() or self._next_edit() or "nothing: it is as its unit says"

    def _next_without_spec(self, state: VmState | None) -> str:
        bad = next((unit for unit in self._inputs.units if unit.state != "valid"), None)
        if bad is not None:
            stays = "it stays as it is until then" if state is not None else "it begins by itself then"
            return f"mend {bad.path}; {stays}"
        if self._of_type("Held") is not None:
            return "it stays as it is until the unit directory can be read"
        return "it is shut down, because no unit names it" if state is not None else "nothing: nobody wants it"

    def _next_of_bridge(self, *, wanted: bool) -> str:
        if not wanted:
            return self._next_try() or "it is deleted as soon as nobody uses it any more"
        return self._next_try() or "nothing: it is as its unit says"

    def _next_try(self) -> str:
        """What happens by itself, or what it waits for; empty when nothing stands in the way."""
        under_way = [key for resource, key in sorted(self._observed.in_flight.items()) if self._own(resource)]
        if under_way:
            return f"the end of {under_way[0].replace(' ', ' of ')}, then another look"
        due = _due_s(self._attempts, self._inputs.now_s)
        if due is not None:
            return f"another try in {_span(due)}, or at once when its unit or what it depends on changes"
        waiting = self._of_type("Waiting")
        if waiting is not None:
            return f"it {waiting.message}, and starts by itself as soon as that is so"
        planned = [action for action in self._inputs.status.plan.actions if self._own(action.resource)]
        if planned:
            return "what was planned just now begins"
        ours = [c for c, _ in self._conditions if c.type not in NOTICES]
        return f"it goes on by itself as soon as this is mended: {ours[0].message}" if ours else ""

    def _next_edit(self) -> str:
        """What an operator can do to bring unit and guest together; empty when they are."""
        changes = self._inputs.status.pending.get(self._name, ())
        if changes:
            keys = ", ".join(f'{one.key} is "{one.before}", its unit says "{one.after}"' for one in changes)
            if (unstartable := self._of_type("EditUnstartable")) is not None:
                return f"{unstartable.message}: {keys}"
            if self._of_type("FellBack") is not None:
                return f"mend its unit, or `vmhost restart {self._name}` tries again what QEMU refused: {keys}"
            return f"its own reboot, or `vmhost restart {self._name}`, applies what waits for it: {keys}"
        bad = next((unit for unit in self._inputs.units if unit.state != "valid"), None)
        return f"mend {bad.path}; what it says now takes effect then" if bad is not None else ""

    def _of_type(self, type_: str) -> Condition | None:
        return next((c for c, _ in self._conditions if c.type == type_ and c.resource == self._resource), None)


def _is_of(condition: Condition, resource: str) -> bool:
    return condition.resource == resource or condition.resource.startswith(f"{resource}/")


def _due_s(attempts: Mapping[str, Attempt], now_s: float) -> float | None:
    due = [one.not_before_s - now_s for one in attempts.values() if one.not_before_s is not None]
    return max(0.0, min(due)) if due else None


def _span(seconds: float) -> str:
    """A time span for people: `0.4 s`, `12 s`, `5 min`, `3 h`."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
