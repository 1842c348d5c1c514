"""What a unit file lays claim to and refers to, taken loosely from its TOML: a table with mistakes still counts.

So the errors between files are all found at once, and a bridge with a typo in its MTU is no reason to say that the
guests on it name no bridge. A value that is wrong by itself claims nothing: it has its own error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from agent.core.marks import bridge_resource, vlan_resource, vm_resource
from agent.core.references import GUEST
from agent.unitfile import values
from agent.unitfile.escapes import parse_display
from agent.unitfile.fields import KINDS
from agent.unitfile.order import parse_after
from agent.unitfile.publish import parse_publish
from agent.unitfile.values import BadValueError
from agent.unitfile.vlans import parse_id_key

KeyPath = tuple[str | int, ...]
_CHECKS: Mapping[str, Callable[[object], str]] = {
    "bridge": values.parse_link_name,
    "vm": values.parse_vm_name,
    "vlan": values.parse_link_name,
}
_HEADER = re.compile(
    r"""^[ \t]*\[[ \t]*(bridge|vm|vlan)[ \t]*\.[ \t]*["']?([^\s."'\[\]]+)["']?[ \t]*[.\]]""", re.MULTILINE
)


class Claim(NamedTuple):
    """Something that only one may have. `resource` and `device` say for whom, `where` is its key path in the file.

    `kind`: `name`, `uuid`, `mac`, `disk` (a path), `link` (a name in the kernel), `display` (of VNC),
    `vlan` (link and number, as `eth1/20`), `port` (what is published of the
    host's, as `core.routing.publications` writes it; two meet in any port of theirs).
    `key` None: the default, which depends on more than the file. `role` is what a link is to be (`bridge`, `port`,
    `tap`, `vlan`, `direct` for one that NICs share), or `read-only` for a disk.
    """

    kind: str
    key: str | None
    resource: str
    device: str
    where: KeyPath
    role: str = ""


class Reference(NamedTuple):
    """A NIC's bridge or a guest's `after`: `kind` (`bridge`, `vm`) and `target` name what must exist."""

    kind: str
    target: str
    resource: str
    device: str
    where: KeyPath


@dataclass(frozen=True, slots=True)
class Extract:
    """All claims and references of one file, in its order."""

    claims: tuple[Claim, ...] = ()
    references: tuple[Reference, ...] = ()


def extract(top: Mapping[str, object]) -> Extract:
    """The claims and references of a file that is TOML, whatever is in it."""
    claims: list[Claim] = []
    references: list[Reference] = []
    for kind in KINDS:
        for name, table in _tables(top, kind):
            if _valid(_CHECKS[kind], name) is None:
                continue
            if kind == "bridge":
                claims += _bridge_claims(name, table)
            elif kind == "vlan":
                claims += _vlan_claims(name, table)
            else:
                claims += _vm_claims(name, table)
                references += _vm_references(name, table)
    return Extract(tuple(claims), tuple(references))


def extract_names(text: str) -> Extract:
    """The names in the table headers of a file that is not TOML."""
    found: dict[tuple[str, str], Claim] = {}
    for kind, name in _HEADER.findall(text):
        if _valid(_CHECKS[kind], name) is not None:
            found.setdefault((kind, name), _name_claim(kind, name))
    return Extract(tuple(found.values()))


def _tables(parent: Mapping[str, object], key: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    tables = parent.get(key)
    for name, table in tables.items() if isinstance(tables, dict) else ():
        if isinstance(table, dict):
            yield name, table


def _items(table: Mapping[str, object], key: str) -> list[object]:
    items = table.get(key)
    return items if isinstance(items, list) else []


def _valid(check: Callable[[object], str], value: object) -> str | None:
    try:
        return check(value)
    except BadValueError:
        return None


_RESOURCES = {"bridge": bridge_resource, "vm": vm_resource, "vlan": vlan_resource}


def _name_claim(kind: str, name: str) -> Claim:
    resource = _RESOURCES[kind](name)
    return Claim("name", resource, resource, "", (kind, name))


def _optional(
    kind: str, check: Callable[[object], str], table: Mapping[str, object], key: str, owner: Claim, device: str = ""
) -> Iterator[Claim]:
    """The claim of a key that has a default where it is absent."""
    inner = owner.where if not device else (*owner.where, *device.split("/"))
    role = "tap" if kind == "link" else ""
    if key not in table:
        yield Claim(kind, None, owner.resource, device, inner, role)
    elif (valid := _valid(check, table[key])) is not None:
        yield Claim(kind, valid, owner.resource, device, (*inner, key), role)


def _bridge_claims(name: str, table: Mapping[str, object]) -> Iterator[Claim]:
    owner = _name_claim("bridge", name)
    yield owner
    yield Claim("link", name, owner.resource, "", owner.where, "bridge")
    yield from _optional("mac", values.parse_mac, table, "mac", owner)
    ports = _items(table, "ports")
    for place, port in enumerate(ports):
        valid = _valid(values.parse_port, port)
        if valid is not None and valid != name and port not in ports[:place]:
            yield Claim("link", valid, owner.resource, f"port/{valid}", (*owner.where, "ports", place), "port")

    for id_, vlan in _tables(table, "vlan"):
        if (number := _valid(parse_id_key, id_)) is not None:
            where, device = (*owner.where, "vlan", id_), f"vlan/{id_}"
            yield Claim("vlan", f"{name}/{number}", owner.resource, device, where)
            key = _valid(values.parse_link_name, vlan["name"]) if "name" in vlan else None
            if "name" not in vlan or key is not None:
                yield Claim("link", key, owner.resource, device, (*where, "name") if key else where, "vlan")


def _vlan_claims(name: str, table: Mapping[str, object]) -> Iterator[Claim]:
    owner = _name_claim("vlan", name)
    yield owner
    yield Claim("link", name, owner.resource, "", owner.where, "vlan")
    link, number = table.get("link"), table.get("id")
    if isinstance(link, str) and isinstance(number, int) and _valid(values.parse_link_name, link) is not None:
        yield Claim("vlan", f"{link}/{number}", owner.resource, "", (*owner.where, "id"))


def _vm_claims(name: str, table: Mapping[str, object]) -> Iterator[Claim]:
    owner = _name_claim("vm", name)
    yield owner
    yield from _optional("uuid", values.parse_uuid, table, "uuid", owner)
    for id_, disk in _tables(table, "disk"):
        path = _valid(values.parse_path, disk.get("path"))
        if path is not None:
            where = (*owner.where, "disk", id_, "path")
            role = "read-only" if disk.get("read-only") is True or disk.get("media") == "cdrom" else ""
            yield Claim("disk", values.normalised_path(path), owner.resource, f"disk/{id_}", where, role)
    display = _valid(parse_display, table.get("vnc"))
    if display is not None:
        yield Claim("display", display, owner.resource, "", (*owner.where, "vnc"))
    yield from _port_claims(owner, _items(table, "publish"))
    for id_, nic in _tables(table, "nic"):
        if _valid(values.parse_device_name, id_) is not None:
            yield from _optional("mac", values.parse_mac, nic, "mac", owner, f"nic/{id_}")
            yield from _optional("link", values.parse_link_name, nic, "tap", owner, f"nic/{id_}")
            direct = _valid(values.parse_link_name, nic.get("direct"))
            if direct is not None:
                where = (*owner.where, "nic", id_, "direct")
                yield Claim("link", direct, owner.resource, f"nic/{id_}", where, "direct")


def _port_claims(owner: Claim, published: list[object]) -> Iterator[Claim]:
    seen: set[str] = set()
    for place, item in enumerate(published):
        text = _valid(parse_publish, item)
        if text is not None and text not in seen:
            seen.add(text)
            yield Claim("port", text, owner.resource, "", (*owner.where, "publish", place))


def _vm_references(name: str, table: Mapping[str, object]) -> Iterator[Reference]:
    resource = vm_resource(name)
    after = _items(table, "after")
    for place, item in enumerate(after):
        target = _valid(parse_after, item)
        if target is not None and target.startswith(GUEST) and item not in after[:place]:
            yield Reference("vm", target.removeprefix(GUEST), resource, "", ("vm", name, "after", place))
    for id_, nic in _tables(table, "nic"):
        bridge = _valid(values.parse_link_name, nic.get("bridge"))
        if bridge is not None:
            yield Reference("bridge", bridge, resource, f"nic/{id_}", ("vm", name, "nic", id_, "bridge"))
