"""Looks at all guests, from what the agent knows: their states as of the latest pass, their counters as of just now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from agent.core.desired import NicSpec
from agent.core.measures import GuestMeasure
from agent.core.tell.looks import GuestLook, NicCount
from agent.core.tell.status import StatusInputs
from agent.core.tell.vm_display import vm_display_state


class Counted(Protocol):
    """What the kernel counted on a tap, in the host's sense (rtnetlink, IFLA_STATS64)."""

    @property
    def rx_bytes(self) -> int: ...  # noqa: D102 - the kernel's names
    @property
    def tx_bytes(self) -> int: ...  # noqa: D102


def looks_at(
    inputs: StatusInputs, measures: Mapping[str, GuestMeasure], traffic: Mapping[str, Counted], traffic_at_s: float
) -> list[GuestLook]:
    """Every guest that a unit names or that is there, by name; `traffic` by tap."""
    desired, observed = inputs.desired, inputs.observed
    specs = {**desired.vms, **{name: state.spec for name, state in observed.vms.items()}}
    types = _condition_types(inputs)
    found = []
    for name, spec in sorted(specs.items()):
        state = observed.vms.get(name)
        nics = [(nic, traffic[nic.tap]) for nic in spec.nics if nic.tap in traffic]
        found.append(
            GuestLook(
                name,
                str(vm_display_state(name, desired.vms.get(name), observed, types.get(name, ()))),
                state.pid if state is not None and state.alive else None,
                measures.get(name),
                tuple(_count(nic, counted) for nic, counted in nics),
                traffic_at_s,
            )
        )
    return found


def _count(nic: NicSpec, counted: Counted) -> NicCount:
    """In the guest's sense: what a tap sends, its guest receives; a macvtap counts so already."""
    sent, received = counted.rx_bytes, counted.tx_bytes
    return NicCount(nic.id, sent, received) if nic.direct else NicCount(nic.id, received, sent)


def _condition_types(inputs: StatusInputs) -> Mapping[str, set[str]]:
    types: dict[str, set[str]] = {}
    for condition, _ in inputs.conditions:
        kind, _, rest = condition.resource.partition("/")
        if kind in {"vm", "tap"}:
            types.setdefault(rest.partition("/")[0], set()).add(condition.type)
    return types
