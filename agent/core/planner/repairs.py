"""Telling repairs from edits: a resource that was as its spec wanted, and without an edit no longer is, was hurt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from agent.core.actions import Action
from agent.core.desired import Desired
from agent.core.marks import LIMITS
from agent.core.observed import Observed
from agent.core.planner.draft import Plan
from agent.core.planner.ports import find_ports, port_names
from agent.core.reasons import Reason
from agent.core.routing.filters import FILTERS
from agent.core.routing.filters_wanted import filter_wish
from agent.core.routing.firewall_actions import FIREWALL, FORWARDING
from agent.core.routing.firewall_wanted import asked_of
from agent.core.routing.ipv6 import IPV6
from agent.core.routing.ipv6_wanted import guests_by_proxy

EDITS = frozenset(
    {
        Reason.WANTED,
        Reason.UNWANTED,
        Reason.RESTART,
        Reason.RESET,
        Reason.EDITED,
        Reason.REBOOT,
        Reason.HOST_DOWN,
        Reason.PAUSE,
        Reason.RESUME,
    }
)
"""Reasons that come from a unit, an operator or the guest itself, never from a fault."""


@dataclass(frozen=True, slots=True)
class Hurt:
    """A resource on its way back: since when, in seconds of CLOCK_BOOTTIME, and why, once an action has told."""

    since_s: float
    spec: object
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Repair:
    """A resource that is again as its spec wants."""

    resource: str
    reason: Reason
    took_s: float


@dataclass(frozen=True, slots=True)
class Ledger:
    """What is hurt, and what the last pass knew: enough to tell in the next one what was hurt in between."""

    hurt: Mapping[str, Hurt] = field(default_factory=dict)
    deviating: frozenset[str] = frozenset()
    desired: Desired = Desired()
    observed: Observed = Observed()
    first: bool = True


def spec_of(resource: str, desired: Desired, observed: Observed) -> object | None:
    """What a resource is to be like, None if nothing is known of it; a running guest's taps follow its launch."""
    if "/" not in resource:
        return _spec_of_routing(resource, desired, observed)
    kind, _, name = resource.partition("/")
    if kind == "bridge":
        return desired.bridges.get(name.partition("/")[0])  # of its routes, too
    if kind == "vm":
        vm, _, part = name.partition("/")
        spec = desired.vms.get(vm)
        return spec.limits if spec is not None and part == LIMITS else desired.vms.get(name)
    if kind == "service":
        state = observed.services.get(name)
        return state.spec if state is not None else None
    if kind == "port":
        return next((bridge.name for bridge in desired.bridges.values() if name in bridge.ports), None)
    vm, _, nic_id = name.partition("/")
    if kind == "tap" and vm in observed.vms:
        return next((nic for nic in observed.vms[vm].spec.nics if nic.id == nic_id), None)
    return None


def _spec_of_routing(resource: str, desired: Desired, observed: Observed) -> object | None:
    """Of a resource that is one for the whole host."""
    if resource in {FIREWALL, FORWARDING}:
        return asked_of(desired.bridges, desired.vms)
    if resource == FILTERS:
        ports = tuple(port_names(desired.bridges, find_ports(desired.bridges, observed)))
        return filter_wish(desired.bridges, desired.vms, observed.vms, observed.links, ports).elements or None
    if resource == IPV6:
        modes = [(bridge.name, bridge.ipv6, bridge.uplink) for bridge in desired.bridges.values()]
        return modes, guests_by_proxy(desired.bridges, desired.vms)
    return None


def _earlier(resource: str, ledger: Ledger) -> object | None:
    return spec_of(resource, ledger.desired, ledger.observed)


def _was_launched(resource: str, observed: Observed) -> bool:
    """Whether an earlier agent launched what a resource is about: what is wrong with it then happened in between."""
    kind, _, name = resource.partition("/")
    if kind == "service":
        return name in observed.services
    return kind in {"vm", "tap"} and name.partition("/")[0] in observed.vms


def _is_back(resource: str, observed: Observed) -> bool:
    """A guest that its policy leaves off is no longer a deviation, and yet not repaired."""
    kind, _, name = resource.partition("/")
    return kind != "vm" or "/" in name or (name in observed.vms and observed.vms[name].run_state == "running")


def with_actions(ledger: Ledger, actions: Iterable[Action]) -> Ledger:
    """Note why hurt resources are being repaired; the first reason that an action gives stands."""
    hurt = dict(ledger.hurt)
    for action in actions:
        one = hurt.get(action.resource)
        if one is not None and one.reason is None and action.reason not in EDITS:
            hurt[action.resource] = replace(one, reason=action.reason)
    return replace(ledger, hurt=hurt)


def look(
    ledger: Ledger, plan: Plan, desired: Desired, observed: Observed, now_s: float
) -> tuple[Ledger, tuple[Repair, ...]]:
    """The ledger after a pass, and the repairs that the pass found complete."""
    hurt = dict(ledger.hurt)
    repairs: list[Repair] = []
    for resource in plan.deviating - ledger.deviating:
        spec = spec_of(resource, desired, observed)
        known = _was_launched(resource, observed) if ledger.first else spec == _earlier(resource, ledger)
        if spec is not None and known:
            hurt[resource] = Hurt(now_s, spec)
    for resource in [name for name in hurt if name not in plan.deviating and name not in observed.in_flight]:
        one = hurt.pop(resource)
        if one.reason is not None and spec_of(resource, desired, observed) == one.spec and _is_back(resource, observed):
            repairs.append(Repair(resource, one.reason, now_s - one.since_s))
    after = Ledger(hurt, plan.deviating, desired, observed, first=False)
    return with_actions(after, plan.actions), tuple(sorted(repairs, key=lambda repair: repair.resource))
