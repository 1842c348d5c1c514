"""What a running guest takes over of its edited unit: everything live, and the devices that can be plugged now.

The result is what the guest is to be like from now on, and is written down before anything is done to it. What it lacks
then is plugged, what is leaving is unplugged, and an agent that dies in the middle leaves both to the next one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from agent.core.desired import DiskSpec, NicSpec, VmSpec
from agent.core.edits.effects import is_live
from agent.core.edits.tuning import medium_key
from agent.core.observed import VmState
from agent.core.qemu.platform import BALLOON, MICROVM, family, root_port_id

Device = TypeVar("Device", NicSpec, DiskSpec)

_AT_TIMES = frozenset({"cpus", "balloon_mib"})
"""Live where the guest has what they need."""

_LIVE_VM = tuple(
    field.name
    for field in fields(VmSpec)
    if (is_live("vm", field.name) or field.name == "file") and field.name not in _AT_TIMES
)
_LIVE_NIC = tuple(field.name for field in fields(NicSpec) if is_live("nic", field.name))
_LIVE_DISK = tuple(field.name for field in fields(DiskSpec) if is_live("disk", field.name))
_LIVE_ANYWHERE = ("tap", "mtu", "link")
"""What of a NIC is live also while it waits to be put from a bridge onto a link, or back: its filters and limits belong
to where it is."""

_LIVE_MEDIUM = ("path", "format")
"""A medium's format follows from its path."""


@dataclass(frozen=True, slots=True)
class Edit:
    """What a guest is to be like, and the devices that it must let go of for that."""

    spec: VmSpec
    leaving_nics: tuple[NicSpec, ...] = ()
    leaving_disks: tuple[DiskSpec, ...] = ()


def live_edit(state: VmState, wanted: VmSpec) -> Edit | None:
    """What a guest takes over of its unit while it runs; None if that is how it runs already.

    A device that is leaving and is wanted again stays, as it is plugged; one that is wanted differently, or by another
    id, is not plugged anew beneath the guest, that waits for its next start.
    """
    if not (state.leaving_nics or state.leaving_disks) and (state.spec is wanted or state.spec == wanted):
        return None
    nics = (*state.spec.nics, *state.leaving_nics)
    disks = (*state.spec.disks, *state.leaving_disks)
    taken = {nic.slot for nic in nics} | {disk.slot for disk in disks}
    kept_nics, leaving_nics = _sorted_out(state, nics, wanted.nics, _LIVE_NIC)
    kept_disks, leaving_disks = _sorted_out(state, disks, wanted.disks, _LIVE_DISK)
    new_nics = _new(state, nics, wanted.nics, taken)
    new_disks = _new(state, disks, wanted.disks, taken)
    spec = replace(
        state.spec,
        **{name: getattr(wanted, name) for name in _LIVE_VM},
        cpus=_live_cpus(state.spec, wanted),
        balloon_mib=wanted.balloon_mib if BALLOON in (state.devices or ()) else state.spec.balloon_mib,
        nics=_in_order([*kept_nics, *new_nics], wanted.nics),
        disks=_in_order([*kept_disks, *new_disks], wanted.disks),
    )
    edit = Edit(spec, leaving_nics, leaving_disks)
    return None if edit == Edit(state.spec, state.leaving_nics, state.leaving_disks) else edit


def _sorted_out(
    state: VmState, present: Sequence[Device], wanted: Sequence[Device], live: Collection[str]
) -> tuple[list[Device], tuple[Device, ...]]:
    """The devices that stay, with what is live of their edits, and those that leave."""
    by_id = {device.id: device for device in wanted}
    kept = [
        _edited(state, device, by_id.get(device.id, device), live)
        for device in present
        if device.id in by_id or not can_unplug(state, device) or _has_new_id(state, device, wanted)
    ]
    staying = {device.id for device in kept}
    return kept, tuple(device for device in present if device.id not in staying)


def _has_new_id(state: VmState, device: Device, wanted: Sequence[Device]) -> bool:
    """Whether a device is wanted under another id: who renames a table does not ask for its disk to be taken away."""
    return device in (*state.spec.nics, *state.spec.disks) and any(_are_one(device, other) for other in wanted)


def _are_one(one: NicSpec | DiskSpec, other: NicSpec | DiskSpec) -> bool:
    """Whether two devices are the same thing by two ids: one MAC address, or one file. Drives may share a medium."""
    if isinstance(one, NicSpec) or isinstance(other, NicSpec):
        same = isinstance(one, NicSpec) and isinstance(other, NicSpec) and one.mac == other.mac
    else:
        same = one.path == other.path and one.media == other.media == "disk"
    return same and one.id != other.id


def _edited(state: VmState, device: Device, wanted: Device, live: Collection[str]) -> Device:
    """A device that stays, with what is live of its edits. A size is that of its file: of another one, it waits too."""
    names = (*live, *_LIVE_MEDIUM) if _takes_media(state, device, wanted) else live
    if _has_new_place(device, wanted):
        names = _LIVE_ANYWHERE
    if _has_new_file(device, wanted):
        names = [name for name in names if name != "size_bytes"]
    return replace(device, **{name: getattr(wanted, name) for name in names})


def _has_new_file(device: NicSpec | DiskSpec, wanted: NicSpec | DiskSpec) -> bool:
    return isinstance(device, DiskSpec) and isinstance(wanted, DiskSpec) and device.path != wanted.path


def _has_new_place(device: NicSpec | DiskSpec, wanted: NicSpec | DiskSpec) -> bool:
    return isinstance(device, NicSpec) and isinstance(wanted, NicSpec) and device.direct != wanted.direct


def _takes_media(state: VmState, device: NicSpec | DiskSpec, wanted: NicSpec | DiskSpec) -> bool:
    """Whether this is a CD-ROM drive, as before, of which is known what is in it: older launches did not write it."""
    drives = [one for one in (device, wanted) if isinstance(one, DiskSpec) and one.media == "cdrom"]
    return len(drives) == 2 and medium_key(device.id) in state.tuned


def _live_cpus(spec: VmSpec, wanted: VmSpec) -> int:
    """How many CPUs a guest is to have by now: more only up to what its launch left room for, never fewer.

    To let go of one is not asked for: under TCG it breaks QEMU (7.2: heap corruption at the next plug, or a guest that
    stands still).
    """
    return wanted.cpus if spec.cpus <= wanted.cpus <= (spec.max_cpus or 0) else spec.cpus


def _new(state: VmState, present: Sequence[Device], wanted: Sequence[Device], taken: set[int]) -> list[Device]:
    """The devices that the guest has not and that can be plugged now; their places are `taken` from then on."""
    known = {device.id for device in present}
    found: list[Device] = []
    for device in wanted:
        is_there = device.id in known or any(_are_one(device, other) for other in present)
        if not is_there and device.slot not in taken and can_plug(state, device):
            taken.add(device.slot)
            found.append(device)
    return found


def _in_order(devices: Sequence[Device], wanted: Sequence[Device]) -> tuple[Device, ...]:
    """In the order of the unit, so that a guest without anything pending has exactly its unit's spec."""
    order = {device.id: number for number, device in enumerate(wanted)}
    return tuple(sorted(devices, key=lambda device: order.get(device.id, len(order))))


def untouched_by(edit: Edit, state: VmState) -> VmState:
    """A guest with those devices only that stay, or go on leaving, when it takes an edit over."""
    nics, disks = {nic.id for nic in edit.spec.nics}, {disk.id for disk in edit.spec.disks}
    spec = replace(
        state.spec,
        nics=tuple(nic for nic in state.spec.nics if nic.id in nics),
        disks=tuple(disk for disk in state.spec.disks if disk.id in disks),
    )
    leaving_nics = tuple(nic for nic in state.leaving_nics if nic.id not in nics)
    leaving_disks = tuple(disk for disk in state.leaving_disks if disk.id not in disks)
    return replace(state, spec=spec, leaving_nics=leaving_nics, leaving_disks=leaving_disks)


def can_plug(state: VmState, device: NicSpec | DiskSpec) -> bool:
    """Whether a running guest has a place for a device: on q35 a root port, which QEMU cannot add later."""
    if not can_unplug(state, device):
        return False
    if family(state.spec.machine) != "q35":
        return True
    return state.devices is not None and root_port_id(device.slot) in state.devices


def can_unplug(state: VmState, device: NicSpec | DiskSpec) -> bool:
    """Whether a device's kind can be plugged at all (QEMU: neither on a microvm, nor a drive on SATA)."""
    return state.spec.machine != MICROVM and (isinstance(device, NicSpec) or device.bus != "sata")


def lacks_places(state: VmState, wanted: VmSpec) -> bool:
    """Whether it is not known yet what a guest has, while its unit has a device that it has not, or tunes one."""
    if state.devices is not None:
        return False
    if wanted.balloon_mib != state.spec.balloon_mib:
        return True
    nics, disks = {nic.id for nic in state.spec.nics}, {disk.id for disk in state.spec.disks}
    return any(nic.id not in nics for nic in wanted.nics) or any(disk.id not in disks for disk in wanted.disks)
