"""A look at all guests, as the control socket carries it: counters of each, and its state at that moment.

The keys of the JSON are the names of `agent.core.measures`; what was not learnt is null or absent.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from agent.core.measures import DiskMeasure, GuestMeasure, Histogram


@dataclass(frozen=True, slots=True)
class NicCount:
    """What passed a NIC since its tap was made, in the guest's sense: what the tap sends, the guest receives."""

    nic: str
    received_bytes: int
    sent_bytes: int


@dataclass(frozen=True, slots=True)
class GuestLook:
    """A guest that a unit names or that runs; `pid` and `measure` are None while its QEMU does not run, or is silent.

    `nics` was read at `nics_at_s`, on the same clock as the measure's `at_s`.
    """

    name: str
    state: str
    pid: int | None = None
    measure: GuestMeasure | None = None
    nics: tuple[NicCount, ...] = ()
    nics_at_s: float = 0.0

    def as_json(self) -> dict[str, object]:
        """The look as plain data; `parse_look` is the way back."""
        return {
            "name": self.name,
            "state": self.state,
            "pid": self.pid,
            "measure": None if self.measure is None else _plain(self.measure, without="vm"),
            "nics": [_plain(nic) for nic in self.nics],
            "nics_at_s": self.nics_at_s,
        }


@functools.cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(one.name for one in fields(kind))


def _plain(value: Any, without: str = "") -> Any:
    """A value as plain data, without a copy of what is plain already: `asdict` takes ten times as long."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return [_plain(one) for one in value] if value and is_dataclass(value[0]) else value
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in _names(type(value)) if name != without}
    return value


def parse_look(data: Mapping[str, Any]) -> GuestLook:
    """The look that an agent told of; keys that this version does not know are left out.

    Raises ValueError for what no agent would say.
    """
    try:
        measure = data["measure"]
        return GuestLook(
            name=str(data["name"]),
            state=str(data["state"]),
            pid=data["pid"],
            measure=None if measure is None else _measure(str(data["name"]), measure),
            nics=tuple(
                NicCount(one["nic"], int(one["received_bytes"]), int(one["sent_bytes"])) for one in data["nics"]
            ),
            nics_at_s=float(data["nics_at_s"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no look at a guest: {error!r}") from error


def _measure(name: str, data: Mapping[str, Any]) -> GuestMeasure:
    return GuestMeasure(
        vm=name,
        at_s=float(data["at_s"]),
        cpu_s=data["cpu_s"],
        vcpus=data["vcpus"],
        vcpu_delay_s=data["vcpu_delay_s"],
        resident_bytes=data["resident_bytes"],
        balloon_bytes=data["balloon_bytes"],
        guest_memory_bytes=data["guest_memory_bytes"],
        pressure_s=data["pressure_s"],
        disks=tuple(_disk(one) for one in data["disks"]),
    )


def _disk(data: Mapping[str, Any]) -> DiskMeasure:
    return DiskMeasure(
        disk=data["disk"],
        read_bytes=int(data["read_bytes"]),
        written_bytes=int(data["written_bytes"]),
        operations=data["operations"],
        errors=data["errors"],
        io_time_s=data["io_time_s"],
        latency={
            operation: Histogram(tuple(one["bounds_s"]), tuple(one["counts"]), float(one["sum_s"]))
            for operation, one in data["latency"].items()
        },
        capacity_bytes=data["capacity_bytes"],
        allocated_bytes=data["allocated_bytes"],
    )
