"""What a guest was launched as, compared with what its unit says now: the changes that only a restart applies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache

from agent.core.desired import DiskSpec, NicSpec, SerialSpec, VmSpec
from agent.core.edits.effects import key_of_field
from agent.core.rates import rate_text

NOT_LAUNCHED = frozenset(
    {
        "name",
        "file",
        "restart",
        "stop_timeout_s",
        "after",
        "description",
        "enabled",
        "disks",
        "nics",
        "serials",
        "overcommit",
        "limits",
        "ready",
        "ready_timeout_s",
        "apply",
        "fallback",
        "publish",
    }
)
"""What QEMU's start does not depend on; devices are compared each by its id. A new field counts by default."""

_SINCE = {
    "balloon": "",
    "bandwidth": "",
    "bus": "virtio",
    "direct": "",
    "extra-args": "",
    "firmware": "bios",
    "hotplug-slots": "2",
    "iops": "",
    "link": "up",
    "max-cpus": "",
    "media": "disk",
    "queues": "1",
    "rate-in": "",
    "rate-out": "",
    "rng": "true",
    "secure-boot": "false",
    "vhost": "false",
    "vnc": "false",
    "watchdog": "",
}
"""Keys that came later, with what every guest had before them: at that they leave the fingerprint as it was, so that a
guest that an earlier agent launched keeps its own."""

_DEVICE_FIELDS = frozenset({"file", "disks", "nics", "serials"})
_DISK_NOT_LAUNCHED = frozenset({"id", "size_bytes"})
_NIC_LIVE = frozenset({"address", "anti_spoof", "serves", "isolated", "allow", "deny", "vlan", "trunk", "native"})
_NIC_NOT_LAUNCHED = frozenset({"id"}) | _NIC_LIVE
_SERIAL_NOT_LAUNCHED = frozenset({"id"})
_UNITS = {"memory_mib": 1 << 20, "balloon_mib": 1 << 20, "size_bytes": 1, "bandwidth_bytes": 1}


@dataclass(frozen=True, slots=True)
class PendingChange:
    """One key of a unit whose new value waits for a restart; values as an operator writes them, empty for none."""

    key: str
    before: str
    after: str


@lru_cache(maxsize=4096)  # `status` asks for both of every guest, a thousand of which took half a second
def digest(spec: VmSpec) -> str:
    """A fingerprint of all that a launch depends on; two specs with the same one need no restart between them."""
    lines = (
        f"{key}={value!r}"
        for key, value in sorted(launched_values(spec).items())
        if _SINCE.get(key.rpartition(".")[2]) != value
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def pending_changes(launched: VmSpec, wanted: VmSpec) -> tuple[PendingChange, ...]:
    """What a restart would change of a guest, sorted by key. Empty if and only if both have the same `digest`."""
    old, new = launched_values(launched), launched_values(wanted)
    plugged = _devices(old) ^ _devices(new)
    kept = _devices(old) & _devices(new)
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return tuple(
        PendingChange(key, old.get(key, ""), new.get(key, ""))
        for key in changed
        if key not in kept and key.rpartition(".")[0] not in plugged
    )


def changed_keys(before: VmSpec, after: VmSpec) -> tuple[str, ...]:
    """All keys in which two specs differ, a whole device as one; also those that a launch does not depend on."""
    old = dict(_values(before, _DEVICE_FIELDS))
    own = {key for key, value in _values(after, _DEVICE_FIELDS) if old[key] != value}
    sizes = {
        f"disk.{disk.id}.size"
        for disk in after.disks
        for earlier in before.disks
        if earlier.id == disk.id and earlier.size_bytes != disk.size_bytes
    }
    nics = {
        f"nic.{nic.id}.{key_of_field(name)}"
        for nic in after.nics
        for earlier in before.nics
        if earlier.id == nic.id
        for name in _NIC_LIVE
        if getattr(earlier, name) != getattr(nic, name)
    }
    return tuple(sorted({*own, *sizes, *nics, *(change.key for change in pending_changes(before, after))}))


def _devices(values: Mapping[str, str]) -> frozenset[str]:
    """The keys that stand for a whole device, as `disk.root`."""
    return frozenset(key for key in values if key.count(".") == 1)


def launched_values(spec: VmSpec) -> Mapping[str, str]:
    """A spec as flat keys of its unit, so that `[vm.web.disk.root] cache = "none"` is `disk.root.cache`."""
    found = dict(_values(spec, NOT_LAUNCHED))
    for disk in spec.disks:
        found[f"disk.{disk.id}"] = disk.path or "an empty drive"
        found |= {f"disk.{disk.id}.{key}": value for key, value in _values(disk, _DISK_NOT_LAUNCHED)}
    for nic in spec.nics:
        found[f"nic.{nic.id}"] = nic.mac
        found |= {f"nic.{nic.id}.{key}": value for key, value in _values(nic, _NIC_NOT_LAUNCHED)}
    for serial in spec.serials:
        found[f"serial.{serial.id}"] = serial.port
        found |= {f"serial.{serial.id}.{key}": value for key, value in _values(serial, _SERIAL_NOT_LAUNCHED)}
    return found


def _values(spec: VmSpec | DiskSpec | NicSpec | SerialSpec, without: frozenset[str]) -> Iterator[tuple[str, str]]:
    for each in fields(spec):
        if each.name not in without:
            yield key_of_field(each.name), _written(each.name, getattr(spec, each.name))


def _written(name: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return json.dumps(value, ensure_ascii=False) if value else ""
    if isinstance(value, int) and name.endswith("_bps"):
        return rate_text(value)
    if isinstance(value, int) and name in _UNITS:
        return _size(value * _UNITS[name])
    return str(value)


def _size(size_bytes: int) -> str:
    for unit, factor in (("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return str(size_bytes)
