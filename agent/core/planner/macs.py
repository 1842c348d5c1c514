"""MACs that a bridge would not forward to: those of its ports and its own, and one that two NICs have.

A frame to the bridge's own MAC, or to that of a port, is delivered to the host (net/bridge/br_fdb.c keeps those as
local entries, net/bridge/br_input.c: br_handle_frame_finish passes up what meets one). A guest with it hears nothing
that is sent to it alone, while all that it sends arrives: the hardest kind of silence to find.
"""

from __future__ import annotations

from collections.abc import Mapping

from agent.core.desired import BridgeSpec, NicSpec, VmSpec
from agent.core.marks import is_own_bridge, tap_resource
from agent.core.observed import LinkState
from agent.core.planner.draft import Draft
from agent.core.planner.ports import Ports


def tell_taken_macs(draft: Draft, bridges: Mapping[str, BridgeSpec], specs: Mapping[str, VmSpec], ports: Ports) -> None:
    """Tell each NIC whose MAC is taken. A guest that runs counts as it runs, else as its unit says."""
    vms = draft.observed.vms
    taken = {name: _taken(draft, bridge, ports) for name, bridge in bridges.items()}
    holders: dict[tuple[str, str], str] = {}
    guests = {**{name: spec for name, spec in specs.items() if spec.enabled}, **{n: s.spec for n, s in vms.items()}}
    for name, spec in guests.items():
        for nic in spec.nics:
            place = f"{name}'s {nic.id}"
            if nic.mac in (kept := taken.get(nic.bridge, {})):
                _tell_taken(draft, name, nic, kept[nic.mac])
            holder = holders.setdefault((nic.bridge, nic.mac), place)
            if holder != place:
                message = (
                    f"{nic.mac} is also the MAC of {holder} on {nic.bridge}: the bridge forwards to whoever was heard "
                    "last; give one of them another mac"
                )
                draft.tell(tap_resource(name, nic.id), "MacTaken", message)


def _taken(draft: Draft, bridge: BridgeSpec, ports: Ports) -> Mapping[str, LinkState | None]:
    """The MACs that a bridge keeps for the host, each with the port that has it; None for the bridge itself."""
    found: dict[str, LinkState | None] = {}
    link = draft.observed.links.get(bridge.name)
    for port in ports.of(bridge.name).values():
        found[port.mac] = port
    if link is not None and is_own_bridge(link):
        foreign = (one for one in draft.observed.links.values() if one.master == link.ifindex)
        found |= {one.mac: one for one in foreign if not one.alias.startswith("vmhost:tap/")}
    found[bridge.mac] = None
    found.pop("", None)
    return found


def _tell_taken(draft: Draft, vm: str, nic: NicSpec, port: LinkState | None) -> None:
    silent = f"{nic.bridge} keeps what is sent to it for the host, and forwards none of it to {vm}"
    if port is None:
        remedy = f"give {nic.id} another mac, or [bridge.{nic.bridge}] another one"
        message = f"{nic.mac} is the MAC of {nic.bridge} itself: {silent}; {remedy}"
    else:
        given = _other(nic.mac)
        remedy = (
            f"if the guest must have the card's MAC (a provider that knows it), give the card another one: "
            f"ip link set dev {port.name} address {given}, and MACAddress={given} in its systemd .link file; "
            f"else give {nic.id} another mac"
        )
        message = f"{nic.mac} is the MAC of {port.name}, a port of {nic.bridge}: {silent}; {remedy}"
    draft.tell(tap_resource(vm, nic.id), "MacTaken", message)


def _other(mac: str) -> str:
    """A MAC like this one that no maker gave to a card: locally administered (IEEE 802: bit 1 of octet 0)."""
    first = int(mac[:2], 16)
    return f"{first | 0x02 if not first & 0x02 else first ^ 0x04:02x}{mac[2:]}"
