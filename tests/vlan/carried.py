"""What bridges and their ports carry, as iproute2 tells it, and as a hand changes it."""

from __future__ import annotations

import json
import subprocess
from typing import Any

Carried = dict[str, list[tuple[int, tuple[str, ...]]]]

UNTAGGED = ("PVID", "Egress Untagged")


def carried() -> Carried:
    """What `bridge vlan` says (iproute2 6.1 and later: one entry for each VLAN, or ranges with `vlanEnd`)."""
    said: list[dict[str, Any]] = json.loads(
        subprocess.run(["bridge", "-j", "vlan"], capture_output=True, text=True, check=True, timeout=60).stdout
    )
    return {
        port["ifname"]: [
            (number, tuple(one.get("flags", ())))
            for one in port["vlans"]
            for number in range(one["vlan"], one.get("vlanEnd", one["vlan"]) + 1)
        ]
        for port in said
    }


def bridge_vlan(words: str) -> None:
    """`bridge vlan` with these words."""
    subprocess.run(["bridge", "vlan", *words.split()], check=True, timeout=60)
