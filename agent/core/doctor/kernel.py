"""What the kernel's parameters and routes do to guests."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from agent.core.desired import BridgeSpec
from agent.core.doctor.findings import Finding
from agent.core.doctor.scene import RouteAnswer, RouteQuestion, Scene, Setter, dotted, networks_of
from agent.core.marks import bridge_resource
from agent.core.routing.firewall_wanted import Forward, version_of

OFTEN = 3
"""So many times within ten minutes somebody switched forwarding off: a file that says so is more than a file."""

OUTSIDE = "192.0.2.1"
"""An address that nobody has (RFC 5737), so the default route leads to it."""

ELSEWHERE = {4: OUTSIDE, 6: "2001:db8::1"}
"""The same by IP version (RFC 3849)."""


def forwarding_off(scene: Scene) -> Iterator[Finding]:
    """What the kernel does not forward although it is to be, by the link that it comes in by."""
    if "ForwardingOff" in scene.unexamined:
        return
    for bridge in scene.bridges.values():
        for version in scene.versions(bridge):
            for link in (bridge.name, *scene.uplinks.get(version, ())):
                found = _off(scene, link, version)
                if found is not None:
                    yield _forwarding_off(scene, bridge, link, version, found)


def _off(scene: Scene, link: str, version: int) -> str | None:
    """The parameter by which packets of a link are not forwarded, or that somebody keeps switching off."""
    name = f"ipv4/conf/{link}/forwarding"
    if version == 6:
        force = f"ipv6/conf/{link}/force_forwarding"
        if scene.sysctls.get("ipv6/conf/all/forwarding") != 0:
            return None
        name = force if force in scene.sysctls else "ipv6/conf/all/forwarding"
    if scene.sysctls.get(name) == 0:
        return name
    often = version == 4 and scene.switched_off.get(link, 0) >= OFTEN
    at_fault = any(setter.value == "0" for setter in _setters(scene, link, version))
    return name if often and at_fault else None


def _forwarding_off(scene: Scene, bridge: BridgeSpec, link: str, version: int, name: str) -> Finding:
    now = scene.sysctls.get(name) == 0
    setter = next((s for s in _setters(scene, link, version) if s.value == "0"), None)
    by = f", and {setter.place} sets it to 0" if setter else ""
    what = f"{dotted(name)} is 0" if now else f"{dotted(name)} was switched off again and again"
    mend = f"sysctl -w {shlex.quote(dotted(name))}=1"
    return Finding(
        "ForwardingOff",
        bridge_resource(bridge.name),
        f"{what}{by}",
        f"IPv{version} packets that come in by {link} are not forwarded for guests of {bridge.name}",
        (f"sed -i '{setter.line}s/^/# /' {shlex.quote(setter.path)}", mend) if setter else (mend,),
    )


def _setters(scene: Scene, link: str, version: int) -> Iterator[Setter]:
    names = [f"ipv{version}/conf/{link}/forwarding", f"ipv{version}/conf/all/forwarding"]
    names += ["ipv4/ip_forward"] if version == 4 else [f"ipv6/conf/{link}/force_forwarding"]
    for name in names:
        if name in scene.setters:
            yield scene.setters[name]


def route_questions(scene: Scene) -> tuple[RouteQuestion, ...]:
    """What the kernel is to be asked about reverse paths, and where the routes lead that it looks at."""
    found: dict[RouteQuestion, None] = {}
    for bridge in scene.bridges.values():
        for version in scene.versions(bridge):
            found.update(dict.fromkeys(_ways_out(scene, bridge, version)))
    for bridge, address in _sources(scene):
        own = _own_address(bridge)
        if own and _strict(scene, bridge.name):
            found[RouteQuestion(own, address, bridge.name)] = None
            found[RouteQuestion(address)] = None
    for link, forward in _second_ways(scene):
        found[RouteQuestion(forward.target, OUTSIDE, link)] = None
        found[RouteQuestion(OUTSIDE)] = None
    return tuple(found)


def _ways_out(scene: Scene, bridge: BridgeSpec, version: int) -> Iterator[RouteQuestion]:
    """Where the host's own packets go, and where those of a guest do: rules for routes may send them elsewhere."""
    yield RouteQuestion(ELSEWHERE[version])
    source = next((address for one, address in _sources(scene) if one.name == bridge.name), "")
    if version == 4 and source:
        yield RouteQuestion(ELSEWHERE[version], source, bridge.name)


def way_out(scene: Scene, bridge: BridgeSpec, version: int) -> str:
    """The link by which a bridge's packets leave for anywhere, empty if there may be others: the main table's default
    route is not all where a VPN has a table of its own, or two routes to halves of the world."""
    uplinks = scene.uplinks.get(version, ())
    if len(uplinks) != 1 or (version == 6 and bridge.uplink):
        return ""
    answers = [scene.routes.get(one) for one in _ways_out(scene, bridge, version)]
    elsewhere = any(one is not None and not one.refused and one.link != uplinks[0] for one in answers)
    return "" if elsewhere else uplinks[0]


def _strict(scene: Scene, link: str) -> bool:
    """The kernel takes the greater of a link's and that of all of them (ip-sysctl.rst)."""
    return max(scene.sysctls.get(f"ipv4/conf/{one}/rp_filter", 0) for one in ("all", link)) == 1


def _sources(scene: Scene) -> Iterator[tuple[BridgeSpec, str]]:
    """Addresses that guests have on bridges whose packets this host routes or answers."""
    for bridge in scene.bridges.values():
        for _, nic in scene.nics_on(bridge.name):
            yield from ((bridge, one) for one in nic.address if version_of(one) == 4)
        if bridge.dhcp is not None:
            yield bridge, bridge.dhcp.first


def _own_address(bridge: BridgeSpec) -> str:
    own = [one.partition("/")[0] for one in bridge.addresses if version_of(one) == 4]
    return own[0] if own else ""


def _second_ways(scene: Scene) -> Iterator[tuple[str, Forward]]:
    """Links with a default route of which there are several, each with one port that is published everywhere."""
    uplinks = scene.uplinks.get(4, ())
    published = next((one for one in scene.wish.forwards if one.version == 4 and not one.what.address), None)
    if len(uplinks) > 1 and published is not None:
        yield from ((link, published) for link in uplinks if _strict(scene, link))


def rp_filter(scene: Scene) -> Iterator[Finding]:
    """What strict reverse path filtering drops, as the kernel itself answered."""
    told: set[str] = set()
    for bridge, address in _sources(scene):
        question = RouteQuestion(_own_address(bridge), address, bridge.name)
        answer = scene.routes.get(question)
        back = scene.routes.get(RouteQuestion(address))
        if _is_refused(answer, back, bridge.name) and bridge.name not in told:
            told.add(bridge.name)
            leads = f"the route to {address} leads to {back.link}" if back and back.link else f"no route to {address}"
            networks = ", ".join(networks_of(bridge, 4))
            why = f"the kernel drops what {address} sends on {bridge.name} ({networks}), because {leads}"
            yield _rp_filter(scene, bridge.name, bridge.name, why)
    for link, forward in _second_ways(scene):
        answer = scene.routes.get(RouteQuestion(forward.target, OUTSIDE, link))
        back = scene.routes.get(RouteQuestion(OUTSIDE))
        if _is_refused(answer, back, link) and scene.sysctls.get(f"ipv4/conf/{link}/forwarding") == 1:
            leads = f", because answers would leave by {back.link}" if back and back.link else ""
            why = f"what comes in by {link} for published ports is dropped{leads}"
            yield _rp_filter(scene, link, forward.bridge, why)


def _is_refused(answer: RouteAnswer | None, back: RouteAnswer | None, link: str) -> bool:
    """Whether a packet that comes in by a link is dropped for its way back, which leads elsewhere then."""
    return answer is not None and answer.refused and (back is None or back.link != link)


def _rp_filter(scene: Scene, link: str, bridge: str, why: str) -> Finding:
    names = [f"ipv4/conf/{one}/rp_filter" for one in (link, "all")]
    effective = next(name for name in names if scene.sysctls.get(name) == 1)
    setter = next((scene.setters[n] for n in (effective, "ipv4/conf/default/rp_filter") if n in scene.setters), None)
    by = f", as {setter.place} sets it" if setter and setter.value == "1" else ""
    command = (
        f"sysctl -w {shlex.quote(dotted(names[0]))}=2"  # the greater one counts, so this is loose whatever `all` says
    )
    return Finding("RpFilter", bridge_resource(bridge), f"{dotted(effective)} is 1{by}", why, (command,))
