"""What a NIC hangs on, and which of its keys go together: each mistake at its key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, WithJsonSchema

from agent.core.desired import MAX_QUEUES
from agent.unitfile.machines import Mistake
from agent.unitfile.values import BadValueError, quoted, shown

_NEEDS_BRIDGE = {
    "address": "the host cannot reach the guest there, neither to publish a port nor to give an address",
    "anti-spoof": "frames pass no bridge that could drop them",
    "serves": "frames pass no bridge that could drop them",
    "isolated": "it is a property of a bridge's port",
    "allow": "frames pass no bridge that could drop them",
    "deny": "frames pass no bridge that could drop them",
    "rate-in": "what comes to a macvtap passes no queue of the host that could wait",
    "rate-out": "what comes to a macvtap passes no queue of the host that could wait",
    "vlan": "no bridge heeds its VLANs; a [vlan.NAME] on the link can be named in direct",
    "trunk": "no bridge heeds its VLANs; it gets every tag that comes to the link",
    "native": "no bridge heeds its VLANs",
}
"""Keys that a NIC on a link itself cannot have, each with the reason."""


def parse_queues(value: object) -> int | Literal["auto"]:
    """A number of queues, or "auto" for as many as the guest has CPUs."""
    if value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int):
        hint = f"did you mean {value}?" if isinstance(value, str) and value.isdecimal() else ""
        raise BadValueError(f'must be a whole number, 1 to {MAX_QUEUES}, or "auto", not {shown(value)}', hint)
    if not 1 <= value <= MAX_QUEUES:
        raise BadValueError(f'must be a whole number, 1 to {MAX_QUEUES}, or "auto", not {value}')
    return value


def parse_vhost(value: object) -> bool | Literal["auto"]:
    """Whether the kernel carries a NIC's frames, or "auto" for where it can and guests have KVM."""
    if value == "auto":
        return "auto"
    if isinstance(value, bool):
        return value
    hint = f"did you mean {value}?" if isinstance(value, str) and value in {"true", "false"} else ""
    raise BadValueError(f'must be true, false or "auto", not {shown(value)}', hint)


Queues = Annotated[
    int | Literal["auto"],
    BeforeValidator(parse_queues),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_QUEUES}, {"type": "string", "enum": ["auto"]}]}
    ),
]
Vhost = Annotated[
    bool | Literal["auto"],
    BeforeValidator(parse_vhost),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "string", "enum": ["auto"]}]}),
]


def nic_mistakes(table: Mapping[str, object]) -> Iterator[Mistake]:
    """What is wrong between the keys of a guest's NICs, also of one that has other mistakes."""
    nics = table.get("nic")
    for name, nic in nics.items() if isinstance(nics, dict) else ():
        if not isinstance(nic, dict):
            continue
        where = ("nic", str(name))
        if "direct" in nic:
            yield from _direct_mistakes(where, nic)
        elif "bridge" not in nic:
            yield where, "a NIC needs bridge", 'or direct = "LINK", which puts it on a link of the host itself'
        model = nic.get("model", "virtio")
        for key, idle in (("queues", 1), ("vhost", False)):
            if isinstance(model, str) and model != "virtio" and nic.get(key, idle) != idle:
                yield (*where, key), f"{key} is for virtio NICs, not for model = {quoted(model)}", ""


def _direct_mistakes(where: tuple[str, str], nic: Mapping[str, object]) -> Iterator[Mistake]:
    if "bridge" in nic:
        yield (*where, "direct"), "a NIC has a bridge or is direct, not both", "take one of them out"
    for key, why in _NEEDS_BRIDGE.items():
        if key in nic and nic[key] not in (False, [], None):
            yield (*where, key), f"{key} needs a bridge, and this NIC is direct: {why}", "bridge = instead of direct ="
