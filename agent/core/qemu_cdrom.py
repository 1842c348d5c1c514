"""A guest's CD-ROM drives: each with a controller of its own in its slot, so that nothing moves when one goes."""

from __future__ import annotations

from collections.abc import Mapping

from agent.core.desired import DiskSpec

Json = Mapping[str, object]

_DRIVES = {
    "sata": ({"driver": "ich9-ahci"}, {"driver": "ide-cd"}),
    "virtio": ({"driver": "virtio-scsi-pci"}, {"driver": "scsi-cd"}),
}
"""By bus: the controller and the drive. Every firmware and installer knows AHCI, small kernels may know virtio only."""


def cdrom_devices(disk: DiskSpec, place: Json, boot_index: int | None) -> tuple[Json, Json]:
    """The controller and the drive, for `-device`; a drive whose `path` is empty has no medium."""
    controller, drive = _DRIVES[disk.bus]
    node, bus = f"disk-{disk.id}", f"bus-{disk.id}"
    medium = {"drive": node} if disk.path else {}
    order = {} if boot_index is None else {"bootindex": boot_index}
    ids = {"id": node, "bus": f"{bus}.0", **medium, "serial": disk.id, **order}
    return {**controller, "id": bus, **place}, {**drive, **ids}
