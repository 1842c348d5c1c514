"""The tables of a unit file and their keys. Only keys that do something are here: every other one is an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from agent.core.desired import MAX_DEVICES
from agent.core.limits import OTHER_TASKS, POOL_TASKS, tasks_needed
from agent.unitfile import order, served, values
from agent.unitfile.escapes import parse_extra_arg, parse_vnc
from agent.unitfile.filters import parse_entry
from agent.unitfile.ipv6 import ipv6_mistakes
from agent.unitfile.machines import Mistake, platform_mistakes
from agent.unitfile.order import order_mistakes
from agent.unitfile.publish import nat_mistakes, parse_publish, publish_mistakes
from agent.unitfile.uplinks import parse_probe, parse_probe_timeout, uplink_mistakes
from agent.unitfile.values import BadValueError

FORMATS = {".qcow2": "qcow2", ".raw": "raw", ".img": "raw"}
NIC_MODELS = {"virtio": "virtio-net-pci", "e1000": "e1000", "e1000e": "e1000e", "rtl8139": "rtl8139"}
"""From a NIC's `model` to QEMU's device."""
KINDS = ("bridge", "vm")
BOUNDS = {
    "cpus": (1, 288),
    "max-cpus": (1, 288),
    "iops": (1, 1_000_000_000),
    "mtu": (68, 65535),
    "cpu-weight": (1, 10000),
    "io-weight": (1, 10000),
    "tasks": (1, 1 << 22),
    "hotplug-slots": (0, 64),
}
"""Of each whole number, by its key; tasks up to the number of process numbers (Linux, linux/threads.h)."""


def _checked(check: Callable[[object], Any]) -> BeforeValidator:
    """A check of agent.unitfile.values as pydantic runs it."""
    return BeforeValidator(check)


def _number(key: str) -> Any:
    """The bounds of a whole number as pydantic checks them."""
    least, most = BOUNDS[key]
    return Field(ge=least, le=most)


def _once(items: tuple[str, ...]) -> tuple[str, ...]:
    twice = next((item for n, item in enumerate(items) if item in items[:n]), None)
    if twice is not None:
        raise BadValueError(f"names {values.quoted(twice)} twice")
    return items


def _text(description: str, **more: object) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "description": description, **more})


def _listed(value: object) -> object:
    """TOML's arrays, as the tuples that frozen tables hold."""
    if not isinstance(value, list):
        hint = f"write [{values.shown(value)}]" if isinstance(value, str) else ""
        raise BadValueError(f"must be an array of strings, not {values.shown(value)}", hint)
    return tuple(value)


Text = Annotated[str, _checked(values.parse_text), _text("text")]
Word = Annotated[str, _checked(values.parse_nonempty), _text("text")]
Append = Annotated[str, _checked(values.parse_append), _text("kernel command line")]
Path = Annotated[str, _checked(values.parse_path), _text("absolute path", pattern="^/")]
Size = Annotated[int, _checked(values.parse_size), _text('size such as "32G"', pattern="^[0-9]+[KMGT]$")]
Memory = Annotated[int, _checked(values.parse_memory), _text('size such as "512M"', pattern="^[0-9]+[KMGT]$")]
Bandwidth = Annotated[
    int, _checked(values.parse_bandwidth), _text('bytes per second such as "50M"', pattern="^[0-9]+[KMGT]$")
]
Duration = Annotated[float, _checked(values.parse_duration), _text('duration such as "90s"', pattern="^[0-9]+[smh]$")]
Quota = Annotated[int, _checked(values.parse_quota), _text('CPU time such as "150%"', pattern="^[0-9]+%$")]
CpuWeight = Annotated[int, _number("cpu-weight")]
IoWeight = Annotated[int, _number("io-weight")]
Rate = Annotated[int, _checked(values.parse_rate), _text('rate such as "10Mbit"', pattern="^[0-9]+[kMG]bit$")]
Mac = Annotated[
    str, _checked(values.parse_mac), _text("unicast MAC address", pattern="^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$")
]
Uuid = Annotated[
    str, _checked(values.parse_uuid), _text("uuid", pattern="^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){4}[0-9A-Fa-f]{8}$")
]
LinkName = Annotated[str, _checked(values.parse_link_name), _text("name of a link", pattern="^[^/:% ]{1,15}$")]
VmName = Annotated[
    str, _checked(values.parse_vm_name), _text("name of a guest", pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")
]
DeviceName = Annotated[
    str, _checked(values.parse_device_name), _text("name of a device", pattern="^[a-z0-9][a-z0-9-]{0,14}$")
]
Address = Annotated[
    str, _checked(values.parse_address), _text('address such as "192.168.0.1/24"', pattern="/[0-9]{1,3}$")
]
ExtraArg = Annotated[str, _checked(parse_extra_arg)]
ExtraArgs = Annotated[
    tuple[ExtraArg, ...],
    BeforeValidator(_listed),
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "uniqueItems": False}),
]
Vnc = Annotated[
    bool | str,
    _checked(parse_vnc),
    WithJsonSchema({"type": ["boolean", "string"], "pattern": r"^(127\.[0-9.]+|\[[0-9A-Fa-f:]+\]):[0-9]{1,5}$"}),
]
After = Annotated[
    str, _checked(order.parse_after), _text('"vm:NAME", "path:/PATH" or "tcp:ADDRESS:PORT"', pattern="^(vm|path|tcp):")
]
Ready = Annotated[
    str,
    _checked(order.parse_ready),
    _text('"running", "tcp:PORT" or "tcp:ADDRESS:PORT"', pattern="^(running|tcp:.*[0-9]+)$"),
]
GuestAddress = Annotated[str, _checked(order.parse_guest_address)]
GuestAddresses = Annotated[
    tuple[GuestAddress, ...],
    BeforeValidator(order.listed_addresses),
    AfterValidator(_once),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}, "uniqueItems": True}),
]
Publish = Annotated[
    str,
    _checked(parse_publish),
    _text(
        "[ADDRESS:]PORT[-PORT][:GUEST PORT][/tcp|/udp]",
        pattern=r"^(\[?[0-9A-Fa-f:.]+\]?:)?[0-9]{1,5}[0-9:-]*(/(tcp|udp))?$",
    ),
]
FilterEntry = Annotated[
    str,
    _checked(parse_entry),
    _text(
        "[PORT[-PORT]/tcp|/udp | icmp] [from NETWORK | to NETWORK]",
        pattern=r"^\s*([0-9]{1,5}(-[0-9]{1,5})?/(tcp|udp)|icmp|from|to)(\s|$)",
    ),
]
FilterEntries = Annotated[tuple[FilterEntry, ...], BeforeValidator(_listed), AfterValidator(_once)]
Probe = Annotated[str, _checked(parse_probe), _text('address of a host such as "192.0.2.1"')]
ProbeTimeout = Annotated[float, _checked(parse_probe_timeout), _text('duration such as "10s"', pattern="^[0-9]+[smh]$")]
Cpus = Annotated[int, _number("cpus")]
Mtu = Annotated[int, _number("mtu")]


BOOLEAN_OR_DNS = Field(json_schema_extra={"x-or-boolean": True})


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
        _checked(served.parse_range),
        WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2}),
    ]
    lease: Annotated[
        int, _checked(served.parse_lease), _text('duration such as "12h" or "3d"', pattern="^[0-9]+[smhd]$")
    ] = 43200
    ports: bool = False


class DnsTable(Table):
    """`dns` of a bridge; `upstream` None: the host's own."""

    upstream: (
        Annotated[
            tuple[Annotated[str, _checked(served.parse_upstream)], ...], BeforeValidator(_listed), AfterValidator(_once)
        ]
        | None
    ) = None
    domain: Annotated[str, _checked(served.parse_domain), _text("domain")] | None = None


class BridgeTable(Table):
    """`[bridge.NAME]`."""

    ports: Annotated[tuple[LinkName, ...], BeforeValidator(_listed), AfterValidator(_once)] = ()
    addresses: Annotated[tuple[Address, ...], BeforeValidator(_listed), AfterValidator(_once)] = ()
    mac: Mac | None = None
    mtu: Mtu | None = None
    stp: bool = False
    adopt: bool = False
    dhcp: DhcpTable | None = None
    dns: Annotated[DnsTable | None, BeforeValidator(served.dns_table), BOOLEAN_OR_DNS] = None
    nat: bool = False
    ipv6: Literal["routed", "ndp-proxy", "nat66"] | None = None
    uplink: LinkName | None = None
    adopt_addresses: bool = False
    probe: Annotated[tuple[Probe, ...], BeforeValidator(_listed), AfterValidator(_once)] = ()
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
    iops: Annotated[int, _number("iops")] | None = None
    bandwidth: Bandwidth | None = None


class NicTable(Table):
    """`[vm.NAME.nic.ID]`; rates in bits per second."""

    bridge: LinkName
    mac: Mac | None = None
    tap: LinkName | None = None
    model: Literal["virtio", "e1000", "e1000e", "rtl8139"] = "virtio"
    mtu: Mtu | None = None
    rate_in: Rate | None = None
    rate_out: Rate | None = None
    address: GuestAddresses = ()
    link: Literal["up", "down"] = "up"
    anti_spoof: bool | None = None
    serves: Annotated[tuple[Literal["dhcp", "ra"], ...], BeforeValidator(_listed), AfterValidator(_once)] = ()
    isolated: bool = False
    allow: FilterEntries = ()
    deny: FilterEntries = ()


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
    after: Annotated[tuple[After, ...], BeforeValidator(_listed), AfterValidator(_once)] = ()
    ready: Ready = "running"
    ready_timeout: Duration = 120.0
    description: Text = ""
    enabled: bool = True
    overcommit: bool = False
    hotplug_slots: Annotated[int, _number("hotplug-slots")] = 2
    cpu_weight: CpuWeight | None = None
    cpu_quota: Quota | None = None
    io_weight: IoWeight | None = None
    tasks: Annotated[int, _number("tasks")] | None = None
    apply: Literal["ask", "restart"] = "ask"
    fallback: bool = True
    publish: Annotated[tuple[Publish, ...], BeforeValidator(_listed), AfterValidator(_once)] = ()
    uuid: Uuid | None = None
    disk: Mapping[DeviceName, DiskTable] = Field(default_factory=dict)
    nic: Mapping[DeviceName, NicTable] = Field(default_factory=dict)
    serial: Mapping[DeviceName, SerialTable] = Field(default_factory=dict)


SERVED_TABLES: Mapping[str, type[Table]] = {"dhcp": DhcpTable, "dns": DnsTable}
DEVICE_TABLES: Mapping[str, type[Table]] = {"disk": DiskTable, "nic": NicTable, "serial": SerialTable}


class UnitFile(Table):
    """A whole unit file, for its JSON Schema; files are validated by table, so that one mistake hides no other."""

    bridge: Mapping[LinkName, BridgeTable] = Field(default_factory=dict)
    vm: Mapping[VmName, VmTable] = Field(default_factory=dict)


def keys_of(table: type[BaseModel]) -> tuple[str, ...]:
    """The keys of a table as they are written."""
    return tuple(field.alias or name for name, field in table.model_fields.items())


def disk_format(path: str, named: str | None) -> str | None:
    """A disk's format: as named, else by suffix, else unknown. It is never probed: a guest could forge its header."""
    return named or next((kind for suffix, kind in FORMATS.items() if path.endswith(suffix)), None)


def table_at(path: tuple[str, ...]) -> type[Table]:
    """The model of the table at a key path inside a unit file."""
    if path[:1] == ("bridge",):
        return SERVED_TABLES[path[2]] if len(path) > 2 and path[2] in SERVED_TABLES else BridgeTable
    if len(path) > 3:
        return DEVICE_TABLES.get(path[2], NicTable)
    return VmTable


def bridge_mistakes(name: str, table: Mapping[str, object]) -> Iterator[Mistake]:
    """What is wrong between the keys of a bridge's table, also of one that has other mistakes."""
    ports = table.get("ports")
    yield from nat_mistakes(name, table)
    yield from ipv6_mistakes(name, table)
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
