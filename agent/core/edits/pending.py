"""What waits for a guest's next start: which changes, what applying them costs, and who applies them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from agent.core.desired import Apply, VmSpec
from agent.core.edits.digest import PendingChange, pending_changes
from agent.core.edits.effects import EFFECTS, Effect
from agent.core.edits.live import lacks_places, live_edit
from agent.core.observed import Observed, VmState
from agent.core.planner.fallback import Refusals, refusal_of
from agent.core.planner.obstacles import obstacle
from agent.core.planner.room import Room


class PendingLike(Protocol):
    """A change that waits for a restart (`agent.core.edits.digest.PendingChange`); values as units write them."""

    @property
    def key(self) -> str:
        """The unit's key, as `nic.lan.bridge`."""

    @property
    def before(self) -> object:
        """What the guest runs with."""

    @property
    def after(self) -> object:
        """What the unit says."""


def as_told(state: VmState) -> VmSpec:
    """What a guest runs as, with what it knows of itself: a virtio card hears of its MTU at its start only."""
    if not state.told_mtus:
        return state.spec
    nics = tuple(replace(nic, mtu=state.told_mtus.get(nic.id, nic.mtu)) for nic in state.spec.nics)
    return replace(state.spec, nics=nics)


def told_mtus(before: VmSpec, after: VmSpec, told: Mapping[str, int]) -> Mapping[str, int]:
    """What a guest was told of its cards' MTUs, where that is no longer so, after its spec changed beneath it."""
    known = {nic.id: told.get(nic.id, nic.mtu) for nic in before.nics if nic.model.startswith("virtio-net")}
    return {nic.id: known[nic.id] for nic in after.nics if known.get(nic.id, nic.mtu) != nic.mtu}


def pending_of(state: VmState, wanted: VmSpec) -> tuple[PendingChange, ...]:
    """What differs between a running guest and its unit, sorted by key."""
    if not state.told_mtus and (state.spec is wanted or state.spec == wanted):
        return ()
    return pending_changes(as_told(state), wanted)


def waits_for_start(state: VmState, wanted: VmSpec, refused: Refusals) -> bool:
    """Whether a start would apply something: not what is just being taken over, and not what QEMU has refused."""
    if not state.told_mtus and (state.spec is wanted or state.spec == wanted):
        return False
    if lacks_places(state, wanted) or live_edit(state, wanted) is not None:
        return False
    changes = pending_of(state, wanted)
    if (state.leaving_nics or state.leaving_disks) and all(change.key.count(".") == 1 for change in changes):
        return False  # a device that only waits for the place of one that is leaving
    return bool(changes) and refusal_of(wanted, refused) is None


def asks_to_restart(state: VmState, wanted: VmSpec, observed: Observed, room: Room) -> bool:
    """Whether a unit wants its running guest restarted for what waits; not for an MTU alone, which its tap has already.

    That may be a bridge's new one, which is no edit of this guest. Nor while it could not be started again.
    """
    if wanted.apply is not Apply.RESTART or state.run_state != "running" or state.stopping:
        return False
    waits = waits_for_start(state, wanted, observed.refused) and bool(pending_changes(state.spec, wanted))
    return waits and obstacle(wanted, state, observed, room) is None


def effect_of(key: str) -> Effect:
    """What applying a pending change does: a restart, or another guest in its place."""
    effect = EFFECTS["vm"].get(key)
    return Effect.REPLACE if effect is not None and effect.effect is Effect.REPLACE else Effect.RESTART


def outage(stop_timeout_s: float) -> str:
    """For how long a guest is down while a restart applies what waits, as far as that is known."""
    return f"restart: down until it has stopped (at most {stop_timeout_s:g} s) and booted again"


def pending_json(changes: Sequence[PendingLike], stop_timeout_s: float) -> list[dict[str, object]]:
    """Pending changes for `status` and `plan`; their keys are a promise to scripts."""
    return [
        {
            "key": change.key,
            "from": change.before,
            "to": change.after,
            "effect": str(effect_of(change.key)),
            "outage": outage(stop_timeout_s),
        }
        for change in changes
    ]
