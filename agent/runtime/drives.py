"""What lies behind a disk or in a drive: block nodes and the descriptors that QEMU has of a file."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from agent.core.desired import DiskSpec
from agent.core.qemu.argv import DiskSet, disk_blockdev, disk_node, drive_node
from agent.core.qemu.cdrom import is_medium_of
from agent.host.disks import open_disk
from agent.host.qmp import CommandRefusedError
from agent.runtime.guest import Guest

FIRST_PLUGGED_SET = 2001
"""The descriptor set of slot 0 for disks that are plugged; those of a launch have lower numbers."""


async def add_nodes(guest: Guest, disk: DiskSpec) -> None:
    """Have QEMU open a disk's file, by descriptors that are opened here; nothing for an empty drive.

    What of it is there already must be gone (`clear_nodes`); errors as `Guest.execute` and `open_disk`.
    """
    if not disk.path:
        return
    set_id = FIRST_PLUGGED_SET + disk.slot
    opened = await asyncio.to_thread(open_disk, disk)
    try:
        for fd in opened.fds:
            await guest.connection().add_descriptor(set_id, fd, drive_node(disk))
    finally:
        opened.close()
    await guest.execute("blockdev-add", disk_blockdev(disk, DiskSet(set_id, (), opened.block_device)))


async def clear_nodes(guest: Guest, disk: DiskSpec) -> None:
    """Have QEMU close what no device uses any more of a disk or drive, also what an interrupted try left."""
    nodes = {disk_node(disk.id)}
    if disk.media == "cdrom":
        present = await guest.execute("query-named-block-nodes", {"flat": True})
        nodes |= {one["node-name"] for one in present if is_medium_of(disk.id, one["node-name"])}
    for node in sorted(nodes):
        await forgiving(guest, "blockdev-del", {"node-name": node})
    for one in await guest.execute("query-fdsets"):
        owners = {fd.get("opaque") or "" for fd in one["fds"]}
        if any(owner in nodes or (disk.media == "cdrom" and is_medium_of(disk.id, owner)) for owner in owners):
            await forgiving(guest, "remove-fd", {"fdset-id": one["fdset-id"]})


async def forgiving(guest: Guest, command: str, arguments: dict[str, object]) -> None:
    """A command that may find nothing to do."""
    with suppress(CommandRefusedError):
        await guest.execute(command, arguments)
