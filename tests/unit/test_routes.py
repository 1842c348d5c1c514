"""Routes by bridges: what is planned of what is there, and what stays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.actions import ChangeAddresses
from agent.core.desired import Desired, RouteSpec
from agent.core.marks import bridge_mark
from agent.core.observed import Observed
from agent.core.planner.draft import Plan
from agent.core.planning import plan
from agent.core.reasons import Reason
from agent.core.routing.routes import Key, Route, RoutesState, lead_text
from agent.core.routing.routes_wanted import ChangeRoutes
from agent.core.tell.describe import describe
from agent.core.uplinks.moves import UplinkState
from agent.unitfile.parse import parse_unit
from tests.unit.planning_world import ABSENT, BRIDGE, BRIDGE_LINK, said, with_links

GATED = replace(BRIDGE, gateway=("10.0.0.254",))
TEN = RouteSpec("10.9.0.0/16", "10.0.0.253", 7)
DEFAULT = Route("0.0.0.0/0", 0, "10.0.0.254", "br0")
NINE = Route("10.9.0.0/16", 7, "10.0.0.253", "br0")
ADDRESSES = ("10.0.0.1/24",)


def host(*own: Route, foreign: dict[Key, str] | None = None, **link: object) -> Observed:
    seen = with_links(replace(BRIDGE_LINK, **link), of=ABSENT)  # type: ignore[arg-type]
    return replace(seen, routes=RoutesState(frozenset(own), foreign or {}))


def changes(decided: Plan) -> list[ChangeRoutes]:
    return [action for action in decided.actions if isinstance(action, ChangeRoutes)]


def change(reason: Reason, **what: tuple[Route, ...]) -> ChangeRoutes:
    nothing = ChangeRoutes("bridge/br0/routes", reason, "br0", 10, beside=ADDRESSES)
    return replace(nothing, **what)  # type: ignore[arg-type]


def test_what_is_missing_is_added_and_what_is_there_is_left() -> None:
    desired = Desired({"br0": replace(GATED, routes=(TEN,))})
    assert changes(plan(desired, host(), 0.0)) == [change(Reason.MISSING, add=(DEFAULT, NINE))]
    assert changes(plan(desired, host(DEFAULT), 0.0)) == [change(Reason.MISSING, add=(NINE,))]
    assert plan(desired, host(DEFAULT, NINE), 0.0).actions == ()


def test_another_gateway_is_put_in_the_place_of_the_former() -> None:
    former = DEFAULT._replace(via="10.0.0.9")
    assert changes(plan(Desired({"br0": GATED}), host(former), 0.0)) == [change(Reason.MISSING, swap=(DEFAULT,))]


def test_what_no_unit_wants_goes_once_the_units_were_read() -> None:
    removal = change(Reason.UNWANTED, remove=(DEFAULT,))
    assert changes(plan(Desired({"br0": BRIDGE}), host(DEFAULT), 0.0)) == [removal]
    assert changes(plan(Desired({"br0": BRIDGE}, complete=False), host(DEFAULT), 0.0)) == []


def test_a_route_of_somebody_else_stays_and_is_told_and_ours_beside_it_too() -> None:
    seen = host(NINE, foreign={DEFAULT.key: "leads via 192.0.2.1 by eth0"})
    decided = plan(Desired({"br0": replace(GATED, routes=(TEN,))}), seen, 0.0)
    assert decided.actions == ()
    assert "bridge/br0/routes" in decided.deviating
    message = (
        "a route default that is not ours leads via 192.0.2.1 by eth0: it stays, and ours is not added; delete it "
        "(ip route del default) or give ours another metric"
    )
    assert said(decided) == [("bridge/br0/routes", "Conflict", "Conflict", message)]
    # one of ours to the same network stays until there is another one
    backup = DEFAULT._replace(metric=50)
    seen = host(backup, foreign={DEFAULT.key: "leads via 192.0.2.1 by eth0"})
    assert plan(Desired({"br0": GATED}), seen, 0.0).actions == ()


def test_a_route_of_somebody_else_that_leads_the_same_way_will_do() -> None:
    """As one that came to the bridge with its port's addresses does, or one that the host's boot sets."""
    there = {DEFAULT.key: lead_text(DEFAULT.via, "br0")}
    decided = plan(Desired({"br0": GATED}), host(foreign=there), 0.0)
    assert (decided.actions, decided.conditions, decided.deviating) == ((), (), frozenset())
    (away,) = changes(plan(Desired({"br0": GATED}), host(DEFAULT._replace(metric=7), foreign=there), 0.0))
    assert (away.add, [route.metric for route in away.remove]) == ((), [7])


def test_a_route_that_a_move_is_to_bring_is_no_conflict() -> None:
    """The advice to delete it would cut the host off."""
    seen = host(foreign={DEFAULT.key: "leads via 192.0.2.1 by eth0"})
    decided = plan(Desired({"br0": GATED}), replace(seen, uplinks={"eth0": UplinkState(("192.0.2.9/24",))}), 0.0)
    assert said(decided) == []
    assert "bridge/br0/routes" in decided.deviating


def test_addresses_come_first() -> None:
    bare = plan(Desired({"br0": GATED}), host(addresses=()), 0.0)
    assert [type(action) for action in bare.actions] == [ChangeAddresses]
    assert "bridge/br0/routes" in bare.deviating
    assert changes(plan(Desired({"br0": GATED}), host(up=False), 0.0)) == []
    foreign = plan(Desired({"br0": GATED}), host(alias=""), 0.0)
    assert changes(foreign) == []


def test_a_route_that_two_bridges_want_is_of_the_first_and_told() -> None:
    other = replace(GATED, name="br1", mac="02:00:00:00:00:09", addresses=())
    link = replace(BRIDGE_LINK, ifindex=30, name="br1", mac=other.mac, alias=bridge_mark("br1"), addresses=())
    seen = replace(with_links(BRIDGE_LINK, link, of=ABSENT), routes=RoutesState())
    decided = plan(Desired({"br1": other, "br0": GATED}), seen, 0.0)
    assert changes(decided) == [change(Reason.MISSING, add=(DEFAULT,))]
    (told,) = decided.conditions
    assert told.resource == "bridge/br1/routes"


def test_routes_that_are_not_known_are_waited_for() -> None:
    decided = plan(Desired({"br0": GATED}), replace(host(), routes=None), 0.0)
    assert decided.awaited == {"bridge/br0/routes"}
    assert plan(Desired({"br0": BRIDGE}), replace(host(), routes=None), 0.0).awaited == frozenset()


def test_an_action_says_what_it_does() -> None:
    action = change(Reason.MISSING, add=(NINE,), swap=(DEFAULT,), remove=(DEFAULT._replace(metric=50),))
    told = "routes by br0: +10.9.0.0/16 via 10.0.0.253 metric 7, now default via 10.0.0.254"
    assert describe(action) == f"{told}, -default via 10.0.0.254 metric 50"


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ('gateway = "192.0.2.1/24"', 'gateway must be an address such as "192.0.2.1", not "192.0.2.1/24"'),
        ('gateway = ["192.0.2.1", "192.0.2.2"]', "gateway names 192.0.2.1 and 192.0.2.2, and takes one of IPv4"),
        ('gateway = "224.0.0.1"', 'gateway must be an address of a gateway, not "224.0.0.1"'),
        ('routes = { to = "10.0.0.0/8" }', "routes must be an array of tables, not a table"),
        ('routes = [{ to = "10.0.0.1/8", via = "192.0.2.1" }]', "to must be a network such as"),
        ('routes = [{ to = "default", via = "192.0.2.1" }]', "to must be a network such as"),
        ('routes = [{ to = "10.0.0.0/8" }]', "needs via"),
        ('routes = [{ to = "10.0.0.0/8", via = "fd00::1" }]', "via fd00::1 is not of the IP version of 10.0.0.0/8"),
        ('routes = [{ to = "10.0.0.0/8", via = "192.0.2.1", metric = -1 }]', "metric must be"),
        ('routes = [{ to = "10.0.0.0/8", via = "192.0.2.1", dev = "x" }]', 'unknown key "dev"'),
        (
            'gateway = "192.0.2.1"\nroutes = [{ to = "0.0.0.0/0", via = "192.0.2.2" }]',
            "routes has 0.0.0.0/0 with metric 0 twice, see gateway",
        ),
    ],
)
def test_mistakes_are_told(keys: str, problem: str) -> None:
    errors = parse_unit("u.toml", f"[bridge.br0]\n{keys}\n".encode()).errors
    assert len(errors) == 1, errors
    assert problem in str(errors[0])
