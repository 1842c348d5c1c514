"""The tables of a unit file and their keys. Only keys that do something are here: every other one is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from agent.core.desired import MAX_DEVICES
from agent.core.limits import OTHER_TASKS, POOL_TASKS, tasks_needed
from agent.unitfile import host_routes, nics, served, values, vlans
from agent.unitfile.fields import (
    BOOLEAN_OR_DNS,
    BOUNDS,
    Address,
    After,
    Append,
    Bandwidth,
    Cpus,
    CpuWeight,
    DeviceName,
    Duration,
    ExtraArgs,
    FilterEntries,
    Gateways,
    GuestAddresses,
    IoWeight,
    LinkName,
    Mac,
    Memory,
    Mtu,
    Path,
    PortName,
    Probe,
    ProbeTimeout,
    Publish,
    Quota,
    Rate,
    Ready,
    Size,
    Text,
    Trunk,
    Uuid,
    VlanId,
    VlanKey,
    VmName,
    Vnc,
    Word,
    checked,
    listed,
    number,
    once,
    text,
)
from agent.unitfile.ipv6 import ipv6_mistakes
from agent.unitfile.machines import Mistake, platform_mistakes
from agent.unitfile.order import order_mistakes
from agent.unitfile.publish import nat_mistakes, publish_mistakes
from agent.unitfile.uplinks import uplink_mistakes

FORMATS = {".qcow2": "qcow2", ".raw": "raw", ".img": "raw"}


class Table(BaseModel):
    """What all tables have in common: no unknown key, no conversion, kebab-case."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        alias_generator=lambda name: name.replace("_", "-"),
        hide_input_in_errors=True,
    )


class DhcpTable(Table):
    """`dhcp` of a bridge; `lease` in seconds."""

    range: Annotated[
        tuple[str, str],
        checked(served.parse_range),
        WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2}),
    ]
    lease: Annotated[
        int, checked(served.parse_lease), text('duration such as "12h" or "3d"', pattern="^[0-9]+[smhd]$")
    ] = 43200
    ports: bool = False


class DnsTable(Table):
    """`dns` of a bridge; `upstream` None: the host's own."""

    upstream: (
        Annotated[
            tuple[Annotated[str, checked(served.parse_upstream)], ...], BeforeValidator(listed), AfterValidator(once)
        ]
        | None
    ) = None
    domain: Annotated[str, checked(served.parse_domain), text("domain")] | None = None


class RouteTable(Table):
    """An item of `routes` of a bridge."""

    to: Annotated[str, checked(host_routes.parse_network), text('network such as "10.0.0.0/8"', pattern="/[0-9]{1,3}$")]
    via: Annotated[str, checked(host_routes.parse_gateway), text("address")]
    metric: Annotated[int, number("metric")] = 0


class HostVlanTable(Table):
    """`[bridge.NAME.vlan.ID]`."""

    addresses: Annotated[tuple[Address, ...], BeforeValidator(listed), AfterValidator(once)] = ()
    name: LinkName | None = None


class VlanTable(Table):
    """`[vlan.NAME]`."""

    link: LinkName
    id: VlanId
    addresses: Annotated[tuple[Address, ...], BeforeValidator(listed), AfterValidator(once)] = ()


class BridgeTable(Table):
    """`[bridge.NAME]`."""

    ports: Annotated[tuple[PortName, ...], BeforeValidator(listed), AfterValidator(once)] = ()
    addresses: Annotated[tuple[Address, ...], BeforeValidator(listed), AfterValidator(once)] = ()
    mac: Mac | None = None
    mtu: Mtu | None = None
    stp: bool = False
    adopt: bool = False
    dhcp: DhcpTable | None = None
    dns: Annotated[DnsTable | None, BeforeValidator(served.dns_table), BOOLEAN_OR_DNS] = None
    nat: bool = False
    ipv6: Literal["routed", "ndp-proxy", "nat66"] | None = None
    uplink: LinkName | None = None
    gateway: Gateways = ()
    routes: Annotated[tuple[RouteTable, ...], BeforeValidator(host_routes.listed)] = ()
    vlan: Mapping[VlanKey, HostVlanTable] = Field(default_factory=dict)
    adopt_addresses: bool = False
    probe: Annotated[tuple[Probe, ...], BeforeValidator(listed), AfterValidator(once)] = ()
    probe_timeout: ProbeTimeout = 10.0
    confirm: Duration | None = None


class DiskTable(Table):
    """`[vm.NAME.disk.ID]`; `size` in bytes, `bandwidth` in bytes per second."""

    media: Literal["disk", "cdrom"] = "disk"
    path: Path | None = None
    bus: Literal["sata", "virtio"] | None = None
    size: Size | None = None
    format: Literal["qcow2", "raw"] | None = None
    cache: Literal["writeback", "none", "writethrough", "directsync", "unsafe"] = "writeback"
    read_only: bool = False
    discard: bool = True
    iops: Annotated[int, number("iops")] | None = None
    bandwidth: Bandwidth | None = None


class NicTable(Table):
    """`[vm.NAME.nic.ID]`; rates in bits per second."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["bridge"]}, {"required": ["direct"]}]})

    bridge: LinkName | None = None
    direct: LinkName | None = None
    mac: Mac | None = None
    tap: LinkName | None = None
    model: Literal["virtio", "e1000", "e1000e", "rtl8139"] = "virtio"
    mtu: Mtu | None = None
    rate_in: Rate | None = None
    rate_out: Rate | None = None
    address: GuestAddresses = ()
    link: Literal["up", "down"] = "up"
    anti_spoof: bool | None = None
    serves: Annotated[tuple[Literal["dhcp", "ra"], ...], BeforeValidator(listed), AfterValidator(once)] = ()
    isolated: bool = False
    allow: FilterEntries = ()
    deny: FilterEntries = ()
    queues: nics.Queues = 1
    vhost: nics.Vhost = False
    vlan: VlanId | None = None
    trunk: Trunk = ()
    native: VlanId | None = None


class SerialTable(Table):
    """`[vm.NAME.serial.ID]`."""

    port: Literal["virtio", "ttyS1", "ttyS2", "ttyS3"] = "virtio"
    to: Literal["socket", "file"] = "socket"


class VmTable(Table):
    """`[vm.NAME]`; `memory`, `balloon` in MiB, timeouts in seconds, `after` as references, `cpu_quota` in per cent."""

    cpus: Cpus = 1
    max_cpus: Cpus | None = None
    memory: Memory = 512
    balloon: Memory | None = None
    machine: Literal["q35", "pc", "microvm"] = "q35"
    firmware: Literal["bios", "uefi"] = "bios"
    secure_boot: bool = False
    cpu: Word | None = None
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    kernel: Path | None = None
    initrd: Path | None = None
    append: Append = ""
    extra_args: ExtraArgs = ()
    vnc: Vnc = False
    rng: bool = True
    watchdog: Literal["reset", "poweroff", "pause", "inject-nmi", "none"] | None = None
    restart: Literal["always", "on-failure", "never"] = "on-failure"
    stop_timeout: Duration = 60.0
    after: Annotated[tuple[After, ...], BeforeValidator(listed), AfterValidator(once)] = ()
    ready: Ready = "running"
    ready_timeout: Duration = 120.0
    description: Text = ""
    enabled: bool = True
    overcommit: bool = False
    hotplug_slots: Annotated[int, number("hotplug-slots")] = 2
    cpu_weight: CpuWeight | None = None
    cpu_quota: Quota | None = None
    io_weight: IoWeight | None = None
    tasks: Annotated[int, number("tasks")] | None = None
    apply: Literal["ask", "restart"] = "ask"
    fallback: bool = True
    publish: Annotated[tuple[Publish, ...], BeforeValidator(listed), AfterValidator(once)] = ()
    uuid: Uuid | None = None
    disk: Mapping[DeviceName, DiskTable] = Field(default_factory=dict)
    nic: Mapping[DeviceName, NicTable] = Field(default_factory=dict)
    serial: Mapping[DeviceName, SerialTable] = Field(default_factory=dict)


SERVED_TABLES: Mapping[str, type[Table]] = {"dhcp": DhcpTable, "dns": DnsTable, "routes": RouteTable}
DEVICE_TABLES: Mapping[str, type[Table]] = {"disk": DiskTable, "nic": NicTable, "serial": SerialTable}


class UnitFile(Table):
    """A whole unit file, for its JSON Schema; files are validated by table, so that one mistake hides no other."""

    bridge: Mapping[LinkName, BridgeTable] = Field(default_factory=dict)
    vm: Mapping[VmName, VmTable] = Field(default_factory=dict)
    vlan: Mapping[LinkName, VlanTable] = Field(default_factory=dict)


def keys_of(table: type[BaseModel]) -> tuple[str, ...]:
    """The keys of a table as they are written."""
    return tuple(field.alias or name for name, field in table.model_fields.items())


def disk_format(path: str, named: str | None) -> str | None:
    """A disk's format: as named, else by suffix, else unknown. It is never probed: a guest could forge its header."""
    return named or next((kind for suffix, kind in FORMATS.items() if path.endswith(suffix)), None)


def table_at(path: tuple[str, ...]) -> type[Table]:
    """The model of the table at a key path inside a unit file."""
    if path[:1] == ("bridge",):
        if len(path) > 3 and path[2] == "vlan":
            return HostVlanTable
        return SERVED_TABLES[path[2]] if len(path) > 2 and path[2] in SERVED_TABLES else BridgeTable
    if path[:1] == ("vlan",):
        return VlanTable
    if len(path) > 3:
        return DEVICE_TABLES.get(path[2], NicTable)
    return VmTable


def bridge_mistakes(name: str, table: Mapping[str, object]) -> Iterator[Mistake]:
    """What is wrong between the keys of a bridge's table, also of one that has other mistakes."""
    ports = table.get("ports")
    yield from nat_mistakes(name, table)
    yield from ipv6_mistakes(name, table)
    yield from host_routes.route_mistakes(table)
    yield from uplink_mistakes(table)
    if isinstance(ports, list) and name in ports:
        yield ("ports", ports.index(name)), f"ports names the bridge {values.quoted(name)} itself", ""
    yield from served.served_mistakes(name, table)


def vm_mistakes(table: Mapping[str, object]) -> Iterator[Mistake]:
    """What is wrong between the keys of a guest's table, also of one that has other mistakes."""
    yield from platform_mistakes(table)
    yield from _tasks_mistakes(table)
    yield from order_mistakes(table)
    yield from publish_mistakes(table)
    yield from nics.nic_mistakes(table)
    yield from vlans.nic_mistakes(table)
    if "kernel" not in table:
        for key in ("initrd", "append"):
            if key in table:
                yield (key,), f"{key} needs kernel", 'add kernel = "/path/of/vmlinuz"'
    if table.get("machine") == "microvm" and table.get("vnc", False) is not False:
        yield ("vnc",), "vnc needs a machine with a screen, which microvm has not", 'machine = "q35"'
    devices = [tables for kind in ("disk", "nic") if isinstance(tables := table.get(kind), dict)]
    if (count := sum(map(len, devices))) > MAX_DEVICES:
        yield (), f"a guest has at most {MAX_DEVICES} disks and NICs, not {count}", ""
    disks = table.get("disk")
    for name, disk in disks.items() if isinstance(disks, dict) else ():
        if isinstance(disk, dict):
            yield from _drive_mistakes(str(name), disk)
        if isinstance(disk, dict) and disk.get("media") == "cdrom":
            continue
        path = disk.get("path") if isinstance(disk, dict) else None
        if isinstance(path, str) and path.startswith("/") and "format" not in disk and not disk_format(path, None):
            keys = ("disk", str(name), "path")
            yield keys, f"path {values.quoted(path)} does not tell the format", _format_hint(path)


def _tasks_mistakes(table: Mapping[str, object]) -> Iterator[Mistake]:
    """Too few tasks for a guest's CPUs; a number that is out of its bounds is told already."""
    key = "max-cpus" if "max-cpus" in table else "cpus"
    cpus, tasks = table.get(key, 1), table.get("tasks")
    if type(cpus) is not int or type(tasks) is not int or not (_is_within("cpus", cpus) and _is_within("tasks", tasks)):
        return
    if tasks < (needed := tasks_needed(cpus)):
        why = (
            f"QEMU has a thread for each CPU, up to {POOL_TASKS} for disks and {OTHER_TASKS} others, and aborts without"
        )
        yield ("tasks",), f"tasks must be at least {needed} for {key} = {cpus}, not {tasks}: {why}", f"tasks = {needed}"


def _is_within(key: str, value: int) -> bool:
    least, most = BOUNDS[key]
    return least <= value <= most


def _drive_mistakes(name: str, disk: Mapping[str, object]) -> Iterator[Mistake]:
    """What fits a disk only, or a CD-ROM drive only."""
    where = ("disk", name)
    if disk.get("media", "disk") == "disk":
        if "path" not in disk:
            yield where, "a disk needs path", 'only a drive with media = "cdrom" may be empty'
        if "bus" in disk:
            yield (*where, "bus"), 'bus is for media = "cdrom": a disk is always on virtio', ""
        return
    if disk.get("media") != "cdrom":
        return
    for key in ("size", "format", "cache", "discard", "iops", "bandwidth"):
        if key in disk:
            yield (*where, key), f'{key} is for disks, not for media = "cdrom"', ""
    if disk.get("read-only") is False:
        yield (*where, "read-only"), 'media = "cdrom" is always read-only', ""


def _format_hint(path: str) -> str:
    return 'add media = "cdrom"' if path.endswith(".iso") else 'add format = "raw" or "qcow2"'
