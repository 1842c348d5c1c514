"""What stands in the way of a resource, or is worth knowing about it, in words for a person."""

from __future__ import annotations

from dataclasses import dataclass

FINDINGS = frozenset(
    {
        "ForeignDrop",
        "BridgeFiltered",
        "ForwardingOff",
        "RpFilter",
        "SecondDhcpServer",
        "MtuPath",
        "PortAddressed",
    }
)
"""What the doctor finds outside of our state (`doctor_findings.KINDS`)."""

NOTICES = frozenset({"Unsupported", "FellBack", "EditUnstartable", "HostApart"}) | FINDINGS
"""Types that tell what is worth knowing and stand in nothing's way."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One finding about one resource (`vm/web`, `bridge/br-lan`, `tap/web/lan`, `port/eth1`).

    `type` and `reason` are CamelCase and stable; `message` says what, why and what to do, in one line.
    """

    resource: str
    type: str
    reason: str
    message: str
