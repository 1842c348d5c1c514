"""What is assigned once and kept: uuids, uids, and the places of NICs and disks on a guest's PCIe root ports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.core.desired import VmSpec

UID_BASE = 1_900_000_000
"""First of the uids for guests: systemd's table of uids leaves 1879048192 to 2147483647 unused."""
UID_LAST = 2_147_483_647


@dataclass(frozen=True, slots=True)
class Allocations:
    """`uuids` by guest name, `uids` by uuid, `slots` by uuid and device (`nic/lan`, `disk/root`)."""

    uuids: Mapping[str, str] = field(default_factory=dict)
    uids: Mapping[str, int] = field(default_factory=dict)
    slots: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def is_guest_uid(uid: int) -> bool:
    """Whether a uid is of those that only guests get."""
    return UID_BASE <= uid <= UID_LAST


def first_free(taken: frozenset[int], start: int) -> int:
    """The smallest number from `start` on that is not taken."""
    number = start
    while number in taken:
        number += 1
    return number


def with_slots(allocations: Allocations, uuid: str, devices: tuple[str, ...]) -> tuple[Mapping[str, int], Allocations]:
    """The slots of a guest's devices, new ones at the lowest free places; a device that left keeps its own."""
    slots = dict(allocations.slots.get(uuid, {}))
    for device in devices:
        if device not in slots:
            slots[device] = first_free(frozenset(slots.values()), 0)
    if slots == allocations.slots.get(uuid, {}):
        return slots, allocations
    return slots, Allocations(allocations.uuids, allocations.uids, {**allocations.slots, uuid: slots})


def spec_slots(spec: VmSpec) -> Mapping[str, int]:
    """The slots that a spec's devices have, by the names under which they are allocated."""
    nics = {f"nic/{nic.id}": nic.slot for nic in spec.nics}
    return nics | {f"disk/{disk.id}": disk.slot for disk in spec.disks}
