"""The command line of a guest's QEMU, and the same devices as dicts for hot-plugging over QMP.

Whatever holds a string of the operator's is passed as JSON or as an argument of its own, where nothing can be taken
for another option; in the few places that know only `key=value` lists, commas are doubled (QEMU, qemu_opts_parse).

What a guest has besides disks and NICs, and where all is plugged: agent.core.qemu.platform.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agent.core.desired import DiskSpec, NicSpec, VmSpec
from agent.core.limits import most_cpus
from agent.core.qemu.cdrom import cdrom_devices, medium_node
from agent.core.qemu.display import display_devices, vnc_server
from agent.core.qemu.platform import (
    BALLOON,
    FIRMWARE_CODE,
    FIRMWARE_VARIABLES,
    Json,
    has_balloon,
    machine_option,
    number_of_root_ports,
    place,
    platform_devices,
    platform_options,
    root_bus,
    root_port_id,
)
from agent.core.qemu.serial import serial_options

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_CACHE = {
    "writeback": ("on", False, False),
    "none": ("on", True, False),
    "writethrough": ("off", False, False),
    "directsync": ("off", True, False),
    "unsafe": ("on", False, True),
}
"""Cache mode to (device write cache, cache.direct, cache.no-flush), as in the table of qemu(1) at `-drive cache=`."""


@dataclass(frozen=True, slots=True)
class DiskSet:
    """A disk's open descriptors, which QEMU finds as `/dev/fdset/SET_ID`. `block_device`: it is no regular file."""

    set_id: int
    fds: tuple[int, ...]
    block_device: bool = False


@dataclass(frozen=True, slots=True)
class FirmwareSets:
    """The descriptors of a UEFI firmware's code, which all guests share, and of one guest's variables."""

    code: DiskSet
    variables: DiskSet


@dataclass(frozen=True, slots=True)
class LaunchFiles:
    """What a launch hands to QEMU: the guest's run directory, descriptors by NIC and disk, paths to boot from.

    `tap_fds` has one for each queue of a NIC, `vhost_fds` as many for those whose frames the kernel is to carry.
    `log_sets`: set id and descriptor of each log, by serial port.
    """

    directory: str
    tap_fds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    disk_sets: Mapping[str, DiskSet] = field(default_factory=dict)
    kernel: str | None = None
    initrd: str | None = None
    firmware: FirmwareSets | None = None
    log_sets: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    vhost_fds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def fds(self) -> tuple[int, ...]:
        """All descriptors that QEMU must inherit for its devices."""
        flash = (self.firmware.code, self.firmware.variables) if self.firmware else ()
        logs = (fd for _, fd in self.log_sets.values())
        nics = (fd for fds in (*self.tap_fds.values(), *self.vhost_fds.values()) for fd in fds)
        return (*nics, *logs, *(fd for disk in (*self.disk_sets.values(), *flash) for fd in disk.fds))


def qemu_argv(spec: VmSpec, qemu: str, files: LaunchFiles, kvm: bool) -> tuple[str, ...]:
    """The whole command line; the guest is held at its first instruction (`-S`). `kvm`: what `accel = "auto"` takes.

    `KeyError` if `files` lacks the descriptor of a NIC or disk.
    """
    return (
        qemu,
        *("-name", f"guest={_doubled(spec.name)}", "-uuid", spec.uuid),
        *("-S", "-nodefaults", "-no-user-config", "-display", "none", "-msg", "timestamp=on"),
        *("-sandbox", SANDBOX),
        # Tells a poweroff from a reboot to an agent that was away when it happened (host.processes.shut_itself_down).
        *("-trace", "enable=qemu_system_shutdown_request"),
        *_machine(spec, kvm),
        *platform_options(spec),
        *_sockets(files.directory),
        *_boot(spec, files),
        *_firmware(files.firmware),
        *platform_devices(spec),
        *_disks(spec, files),
        *_nics(spec, files),
        *_display(spec, files.directory),
        *serial_options(spec, _doubled(files.directory), files.log_sets),
        *spec.extra_args,
    )


def _machine(spec: VmSpec, kvm: bool) -> Iterable[str]:
    accel = resolved_accel(spec, kvm)
    cpu = spec.cpu or ("host" if accel == "kvm" else None)
    return (
        *("-machine", machine_option(spec)),
        *("-accel", accel),
        *(("-cpu", cpu) if cpu else ()),
        *("-smp", _cpus(spec), "-m", f"{spec.memory_mib}M"),
    )


def _cpus(spec: VmSpec) -> str:
    if spec.max_cpus is None:
        return str(spec.cpus)
    return f"cpus={spec.cpus},maxcpus={most_cpus(spec)}"


def wants_vhost(spec: VmSpec, nic: NicSpec, *, kvm: bool) -> bool:
    """Whether the kernel is to carry a NIC's frames, where the host can; `kvm` as for `qemu_argv`.

    By itself only with KVM: without, the guest's own processors are what it waits for.
    """
    return nic.vhost == "true" or (nic.vhost == "auto" and resolved_accel(spec, kvm) == "kvm" and has_queues(nic))


def has_queues(nic: NicSpec) -> bool:
    """Whether a NIC is a virtio one: no other has several queues, or can be carried by the kernel."""
    return nic.model.startswith("virtio-net")


def resolved_accel(spec: VmSpec, kvm: bool) -> str:
    """The accelerator that a guest gets."""
    if spec.accel == "auto":
        return "kvm" if kvm else "tcg"
    return spec.accel


def _sockets(directory: str) -> Iterable[str]:
    """The pidfile, a monitor for the agent and one for the operator's tools (each takes one client), the console."""
    folder = _doubled(directory)
    names = ("qmp", "operator", "console")
    sockets = [f"socket,id={name},path={folder}/{name}.sock,server=on,wait=off" for name in names]
    return (
        *("-pidfile", f"{directory}/qemu.pid"),
        *(argument for socket in sockets for argument in ("-chardev", socket)),
        *("-mon", "chardev=qmp,mode=control", "-mon", "chardev=operator,mode=control"),
        *("-serial", "chardev:console"),
    )


def _boot(spec: VmSpec, files: LaunchFiles) -> Iterable[str]:
    if spec.kernel is None:
        return ()
    return (
        *("-kernel", files.kernel or spec.kernel),
        *(("-initrd", files.initrd or spec.initrd) if spec.initrd else ()),
        *(("-append", spec.append) if spec.append else ()),
    )


def _display(spec: VmSpec, directory: str) -> Iterable[str]:
    if spec.vnc is False:
        return ()
    devices = display_devices(root_bus(spec.machine))
    return (
        *_arguments("-device", devices),
        *vnc_server(spec.vnc, directory),
    )


def _firmware(sets: FirmwareSets | None) -> Iterable[str]:
    """The two flash chips of a guest with UEFI; the machine option names them (QEMU, docs/interop/firmware.json)."""
    if sets is None:
        return
    for node, descriptors, read_only in (
        (FIRMWARE_CODE, sets.code, True),
        (FIRMWARE_VARIABLES, sets.variables, False),
    ):
        for fd in descriptors.fds:
            yield from ("-add-fd", f"set={descriptors.set_id},fd={fd}")
        file = {"driver": "file", "node-name": f"{node}-file", "filename": f"/dev/fdset/{descriptors.set_id}"}
        only = {"read-only": read_only}
        yield from ("-blockdev", _json({"driver": "raw", "node-name": node, **only, "file": {**file, **only}}))


def _disks(spec: VmSpec, files: LaunchFiles) -> Iterable[str]:
    boot_order = _boot_order(spec)
    for disk in spec.disks:
        if disk.path:
            descriptors = files.disk_sets[disk.id]
            for fd in descriptors.fds:
                yield from ("-add-fd", f"set={descriptors.set_id},fd={fd},opaque={drive_node(disk)}")
            yield from ("-blockdev", _json(disk_blockdev(disk, descriptors)))
        yield from _arguments("-device", devices_of_disk(spec.machine, disk, boot_order.get(disk.id)))


def _boot_order(spec: VmSpec) -> Mapping[str, int]:
    """The first disk, then the first CD-ROM drive: while nothing is installed on the disk, firmware goes on to it."""
    if spec.kernel is not None:
        return {}
    by_slot = sorted(spec.disks, key=lambda disk: disk.slot)
    firsts = {media: next((one.id for one in by_slot if one.media == media), None) for media in ("disk", "cdrom")}
    return {id_: index for index, id_ in enumerate(firsts.values(), 1) if id_ is not None}


def devices_of_disk(machine: str, disk: DiskSpec, boot_index: int | None = None) -> tuple[Json, ...]:
    """A drive's devices in the order in which they are plugged; the last one is the drive itself."""
    where = place(machine, disk.slot)
    if disk.media == "cdrom":
        return cdrom_devices(disk, where, boot_index)
    return (disk_device(machine, disk, boot_index),)


def disk_node(disk_id: str) -> str:
    """The id of a disk's device and of its topmost block node; QOM knows the device as `/machine/peripheral/ID`."""
    return f"disk-{disk_id}"


def drive_node(disk: DiskSpec) -> str:
    """The topmost block node of what is in a drive, empty for none; a disk's is called as its device is."""
    if disk.media != "cdrom":
        return disk_node(disk.id)
    return medium_node(disk.id, disk.path) if disk.path else ""


def disk_blockdev(disk: DiskSpec, descriptors: DiskSet) -> Json:
    """A disk's block nodes, for `-blockdev` and `blockdev-add`; its format is as the unit says, never probed."""
    _, direct, no_flush = _CACHE[disk.cache]
    common = {
        "read-only": disk.read_only,
        "discard": "unmap" if disk.discard else "ignore",
        "cache": {"direct": direct, "no-flush": no_flush},
    }
    node = drive_node(disk)
    protocol = {
        "driver": "host_device" if descriptors.block_device else "file",
        "node-name": f"file-{node.partition('-')[2]}",
        "filename": f"/dev/fdset/{descriptors.set_id}",
        **common,
    }
    return {"driver": disk.format, "node-name": node, **common, "file": protocol}


def disk_device(machine: str, disk: DiskSpec, boot_index: int | None = None) -> Json:
    """A disk's device, for `-device` and `device_add`; the guest finds it as `/dev/disk/by-id/virtio-ID`."""
    write_cache, _, _ = _CACHE[disk.cache]
    node = disk_node(disk.id)
    device = {
        "driver": "virtio-blk-pci",
        "id": node,
        "drive": node,
        "serial": disk.id,
        "write-cache": write_cache,
        **place(machine, disk.slot),
    }
    return device if boot_index is None else {**device, "bootindex": boot_index}


def _nics(spec: VmSpec, files: LaunchFiles) -> Iterable[str]:
    for nic in spec.nics:
        tap_fds, vhost_fds = files.tap_fds[nic.id], files.vhost_fds.get(nic.id, ())
        yield from ("-netdev", _json(nic_netdev(nic, (*map(str, tap_fds),), (*map(str, vhost_fds),))))
        yield from ("-device", _json(nic_device(spec.machine, nic)))


def nic_id(nic: str) -> str:
    """The id of a NIC's device; QOM knows it as `/machine/peripheral/ID`."""
    return f"nic-{nic}"


def netdev_id(nic: str) -> str:
    """The id of the netdev behind a NIC."""
    return f"tap-{nic}"


def nic_netdev(nic: NicSpec, fds: tuple[str, ...], vhost_fds: tuple[str, ...] = ()) -> Json:
    """A NIC's backend, for `-netdev` and `netdev_add`: a descriptor of its tap for each queue, and of vhost-net if any.

    Each is a number, over QMP the name that `getfd` gave. (QEMU, qapi/net.json: NetdevTapOptions)
    """
    s = "s" if len(fds) > 1 else ""
    vhost = {"vhost": True, f"vhostfd{s}": ":".join(vhost_fds)} if vhost_fds else {}
    return {"type": "tap", "id": netdev_id(nic.id), f"fd{s}": ":".join(fds), **vhost}


def nic_device(machine: str, nic: NicSpec) -> Json:
    """A NIC's device, for `-device` and `device_add`. Its option ROM is left out: it costs seconds of each boot.

    One with several queues has an interrupt for each direction of each, for its control queue and for its
    configuration (virtio 1.2, 4.1.4.3).
    """
    ids = {"id": nic_id(nic.id), "netdev": netdev_id(nic.id), "mac": nic.mac, "romfile": ""}
    mtu = {"host_mtu": nic.mtu} if nic.model.startswith("virtio-net") else {}
    queues = {"mq": True, "vectors": 2 * nic.queues + 2} if nic.queues > 1 else {}
    return {"driver": nic.model, **ids, **mtu, **queues, **place(machine, nic.slot)}


def devices_at_launch(spec: VmSpec) -> frozenset[str]:
    """The ids of the places and devices that a guest has from its launch, as `/machine/peripheral` lists them."""
    ports = (root_port_id(slot) for slot in range(number_of_root_ports(spec)))
    drives = (disk_node(disk.id) for disk in spec.disks)
    balloon = (BALLOON,) if has_balloon(spec) else ()
    return frozenset((*ports, *(nic_id(nic.id) for nic in spec.nics), *drives, *balloon))


def _doubled(value: str) -> str:
    return value.replace(",", ",,")


def _json(value: Json) -> str:
    return json.dumps(value)


def _arguments(option: str, values: Iterable[Json]) -> Iterable[str]:
    return (argument for value in values for argument in (option, _json(value)))
