"""The model host's guests: what is plugged into one, and what its QEMU was told while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from agent.core.desired import NicSpec, VmSpec
from agent.core.device_actions import PlugDisk, PlugNic, TakeOver, UnplugDisk, UnplugNic
from agent.core.edits.pending import told_mtus
from agent.core.edits.tuning import disk_setting, link_key, medium_key, nic_setting, throttle_key, tuned_at_launch
from agent.core.marks import tap_mark
from agent.core.observed import NicBackend, NicState, Observed, VmState
from agent.core.preconditions import require
from agent.core.qemu.argv import devices_at_launch, disk_node, drive_node, nic_id, wants_vhost
from agent.core.qemu.platform import root_port_id
from agent.core.tuning_actions import ChangeMedium, PlugCpus, TuneVm


def with_devices_at_launch(state: VmState) -> VmState:
    """A guest whose QEMU has just come up, with what it has by its command line."""
    spec = state.spec
    media = {disk.id: drive_node(disk) for disk in spec.disks if disk.media == "cdrom"}
    cpus = spec.cpus if spec.max_cpus is not None else None
    return replace(state, devices=devices_at_launch(spec), tuned=tuned_at_launch(spec), media=media, cpus=cpus)


def uses_vhost(observed: Observed, spec: VmSpec, nic: NicSpec) -> bool:
    """Whether a NIC that is plugged now gets vhost-net."""
    kvm = observed.host.memory is not None and observed.host.memory.kvm
    return not observed.host.vhost_problem and wants_vhost(spec, nic, kvm=kvm)


def with_devices(observed: Observed, action: TakeOver | PlugNic | UnplugNic | PlugDisk | UnplugDisk) -> VmState:
    """A running guest after it took over an edit, or after a device was plugged or unplugged."""
    state = observed.vms[action.vm]
    devices = state.devices or frozenset()
    match action:
        case TakeOver(edit=edit):
            require(state.alive and state.spec.uuid == action.uuid, "the guest to edit is the one that was seen")
            nics, disks = edit.leaving_nics, edit.leaving_disks
            spec = replace(edit.spec, limits=state.spec.limits)
            told = told_mtus(state.spec, edit.spec, state.told_mtus)
            state = replace(state, spec=spec, leaving_nics=nics, leaving_disks=disks, told_mtus=told)
        case PlugNic(nic=nic):
            link = observed.links.get(nic.tap)
            require(link is not None and link.alias == tap_mark(action.vm, nic.id) and link.up, f"{nic.tap} is ready")
            require(_has_place(state, nic.slot) and nic_id(nic.id) not in devices, f"{nic.id} can be plugged")
            require(not nic.direct or nic.tap in observed.opened, f"{nic.tap} is open")
            own = frozenset({nic.id}) if uses_vhost(observed, state.spec, nic) else frozenset()
            state = replace(state, vhosts=(state.vhosts - {nic.id}) | own)
            attached = {**state.nics, nic.id: NicState(NicBackend.ATTACHED, nic.tap)}
            state = replace(state, nics=attached, devices=devices | {nic_id(nic.id)})
            state = replace(state, tuned={**state.tuned, **dict([nic_setting(nic)])})
        case UnplugNic(nic=nic):
            require(nic in state.leaving_nics, "only a NIC that is leaving is unplugged")
            others = {i: n for i, n in state.nics.items() if i != nic.id}
            state = replace(state, vhosts=state.vhosts - {nic.id})
            rest = tuple(one for one in state.leaving_nics if one != nic)
            state = replace(state, nics=others, leaving_nics=rest, devices=devices - {nic_id(nic.id)})
            state = replace(state, tuned=_without(state.tuned, link_key(nic.id)))
        case PlugDisk(disk=disk):
            require(not disk.path or observed.disks[disk.path].exists, f"{disk.path} is there")
            require(_has_place(state, disk.slot) and disk_node(disk.id) not in devices, f"{disk.id} can be plugged")
            state = replace(state, devices=devices | {disk_node(disk.id)})
            if disk.media == "cdrom":
                state = _with_medium(state, disk.id, drive_node(disk))
            else:
                state = replace(state, tuned={**state.tuned, **dict([disk_setting(disk)])})
        case UnplugDisk(disk=disk):
            require(disk in state.leaving_disks, "only a disk that is leaving is unplugged")
            remaining = tuple(one for one in state.leaving_disks if one != disk)
            tuned = _without(state.tuned, throttle_key(disk.id), medium_key(disk.id))
            media = _without(state.media, disk.id)
            state = replace(
                state, leaving_disks=remaining, devices=devices - {disk_node(disk.id)}, tuned=tuned, media=media
            )
    return state


def with_tuning(observed: Observed, action: TuneVm | PlugCpus | ChangeMedium) -> VmState:
    """A running guest after it was told or given something that is plugged into no place."""
    state = observed.vms[action.vm]
    match action:
        case TuneVm(settings=settings):
            require(state.alive and state.spec.uuid == action.uuid, "the guest to tune is the one that was seen")
            state = replace(state, tuned={**state.tuned, **dict(settings)})
        case PlugCpus(cpus=cpus):
            room = state.spec.max_cpus or 0
            require(state.cpus is not None and state.cpus < cpus <= room, f"{action.vm} has room for {cpus} CPUs")
            state = replace(state, cpus=cpus)
        case ChangeMedium(disk=disk):
            require(disk_node(disk.id) in (state.devices or ()) and disk.media == "cdrom", f"{disk.id} is a drive")
            require(not disk.path or observed.disks[disk.path].exists, f"{disk.path} is there")
            state = _with_medium(state, disk.id, drive_node(disk))
    return state


def _with_medium(state: VmState, drive: str, node: str) -> VmState:
    tuned = {**state.tuned, medium_key(drive): node}
    return replace(state, media={**state.media, drive: node}, tuned=tuned)


def _without(values: Mapping[str, str], *keys: str) -> Mapping[str, str]:
    return {key: value for key, value in values.items() if key not in keys}


def _has_place(state: VmState, slot: int) -> bool:
    """Whether no other device of a guest is at a slot: what is leaving is there until it is gone."""
    plugged = state.devices or frozenset()
    nics = [nic.slot for nic in (*state.spec.nics, *state.leaving_nics) if nic_id(nic.id) in plugged]
    disks = [disk.slot for disk in (*state.spec.disks, *state.leaving_disks) if disk_node(disk.id) in plugged]
    return slot not in (*nics, *disks) and (state.spec.machine != "q35" or root_port_id(slot) in plugged)
