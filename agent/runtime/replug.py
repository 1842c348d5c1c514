"""The last resort for a lost tap: the NIC is unplugged and plugged again. The guest notices, so it is only done where
no descriptor can be had (Yama's `ptrace_scope=3`, an agent without CAP_SYS_PTRACE).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

from agent.core.desired import NicSpec
from agent.core.device_actions import ArmTap, ReplugNic
from agent.core.errors import PermanentError
from agent.core.qemu_argv import netdev_id, nic_device, nic_id, nic_netdev
from agent.host.launches import Launches
from agent.host.qmp import CommandRefusedError
from agent.host.tap import TapSettings, find_descriptor_number, settings_from_virtio
from agent.runtime.execute_links import LinkExecutor
from agent.runtime.guests import Guests


async def replug(action: ReplugNic, guests: Guests, links: LinkExecutor, launches: Launches) -> None:
    """Replace a running guest's NIC, at the same PCI address and with the same MAC, on a new tap.

    `PermanentError` on a machine that cannot unplug (microvm). A guest that does not obey leaves the action to its
    deadline. Interrupted between two steps it is done again from the start, where what is gone already is no error.
    """
    guest = guests.get(action.vm)
    device, backend = nic_id(action.nic.id), netdev_id(action.nic.id)
    deleted = guest.device_deleted(device)
    try:
        await guest.execute("device_del", {"id": device})
        await deleted
    except CommandRefusedError as error:
        deleted.cancel()
        if error.error_class != "DeviceNotFound":
            raise PermanentError(
                f"{action.vm} cannot unplug {action.nic.id}: {error}", reason="ReplugRefused"
            ) from error
    with suppress(CommandRefusedError):
        await guest.execute("netdev_del", {"id": backend})
    arm = ArmTap(
        action.resource, action.reason, action.vm, action.uid, action.nic, action.bridge_ifindex, running=False
    )
    await links.arm(arm, lambda _: negotiated_settings(action.vm, action.nic, guests))
    await guest.send_descriptor(backend, links.descriptor(action.vm, action.nic.id))
    await guest.execute("netdev_add", nic_netdev(action.nic, backend))
    await guest.execute("device_add", nic_device(guest.record.spec.machine, action.nic))
    await _record_descriptor(action, guests, launches)


async def negotiated_settings(vm: str, nic: NicSpec, guests: Guests) -> TapSettings:
    """What a running guest's driver agreed on with its NIC, which its tap must have (QMP `x-query-virtio-status`).

    A NIC that is no virtio one has the settings of a new tap. A QEMU that does not know the command (before 7.2) gets
    those of every current driver, without offloads: slower, and right.
    """
    if not nic.model.startswith("virtio-net"):
        return TapSettings()
    path = f"/machine/peripheral/{nic_id(nic.id)}/virtio-backend"
    try:
        answer = await guests.get(vm).execute("x-query-virtio-status", {"path": path})
        features = answer["guest-features"]
        return settings_from_virtio([*features.get("dev-features", ()), *features.get("transports", ())])
    except (CommandRefusedError, KeyError):
        return TapSettings(header_bytes=12)


async def _record_descriptor(action: ReplugNic, guests: Guests, launches: Launches) -> None:
    """Write down under which number QEMU has the new descriptor, for the agent that comes after this one."""
    guest = guests.get(action.vm)
    if guest.process is None:
        return
    number = find_descriptor_number(guest.process.pid, action.nic.tap)
    if number is not None:
        guest.record = replace(guest.record, nic_fds={**guest.record.nic_fds, action.nic.id: number})
        await asyncio.to_thread(launches.save, guest.record)
