"""The kinds of values that keys of unit files take, each with its check and what the JSON Schema says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from agent.unitfile import host_routes, order, values, vlans
from agent.unitfile.escapes import parse_extra_arg, parse_vnc
from agent.unitfile.filters import parse_entry
from agent.unitfile.publish import parse_publish
from agent.unitfile.uplinks import parse_probe, parse_probe_timeout
from agent.unitfile.values import BadValueError

NIC_MODELS = {"virtio": "virtio-net-pci", "e1000": "e1000", "e1000e": "e1000e", "rtl8139": "rtl8139"}
"""From a NIC's `model` to QEMU's device."""
KINDS = ("bridge", "vm", "vlan")
BOUNDS = {
    "cpus": (1, 288),
    "max-cpus": (1, 288),
    "iops": (1, 1_000_000_000),
    "mtu": (68, 65535),
    "cpu-weight": (1, 10000),
    "io-weight": (1, 10000),
    "tasks": (1, 1 << 22),
    "hotplug-slots": (0, 64),
    "metric": (0, (1 << 32) - 1),
}
"""Of each whole number, by its key; tasks up to the number of process numbers (Linux, linux/threads.h)."""


def checked(check: Callable[[object], Any]) -> BeforeValidator:
    """A check of agent.unitfile.values as pydantic runs it."""
    return BeforeValidator(check)


def number(key: str) -> Any:
    """The bounds of a whole number as pydantic checks them."""
    least, most = BOUNDS[key]
    return Field(ge=least, le=most)


def once(items: tuple[str, ...]) -> tuple[str, ...]:
    """A list in which nothing stands twice; BadValueError for others."""
    twice = next((item for n, item in enumerate(items) if item in items[:n]), None)
    if twice is not None:
        raise BadValueError(f"names {values.quoted(twice)} twice")
    return items


def text(description: str, **more: object) -> WithJsonSchema:
    """What the JSON Schema says of a key that takes a text."""
    return WithJsonSchema({"type": "string", "description": description, **more})


def listed(value: object) -> object:
    """TOML's arrays, as the tuples that frozen tables hold."""
    if not isinstance(value, list):
        hint = f"write [{values.shown(value)}]" if isinstance(value, str) else ""
        raise BadValueError(f"must be an array of strings, not {values.shown(value)}", hint)
    return tuple(value)


Text = Annotated[str, checked(values.parse_text), text("text")]
Word = Annotated[str, checked(values.parse_nonempty), text("text")]
Append = Annotated[str, checked(values.parse_append), text("kernel command line")]
Path = Annotated[str, checked(values.parse_path), text("absolute path", pattern="^/")]
Size = Annotated[int, checked(values.parse_size), text('size such as "32G"', pattern="^[0-9]+[KMGT]$")]
Memory = Annotated[int, checked(values.parse_memory), text('size such as "512M"', pattern="^[0-9]+[KMGT]$")]
Bandwidth = Annotated[
    int, checked(values.parse_bandwidth), text('bytes per second such as "50M"', pattern="^[0-9]+[KMGT]$")
]
Duration = Annotated[float, checked(values.parse_duration), text('duration such as "90s"', pattern="^[0-9]+[smh]$")]
Quota = Annotated[int, checked(values.parse_quota), text('CPU time such as "150%"', pattern="^[0-9]+%$")]
CpuWeight = Annotated[int, number("cpu-weight")]
IoWeight = Annotated[int, number("io-weight")]
Rate = Annotated[int, checked(values.parse_rate), text('rate such as "10Mbit"', pattern="^[0-9]+[kMG]bit$")]
Mac = Annotated[
    str, checked(values.parse_mac), text("unicast MAC address", pattern="^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$")
]
Uuid = Annotated[
    str, checked(values.parse_uuid), text("uuid", pattern="^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){4}[0-9A-Fa-f]{8}$")
]
LinkName = Annotated[str, checked(values.parse_link_name), text("name of a link", pattern="^[^/:% ]{1,15}$")]
PortName = Annotated[
    str,
    checked(values.parse_port),
    text(
        'a link by its name or altname, "mac:ADDRESS" or "pci:PLACE"',
        pattern="^([^/:% ]{1,127}|[Mm][Aa][Cc]:[0-9A-Fa-f:]{17}|[Pp][Cc][Ii]:[0-9A-Fa-f:.]+)$",
    ),
]
VmName = Annotated[
    str, checked(values.parse_vm_name), text("name of a guest", pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")
]
DeviceName = Annotated[
    str, checked(values.parse_device_name), text("name of a device", pattern="^[a-z0-9][a-z0-9-]{0,14}$")
]
Address = Annotated[
    str, checked(values.parse_address), text('address such as "192.168.0.1/24"', pattern="/[0-9]{1,3}$")
]
ExtraArg = Annotated[str, checked(parse_extra_arg)]
ExtraArgs = Annotated[
    tuple[ExtraArg, ...],
    BeforeValidator(listed),
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "uniqueItems": False}),
]
Vnc = Annotated[
    bool | str,
    checked(parse_vnc),
    WithJsonSchema({"type": ["boolean", "string"], "pattern": r"^(127\.[0-9.]+|\[[0-9A-Fa-f:]+\]):[0-9]{1,5}$"}),
]
After = Annotated[
    str, checked(order.parse_after), text('"vm:NAME", "path:/PATH" or "tcp:ADDRESS:PORT"', pattern="^(vm|path|tcp):")
]
Ready = Annotated[
    str,
    checked(order.parse_ready),
    text('"running", "tcp:PORT" or "tcp:ADDRESS:PORT"', pattern="^(running|tcp:.*[0-9]+)$"),
]
GuestAddress = Annotated[str, checked(order.parse_guest_address)]
GuestAddresses = Annotated[
    tuple[GuestAddress, ...],
    BeforeValidator(order.listed_addresses),
    AfterValidator(once),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}, "uniqueItems": True}),
]
Gateways = Annotated[
    tuple[Annotated[str, checked(host_routes.parse_gateway)], ...],
    BeforeValidator(order.listed_addresses),
    AfterValidator(host_routes.one_of_each_version),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}, "uniqueItems": True}),
]
Publish = Annotated[
    str,
    checked(parse_publish),
    text(
        "[ADDRESS:]PORT[-PORT][:GUEST PORT][/tcp|/udp]",
        pattern=r"^(\[?[0-9A-Fa-f:.]+\]?:)?[0-9]{1,5}[0-9:-]*(/(tcp|udp))?$",
    ),
]
FilterEntry = Annotated[
    str,
    checked(parse_entry),
    text(
        "[PORT[-PORT]/tcp|/udp | icmp] [from NETWORK | to NETWORK]",
        pattern=r"^\s*([0-9]{1,5}(-[0-9]{1,5})?/(tcp|udp)|icmp|from|to)(\s|$)",
    ),
]
FilterEntries = Annotated[tuple[FilterEntry, ...], BeforeValidator(listed), AfterValidator(once)]
_VLAN_RANGE = {"type": ["integer", "string"], "minimum": 1, "maximum": 4094, "pattern": "^[0-9]{1,4}(-[0-9]{1,4})?$"}
VlanId = Annotated[int, checked(vlans.parse_id), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 4094})]
VlanKey = Annotated[str, checked(vlans.parse_id_key), text("number of a VLAN", pattern="^[1-9][0-9]{0,3}$")]
Trunk = Annotated[
    tuple[str, ...],
    checked(vlans.parse_trunk),
    WithJsonSchema({"type": ["array", "string"], "items": _VLAN_RANGE, "pattern": "^all$", "minItems": 1}),
]
Probe = Annotated[str, checked(parse_probe), text('address of a host such as "192.0.2.1"')]
ProbeTimeout = Annotated[float, checked(parse_probe_timeout), text('duration such as "10s"', pattern="^[0-9]+[smh]$")]
Cpus = Annotated[int, number("cpus")]
Mtu = Annotated[int, number("mtu")]


BOOLEAN_OR_DNS = Field(json_schema_extra={"x-or-boolean": True})
