"""What is assigned once and kept: uuids, uids, and the places of NICs and disks on a guest's PCIe root ports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agent.core.desired import VmSpec

UID_BASE = 1_900_000_000
"""First of the uids for guests: systemd's table of uids leaves 1879048192 to 2147483647 unused."""
UID_LAST = 2_147_483_647

PORTS_PER_DEVICE = 8
"""PCIe root ports are the functions of PCI devices, eight each."""
MAX_PORT_DEVICES = 23
"""From the first PCI device number that is free for slots to the chipset's own (agent.core.qemu.platform)."""
SPARE_SLOTS = 2
"""The default of `hotplug-slots`."""


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
    """The slots of a guest's devices. A device that left keeps its own for its return, while there are others left.

    A new one takes the lowest place that was never used, if the guest has that from its start; else the place of one
    that left, so that names that come and go do not use up what a running guest can plug.
    """
    slots = dict(allocations.slots.get(uuid, {}))
    ports = ports_for(range(len(devices)))
    for device in devices:
        if device in slots:
            continue
        place = first_free(frozenset(slots.values()), 0)
        departed = {slot: one for one, slot in slots.items() if one not in devices and slot < ports}
        if place >= ports and departed:
            place = min(departed)
            del slots[departed[place]]
        slots[device] = place
    if slots == allocations.slots.get(uuid, {}):
        return slots, allocations
    return slots, Allocations(allocations.uuids, allocations.uids, {**allocations.slots, uuid: slots})


def ports_for(slots: Sequence[int], spare: int = SPARE_SLOTS) -> int:
    """How many places a guest has whose devices are at these, so many of them spare: eight for each PCI device."""
    used = 1 + max(slots, default=-1)
    return PORTS_PER_DEVICE * min(-(-(used + spare) // PORTS_PER_DEVICE), MAX_PORT_DEVICES)


def spec_slots(spec: VmSpec) -> Mapping[str, int]:
    """The slots that a spec's devices have, by the names under which they are allocated."""
    nics = {f"nic/{nic.id}": nic.slot for nic in spec.nics}
    return nics | {f"disk/{disk.id}": disk.slot for disk in spec.disks}
