"""What must hold between `adopt-addresses`, its probes and a bridge's other keys."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping

from agent.unitfile.machines import Mistake
from agent.unitfile.values import BadValueError, parse_duration, shown

STP_SILENT_S = 30.0
"""A bridge with STP listens and learns for twice its forward delay before a new port passes anything (802.1D)."""
MAX_PROBE_TIMEOUT_S = 600.0
ADOPTING = ("probe", "probe-timeout", "confirm")


def parse_probe(value: object) -> str:
    """A host's address, in canonical form."""
    wrong = f'must be the address of a host such as "192.0.2.1", not {shown(value)}'
    try:
        parsed = ipaddress.ip_address(value) if isinstance(value, str) and "%" not in value else None
    except ValueError:
        raise BadValueError(wrong) from None
    if parsed is None or parsed.is_multicast or parsed.is_unspecified or parsed.is_loopback or parsed.is_link_local:
        raise BadValueError(wrong)
    return str(parsed)


def parse_probe_timeout(value: object) -> float:
    """A duration from a second to ten minutes."""
    seconds = parse_duration(value)
    if not 1 <= seconds <= MAX_PROBE_TIMEOUT_S:
        raise BadValueError(f'must be "1s" to "10m", not {shown(value)}')
    return seconds


def uplink_mistakes(table: Mapping[str, object]) -> Iterator[Mistake]:
    """What is wrong between the keys of a bridge's table."""
    adopts = table.get("adopt-addresses") is True
    if not adopts:
        for key in ADOPTING:
            if key in table:
                yield (key,), f"{key} is about moving the port's addresses", "add adopt-addresses = true"
        return
    if not table.get("ports"):
        yield ("adopt-addresses",), "adopt-addresses takes what a port carries, and needs one", 'add ports = ["eth0"]'
    if "mac" in table:
        problem = "with adopt-addresses the bridge has the MAC of its port, or neighbours would not know it any more"
        yield ("mac",), problem, "leave mac out"
    if table.get("stp") is True and _seconds(table.get("probe-timeout", "10s")) <= STP_SILENT_S:
        problem = "with stp a new port passes nothing for 30 s, so no probe would pass in time"
        yield ("stp",), problem, 'add probe-timeout = "60s"'


def _seconds(value: object) -> float:
    try:
        return parse_probe_timeout(value)
    except BadValueError:
        return STP_SILENT_S + 1  # told already
