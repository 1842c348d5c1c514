"""Carries out the actions on a running guest that plug no device into a place.

Each may be interrupted between any two steps and is then done again from its start: what QEMU was told already it may
be told again, a CPU that is there is not plugged twice, and a drive is looked at first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agent.core.desired import DiskSpec
from agent.core.edits.tuning import command_of, medium_key
from agent.core.errors import TransientError
from agent.core.qemu.argv import disk_node, drive_node
from agent.core.tuning_actions import ChangeMedium, PlugCpus, TuneVm
from agent.host.launches import LaunchRecord
from agent.host.qmp import CommandRefusedError
from agent.runtime.drives import add_nodes, clear_nodes
from agent.runtime.guest import Guest
from agent.runtime.guests import Guests

TRAY_AGAIN_S = 3.0
"""How long a guest that locked a tray has for letting go, before it is asked again."""

TRAY_TRIES = 5
"""How often a tray is opened that the guest closes at once: that is a matter of milliseconds."""


class TuningExecutor:
    """Each method does one action and returns when QEMU took it, or raises an ActionError."""

    def __init__(self, guests: Guests) -> None:
        self._guests = guests

    async def change(self, action: TuneVm | PlugCpus | ChangeMedium) -> None:
        """Do one of these actions."""
        match action:
            case TuneVm():
                await self._tune(action)
            case PlugCpus():
                await self._plug_cpus(action)
            case ChangeMedium():
                await self._change_medium(action)

    async def _tune(self, action: TuneVm) -> None:
        """Tell QEMU each setting, and write down which it took: what came before one that it refused stays told."""
        guest, told = self._guests.get(action.vm), dict[str, str]()
        if guest.record.spec.uuid != action.uuid:
            raise TransientError(f"{action.vm} is another guest by now", reason="Gone")
        try:
            for key, value in action.settings:
                command, arguments = command_of((key, value))
                await guest.execute(command, arguments)
                told[key] = value
        finally:
            if told:
                await self._guests.keep(action.vm, lambda record: with_tuned(record, told))

    async def _plug_cpus(self, action: PlugCpus) -> None:
        """Plug the CPUs that are missing, lowest place first, as a launch does."""
        guest = self._guests.get(action.vm)
        places = await guest.execute("query-hotpluggable-cpus")
        present = sum("qom-path" in place for place in places)
        free = sorted((place for place in places if "qom-path" not in place), key=lambda place: _order(place["props"]))
        for place in free[: max(0, action.cpus - present)]:
            await guest.execute("device_add", {"driver": place["type"], **place["props"]})
        await guest.look_at_devices()

    async def _change_medium(self, action: ChangeMedium) -> None:
        """Open the tray, take out what is in it, put the other medium in, and close it.

        `TransientError` `TrayLocked` while the guest uses the medium: it has been asked to let go of it; `TrayClosed`
        if it closes the tray again and again. A medium that QEMU refuses leaves the tray open and empty.
        """
        guest, disk = self._guests.get(action.vm), action.disk
        node = drive_node(disk)
        drive = await _look_into(guest, disk)
        if drive.get("inserted", {}).get("node-name", "") != node:
            await _at_open_tray(guest, disk, "blockdev-remove-medium", {})
            await clear_nodes(guest, disk)
            if node:
                await add_nodes(guest, disk)
                await _at_open_tray(guest, disk, "blockdev-insert-medium", {"node-name": node})
        await guest.execute("blockdev-close-tray", {"id": disk_node(disk.id)})
        await self._guests.keep(action.vm, lambda record: with_tuned(record, {medium_key(disk.id): node}))
        await guest.look_at_devices()


async def _at_open_tray(guest: Guest, disk: DiskSpec, command: str, arguments: Mapping[str, object]) -> None:
    """Open the tray and do what needs it open; Linux closes the tray of an empty drive whenever somebody reads it."""
    for _ in range(TRAY_TRIES):
        await _open_tray(guest, disk)
        try:
            await guest.execute(command, {"id": disk_node(disk.id), **arguments})
            return
        except CommandRefusedError:
            if (await _look_into(guest, disk)).get("tray_open"):
                raise
    message = f"{guest.name} closes the tray of {disk.id} while its medium is changed; tried again"
    raise TransientError(message, reason="TrayClosed", retry_after_s=TRAY_AGAIN_S)


async def _open_tray(guest: Guest, disk: DiskSpec) -> None:
    """QEMU opens a tray at once, or asks the guest that locked it to eject, and says neither (qapi/block.json)."""
    await guest.execute("blockdev-open-tray", {"id": disk_node(disk.id)})
    if not (await _look_into(guest, disk)).get("tray_open"):
        message = f"{guest.name} has locked the tray of {disk.id}; it is asked to eject: unmount the medium there"
        raise TransientError(message, reason="TrayLocked", retry_after_s=TRAY_AGAIN_S)


async def _look_into(guest: Guest, disk: DiskSpec) -> Mapping[str, Any]:
    """A drive as `query-block` tells it."""
    drives = await guest.execute("query-block")
    found: list[Mapping[str, Any]] = [one for one in drives if one.get("qdev") == disk_node(disk.id)]
    if not found:
        raise TransientError(f"{guest.name} has no drive {disk.id}", reason="Gone")
    return found[0]


def _order(place: Mapping[str, int]) -> tuple[int, int, int, int]:
    """Sockets, then dies, cores and threads."""
    return (
        place.get("socket-id", 0),
        place.get("die-id", 0),
        place.get("core-id", 0),
        place.get("thread-id", 0),
    )


def with_tuned(record: LaunchRecord, told: Mapping[str, str]) -> LaunchRecord:
    """The record of a guest whose QEMU was told this as well."""
    return replace(record, tuned={**record.tuned, **told})


def without_tuned(record: LaunchRecord, *keys: str) -> LaunchRecord:
    """The record of a guest whose QEMU knows nothing of these: the device is new to it, or gone."""
    return replace(record, tuned={key: value for key, value in record.tuned.items() if key not in keys})
