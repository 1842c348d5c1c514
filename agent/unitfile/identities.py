"""Who a guest is over time: its uuid, its uid, and the places of its devices; assigned once, then looked up."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping

from agent.core.allocation import UID_BASE, Allocations, first_free, with_slots
from agent.core.desired import MAX_DEVICES
from agent.core.marks import derived_uuid
from agent.unitfile.claims import Claim


class Uuids:
    """The uuids of guests whose units name none: those that they have, and new ones for those that have none yet."""

    def __init__(self, seed: uuid.UUID, known: Mapping[str, str], claims: Iterable[Claim]) -> None:
        asked = [claim for claim in claims if claim.kind == "uuid"]
        taken = {*known.values(), *(claim.key for claim in asked if claim.key is not None)}
        self._uuids = dict(known)
        for name in sorted({claim.resource.removeprefix("vm/") for claim in asked if claim.key is None} - known.keys()):
            fresh = derived_uuid(seed, name)
            times = 0
            while fresh in taken:  # a guest that was renamed took this name's uuid along
                times += 1
                fresh = derived_uuid(seed, f"{name}#{times}")
            taken.add(fresh)
            self._uuids[name] = fresh

    def of(self, name: str, explicit: str | None) -> str:
        """A guest's uuid; for one whose own `uuid` is invalid, something that is no other guest's."""
        return explicit if explicit is not None else self._uuids.get(name, name)


class Assigner:
    """Collects what one resolution assigns; `result` is the very same allocations when it assigns nothing.

    Uids are found here as agent.core.allocation would, but for all guests of a resolution at once: one by one costs
    quadratic time.
    """

    def __init__(self, allocations: Allocations) -> None:
        self._before = allocations
        self._uuids = dict(allocations.uuids)
        self._uids = dict(allocations.uids)
        self._slots = dict(allocations.slots)
        self._taken = frozenset(allocations.uids.values())
        self._next = UID_BASE
        self._changed = False

    def keep_uuids(self, uuids: Mapping[str, str]) -> None:
        """Remember the uuids of all guests that are wanted; a uuid that moved to another name is that name's."""
        if all(self._uuids.get(name) == uuid for name, uuid in uuids.items()):
            return
        moved = frozenset(uuids.values())
        kept = {name: uuid for name, uuid in self._uuids.items() if uuid not in moved}
        self._uuids = {**kept, **uuids}
        self._changed = True

    def uid(self, uuid: str) -> int:
        """The uid of a guest, assigned now if it has none."""
        if uuid not in self._uids:
            self._uids[uuid] = first_free(self._taken, self._next)
            self._next = self._uids[uuid] + 1
            self._changed = True
        return self._uids[uuid]

    def slots(self, uuid: str, devices: tuple[str, ...]) -> Mapping[str, int]:
        """The slots of a guest's devices. Those of devices that left are given away only when there are no others."""
        had = self._slots.get(uuid, {})
        if all(device in had for device in devices):
            return had
        slots = _slots(uuid, had, devices)
        if max(slots.values()) >= MAX_DEVICES:
            slots = _slots(uuid, {device: slot for device, slot in had.items() if device in devices}, devices)
        self._slots[uuid] = slots
        self._changed = True
        return slots

    def result(self) -> Allocations:
        """Everything that is assigned now."""
        return Allocations(self._uuids, self._uids, self._slots) if self._changed else self._before


def _slots(uuid: str, had: Mapping[str, int], devices: tuple[str, ...]) -> Mapping[str, int]:
    return with_slots(Allocations(slots={uuid: had}), uuid, devices)[0]
