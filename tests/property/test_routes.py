"""Routes against the model host: whatever is interrupted, edited, lost, or put there by somebody else."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.actions import Action
from agent.core.desired import BridgeSpec, Desired, RouteSpec
from agent.core.model.host import apply
from agent.core.observed import HostState, LinkState, Observed
from agent.core.planning import plan
from agent.core.routing.routes import Key, Route, RoutesState
from agent.core.routing.routes_wanted import keys_of, wanted_routes

BRIDGES = ("br-a", "br-b")
TARGETS = ("10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "fd01::/64")
METRICS = (0, 7, 1024)
dices = st.integers(0, 1 << 30).map(Random)


@st.composite
def wishes(draw: st.DrawFn) -> Desired:
    bridges = {}
    for number, name in enumerate(sorted(draw(st.sets(st.sampled_from(BRIDGES))))):
        places = draw(st.sets(st.tuples(st.sampled_from(TARGETS), st.sampled_from(METRICS)), max_size=3))
        via = draw(st.integers(2, 4))
        routes = {
            (to, metric or 1024) if ":" in to else (to, metric): RouteSpec(
                to, f"fd00::{via}" if ":" in to else f"192.0.2.{via}", metric
            )
            for to, metric in sorted(places)
        }
        gateway = ("192.0.2.1",) if draw(st.booleans()) and ("0.0.0.0/0", 0) not in routes else ()
        mac = f"02:00:00:00:00:0{number}"
        bridges[name] = BridgeSpec(
            name, mac, addresses=("192.0.2.9/24",), gateway=gateway, routes=tuple(routes.values())
        )
    return Desired(bridges)


@st.composite
def hosts(draw: st.DrawFn) -> Observed:
    keys = st.sets(st.builds(Key, st.sampled_from(TARGETS), st.sampled_from(METRICS)), max_size=3)
    links = {"eth0": LinkState(2, "eth0", None, True)}
    own = {Route(key.to, key.metric, "192.0.2.77", "eth0") for key in draw(keys)}
    foreign = {key: "leads by eth0" for key in draw(keys) if key not in {route.key for route in own}}
    return Observed(
        links=links, host=HostState(boot_id="boot"), max_disruption=99, routes=RoutesState(frozenset(own), foreign)
    )


def routes_of(observed: Observed) -> RoutesState:
    assert observed.routes is not None
    return observed.routes


def settle(desired: Desired, observed: Observed, dice: Random | None = None) -> tuple[Observed, list[Action]]:
    done: list[Action] = []
    for _ in range(60):
        frontier = plan(desired, observed, 0.0).actions
        if not frontier:
            return observed, done
        for action in frontier if dice is None else dice.sample(list(frontier), dice.randint(1, len(frontier))):
            observed = apply(observed, action)
            done.append(action)
    raise AssertionError(f"never settles: {plan(desired, observed, 0.0).actions}")


def assert_as_wanted(desired: Desired, observed: Observed) -> None:
    state = routes_of(observed)
    own = {route.key: route for route in state.own}
    assert len(own) == len(state.own)
    assert not own.keys() & state.foreign.keys()
    for key in keys_of(desired.bridges.values()):
        asked = {route for spec in desired.bridges.values() for route in wanted_routes(spec) if route.key == key}
        assert key in state.foreign or own[key] in asked
    blocked = {key.to for key in keys_of(desired.bridges.values()) if key in state.foreign}
    for route in state.own:
        assert route.key in keys_of(desired.bridges.values()) or route.to in blocked


@given(desired=wishes(), host=hosts(), dice=dices)
@settings(max_examples=200)
def test_settles_whatever_part_of_each_frontier_is_done(desired: Desired, host: Observed, dice: Random) -> None:
    settled, _ = settle(desired, host, dice)
    assert_as_wanted(desired, settled)
    assert settle(desired, settled) == (settled, [])
    assert routes_of(settled).foreign == routes_of(host).foreign


@given(first=wishes(), second=wishes(), host=hosts(), dice=dices)
@settings(max_examples=200)
def test_an_edit_after_losses_leads_to_what_is_wanted_and_nothing_is_left(
    first: Desired, second: Desired, host: Observed, dice: Random
) -> None:
    observed, _ = settle(first, host, dice)
    state = routes_of(observed)
    left = frozenset(route for route in sorted(state.own) if dice.random() < 0.5)
    edited, _ = settle(second, replace(observed, routes=replace(state, own=left)), dice)
    assert_as_wanted(second, edited)
    nothing, _ = settle(Desired(), edited, dice)
    assert routes_of(nothing).own == frozenset()


@given(desired=wishes(), host=hosts(), dice=dices)
@settings(max_examples=150)
def test_a_destination_that_led_somewhere_and_is_wanted_is_never_without_a_way(
    desired: Desired, host: Observed, dice: Random
) -> None:
    wanted = {key.to for key in keys_of(desired.bridges.values())}
    observed = host
    for _ in range(60):
        frontier = plan(desired, observed, 0.0).actions
        if not frontier:
            return
        for action in dice.sample(list(frontier), dice.randint(1, len(frontier))):
            before = {route.to for route in routes_of(observed).own} & wanted
            observed = apply(observed, action)
            assert before <= {route.to for route in routes_of(observed).own}
    raise AssertionError("never settles")
