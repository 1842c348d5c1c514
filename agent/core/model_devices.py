"""The model host's guests: what is plugged into one."""

from __future__ import annotations

from dataclasses import replace

from agent.core.device_actions import PlugDisk, PlugNic, TakeOver, UnplugDisk, UnplugNic
from agent.core.marks import tap_mark
from agent.core.observed import NicBackend, NicState, Observed, VmState
from agent.core.preconditions import require
from agent.core.qemu_argv import devices_at_launch, disk_node, nic_id
from agent.core.qemu_platform import root_port_id


def with_devices_at_launch(state: VmState) -> VmState:
    """A guest whose QEMU has just come up, with what it has by its command line."""
    return replace(state, devices=devices_at_launch(state.spec))


def with_devices(observed: Observed, action: TakeOver | PlugNic | UnplugNic | PlugDisk | UnplugDisk) -> VmState:
    """A running guest after it took over an edit, or after a device was plugged or unplugged."""
    state = observed.vms[action.vm]
    devices = state.devices or frozenset()
    match action:
        case TakeOver(edit=edit):
            require(state.alive and state.spec.uuid == action.uuid, "the guest to edit is the one that was seen")
            nics, disks = edit.leaving_nics, edit.leaving_disks
            spec = replace(edit.spec, limits=state.spec.limits)
            state = replace(state, spec=spec, leaving_nics=nics, leaving_disks=disks)
        case PlugNic(nic=nic):
            link = observed.links.get(nic.tap)
            require(link is not None and link.alias == tap_mark(action.vm, nic.id) and link.up, f"{nic.tap} is ready")
            require(_has_place(state, nic.slot) and nic_id(nic.id) not in devices, f"{nic.id} can be plugged")
            attached = {**state.nics, nic.id: NicState(NicBackend.ATTACHED, nic.tap)}
            state = replace(state, nics=attached, devices=devices | {nic_id(nic.id)})
        case UnplugNic(nic=nic):
            require(nic in state.leaving_nics, "only a NIC that is leaving is unplugged")
            others = {i: n for i, n in state.nics.items() if i != nic.id}
            rest = tuple(one for one in state.leaving_nics if one != nic)
            state = replace(state, nics=others, leaving_nics=rest, devices=devices - {nic_id(nic.id)})
        case PlugDisk(disk=disk):
            require(not disk.path or observed.disks[disk.path].exists, f"{disk.path} is there")
            require(_has_place(state, disk.slot) and disk_node(disk.id) not in devices, f"{disk.id} can be plugged")
            state = replace(state, devices=devices | {disk_node(disk.id)})
        case UnplugDisk(disk=disk):
            require(disk in state.leaving_disks, "only a disk that is leaving is unplugged")
            remaining = tuple(one for one in state.leaving_disks if one != disk)
            state = replace(state, leaving_disks=remaining, devices=devices - {disk_node(disk.id)})
    return state


def _has_place(state: VmState, slot: int) -> bool:
    """Whether no other device of a guest is at a slot: what is leaving is there until it is gone."""
    plugged = state.devices or frozenset()
    nics = [nic.slot for nic in (*state.spec.nics, *state.leaving_nics) if nic_id(nic.id) in plugged]
    disks = [disk.slot for disk in (*state.spec.disks, *state.leaving_disks) if disk_node(disk.id) in plugged]
    return slot not in (*nics, *disks) and (state.spec.machine != "q35" or root_port_id(slot) in plugged)
