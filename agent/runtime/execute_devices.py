"""Carries out the actions on what is plugged into a running guest: its NICs and disks come, go, and grow.

Each may be interrupted between any two steps and is then done again from its start, where what is there already, or
gone already, is no error. What a guest is to be like was written down before (`TakeOver`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from agent.core.desired import DiskSpec, NicSpec
from agent.core.device_actions import ArmTap, GrowDisk, PlugDisk, PlugNic, ReplugNic, TakeOver, UnplugDisk, UnplugNic
from agent.core.edits.digest import digest
from agent.core.edits.pending import told_mtus
from agent.core.edits.tuning import (
    command_of,
    disk_setting,
    is_limited,
    link_key,
    medium_key,
    nic_setting,
    throttle_key,
)
from agent.core.errors import PermanentError, TransientError
from agent.core.qemu.argv import (
    devices_of_disk,
    disk_node,
    drive_node,
    netdev_id,
    nic_device,
    nic_id,
    nic_netdev,
)
from agent.host.disks import grow_disk
from agent.host.launches import LaunchRecord
from agent.host.processes import kvm_usable
from agent.host.qmp import CommandRefusedError
from agent.host.tap import find_descriptor_numbers, find_same
from agent.runtime.descriptors import Descriptors
from agent.runtime.drives import add_nodes, clear_nodes, forgiving
from agent.runtime.execute_links import LinkExecutor
from agent.runtime.execute_tuning import with_tuned, without_tuned
from agent.runtime.guest import Guest
from agent.runtime.guests import Guests
from agent.runtime.latency import count_latencies
from agent.runtime.negotiated import negotiated_settings
from agent.runtime.vhost import open_for

DETACH_WITHIN_S = 20.0
"""A guest with a driver lets go within 1.2 s; one that boots, or has none, is asked again later."""


class DeviceExecutor:
    """Each method does one action and returns when QEMU shows it, or raises an ActionError."""

    def __init__(self, guests: Guests, links: LinkExecutor, descriptors: Descriptors) -> None:
        self._guests = guests
        self._links = links
        self._descriptors = descriptors

    async def change(self, action: TakeOver | PlugNic | UnplugNic | ReplugNic | PlugDisk | UnplugDisk) -> None:
        """Do one of these actions."""
        match action:
            case TakeOver():
                await self._take_over(action)
            case PlugNic():
                await self._plug(action)
            case UnplugNic():
                await self._unplug_nic(action)
            case ReplugNic():
                await self._replug_nic(action)
            case PlugDisk():
                await self._plug_disk(action)
            case UnplugDisk():
                await self._unplug_disk(action)

    async def _take_over(self, action: TakeOver) -> None:
        """Write down what the guest is to be like from now on; QEMU is not touched."""
        edit = action.edit

        def taken_over(record: LaunchRecord) -> LaunchRecord:
            if record.spec.uuid != action.uuid:
                raise TransientError(f"{action.vm} is another guest by now", reason="Gone")
            return replace(
                record,
                spec=replace(edit.spec, limits=record.spec.limits),  # which are set, and written down, beside this
                digest=digest(edit.spec),
                told_mtus=told_mtus(record.spec, edit.spec, record.told_mtus),
                leaving_nics=edit.leaving_nics,
                leaving_disks=edit.leaving_disks,
            )

        await self._guests.keep(action.vm, taken_over)

    async def _plug(self, action: PlugNic) -> None:
        """Plug a NIC on its tap."""
        guest, nic = self._guests.get(action.vm), action.nic
        # An interrupted try may have left its backend, which would keep the tap busy.
        await forgiving(guest, "netdev_del", {"id": netdev_id(nic.id)})
        await self._plug_nic(guest, nic, self._descriptors.of_tap(action.vm, action.uid, nic))

    async def _plug_nic(self, guest: Guest, nic: NicSpec, fds: tuple[int, ...]) -> None:
        backend = netdev_id(nic.id)
        await self._guests.keep(guest.name, lambda record: without_tuned(record, link_key(nic.id)))
        with ExitStack() as opened:
            vhost_fds = open_for(guest.record.spec, nic, opened, kvm=kvm_usable())
            # Before it is plugged, so that a tap that is lost from here on is healed as that of a NIC with vhost-net.
            await self._guests.keep(guest.name, lambda record: _with_vhost(record, nic, used=bool(vhost_fds)))
            names = await _send(guest, backend, fds)
            vhost_names = await _send(guest, f"vhost-{nic.id}", vhost_fds)
        await guest.execute("netdev_add", nic_netdev(nic, names, vhost_names))
        setting = nic_setting(nic)
        command, arguments = command_of(setting)
        try:
            await guest.execute(command, arguments)  # nothing passes an unplugged cable from the beginning
            await guest.execute("device_add", nic_device(guest.record.spec.machine, nic))
            await guest.execute(command, arguments)
        except CommandRefusedError:
            await forgiving(guest, "netdev_del", {"id": backend})
            raise
        numbers = find_same(guest.process.pid, fds) if guest.process is not None and nic.direct else ()
        if guest.process is not None and not nic.direct:
            numbers = find_descriptor_numbers(guest.process.pid, nic.tap)
        told = dict([setting])
        await self._guests.keep(guest.name, lambda record: with_tuned(_with_nic(record, nic, numbers), told))
        await guest.look_at_devices()

    async def _unplug_nic(self, action: UnplugNic) -> None:
        """Unplug a NIC; its tap is nobody's then."""
        guest, nic = self._guests.get(action.vm), action.nic
        if nic not in guest.record.leaving_nics:
            return  # it is wanted again meanwhile
        await self._detach(guest, nic_id(nic.id), nic.id)
        await forgiving(guest, "netdev_del", {"id": netdev_id(nic.id)})
        self._descriptors.forget(action.vm, nic.id)
        await self._guests.keep(action.vm, lambda record: _without_nic(record, nic))
        await guest.look_at_devices()

    async def _replug_nic(self, action: ReplugNic) -> None:
        """Replace a NIC's lost tap: the guest notices, so it is only done where no descriptor of it can be had (Yama's
        `ptrace_scope=3`, an agent without CAP_SYS_PTRACE), or it is one that cannot be re-armed: of a macvtap, or one
        that vhost-net holds. The NIC keeps its PCI address and its MAC.

        `PermanentError` on a machine that cannot unplug (microvm).
        """
        guest, nic = self._guests.get(action.vm), action.nic
        await self._detach(guest, nic_id(nic.id), nic.id)
        await forgiving(guest, "netdev_del", {"id": netdev_id(nic.id)})
        resource, reason, bridge = action.resource, action.reason, action.bridge_ifindex
        lower, vlans = action.lower_ifindex, action.vlans
        arm = ArmTap(resource, reason, action.vm, action.uid, nic, bridge, False, vlans, lower_ifindex=lower)
        await self._links.arm(arm, lambda _: negotiated_settings(action.vm, nic, self._guests))
        await self._plug_nic(guest, nic, self._links.descriptors(action.vm, nic.id))

    async def _plug_disk(self, action: PlugDisk) -> None:
        """Plug a disk; its file is opened here, QEMU gets descriptors. What was refused leaves nothing in QEMU."""
        guest, disk = self._guests.get(action.vm), action.disk
        await self._guests.keep(action.vm, lambda record: _without_told(record, disk))
        await clear_nodes(guest, disk)
        if disk.media == "cdrom":
            await self._guests.keep(
                action.vm, lambda record: with_tuned(record, {medium_key(disk.id): drive_node(disk)})
            )
        try:
            await add_nodes(guest, disk)
            for device in devices_of_disk(guest.record.spec.machine, disk):
                await guest.execute("device_add", device)
        except CommandRefusedError:
            await clear_nodes(guest, disk)
            raise
        await count_latencies(self._guests, guest)
        await guest.look_at_devices()
        if is_limited(disk):
            await guest.execute(*command_of(disk_setting(disk)))
            await self._guests.keep(action.vm, lambda record: with_tuned(record, dict([disk_setting(disk)])))

    async def _unplug_disk(self, action: UnplugDisk) -> None:
        """Unplug a disk; its file is closed, and stays."""
        guest, disk = self._guests.get(action.vm), action.disk
        if disk not in guest.record.leaving_disks:
            return  # it is wanted again meanwhile
        for device in reversed(devices_of_disk(guest.record.spec.machine, disk)):
            await self._detach(guest, str(device["id"]), disk.id)
        await clear_nodes(guest, disk)
        await self._guests.keep(action.vm, lambda record: _without_disk(record, disk))
        await guest.look_at_devices()

    async def grow(self, action: GrowDisk) -> None:
        """Grow a disk: QEMU does it where it has the disk open, and the guest sees its new size at once."""
        if not action.running:
            await grow_disk(action.disk)
            return
        arguments = {"node-name": disk_node(action.disk.id), "size": action.disk.size_bytes}
        await self._guests.get(action.vm).execute("block_resize", arguments)

    async def _detach(self, guest: Guest, device: str, called: str) -> None:
        """Have the guest let go of a device (QMP `device_del`); one that it has not any more is no error.

        `TransientError` `DetachRefused` if it does not in time: it may still do so later.
        """
        deleted = guest.device_deleted(device)
        try:
            await guest.execute("device_del", {"id": device})
            async with asyncio.timeout(DETACH_WITHIN_S):
                await deleted
        except TimeoutError as error:
            message = f"{guest.name} has not let go of {called} within {DETACH_WITHIN_S:g} s; it is asked again"
            raise TransientError(f"{message} (does it use it, or has it no driver?)", reason="DetachRefused") from error
        except CommandRefusedError as error:
            deleted.cancel()
            if error.error_class != "DeviceNotFound":
                message = f"{guest.name} cannot unplug {called}: {error}"
                raise PermanentError(message, reason="ReplugRefused") from error


async def _send(guest: Guest, name: str, fds: Sequence[int]) -> tuple[str, ...]:
    """Hand descriptors to QEMU; the names under which it knows them (QMP `getfd`)."""
    names = (name, *(f"{name}-{number}" for number in range(1, len(fds))))[: len(fds)]
    for one, fd in zip(names, fds, strict=True):
        await guest.connection().send_descriptor(one, fd)
    return names


def _with_vhost(record: LaunchRecord, nic: NicSpec, *, used: bool) -> LaunchRecord:
    others = tuple(one for one in record.vhosts if one != nic.id)
    return replace(record, vhosts=(*others, nic.id) if used else others)


def _with_nic(record: LaunchRecord, nic: NicSpec, found: Sequence[int]) -> LaunchRecord:
    """A record with a NIC that was just plugged: the guest has been told of its MTU."""
    numbers = {id_: fds for id_, fds in record.nic_fds.items() if id_ != nic.id}
    if len(found) == nic.queues:
        numbers[nic.id] = tuple(found)
    told = {id_: mtu for id_, mtu in record.told_mtus.items() if id_ != nic.id}
    return replace(record, nic_fds=numbers, told_mtus=told)


def _without_nic(record: LaunchRecord, nic: NicSpec) -> LaunchRecord:
    numbers = {id_: number for id_, number in record.nic_fds.items() if id_ != nic.id}
    leaving = tuple(one for one in record.leaving_nics if one.id != nic.id)
    record = _with_vhost(record, nic, used=False)
    return without_tuned(replace(record, leaving_nics=leaving, nic_fds=numbers), link_key(nic.id))


def _without_disk(record: LaunchRecord, disk: DiskSpec) -> LaunchRecord:
    leaving = tuple(one for one in record.leaving_disks if one.id != disk.id)
    return _without_told(replace(record, leaving_disks=leaving), disk)


def _without_told(record: LaunchRecord, disk: DiskSpec) -> LaunchRecord:
    return without_tuned(record, throttle_key(disk.id), medium_key(disk.id))
