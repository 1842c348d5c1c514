"""What the agent must not forget over its own restarts, and how each event changes it; the state directory keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from agent.core.allocation import Allocations, spec_slots
from agent.core.approval import WINDOW_S
from agent.core.desired import BridgeSpec, VmSpec
from agent.core.observed import End, Intent, VmState
from agent.core.policy import ENDS_KEPT

SAME_LAUNCH_S = 0.005
"""A process's start time has a resolution of 10 ms; two launches of a guest are further apart."""

VERSION = 1
"""The layout of the state file; a file of a later version is left alone."""


@dataclass(frozen=True, slots=True)
class Memory:
    """`seed` makes uuids, `incumbents` says which file holds which name, `retained` are last specs of bridges.

    `known_disks` were seen or made once, `enslaved` are ports that we put into bridges, `stops_at_s` recent stops that
    units asked for, `approved` the guests whose stop an operator allowed (`name/uuid`). `down_in` is
    the boot of the host in which no guest is to run, if it is this one.
    """

    seed: str
    version: int = VERSION
    boot_id: str = ""
    allocations: Allocations = Allocations()
    incumbents: Mapping[str, str] = field(default_factory=dict)
    retained: Mapping[str, BridgeSpec] = field(default_factory=dict)
    intents: Mapping[str, Intent] = field(default_factory=dict)
    ends: Mapping[str, tuple[End, ...]] = field(default_factory=dict)
    restarts: Mapping[str, int] = field(default_factory=dict)
    known_disks: frozenset[str] = frozenset()
    enslaved: frozenset[tuple[str, str]] = frozenset()
    stops_at_s: tuple[float, ...] = ()
    approved: frozenset[str] = frozenset()
    down_in: str = ""


def with_boot(memory: Memory, boot_id: str) -> Memory:
    """Memory in a boot of the host: times of an earlier boot say nothing in this one."""
    if memory.boot_id == boot_id:
        return memory
    return replace(memory, boot_id=boot_id, stops_at_s=())


def with_end(memory: Memory, name: str, end: End) -> Memory:
    """Remember an end that the restart policy is to answer; one that is told again, of the same launch, is one."""
    last = memory.ends.get(name, ())[-1:]
    if last and last[0].boot_id == end.boot_id and abs(_began_s(last[0]) - _began_s(end)) < SAME_LAUNCH_S:
        return memory
    ends = (*memory.ends.get(name, ()), end)[-ENDS_KEPT:]
    return replace(memory, ends={**memory.ends, name: ends})


def _began_s(end: End) -> float:
    return end.at_s - end.ran_s


def with_restart(memory: Memory, name: str) -> Memory:
    """Count a launch that answered an end."""
    return replace(memory, restarts={**memory.restarts, name: memory.restarts.get(name, 0) + 1})


def with_stop(memory: Memory, name: str, uuid: str, now_s: float) -> Memory:
    """Remember a stop that a unit asked for; an approval of it is used up."""
    stops = (*(at_s for at_s in memory.stops_at_s if at_s > now_s - WINDOW_S), now_s)
    return replace(memory, stops_at_s=stops, approved=memory.approved - {f"{name}/{uuid}"})


def with_intent(memory: Memory, name: str, verb: str) -> Memory:
    """Memory after an operator's `start`, `stop`, `restart` or `reset`; a start forgives earlier ends."""
    old = memory.intents.get(name, Intent())
    changes = {
        "start": replace(old, stopped=False),
        "stop": replace(old, stopped=True),
        "restart": replace(old, stopped=False, generation=old.generation + 1),
        "reset": replace(old, reset_generation=old.reset_generation + 1),
    }
    intents = {**memory.intents, name: changes[verb]}
    if verb in {"start", "restart"}:
        return replace(memory, intents=intents, ends={n: e for n, e in memory.ends.items() if n != name})
    return replace(memory, intents=intents)


def new_names(before: Mapping[str, VmSpec], after: Mapping[str, VmSpec]) -> Mapping[str, str]:
    """The new name of each guest that is wanted under another one than before, by its old name."""
    names = {spec.uuid: name for name, spec in before.items()}
    return {names[spec.uuid]: name for name, spec in after.items() if names.get(spec.uuid, name) != name}


def with_new_names(memory: Memory, names: Mapping[str, str]) -> Memory:
    """Whether a guest was stopped by its operator goes with it, and never to whoever has its old name now."""
    stopped = {new: memory.intents.get(old, Intent()).stopped for old, new in names.items()}
    changes = {**dict.fromkeys(names, False), **stopped}
    intents = {
        name: replace(memory.intents.get(name, Intent()), stopped=stopped)
        for name, stopped in changes.items()
        if memory.intents.get(name, Intent()).stopped != stopped
    }
    return replace(memory, intents={**memory.intents, **intents}) if intents else memory


def with_launch(memory: Memory, state: VmState) -> Memory:
    """Memory that agrees with a guest that was launched: rebuilt from it where the state file was lost."""
    spec = state.spec
    allocations = Allocations(
        {**memory.allocations.uuids, spec.name: spec.uuid},
        {**memory.allocations.uids, spec.uuid: spec.uid},
        {
            **memory.allocations.slots,
            spec.uuid: {**memory.allocations.slots.get(spec.uuid, {}), **spec_slots(spec)},
        },
    )
    intent = memory.intents.get(spec.name, Intent())
    intent = replace(
        intent,
        generation=max(intent.generation, state.generation),
        reset_generation=max(intent.reset_generation, state.reset_generation),
    )
    return replace(
        memory,
        allocations=allocations,
        intents={**memory.intents, spec.name: intent},
        known_disks=memory.known_disks | {disk.path for disk in spec.disks if disk.path},
    )


def without_guests(memory: Memory, present: frozenset[str]) -> Memory:
    """Forget what was asked of, and what happened to, guests that neither a unit nor a process knows any more.

    Their uuids, uids and slots stay: a unit that returns finds its guest's identity as it was.
    """
    intents = {name: value for name, value in memory.intents.items() if name in present}
    ends = {name: value for name, value in memory.ends.items() if name in present}
    restarts = {name: value for name, value in memory.restarts.items() if name in present}
    if (len(intents), len(ends), len(restarts)) == (len(memory.intents), len(memory.ends), len(memory.restarts)):
        return memory
    return replace(memory, intents=intents, ends=ends, restarts=restarts)
