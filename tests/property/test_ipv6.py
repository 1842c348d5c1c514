"""IPv6 modes against the model host: whatever is interrupted, edited, or done by somebody else."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.actions import Action
from agent.core.desired import BridgeSpec, Desired, NicSpec, VmSpec
from agent.core.marks import bridge_mark
from agent.core.model.host import apply
from agent.core.observed import AddressState, HostState, LinkState, Observed
from agent.core.planning import plan
from agent.core.routing.ipv6 import IPV6, Ipv6State, Place, conf, proxy_delay
from tests.property.faults import OF_IPV6, inflict_on_ipv6

BRIDGES, UPLINKS = ("br-a", "br-b"), ("eth0", "eth1")
ADDRESSES = ("2001:db8:0::5", "2001:db8:0::6", "2001:db8:1::5", "fd00:9::1", "2001:db8:0::1")
"""Of eth0's prefix, of eth1's, of neither, and eth0's own."""
dices = st.integers(0, 1 << 30).map(Random)


@st.composite
def wishes(draw: st.DrawFn) -> Desired:
    bridges = {
        name: BridgeSpec(
            name,
            f"02:00:00:00:00:0{number}",
            addresses=(f"fd00:{number}::1/64",),
            ipv6=draw(st.sampled_from(["", "routed", "nat66", "ndp-proxy", "ndp-proxy"])),
            uplink=draw(st.sampled_from(["", "", *UPLINKS, "gone0"])),
        )
        for number, name in enumerate(BRIDGES)
        if draw(st.booleans())
    }
    vms = {}
    for number, name in enumerate(("one", "two", "three")):
        nics = tuple(
            NicSpec(f"n{i}", bridge, f"02:00:00:00:1{i}:0{number}", f"{name}-{i}", i, address=tuple(draw(_some)))
            for i, bridge in enumerate(draw(st.lists(st.sampled_from(sorted(bridges)), max_size=2)) if bridges else ())
        )
        vms[name] = VmSpec(name, f"uuid-{name}", 1_900_000_000 + number, after=("path:/srv/none",), nics=nics)
    return Desired(bridges, vms)


_some = st.lists(st.sampled_from(ADDRESSES), max_size=2, unique=True)


@st.composite
def hosts(draw: st.DrawFn) -> Observed:
    links = {
        name: LinkState(index, name, None, True, addresses=(AddressState(f"2001:db8:{index}::1/64"),))
        for index, name in enumerate(UPLINKS)
    }
    for number, name in enumerate(BRIDGES):
        mac = f"02:00:00:00:00:0{number}"
        links[name] = LinkState(10 + number, name, "bridge", True, 1500, mac, None, bridge_mark(name))
    names = [key for one in links for key in (conf(one, "forwarding"), conf(one, "proxy_ndp"), proxy_delay(one))]
    names += [conf(one, "accept_ra") for one in UPLINKS]
    seen = {name: draw(st.sampled_from([0, 1, 2])) for name in names}
    places = st.sets(st.builds(Place, st.sampled_from(ADDRESSES), st.sampled_from((*BRIDGES, *UPLINKS))), max_size=3)
    routes = draw(places)
    state = Ipv6State(
        frozenset({place.address: place for place in routes}.values()),
        frozenset(draw(places)),
        {},
        uplink=draw(st.sampled_from(["", *UPLINKS])),
        gateway=draw(st.sampled_from(["", "fe80::9", "2001:db8:0::9"])),
        settings=seen,
    )
    foreign = {one: "eth1" for one in draw(_some) if one not in {place.address for place in routes}}
    other = frozenset(draw(places)) - state.proxies
    return Observed(
        links=links,
        host=HostState(boot_id="boot"),
        ipv6=replace(state, foreign_routes=foreign, foreign_proxies=other),
        max_disruption=99,
    )


def settle(desired: Desired, observed: Observed, dice: Random | None = None) -> tuple[Observed, list[Action]]:
    """Iterate all that is planned of IPv6 and of bridges, some of each frontier with `dice`."""
    done: list[Action] = []
    for _ in range(60):
        frontier = [a for a in plan(desired, observed, 0.0).actions if a.resource.startswith((IPV6, "bridge/"))]
        if not frontier:
            return observed, done
        for action in frontier if dice is None else dice.sample(frontier, dice.randint(1, len(frontier))):
            observed = apply(observed, action)
            done.append(action)
    raise AssertionError(f"never settles: {plan(desired, observed, 0.0).actions}")


def state_of(observed: Observed) -> Ipv6State:
    assert observed.ipv6 is not None
    return observed.ipv6


def certain(desired: Desired, observed: Observed) -> bool:
    default = state_of(observed).uplink
    return all((b.uplink or default) in UPLINKS for b in desired.bridges.values() if b.ipv6 == "ndp-proxy")


def assert_as_wanted(desired: Desired, host: Observed, observed: Observed) -> None:
    state, before = state_of(observed), state_of(host)
    own = {place.address for place in state.routes}
    assert len(own) == len(state.routes)
    assert not own & state.foreign_routes.keys()
    assert "2001:db8:0::1" not in own or not certain(desired, observed)
    if not certain(desired, observed):
        wanted = {(at, nic.bridge) for vm in desired.vms.values() for nic in vm.nics for at in nic.address}
        for lost in {place for place in before.routes if place.link in observed.links} - state.routes:
            assert any(now.address == lost.address and (now.address, now.link) in wanted for now in state.routes)
        return
    proxying = {n: b.uplink or state.uplink for n, b in desired.bridges.items() if b.ipv6 == "ndp-proxy"}
    assert {place.link for place in state.routes} <= proxying.keys()
    answered = state.proxies | state.foreign_proxies
    for route in state.routes:
        assert Place(route.address, proxying[route.link]) in answered
        assert f":{UPLINKS.index(proxying[route.link])}::" in route.address.replace("db8::", "db8:0::")
    concerned = {*proxying, *proxying.values()}
    for name, value in state.settings.items():
        link, key = name.split("/")[2:]
        if link in concerned and key != "accept_ra":
            assert value == (0 if key == "proxy_delay" else 1)
        elif key == "forwarding" and link in desired.bridges and desired.bridges[link].ipv6:
            assert value == 1
        elif key != "accept_ra" and name in before.settings:
            assert value == before.settings[name]


@given(desired=wishes(), host=hosts(), dice=dices)
@settings(max_examples=150)
def test_settles_whatever_part_of_each_frontier_is_done(desired: Desired, host: Observed, dice: Random) -> None:
    settled, _ = settle(desired, host, dice)
    assert_as_wanted(desired, host, settled)
    assert settle(desired, settled) == (settled, [])
    assert state_of(settled).foreign_proxies == state_of(host).foreign_proxies


@given(first=wishes(), second=wishes(), host=hosts(), dice=dices)
@settings(max_examples=150)
def test_an_edit_leads_to_where_a_fresh_start_leads_and_nothing_is_left(
    first: Desired, second: Desired, host: Observed, dice: Random
) -> None:
    edited, _ = settle(second, settle(first, host, dice)[0], dice)
    if certain(second, host):
        assert_as_wanted(second, host, edited)
    nothing, _ = settle(Desired(), edited, dice)
    state = state_of(nothing)
    assert (state.routes, state.proxies, dict(state.before)) == (frozenset(), frozenset(), {})
    for name, value in state.settings.items():
        assert name.endswith("/accept_ra") or value == state_of(host).settings[name]


@given(
    desired=wishes(),
    host=hosts(),
    wrong=st.lists(st.tuples(st.sampled_from(OF_IPV6), st.integers(0, 9)), min_size=1, max_size=4),
    dice=dices,
)
@settings(max_examples=150)
def test_faults_are_healed(desired: Desired, host: Observed, wrong: list[tuple[str, int]], dice: Random) -> None:
    settled, _ = settle(desired, host)
    observed = settled
    for kind, which in wrong:
        observed = inflict_on_ipv6(observed, kind, which)
    healed, _ = settle(desired, observed, dice)
    if certain(desired, host):
        assert state_of(healed) == state_of(settled)


@given(desired=wishes(), host=hosts())
@settings(max_examples=80)
def test_nothing_is_taken_away_where_the_way_out_or_the_units_are_not_known(desired: Desired, host: Observed) -> None:
    settled, _ = settle(desired, host)
    unread, _ = settle(Desired(complete=False), settled)
    assert unread == settled
    links = {name: link for name, link in settled.links.items() if name not in UPLINKS}
    lost, _ = settle(desired, replace(settled, links=links))
    if any(bridge.ipv6 == "ndp-proxy" for bridge in desired.bridges.values()):
        assert state_of(lost).proxies >= state_of(settled).proxies
        assert state_of(lost).before == state_of(settled).before
    assert not any(a.resource == IPV6 for a in plan(desired, replace(settled, ipv6=None), 0.0).actions)
