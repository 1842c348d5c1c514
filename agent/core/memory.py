"""What the agent must not forget over its own restarts, and how each event changes it; the state directory keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from functools import reduce

from agent.core.allocation import Allocations, spec_slots
from agent.core.desired import BridgeSpec, VmSpec
from agent.core.edits.digest import digest
from agent.core.observed import End, Hold, Intent, LinkState, Refusal, VmState
from agent.core.planner import fallback
from agent.core.planner.approval import WINDOW_S
from agent.core.planner.policy import ENDS_KEPT
from agent.core.tell.notifications import Told, without_times

SAME_LAUNCH_S = 0.005
"""A process's start time has a resolution of 10 ms; two launches of a guest are further apart."""

VERSION = 2
"""Of the state file: one of a later version is left alone, one of an earlier is migrated (`agent.core.migrations`)."""


@dataclass(frozen=True, slots=True)
class Memory:
    """`seed` makes uuids, `incumbents` says which file holds which name, `retained` are last specs of bridges.

    `known_disks` were seen or made once, `enslaved` are entries of bridges' `ports` that we put there in this boot of
    the host, `enslaved_index` the numbers of the link and of its bridge by `BRIDGE/ENTRY`, `stops_at_s` recent stops
    that units asked for, `approved` the guests whose stop an operator allowed (`name/uuid`). `down_in` is
    the boot of the host in which no guest is to run, if it is this one; `down_by_s` when its guests' time to shut
    themselves down is over (CLOCK_BOOTTIME of that boot). `told` is what people were notified of. `refused` is what
    QEMU would not start with, by uuid.
    `opened` are the links (`all` of them) by which the kernel forwards because of us, by IP version; `opened_in` is the
    boot of the host that this is true of, `opened_index` the numbers of those links, whose names may change, and
    `sysctls` parameters that we changed for IPv6, and what they were.
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
    down_by_s: float | None = None
    told: Mapping[str, Told] = field(default_factory=dict)
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    routes6_in: str = ""
    opened: frozenset[tuple[int, str]] = frozenset()
    opened_in: str = ""
    opened_index: Mapping[str, int] = field(default_factory=dict)
    sysctls: Mapping[str, int] = field(default_factory=dict)
    enslaved_index: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def with_boot(memory: Memory, boot_id: str) -> Memory:
    """Memory in a boot of the host: times of an earlier boot say nothing in this one, and no port is in its bridge."""
    if memory.boot_id == boot_id:
        return memory
    told = without_times(memory.told)
    return replace(memory, boot_id=boot_id, stops_at_s=(), told=told, enslaved=frozenset(), enslaved_index={})


def with_port(memory: Memory, place: tuple[str, str], port: int, bridge: int) -> Memory:
    """Remember that an entry put this link into that bridge, by their numbers: it is nowhere else now."""
    gone = {key for key, (index, _) in memory.enslaved_index.items() if index == port}
    pairs = {pair for pair in memory.enslaved if port_key(pair) not in gone}
    index = {key: value for key, value in memory.enslaved_index.items() if key not in gone}
    return replace(
        memory, enslaved=frozenset({*pairs, place}), enslaved_index={**index, port_key(place): (port, bridge)}
    )


def without_port(memory: Memory, port: int, place: tuple[str, str]) -> Memory:
    """Forget that this link was put into a bridge; `place` is its name with the bridge, as earlier agents wrote it."""
    gone = {key for key, (index, _) in memory.enslaved_index.items() if index == port} | {port_key(place)}
    pairs = frozenset(pair for pair in memory.enslaved if port_key(pair) not in gone)
    index = {key: value for key, value in memory.enslaved_index.items() if key not in gone}
    return replace(memory, enslaved=pairs, enslaved_index=index)


def without_ports_of(memory: Memory, bridge: str) -> Memory:
    """Forget what was put into a bridge that is gone."""
    pairs = frozenset(pair for pair in memory.enslaved if pair[1] != bridge)
    if len(pairs) == len(memory.enslaved):
        return memory
    kept = {port_key(pair) for pair in pairs}
    return replace(memory, enslaved=pairs, enslaved_index={k: v for k, v in memory.enslaved_index.items() if k in kept})


def with_port_numbers(memory: Memory, links: Mapping[str, LinkState]) -> Memory:
    """Memory of an earlier agent, which remembered ports by name alone, with the numbers that they have."""
    found = {
        port_key(pair): (link.ifindex, master.ifindex)
        for pair in memory.enslaved
        if port_key(pair) not in memory.enslaved_index
        and (link := links.get(pair[0])) is not None
        and (master := links.get(pair[1])) is not None
        and link.master == master.ifindex
    }
    return replace(memory, enslaved_index={**memory.enslaved_index, **found}) if found else memory


def cards_of(memory: Memory) -> Mapping[tuple[str, str], int]:
    """The number of the link that each entry put into its bridge (`Observed.cards`)."""
    numbers = memory.enslaved_index
    return {pair: numbers[port_key(pair)][0] for pair in memory.enslaved if port_key(pair) in numbers}


def enslaved_links(memory: Memory, links: Mapping[str, LinkState]) -> frozenset[tuple[str, str]]:
    """The links that we put into bridges that are still the same, by their present names (`Observed.enslaved`)."""
    if not memory.enslaved_index:
        return frozenset()
    names = {link.ifindex: name for name, link in links.items()}
    found = set()
    for key, (port, master) in memory.enslaved_index.items():
        bridge = key.partition("/")[0]
        if port in names and names.get(master) == bridge:
            found.add((names[port], bridge))
    return frozenset(found)


def port_key(place: tuple[str, str]) -> str:
    """How an entry and its bridge are written as one key; no name of a link holds a slash."""
    return f"{place[1]}/{place[0]}"


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
    """Memory after an operator's `start`, `stop`, `restart`, `reset`, `pause`, `resume` or `release`.

    A start forgives earlier ends. The later word counts: whoever starts, stops or restarts a guest wants no pause of it
    any more, and one that was paused is let go on by a start.
    """
    old = memory.intents.get(name, Intent())
    unpaused = replace(old, paused=False)
    resumed = replace(unpaused, resume_generation=old.resume_generation + 1)
    changes = {
        "start": replace(resumed if old.paused else old, stopped=False),
        "stop": replace(unpaused, stopped=True),
        "restart": replace(unpaused, stopped=False, generation=old.generation + 1),
        "reset": replace(old, reset_generation=old.reset_generation + 1),
        "pause": replace(old, paused=True),
        "resume": resumed,
        "release": replace(old, hold=None),
    }
    intents = {**memory.intents, name: changes[verb]}
    if verb in {"start", "restart"}:
        return replace(memory, intents=intents, ends={n: e for n, e in memory.ends.items() if n != name})
    return replace(memory, intents=intents)


def with_hold(memory: Memory, name: str, hold: Hold) -> Memory:
    """Memory after an operator's `hold`; a later one replaces it."""
    intent = replace(memory.intents.get(name, Intent()), hold=hold)
    return replace(memory, intents={**memory.intents, name: intent})


def with_reboot(memory: Memory, name: str) -> Memory:
    """Forget the ends of a guest that rebooted: it is started again whatever its restart policy, and at once."""
    return replace(memory, ends={n: e for n, e in memory.ends.items() if n != name})


def with_refusal(memory: Memory, spec: VmSpec, said: str, former: VmSpec | None, *, fell_back: bool) -> Memory:
    """Remember that QEMU would not start with a spec; without another one that ran there is nothing to fall back to.

    `fell_back`: it was tried in place of one that was refused. To go back and forth would help nobody, so only the
    wanted one is tried from then on.
    """
    known = memory.refused.get(spec.uuid)
    if fell_back:
        refusal = replace(known, former_refused=True) if known is not None else None
    elif former is None or digest(former) == digest(spec):
        refusal = None
    else:
        same = known is not None and known.digest == digest(spec)
        refusal = replace(known, said=said, times=known.times + 1) if known is not None and same else None
        refusal = refusal or Refusal(digest(spec), said, former)
    if refusal is None:
        return without_refusal(memory, spec.uuid)
    return replace(memory, refused={**memory.refused, spec.uuid: refusal})


def without_refusal(memory: Memory, uuid: str) -> Memory:
    """Forget what QEMU would not start: it is tried again."""
    if uuid not in memory.refused:
        return memory
    return replace(memory, refused={other: one for other, one in memory.refused.items() if other != uuid})


def with_lack(memory: Memory, uuid: str, lack: Refusal | None) -> Memory:
    """Remember for a guest's next start that what its unit asks for is not there; None: it counts no longer."""
    refused = fallback.with_lack(memory.refused, uuid, lack)
    return memory if refused is memory.refused else replace(memory, refused=refused)


def without_lacks(memory: Memory, running: Set[str]) -> Memory:
    """Forget what the starts of those lacked, by uuid, that run: their next one is another matter."""
    return reduce(lambda left, uuid: with_lack(left, uuid, None), sorted(memory.refused.keys() & running), memory)


def new_names(before: Mapping[str, VmSpec], after: Mapping[str, VmSpec]) -> Mapping[str, str]:
    """The new name of each guest that is wanted under another one than before, by its old name."""
    names = {spec.uuid: name for name, spec in before.items()}
    return {names[spec.uuid]: name for name, spec in after.items() if names.get(spec.uuid, name) != name}


def with_new_names(memory: Memory, names: Mapping[str, str]) -> Memory:
    """Memory after guests got new names, by their old ones."""
    intents = carried_intents(memory.intents, names)
    return memory if intents is memory.intents else replace(memory, intents=intents)


def carried_intents(intents: Mapping[str, Intent], names: Mapping[str, str]) -> Mapping[str, Intent]:
    """Whether its operator stopped, paused or holds a guest goes with it, never to whoever has its old name now.

    The very same intents where that changes nothing.
    """
    sources = {**dict.fromkeys(names, Intent()), **{new: intents.get(old, Intent()) for old, new in names.items()}}
    changes: dict[str, Intent] = {}
    for name, source in sources.items():
        old = intents.get(name, Intent())
        intent = replace(old, stopped=source.stopped, paused=source.paused, hold=source.hold)
        if intent != old:
            changes[name] = intent
    return {**intents, **changes} if changes else intents


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
        resume_generation=max(intent.resume_generation, state.resume_generation),
    )
    return replace(
        memory,
        allocations=allocations,
        intents={**memory.intents, spec.name: intent},
        known_disks=memory.known_disks | {disk.path for disk in spec.disks if disk.path},
    )


def without_guests(memory: Memory, present: frozenset[str]) -> Memory:
    """Forget what was asked of, and what happened to, guests that neither a unit nor a process knows any more.

    Their uuids, uids and slots stay: a unit that returns finds its guest's identity as it was, and a hold, which ends
    by its operator's word only.
    """
    intents = {name: value for name, value in memory.intents.items() if name in present or value.hold is not None}
    ends = {name: value for name, value in memory.ends.items() if name in present}
    restarts = {name: value for name, value in memory.restarts.items() if name in present}
    refused = {uuid: value for uuid, value in memory.refused.items() if value.former.name in present}
    kept = (len(intents), len(ends), len(restarts), len(refused))
    if kept == (len(memory.intents), len(memory.ends), len(memory.restarts), len(memory.refused)):
        return memory
    return replace(memory, intents=intents, ends=ends, restarts=restarts, refused=refused)
