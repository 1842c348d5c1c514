"""What QEMU is told of a running guest and cannot be asked for: links, limits of disks, the balloon.

What it was told last is written into the guest's launch record, by key: `balloon`, `link/NIC`, `throttle/DISK`; and
`medium/DRIVE` for the medium that was put into a drive whole, its tray closed. What is not there was never told.
"""

from __future__ import annotations

from collections.abc import Mapping

from agent.core.desired import DiskSpec, NicSpec, VmSpec
from agent.core.observed import VmState
from agent.core.qemu.argv import disk_node, drive_node, netdev_id, nic_id
from agent.core.qemu.platform import BALLOON

Command = tuple[str, Mapping[str, object]]
"""A QMP command and its arguments."""

Setting = tuple[str, str]
"""A key as above, and its value: MiB, `up` or `down`, or `IOPS BYTES` with 0 for no limit."""


def link_key(nic: str) -> str:
    """The key of whether a NIC's cable is plugged."""
    return f"link/{nic}"


def throttle_key(disk: str) -> str:
    """The key of a disk's limits."""
    return f"throttle/{disk}"


def medium_key(drive: str) -> str:
    """The key of the medium in a drive."""
    return f"medium/{drive}"


def tuned_at_launch(spec: VmSpec) -> Mapping[str, str]:
    """What a guest has of all this when its QEMU comes up: the media only, all else is told before it runs."""
    return {medium_key(disk.id): drive_node(disk) for disk in spec.disks if disk.media == "cdrom"}


def nic_setting(nic: NicSpec) -> Setting:
    """What QEMU is to be told of a NIC."""
    return link_key(nic.id), nic.link


def disk_setting(disk: DiskSpec) -> Setting:
    """What QEMU is to be told of a disk."""
    return throttle_key(disk.id), f"{disk.iops or 0} {disk.bandwidth_bytes or 0}"


def is_limited(disk: DiskSpec) -> bool:
    """Whether a disk has a limit of what it may do in a second."""
    return disk.iops is not None or disk.bandwidth_bytes is not None


def untold(state: VmState) -> tuple[Setting, ...]:
    """What QEMU is still to be told of the devices that the guest has; of those that it has not, it is told later."""
    devices, tuned = state.devices, state.tuned
    if devices is None:
        return ()
    if not (tuned or wants_tuning(state.spec)):
        return ()  # nearly always, for a thousand guests in each pass
    found: list[Setting] = []
    if BALLOON in devices:
        whole = state.spec.memory_mib
        wanted = min(state.spec.balloon_mib or whole, whole)
        if tuned.get(BALLOON, str(whole)) != str(wanted):
            found.append((BALLOON, str(wanted)))
    for nic in state.spec.nics:
        key, value = nic_setting(nic)
        if nic_id(nic.id) in devices and tuned.get(key, "up") != value:
            found.append((key, value))
    for disk in state.spec.disks:
        key, value = disk_setting(disk)
        if disk_node(disk.id) in devices and tuned.get(key, "0 0") != value:
            found.append((key, value))
    return tuple(found)


def wants_tuning(spec: VmSpec) -> bool:
    """Whether there is anything to tell QEMU before a guest's first instruction."""
    if spec.balloon_mib is not None:
        return True
    for disk in spec.disks:  # a loop takes half the time of any(), for a thousand guests in each pass
        if is_limited(disk):
            return True
    for nic in spec.nics:  # noqa: SIM110
        if nic.link != "up":
            return True
    return False


def command_of(setting: Setting) -> Command:
    """The QMP command that tells it (QEMU, qapi/block-core.json, net.json, machine.json); a second time does nothing.

    With -blockdev a throttle sits between the device and its node, and is named by the device's path in QOM.
    """
    key, value = setting
    kind, _, device = key.partition("/")
    if kind == "link":
        return "set_link", {"name": netdev_id(device), "up": value == "up"}
    if kind == "throttle":
        iops, bandwidth = map(int, value.split())
        totals = {"iops": iops, "bps": bandwidth}
        parts = {f"{total}_{way}": 0 for total in totals for way in ("rd", "wr")}
        path = f"/machine/peripheral/{disk_node(device)}/virtio-backend"
        return "block_set_io_throttle", {"id": path, **totals, **parts}
    return "balloon", {"value": int(value) << 20}


def in_words(setting: Setting) -> str:
    """A setting as `vmhost plan` and `vmhost events` tell it."""
    key, value = setting
    kind, _, device = key.partition("/")
    if kind == "link":
        return f"{'plug' if value == 'up' else 'unplug'} the cable of {device}"
    if kind == "balloon":
        return f"balloon to {value} MiB"
    limits = [f"{n} {unit}/s" for n, unit in zip(value.split(), ("operations", "bytes"), strict=True) if n != "0"]
    return f"limit {device} to {' and '.join(limits)}" if limits else f"limit {device} no more"
