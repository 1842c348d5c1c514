"""Ports against the model host: cards that are renamed, unplugged, come back, are replaced, or taken by somebody."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.actions import Action, ReleasePort
from agent.core.desired import BridgeSpec, Desired, DhcpSpec
from agent.core.model.host import apply
from agent.core.observed import AddressState, HostState, LinkState, Observed
from agent.core.planner.ports import find_ports
from agent.core.planning import plan
from agent.core.routing.filters import Filters, FilterState

BRIDGES = ("br-a", "br-b")
NAMES = ("eth0", "eth1", "eth2", "wan0")
MACS = tuple(f"52:54:00:00:00:0{number}" for number in range(3))
PLACES = ("0000:01:00.0", "0000:02:00.0")
ENTRIES = (*NAMES, *(f"mac:{mac}" for mac in MACS), *(f"pci:{place}" for place in PLACES), "uplink")
FAULTS = ("rename", "unplug", "plug", "replace", "take-out", "take-in", "unbridge", "address", "altname")
dices = st.integers(0, 1 << 30).map(Random)
faults = st.lists(st.tuples(st.sampled_from(FAULTS), st.integers(0, 1 << 16)), max_size=6)


@st.composite
def wishes(draw: st.DrawFn) -> Desired:
    names = sorted(draw(st.sets(st.sampled_from(BRIDGES), min_size=1)))
    left = list(ENTRIES)
    bridges = {}
    for number, name in enumerate(names):
        ports = tuple(draw(st.lists(st.sampled_from(left), min_size=1, max_size=4, unique=True)))
        left = [one for one in left if one not in ports]  # two bridges never name the same: a unit error
        dhcp = draw(st.sampled_from([None, DhcpSpec("10.0.0.100", "10.0.0.110", 60)]))
        bridges[name] = BridgeSpec(
            name, f"02:00:00:00:00:0{number}", ports=ports, addresses=("10.0.0.1/24",), dhcp=dhcp
        )
    return Desired(bridges)


def card(dice: Random, index: int, name: str) -> LinkState:
    mac = dice.choice(MACS)
    addresses = (AddressState("192.0.2.7/24"),) if dice.randint(0, 5) == 0 else ()
    kind = dice.choice([None, None, None, "vlan"])
    place = dice.choice((*PLACES, "")) if kind is None else ""
    return LinkState(index, name, kind, True, 1500, mac, None, "", 0, addresses, place=place)


@st.composite
def hosts(draw: st.DrawFn) -> Observed:
    dice = draw(dices)
    names = sorted(draw(st.sets(st.sampled_from(NAMES))))
    links = {name: card(dice, index, name) for index, name in enumerate(names, start=2)}
    links["docker0"] = LinkState(20, "docker0", "bridge", True)
    if names and dice.randint(0, 1):
        links[names[-1]] = replace(links[names[-1]], altnames=("uplink",))
    if names and dice.randint(0, 3) == 0:
        links[names[0]] = replace(links[names[0]], master=20, addresses=())
    return Observed(links=links, host=HostState(boot_id="boot"), max_disruption=99, filters=Filters(FilterState()))


def inflict(observed: Observed, kind: str, which: int) -> Observed:
    dice = Random(which)
    links = dict(observed.links)
    cards = sorted(name for name, link in links.items() if link.kind != "bridge")
    bridges = sorted(name for name in BRIDGES if name in links)
    free = [name for name in NAMES if name not in links]
    if kind == "plug" and free:
        links[free[0]] = card(dice, 1 + max(link.ifindex for link in links.values()), free[0])
        return replace(observed, links=links)
    if kind == "unbridge" and bridges:
        gone = links.pop(dice.choice(bridges))
        freed = {n: replace(one, master=None) if one.master == gone.ifindex else one for n, one in links.items()}
        return replace(observed, links=freed, enslaved=frozenset(e for e in observed.enslaved if e[1] != gone.name))
    if not cards:
        return observed
    name = dice.choice(cards)
    link = links.pop(name)
    enslaved = frozenset(pair for pair in observed.enslaved if pair[0] != name)
    match kind:
        case "rename" if free:
            links[free[0]] = replace(link, name=free[0])
            enslaved |= {(free[0], bridge) for port, bridge in observed.enslaved if port == name}
        case "unplug":
            pass
        case "replace":
            links[name] = card(dice, 1 + max(one.ifindex for one in (*links.values(), link)), name)
        case "take-out":
            links[name], enslaved = replace(link, master=None), observed.enslaved
        case "take-in" if bridges:
            links[name], enslaved = replace(link, master=links[dice.choice(bridges)].ifindex), observed.enslaved
        case "altname":  # no two links have the same one
            links = {n: replace(one, altnames=()) for n, one in links.items()}
            links[name], enslaved = replace(link, altnames=("uplink",)), observed.enslaved
        case "address" if link.master is None:
            links[name], enslaved = replace(link, addresses=(AddressState("192.0.2.8/24"),)), observed.enslaved
        case _:
            links[name], enslaved = link, observed.enslaved
    return replace(observed, links=links, enslaved=enslaved)


def settle(desired: Desired, observed: Observed, dice: Random | None = None) -> tuple[Observed, list[Action]]:
    """Iterate the planner, some of each frontier with `dice`."""
    done: list[Action] = []
    for _ in range(80):
        frontier = [
            action
            for action in plan(desired, observed, 0.0).actions
            if action.resource.startswith(("bridge/", "port/", "filters"))
        ]
        if not frontier:
            return observed, done
        for action in frontier if dice is None else dice.sample(frontier, dice.randint(1, len(frontier))):
            before = observed
            observed = apply(observed, action)
            assert_nobody_is_cut_off(before, observed, action)
            done.append(action)
    raise AssertionError(f"never settles: {plan(desired, observed, 0.0).actions}")


def assert_nobody_is_cut_off(before: Observed, after: Observed, action: Action) -> None:
    """Only what we put into a bridge is taken out of it, and by nothing but a release or the bridge's own end."""
    for name, link in before.links.items():
        if name in after.links and link.master is not None and after.links[name].master != link.master:
            master = next(one.name for one in before.links.values() if one.ifindex == link.master)
            assert (name, master) in before.enslaved
            assert isinstance(action, ReleasePort) or action.resource == f"bridge/{master}"


def assert_as_wanted(desired: Desired, observed: Observed) -> None:
    ports = find_ports(desired.bridges, observed)
    links = observed.links
    told = {condition.resource for condition in plan(desired, observed, 0.0).conditions}
    for (bridge, entry), link in ports.links.items():
        assert link.master == links[bridge].ifindex or f"port/{entry}" in told
    for bridge, spec in desired.bridges.items():
        for entry in spec.ports:
            assert (bridge, entry) in ports.links or f"port/{entry}" in told
        wanted = {link.ifindex for link in ports.of(bridge).values()}
        ours = {name for name, of in observed.enslaved if of == bridge}
        for name in ours:
            if links[name].master == links[bridge].ifindex:
                assert links[name].ifindex in wanted
        if spec.dhcp is not None and observed.filters.state is not None:
            kept = {element.key for element in observed.filters.state.elements if element.set == "ports"}
            assert {f'"{link.name}"' for link in ports.of(bridge).values()} <= kept


@given(desired=wishes(), host=hosts(), dice=dices)
@settings(max_examples=200)
def test_settles_whatever_part_of_each_frontier_is_done(desired: Desired, host: Observed, dice: Random) -> None:
    settled, _ = settle(desired, host, dice)
    assert_as_wanted(desired, settled)
    assert settle(desired, settled) == (settled, [])


@given(first=wishes(), second=wishes(), host=hosts(), dice=dices, troubles=faults)
@settings(max_examples=300)
def test_cards_that_move_and_edits_lead_to_what_is_wanted(
    first: Desired, second: Desired, host: Observed, dice: Random, troubles: list[tuple[str, int]]
) -> None:
    observed, _ = settle(first, host, dice)
    for kind, which in troubles:
        observed = inflict(observed, kind, which)
        frontier = plan(first, observed, 0.0).actions
        for action in dice.sample(list(frontier), dice.randint(0, len(frontier))):
            if action.resource.startswith(("bridge/", "port/", "filters")):
                observed = apply(observed, action)
    edited, _ = settle(second, observed, dice)
    assert_as_wanted(second, edited)
    assert settle(second, edited) == (edited, [])


def ports_in(observed: Observed) -> list[LinkState]:
    """The links that we put into bridges and that are there."""
    names = sorted(name for name, bridge in observed.enslaved if bridge in observed.links)
    links = [observed.links[name] for name in names if name in observed.links]
    return [link for link in links if link.master in {observed.links[b].ifindex for _, b in observed.enslaved}]


@given(desired=wishes(), host=hosts(), dice=dices)
@settings(max_examples=200)
def test_a_port_stays_where_it_is_under_a_name_that_nobody_wants(
    desired: Desired, host: Observed, dice: Random
) -> None:
    observed, _ = settle(desired, host, dice)
    for number, port in enumerate(ports_in(observed)):
        links = {name: link for name, link in observed.links.items() if name != port.name}
        links[f"new{number}"] = replace(port, name=f"new{number}", altnames=())
        enslaved = {(f"new{number}" if name == port.name else name, bridge) for name, bridge in observed.enslaved}
        observed = replace(observed, links=links, enslaved=frozenset(enslaved))
        observed, done = settle(desired, observed, dice)
        assert not any(action.resource.startswith("port/") for action in done)


@given(desired=wishes(), host=hosts(), dice=dices)
@settings(max_examples=200)
def test_a_port_stays_where_it_is_when_another_looks_the_same(desired: Desired, host: Observed, dice: Random) -> None:
    observed, _ = settle(desired, host, dice)
    for number, port in enumerate(ports_in(observed), start=100):
        twin = replace(port, ifindex=number, name=f"twin{number}", master=None, altnames=())
        observed, done = settle(desired, replace(observed, links={**observed.links, twin.name: twin}), dice)
        assert not any(isinstance(action, ReleasePort) for action in done)
