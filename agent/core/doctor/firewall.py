"""What other people's rules do to guests: packets that are to pass, led through each of their chains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from agent.core.desired import BridgeSpec
from agent.core.doctor.findings import Finding
from agent.core.doctor.kernel import way_out
from agent.core.doctor.mend import admitting, owner_of, removing, wants_bridges_filtered
from agent.core.doctor.packets import (
    FAMILIES,
    Cause,
    Packet,
    Steps,
    TooManyRulesError,
    names_link,
    sure_drop,
    sure_pass,
    sure_translation,
)
from agent.core.doctor.rules import Json, Ruleset
from agent.core.doctor.scene import Scene, dotted, networks_of
from agent.core.doctor.values import Span, named_span, span_of
from agent.core.marks import bridge_resource, tap_resource, vm_resource
from agent.core.routing.firewall_wanted import Forward
from agent.core.services.haproxy import carries
from agent.core.text import counted

OUTWARD = ("prerouting", "forward", "postrouting")
INWARD = ("forward", "postrouting")
TCP_UDP = ("tcp", "udp")


@dataclass(slots=True)
class _Dropped:
    """What one rule or policy drops on one bridge, and whose that is."""

    cause: Cause
    bridge: BridgeSpec
    resources: set[str] = field(default_factory=set)
    packets: list[Packet] = field(default_factory=list)


class _Ward:
    """Collects what is dropped, by bridge and cause, so that each is told once with all that it hits."""

    def __init__(self, scene: Scene, rules: Ruleset, steps: Steps) -> None:
        self.scene = scene
        self.rules = rules
        self.steps = steps
        self.found: dict[tuple[object, ...], _Dropped] = {}

    def lead(
        self, resource: str, bridge: BridgeSpec, packet: Packet, families: Iterable[str], hooks: Iterable[str]
    ) -> bool:
        """Lead a packet through all chains at these hooks; whether it surely gets nowhere."""
        for base in self.rules.bases(families, hooks):
            if base.type == "nat" or (base.devices and packet.fields.get("iifname") not in base.devices):
                continue
            cause = sure_drop(self.rules, base, packet, self.steps)
            if cause is not None:
                rule = cause.rule
                key = (bridge.name, base.place, cause.chain.name, base.name, rule.handle if rule else -1, str(rule))
                dropped = self.found.setdefault(key, _Dropped(cause, bridge))
                dropped.packets.append(packet)
                dropped.resources.add(resource)
                return True
        return False

    def surely_passes(self, packet: Packet, families: Iterable[str], hooks: Iterable[str]) -> bool:
        """Whether nothing at these hooks can drop a packet: then none that is known better needs to be led."""
        bases = [base for base in self.rules.bases(families, hooks) if base.type != "nat"]
        return all(sure_pass(self.rules, base, packet, self.steps) for base in bases)

    def findings(self) -> Iterator[Finding]:
        """One for each cause: of one guest or tap if nobody else is hit, else of the bridge."""
        for dropped in self.found.values():
            alone = len(dropped.resources) == 1
            resource = next(iter(dropped.resources)) if alone else bridge_resource(dropped.bridge.name)
            yield _foreign_drop(self.scene, resource, dropped)


def foreign_drops(scene: Scene, steps: Steps) -> Iterator[Finding]:
    """What is dropped for sure; then raises TooManyRulesError, if not all could be looked at."""
    if scene.rules is None or not scene.rules.chains:
        return
    ward = _Ward(scene, scene.rules, steps)
    too_many: TooManyRulesError | None = None
    try:
        for bridge in scene.bridges.values():
            _lead_served(ward, bridge)
            _lead_carried(ward, bridge)
            _lead_bridged(ward, bridge)
            for version in scene.versions(bridge):
                _lead_routed(ward, bridge, version)
    except TooManyRulesError as error:
        too_many = error
    yield from ward.findings()
    if too_many is not None:
        raise too_many


def _lead_routed(ward: _Ward, bridge: BridgeSpec, version: int) -> None:
    families, name = FAMILIES[version], bridge_resource(bridge.name)
    if bridge.nat if version == 4 else bridge.ipv6:
        out = outward(ward.scene, bridge, version)
        lost = ward.lead(name, bridge, out, families, OUTWARD)
        lost = lost or ward.lead(name, bridge, as_tcp(out), families, OUTWARD)
        ward.lead(name, bridge, answers(ward.scene, bridge, version), families, INWARD)
        clear = lost or ward.surely_passes(out, families, OUTWARD)
        for vm, address in () if clear else _guests_of(ward.scene, bridge.name, version):
            packet = Packet(f"what {address} sends to elsewhere", version, {**out.fields, "saddr": span_of(address)})
            ward.lead(vm_resource(vm), bridge, packet, families, OUTWARD)
    _lead_published(ward, bridge, version)


def _lead_published(ward: _Ward, bridge: BridgeSpec, version: int) -> None:
    """Published ports, all of them at once where rules make no difference between them."""
    families = FAMILIES[version]
    forwards = [one for one in ward.scene.wish.forwards if one.bridge == bridge.name and one.version == version]
    if not forwards:
        return
    guests = sorted({one.vm for one in forwards})
    resource = vm_resource(guests[0]) if len(guests) == 1 else bridge_resource(bridge.name)
    said = forwards[0].text if len(forwards) == 1 else counted(len(forwards), "published port")
    in_doubt = False
    for packet, hooks in _published(ward.scene, forwards[0], said, alike=True):
        dropped = ward.lead(resource, bridge, packet, families, hooks)
        in_doubt |= not (dropped or ward.surely_passes(packet, families, hooks))
    for forward in forwards if in_doubt else ():
        for packet, hooks in _published(ward.scene, forward, forward.text):
            ward.lead(vm_resource(forward.vm), bridge, packet, families, hooks)


def as_tcp(packet: Packet) -> Packet:
    """The same of TCP only: firewalls that drop what they do not know let some ICMP pass all the same, as ufw's do."""
    return replace(packet, what=f"all TCP of {packet.what}", fields={**packet.fields, "l4proto": "tcp"})


def outward(scene: Scene, bridge: BridgeSpec, version: int) -> Packet:
    """What any guest sends to elsewhere; nothing is known of where, nor of its port."""
    fields: dict[str, object] = {"iifname": bridge.name, "state": "new", "status": "none"}
    networks, uplink = networks_of(bridge, version), way_out(scene, bridge, version)
    if len(networks) == 1 and version == 4:  # over IPv6 guests have addresses of other prefixes, too
        fields["saddr"] = span_of(networks[0])
    if uplink:
        fields["oifname"] = uplink
    return Packet("what guests send to elsewhere", version, fields)


def answers(scene: Scene, bridge: BridgeSpec, version: int) -> Packet:
    """What comes back."""
    fields: dict[str, object] = {"oifname": bridge.name, "state": "established", "status": "none"}
    networks, uplink = networks_of(bridge, version), way_out(scene, bridge, version)
    if len(networks) == 1 and version == 4:
        fields["daddr"] = span_of(networks[0])
    if uplink:
        fields["iifname"] = uplink
    return Packet("the answers", version, fields, inward=True)


def _guests_of(scene: Scene, bridge: str, version: int) -> Iterator[tuple[str, str]]:
    for vm, nic in scene.nics_on(bridge):
        yield from ((vm, one) for one in nic.address if span_of(one).version == version)


def _published(
    scene: Scene, forward: Forward, said: str, *, alike: bool = False
) -> Iterator[tuple[Packet, tuple[str, ...]]]:
    """What comes in for a published port, once its target is known, and what the guest answers.

    `alike`: only what is known of all published ports of the bridge.
    """
    inward: dict[str, object] = {"status": "dnat", "oifname": forward.bridge, "state": "new"}
    back: dict[str, object] = {"status": "dnat", "iifname": forward.bridge, "state": "established"}
    uplink = way_out(scene, scene.bridges[forward.bridge], forward.version)
    if uplink:
        inward["iifname"] = back["oifname"] = uplink
    if not alike:
        what, target = forward.what, span_of(forward.target)
        inward |= {"l4proto": what.proto, "daddr": target}
        back |= {"l4proto": what.proto, "saddr": target}
        if not what.is_range:
            inward["dport"] = back["sport"] = what.guest_port
    yield Packet(f"what comes in for {said}", forward.version, inward, inward=True), INWARD
    yield Packet(f"what is answered on {said}", forward.version, back), OUTWARD


def _lead_served(ward: _Ward, bridge: BridgeSpec) -> None:
    """What the bridge's own DHCP and DNS servers are asked."""
    asked: list[tuple[str, int, tuple[str, ...]]] = [("DHCP requests", 67, ("udp",))] if bridge.dhcp is not None else []
    asked += [("DNS questions", 53, TCP_UDP)] if bridge.dns is not None else []
    for words, port, protocols in asked:
        for proto in protocols:
            fields = {"iifname": bridge.name, "l4proto": proto, "dport": port, "state": "new", "status": "none"}
            packet = Packet(f"guests' {words} ({proto} {port})", 4, fields)
            ward.lead(bridge_resource(bridge.name), bridge, packet, FAMILIES[4], ("prerouting", "input"))


def _lead_carried(ward: _Ward, bridge: BridgeSpec) -> None:
    """What comes in for haproxy: to the host itself, by whichever link."""
    for one in ward.scene.wish.carried:
        if one.bridge != bridge.name or one.what.is_range or carries(one) not in ward.scene.carried:
            continue
        fields: dict[str, object] = {"l4proto": "tcp", "dport": one.what.first, "state": "new", "status": "none"}
        if one.what.address:
            fields["daddr"] = span_of(one.what.address)
        packet = Packet(f"what comes in for {one.text} over IPv6, to haproxy", 6, fields)
        ward.lead(vm_resource(one.vm), bridge, packet, FAMILIES[6], ("prerouting", "input"))


def _lead_bridged(ward: _Ward, bridge: BridgeSpec) -> None:
    """Frames from any port to any other, then those of each guest."""
    if not any(one.family in {"bridge", "netdev"} for one in ward.rules.chains):
        return
    for version, kind in ((4, "IPv4 packets"), (0, "ARP")):
        ports = {one.name for one in ward.scene.ports_of(bridge.name)}
        ports |= {nic.tap for _, nic in ward.scene.nics_on(bridge.name)}
        frame: dict[str, object] = {"ibrname": bridge.name, "obrname": bridge.name, "ports": tuple(sorted(ports))}
        if ward.lead(
            bridge_resource(bridge.name),
            bridge,
            Packet(f"all {kind} between its ports", version, frame),
            ("bridge",),
            OUTWARD,
        ):
            continue
        for vm, nic in ward.scene.nics_on(bridge.name):
            sent = Packet(f"all {kind} that {vm} sends", version, {**frame, "iifname": nic.tap})
            ward.lead(
                tap_resource(vm, nic.id), bridge, sent, ("netdev", "bridge"), ("ingress", "prerouting", "forward")
            )
            got = Packet(f"all {kind} to {vm}", version, {**frame, "oifname": nic.tap}, inward=True)
            ward.lead(tap_resource(vm, nic.id), bridge, got, ("bridge",), INWARD)


def _foreign_drop(scene: Scene, resource: str, dropped: _Dropped) -> Finding:
    cause = dropped.cause
    ours = _names_ours(scene, dropped)
    rules = scene.rules or Ruleset()
    commands = removing(cause) if ours else admitting(scene.tools, rules, cause, dropped.bridge.name, dropped.packets)
    words = list(dict.fromkeys(packet.what for packet in dropped.packets))
    more = f" and {len(words) - 3} more" if len(words) > 3 else ""
    return Finding(
        "ForeignDrop",
        resource,
        place_of(rules, cause),
        f"it drops {', '.join(words[:3])}{more}; what another table admits does not overrule it",
        commands,
    )


def place_of(rules: Ruleset, cause: Cause) -> str:
    """The rule or policy, and where it is, for people."""
    owner = owner_of(rules, cause.base)
    by = f", {owner}'s" if owner else ""
    if cause.rule is None:
        return f"policy {cause.chain.policy} of {cause.chain.where}{by}"
    handle = f" handle {cause.rule.handle}" if cause.rule.handle else ""
    return f"rule `{cause.rule.text}`{handle} in {cause.chain.where}{by}"


def _names_ours(scene: Scene, dropped: _Dropped) -> bool:
    """Whether the rule was made for this bridge or guest: then it is what has to go."""
    rule = dropped.cause.rule
    if rule is None:
        return False
    taps = {nic.tap for _, nic in scene.nics_on(dropped.bridge.name)}
    if names_link(rule, frozenset({dropped.bridge.name, *taps})):
        return True
    own = [span_of(one) for version in (4, 6) for one in networks_of(dropped.bridge, version)]
    matches = [one["match"] for one in rule.expressions if isinstance(one, dict) and "match" in one]
    return any(_names_subnet(one, own) for one in matches)


def _names_subnet(match: Json, own: Sequence[Span]) -> bool:
    left = match.get("left")
    if not isinstance(left, dict) or left.get("payload", {}).get("field") not in {"saddr", "daddr"}:
        return False
    try:
        named = named_span(match.get("right"))
    except (ValueError, TypeError, KeyError):
        return False
    within = any(o.version == named.version and o.first <= named.first and named.last <= o.last for o in own)
    return within and match.get("op") == "=="


def bridge_filtered(scene: Scene, steps: Steps) -> Iterator[Finding]:
    """What rules for routed packets do to frames that are only bridged, where they pass by there."""
    if scene.rules is None:
        return
    for version, key in ((4, "bridge/bridge-nf-call-iptables"), (6, "bridge/bridge-nf-call-ip6tables")):
        if scene.sysctls.get(key) != 1:
            continue
        for bridge in scene.bridges.values():
            if len(scene.ports_of(bridge.name)) >= 2:
                yield from _filtered(scene, scene.rules, bridge, version, key, steps)


def _filtered(
    scene: Scene, rules: Ruleset, bridge: BridgeSpec, version: int, key: str, steps: Steps
) -> Iterator[Finding]:
    fields: dict[str, object] = {
        "iifname": bridge.name,
        "oifname": bridge.name,
        "state": "new",
        "status": "none",
    }
    networks = networks_of(bridge, version)
    if len(networks) == 1:
        fields |= {"saddr": span_of(networks[0]), "daddr": span_of(networks[0])}
    for base in rules.bases(FAMILIES[version], OUTWARD):
        nat = base.type == "nat"
        if nat and base.hook != "postrouting":
            continue
        frame = Packet("frames between ports", version, fields, inward=base.hook == "postrouting")
        judge = sure_translation if nat else sure_drop
        cause = judge(rules, base, frame, steps) or judge(rules, base, as_tcp(frame), steps)
        if cause is None:
            continue
        needed = wants_bridges_filtered(rules, base)
        off = f"sysctl -w {dotted(key)}=0"
        admitted = admitting(scene.tools, rules, cause, bridge.name, [frame])
        does = "gives the host's address to" if nat else "drops"
        yield Finding(
            "BridgeFiltered",
            bridge_resource(bridge.name),
            f"{dotted(key)} is 1, and {place_of(rules, cause)}",
            f"it {does} IPv{version} packets that are only bridged between guests",
            admitted if needed else (off,),
        )
