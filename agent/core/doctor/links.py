"""What links do to guests: packets that do not fit, and addresses where nobody hears them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from agent.core.desired import BridgeSpec, NicSpec
from agent.core.doctor.findings import Finding
from agent.core.doctor.firewall import place_of
from agent.core.doctor.mend import admitting
from agent.core.doctor.packets import FAMILIES, Packet, Steps, sure_drop
from agent.core.doctor.scene import Scene
from agent.core.marks import bridge_resource, port_resource, tap_resource
from agent.core.observed import LinkState


def mtu_paths(scene: Scene, steps: Steps) -> Iterator[Finding]:
    """Where what is too large is lost, and nobody is told. Raises TooManyRulesError."""
    for bridge in scene.bridges.values():
        link = scene.links.get(bridge.name)
        if link is None:
            continue
        for port in scene.ports_of(bridge.name):
            if port.mtu < link.mtu:
                yield _small_port(scene, bridge, link, port)
        yield from _large_nics(scene, bridge, link)
        for version in scene.versions(bridge):
            for name in scene.uplinks.get(version, ()):
                uplink = scene.links.get(name)
                if uplink is not None and uplink.mtu != link.mtu:
                    yield from _black_hole(scene, bridge, link, uplink, version, steps)


def _small_port(scene: Scene, bridge: BridgeSpec, link: LinkState, port: LinkState) -> Finding:
    what = f"{port.name} takes packets of {port.mtu} bytes, its bridge {bridge.name} of {link.mtu}"
    for vm, nic in scene.nics_on(bridge.name):
        if nic.tap == port.name and nic.mtu == port.mtu:
            why = (
                f"what others on the bridge send to {vm} is lost if it is larger; {_edit(scene, vm, nic, bridge, link)}"
            )
            return Finding("MtuPath", tap_resource(vm, nic.id), what, why, ())
    why = "what guests send by it is lost without a word if it is larger"
    command = f"ip link set dev {shlex.quote(port.name)} mtu {link.mtu}"
    return Finding("MtuPath", port_resource(port.name), what, why, (command,))


def _large_nics(scene: Scene, bridge: BridgeSpec, link: LinkState) -> Iterator[Finding]:
    for vm, nic in scene.nics_on(bridge.name):
        if nic.mtu > link.mtu:
            what = f"{vm} is told that it may send packets of {nic.mtu} bytes on {bridge.name}, which takes {link.mtu}"
            why = f"what it sends that is larger is lost; {_edit(scene, vm, nic, bridge, link)}"
            yield Finding("MtuPath", tap_resource(vm, nic.id), what, why, ())


def _edit(scene: Scene, vm: str, nic: NicSpec, bridge: BridgeSpec, link: LinkState) -> str:
    file = scene.vms[vm].file
    return f"in {file}, [vm.{vm}.nic.{nic.id}]: mtu = {link.mtu}, or mtu = {nic.mtu} in [bridge.{bridge.name}]"


def _black_hole(
    scene: Scene, bridge: BridgeSpec, link: LinkState, uplink: LinkState, version: int, steps: Steps
) -> Iterator[Finding]:
    """The larger side sends packets that do not fit the smaller, and ICMP, which goes back to it, is dropped."""
    if scene.rules is None:
        return
    larger, smaller = (link, uplink) if link.mtu > uplink.mtu else (uplink, link)
    # RFC 1191, RFC 8201: these two carry the MTU of the next hop.
    kind = {4: ("icmp", "destination-unreachable"), 6: ("ipv6-icmp", "packet-too-big")}[version]
    fields = {"oifname": larger.name, "l4proto": kind[0], "icmp": kind[1], "state": "related", "status": "none"}
    packet = Packet("the ICMP that tells of it", version, fields, inward=True)
    for base in scene.rules.bases(FAMILIES[version], ("output", "postrouting")):
        cause = None if base.type == "nat" else sure_drop(scene.rules, base, packet, steps)
        if cause is not None:
            yield Finding(
                "MtuPath",
                bridge_resource(bridge.name),
                f"{smaller.name} takes packets of {smaller.mtu} bytes and {larger.name} of {larger.mtu}, and "
                f"{place_of(scene.rules, cause)} drops the ICMP that tells senders so",
                "large packets between guests and elsewhere are lost, and connections hang",
                admitting(scene.tools, scene.rules, cause, larger.name, [packet]),
            )
            return


def addressed_ports(scene: Scene) -> Iterator[Finding]:
    """Ports that have addresses, which nobody reaches there."""
    for bridge in scene.bridges.values():
        for port in scene.ports_of(bridge.name):
            found = [one.address for one in port.addresses if not one.link_local]
            if found:
                link = shlex.quote(port.name)
                yield Finding(
                    "PortAddressed",
                    port_resource(port.name),
                    f"{port.name}, a port of {bridge.name}, has {', '.join(found)}",
                    f"what comes in there goes to the bridge, so the host is not reached by that address; if it needs "
                    f"one there, it belongs into `addresses` of [bridge.{bridge.name}]",
                    tuple(f"ip address del {one} dev {link}" for one in found),
                )
