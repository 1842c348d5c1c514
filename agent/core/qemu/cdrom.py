"""A guest's CD-ROM drives: each with a controller of its own in its slot, so that nothing moves when one goes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from agent.core.desired import DiskSpec

Json = Mapping[str, object]

_DRIVES = {
    "sata": ({"driver": "ich9-ahci"}, {"driver": "ide-cd"}),
    "virtio": ({"driver": "virtio-scsi-pci"}, {"driver": "scsi-cd"}),
}
"""By bus: the controller and the drive. Every firmware and installer knows AHCI, small kernels may know virtio only."""


def medium_node(drive: str, path: str) -> str:
    """The block node of a medium: the drive and the path tell it, so that what is in a drive can be seen in QEMU.

    At most 31 characters, which is QEMU's limit for a node's name, also with its file's prefix.
    """
    return f"cd-{hashlib.sha256(path.encode()).hexdigest()[:8]}-{drive}"


def is_medium_of(drive: str, node: str) -> bool:
    """Whether a block node is, or was, a medium of this drive."""
    return node.startswith("cd-") and node[12:] == drive


def cdrom_devices(disk: DiskSpec, place: Json, boot_index: int | None) -> tuple[Json, Json]:
    """The controller and the drive, for `-device`; a drive whose `path` is empty has no medium."""
    controller, drive = _DRIVES[disk.bus]
    node, bus = f"disk-{disk.id}", f"bus-{disk.id}"
    medium = {"drive": medium_node(disk.id, disk.path)} if disk.path else {}
    order = {} if boot_index is None else {"bootindex": boot_index}
    ids = {"id": node, "bus": f"{bus}.0", **medium, "serial": disk.id, **order}
    return {**controller, "id": bus, **place}, {**drive, **ids}
