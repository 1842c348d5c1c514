"""NAT, published ports and forwarding against the model host: whatever is interrupted, and whatever somebody does."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.actions import Action
from agent.core.desired import BridgeSpec, Desired, NicSpec, VmSpec
from agent.core.marks import bridge_mark
from agent.core.model.host import apply
from agent.core.observed import AddressState, End, HostState, LinkState, Observed
from agent.core.planner.proxy import carried_now
from agent.core.planning import plan
from agent.core.routing.filters import Filters, FilterState
from agent.core.routing.firewall import EVERYWHERE6, SKELETON, FirewallState, ForwardingState, Routing
from agent.core.routing.firewall_actions import CONNECTIONS, FIREWALL, FORWARDING
from agent.core.routing.firewall_wanted import outer_links, wish_of
from agent.core.routing.ruleset import Element
from agent.core.services.haproxy import RESOURCE as PROXY
from agent.core.services.haproxy import carries

GUESTS = ("one", "two")
PORTS = (
    *("80/tcp", "80:81/tcp", "53/udp", "50-60/udp", "55/udp", "192.0.2.1:80/tcp", "192.0.2.1:50-55/udp"),
    *("[::]:443/tcp", "0.0.0.0:443/tcp"),
)
MORE = ("[2001:db8::1]:80/tcp", "79-81/tcp")
RESOURCES = {FIREWALL, FORWARDING, CONNECTIONS}
LED = {*RESOURCES, PROXY}
dices = st.integers(0, 1 << 30).map(Random)


@st.composite
def wishes(draw: st.DrawFn) -> Desired:
    bridges = {
        name: BridgeSpec(
            name,
            f"02:00:00:00:00:0{number}",
            addresses=(f"10.{number}.0.1/24", f"fd00:{number}::1/64"),
            nat=draw(st.booleans()),
            ipv6=draw(st.sampled_from(["", "", "routed", "nat66", "ndp-proxy"])),
        )
        for number, name in enumerate(("br-a", "br-b"))
    }
    vms: dict[str, VmSpec] = {}
    for number, name in enumerate(GUESTS):
        bridge = draw(st.integers(0, 1))
        address = draw(
            st.sampled_from([(f"10.{bridge}.0.1{number}",), (f"10.{bridge}.0.1{number}", f"fd00:{bridge}::1{number}")])
        )
        vms[name] = VmSpec(
            name,
            f"uuid-{name}",
            1_900_000_000 + number,
            file=f"{name}.toml",
            enabled=draw(st.sampled_from([True, True, False])),
            after=("path:/srv/none",),
            nics=(
                NicSpec("lan", f"br-{'ab'[bridge]}", f"02:00:00:00:01:0{number}", f"{name}-lan", 0, address=address),
            ),
            publish=tuple(draw(st.lists(st.sampled_from(PORTS + MORE), max_size=3, unique=True))),
        )
    return Desired(bridges, vms)


@st.composite
def hosts(draw: st.DrawFn) -> Observed:
    """Both bridges, an uplink, a bridge of somebody else's; a kernel that forwards or not, per link or as a whole."""
    links = {"lo": LinkState(1, "lo", None, True, addresses=(AddressState("127.0.0.1/8"),))}
    links["eth0"] = LinkState(
        2, "eth0", None, True, addresses=(AddressState("192.0.2.1/24"), AddressState("2001:db8::1/64"))
    )
    links["docker0"] = LinkState(3, "docker0", "bridge", True, addresses=(AddressState("172.17.0.1/16"),))
    for number, name in enumerate(("br-a", "br-b")):
        addresses = tuple(AddressState(a, own=True) for a in (f"10.{number}.0.1/24", f"fd00:{number}::1/64"))
        mac = f"02:00:00:00:00:0{number}"
        links[name] = LinkState(10 + number, name, "bridge", True, 1500, mac, None, bridge_mark(name), 0, addresses)
    all4, all6 = draw(st.booleans()), draw(st.booleans())
    names = set(links) - {"lo"}
    forwarding = ForwardingState(
        all4,
        all6,
        {**dict.fromkeys(names, all4), "eth0": all4 or draw(st.booleans())},
        draw(st.sampled_from([None, dict.fromkeys(names, False)])),
        {"eth0": draw(st.sampled_from([0, 1, 2]))},
    )
    return Observed(
        links=links,
        host=HostState(boot_id="boot"),
        routing=Routing(FirewallState(), forwarding),
        max_disruption=99,
        filters=Filters(FilterState()),
    )


def settle(desired: Desired, observed: Observed, dice: Random | None = None) -> tuple[Observed, list[Action]]:
    """Iterate what is planned of routing; with `dice`, do only some of each frontier, in any order."""
    done: list[Action] = []
    frontier: list[Action] = []
    for _ in range(60):
        frontier = [one for one in plan(desired, observed, 0.0).actions if one.resource in LED]
        if not frontier:
            return observed, done
        for action in frontier if dice is None else dice.sample(frontier, dice.randint(1, len(frontier))):
            observed = apply(observed, action)
            done.append(action)
            if action.resource in RESOURCES:  # what somebody flushed is not guarded before the table is back
                assert_guarded(observed)
    raise AssertionError(f"never settles: {frontier}")


def assert_guarded(observed: Observed) -> None:
    """At no point is anything forwarded because of us that the table does not look after."""
    routing = observed.routing
    assert routing.firewall is not None
    assert routing.forwarding is not None
    if EVERYWHERE6 in routing.opened:
        assert {"eth0"} <= opened(observed, 6) or not routing.forwarding.all6


def opened(observed: Observed, version: int) -> set[str]:
    assert observed.routing.firewall is not None
    return {one.key.strip('"') for one in observed.routing.firewall.of(f"opened{version}")}


def assert_as_wanted(desired: Desired, host: Observed, observed: Observed) -> None:
    state, forwarding = observed.routing.firewall, observed.routing.forwarding
    assert state is not None
    assert forwarding is not None
    wish = wish_of(desired.bridges, {n: s for n, s in desired.vms.items() if s.enabled})
    assert carried_now(observed) == {carries(one) for one in wish.carried}
    assert bool(observed.services) == bool(wish.carried)
    if not wish.routed:
        assert state == FirewallState()
        assert observed.routing.forwarding == replace(host_forwarding(host), accept_ra=forwarding.accept_ra)
        return
    assert state.skeleton == SKELETON
    assert wish.published | wish.elements <= state.elements
    passing = {one for one in wish.elements if one.set.startswith(("ports", "ranges"))}
    assert {one for one in state.elements if one.set.startswith(("ports", "ranges"))} == wish.published | passing
    assert not state.ended
    if host_forwarding(host).links4["eth0"]:  # an operator's own: neither guarded nor closed
        assert "eth0" not in opened(observed, 4)
        assert forwards(observed, "eth0", 4)
    for version in (4, 6):
        if wish.routes(version):
            assert all(forwards(observed, name, version) for name in outer_links(observed.links, version))
            assert all(forwards(observed, bridge.name, version) for bridge in wish.routed)
    if EVERYWHERE6 in observed.routing.opened:
        assert 1 not in forwarding.accept_ra.values()


def host_forwarding(host: Observed) -> ForwardingState:
    assert host.routing.forwarding is not None
    return host.routing.forwarding


def forwards(observed: Observed, link: str, version: int) -> bool:
    forwarding = host_forwarding(observed)
    if version == 4:
        return forwarding.links4[link]
    return forwarding.all6 or bool(forwarding.links6 and forwarding.links6[link])


@given(desired=wishes(), host=hosts(), dice=dices)
@settings(max_examples=150)
def test_settles_whatever_part_of_each_frontier_is_done(desired: Desired, host: Observed, dice: Random) -> None:
    settled, _ = settle(desired, host, dice)
    assert_as_wanted(desired, host, settled)
    assert settle(desired, settled) == (settled, [])


@given(first=wishes(), second=wishes(), host=hosts(), dice=dices, done=st.integers(0, 6))
@settings(max_examples=200)
def test_an_edit_in_the_middle_leads_to_where_a_fresh_start_leads(
    first: Desired, second: Desired, host: Observed, dice: Random, done: int
) -> None:
    observed = host
    for _ in range(done):
        frontier = [one for one in plan(first, observed, 0.0).actions if one.resource in LED]
        for action in frontier[:1]:
            observed = apply(observed, action)
    edited, _ = settle(second, observed, dice)
    fresh, _ = settle(second, host)
    assert edited.routing.firewall == fresh.routing.firewall
    assert_as_wanted(second, host, edited)
    nothing, _ = settle(Desired(), replace(edited, links=host.links))
    assert nothing.routing.firewall == FirewallState()
    assert not nothing.services


def hurt(observed: Observed, kind: str, which: int) -> Observed:
    """What somebody may do."""
    routing, forwarding = observed.routing, host_forwarding(observed)
    if kind == "haproxy" and observed.services:
        (name, program), *_ = observed.services.items()
        ended = replace(program, alive=False, pid=None, ends=(End(0.0, 1.0, "boot", "killed"),), ended=1)
        return replace(observed, services={name: ended})
    if kind == "off4":
        off = replace(forwarding, all4=False, links4=dict.fromkeys(forwarding.links4, False))
        return replace(observed, routing=replace(routing, forwarding=off))
    if kind == "off6" and EVERYWHERE6 in routing.opened:
        return replace(observed, routing=replace(routing, forwarding=replace(forwarding, all6=False)))
    assert routing.firewall is not None
    return replace(observed, routing=replace(routing, firewall=hurt_table(routing.firewall, kind, which)))


def hurt_table(state: FirewallState, kind: str, which: int) -> FirewallState:
    """What somebody may do to the table; the same one for any other kind of fault."""
    elements = sorted(state.elements)
    foreign = {Element("ports", "80"), Element("ports4", "80"), Element("ended4", "1"), Element("opened4", '"up1"')}
    if kind == "flush":
        return FirewallState()
    if kind == "rule":
        return FirewallState(state.skeleton | {"x"}, state.elements)
    if kind == "foreign":
        return FirewallState(frozenset({"set ports"}), frozenset(foreign))
    if kind == "element" and elements:
        return FirewallState(state.skeleton, state.elements - {elements[which % len(elements)]})
    if kind == "surplus" and state.exists:
        return FirewallState(state.skeleton, state.elements | {Element("ports4", "tcp . 9", "10.0.0.9 . 9")})
    return state


FAULTS = ("flush", "rule", "foreign", "element", "surplus", "off4", "off6", "haproxy")


@given(
    desired=wishes(),
    host=hosts(),
    wrong=st.lists(st.tuples(st.sampled_from(FAULTS), st.integers(0, 20)), min_size=1, max_size=4),
    dice=dices,
)
@settings(max_examples=150)
def test_faults_are_healed(desired: Desired, host: Observed, wrong: list[tuple[str, int]], dice: Random) -> None:
    settled, _ = settle(desired, host)
    observed = settled
    for kind, which in wrong:
        observed = hurt(observed, kind, which)
    healed, _ = settle(desired, observed, dice)
    if any(kind == "off4" for kind, _ in wrong):
        host = hurt(host, "off4", 0)
    assert_as_wanted(desired, host, healed)


@given(desired=wishes(), host=hosts())
@settings(max_examples=60)
def test_nothing_is_done_where_nothing_is_known_or_nothing_was_read(desired: Desired, host: Observed) -> None:
    unknown = replace(host, routing=Routing(problem="nft is not installed"))
    assert not any(one.resource in RESOURCES for one in plan(desired, unknown, 0.0).actions)
    settled, _ = settle(desired, host)
    for action in plan(Desired(complete=False), settled, 0.0).actions:
        assert action.resource not in RESOURCES, action
