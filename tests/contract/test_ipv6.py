"""IPv6 modes against the real kernel: routes, proxy neighbours, and the older way of forwarding, as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from agent.core.desired import BridgeSpec, Desired
from agent.core.errors import PermanentError, TransientError
from agent.core.marks import bridge_mark
from agent.core.observed import HostState, Observed
from agent.core.planning import plan
from agent.core.reasons import Reason
from agent.core.routing.firewall import EVERYWHERE6, NAT, FirewallState, Opening, Routing
from agent.core.routing.firewall_actions import ChangeFirewall, ChangeForwarding
from agent.core.routing.ipv6 import IPV6, Ipv6State, Place, conf
from agent.core.routing.ipv6_actions import ChangeIpv6
from agent.host.netlink import RatedLinks, Routes6
from agent.host.netlink.routes6 import watch_routes6
from agent.host.nft import change_tables, look_at_tables
from agent.host.sysctls import change_sysctls, look_at_forwarding, look_at_settings
from tests.internet import Box
from tests.netns import ip, ip_output, network_namespace

ONE, TWO, FAR, HOST = "2001:db8::100", "2001:db8::101", "2001:db8:9::9", "2001:db8:9::1"
NAMES = ("ipv6/conf/up0/accept_ra", "ipv6/conf/all/forwarding")


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    with network_namespace():
        yield


@pytest.fixture
def routes() -> Iterator[Routes6]:
    ip("link add br0 type bridge", "link set br0 up", "link add up0 type bridge", "link set up0 up")
    with Routes6() as opened:
        yield opened


def names() -> dict[int, str]:
    return {
        int(line.split(":")[0]): line.split(":")[1].split("@")[0].strip() for line in ip_output("-o link").splitlines()
    }


def change(**what: tuple[Place, ...]) -> ChangeIpv6:
    return ChangeIpv6(IPV6, Reason.MISSING, **what)  # type: ignore[arg-type]


def test_what_is_ours_is_told_from_what_is_not_and_only_that_is_touched(routes: Routes6) -> None:
    ip(f"route add {TWO} dev up0", f"neigh add proxy {TWO} dev up0", f"neigh add proxy {ONE} dev br0")
    places = (Place(ONE, "br0"),)
    routes.change(change(add_routes=places, add_proxies=(Place(ONE, "up0"),)))
    routes.change(change(add_routes=places, add_proxies=(Place(ONE, "up0"),)))  # is fine already
    seen = routes.look([ONE, TWO, "2001:db8::9"], names())
    foreign = frozenset({Place(TWO, "up0"), Place(ONE, "br0")})
    assert seen == Ipv6State(frozenset(places), frozenset({Place(ONE, "up0")}), {TWO: "up0"}, foreign)
    assert f"{ONE} dev br0 proto 118" in ip_output("-6 route")
    for one in (change(add_routes=(Place(TWO, "br0"),)), change(add_proxies=(Place(TWO, "up0"),))):
        if one.add_routes:
            ip(f"route replace {TWO} dev br0")
        with pytest.raises(TransientError, match="not ours") as refused:
            routes.change(one)
        assert refused.value.reason == "Conflict"
    with pytest.raises(TransientError, match="there is no link gone0 any more"):
        routes.change(change(add_routes=(Place(ONE, "gone0"),)))
    gone = (Place(ONE, "br0"), Place(TWO, "br0"), Place(ONE, "gone0"))
    routes.change(change(remove_routes=gone[::2], remove_proxies=(Place(ONE, "up0"), Place(TWO, "up0"), *gone)))
    after = routes.look([], names())
    assert (after.routes, after.proxies, after.foreign_proxies) == (frozenset(), frozenset(), foreign)
    assert TWO in ip_output("-6 route")


def test_a_guest_that_moves_to_another_bridge_is_led_there_at_once(routes: Routes6) -> None:
    """The kernel takes no second route to an address with the same metric (net/ipv6/ip6_fib.c)."""
    routes.change(change(add_routes=(Place(ONE, "br0"), Place(TWO, "br0"))))
    routes.change(change(add_routes=(Place(ONE, "up0"),), remove_routes=(Place(ONE, "br0"),)))
    assert routes.look([], names()).routes == {Place(ONE, "up0"), Place(TWO, "br0")}
    with pytest.raises(TransientError, match="there is no link gone0"):
        routes.change(change(add_routes=(Place(TWO, "gone0"),), remove_routes=(Place(TWO, "br0"),)))
    assert routes.look([], names()).routes == {Place(ONE, "up0")}


def test_a_link_whose_ipv6_is_switched_off_is_told_as_that(routes: Routes6) -> None:
    change_sysctls([("ipv6/conf/br0/disable_ipv6", "1")])
    with pytest.raises(PermanentError, match="IPv6 is switched off on br0; sysctl -w net") as refused:
        routes.change(change(add_routes=(Place(ONE, "br0"),)))
    assert refused.value.reason == "Ipv6Off"


def test_the_way_out_is_found_also_among_several(routes: Routes6) -> None:
    assert routes.look([], names()).uplink == ""
    ip("route add unreachable ::/0 metric 5000", "addr add 2001:db8:1::2/64 dev up0 nodad")
    assert routes.look([], names()).uplink == ""
    ip("route add default via 2001:db8:1::1 dev up0 metric 9")
    seen = routes.look([], names())
    assert (seen.uplink, seen.gateway) == ("up0", "2001:db8:1::1")
    ip("route add ::/0 metric 5 nexthop via fe80::7 dev br0 nexthop via fe80::8 dev up0")
    seen = routes.look([], names())
    assert (seen.uplink, seen.gateway) in {("br0", "fe80::7"), ("up0", "fe80::8")}
    ip("route add unreachable 2001:db8::7")
    with pytest.raises(TransientError, match="not ours"):
        routes.change(change(add_routes=(Place("2001:db8::7", "br0"),)))


@pytest.mark.usefixtures("routes")
async def test_changes_of_our_routes_and_of_the_default_one_are_heard() -> None:
    heard = asyncio.Event()
    watching = asyncio.create_task(watch_routes6(heard.set))
    await asyncio.sleep(0)
    ip("addr add 2001:db8:1::2/64 dev up0 nodad")
    for command in (
        f"route add {ONE} dev br0 proto 118",
        f"route del {ONE} dev br0",
        "route add default via 2001:db8:1::1 dev up0",
        "route del ::/0 dev up0",
    ):
        await asyncio.sleep(0.01)
        heard.clear()
        ip(command)
        await asyncio.wait_for(heard.wait(), 30)
    await asyncio.sleep(0.01)
    heard.clear()
    ip("route add 2001:db8:77::/64 dev br0")
    await asyncio.sleep(0.02)
    assert not heard.is_set()
    watching.cancel()


def until(check: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait for what nobody tells."""
    ends_s = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < ends_s
        time.sleep(0.01)


def told_of_a_router(router: Box) -> None:
    """Have the host make a default route of a router advertisement."""

    def is_told() -> bool:
        router.ask(
            "advertise", "eth0", 1800
        )  # in vain while one of both is still to find out whether its address is free
        return "default via fe80" in ip_output("-6 route show default")

    until(is_told)


def test_what_any_link_forwards_costs_the_host_its_advertised_routes_but_for_accept_ra_2() -> None:
    """Why the order of settings matters, also where forwarding is switched on for one link only."""
    with Box("up0", addresses=(f"{FAR}/64",)) as router:
        ip("link add br0 type bridge", "link set br0 up")
        router.ask("sysctl", "ipv6/conf/all/forwarding", "1")
        told_of_a_router(router)
        change_sysctls([(conf("br0", "forwarding"), "1")])
        assert "default" not in ip_output("-6 route show default")
        change_sysctls([(conf("br0", "forwarding"), "0"), (conf("up0", "accept_ra"), "2")])
        told_of_a_router(router)
        change_sysctls([(conf("br0", "forwarding"), "1"), (conf("up0", "forwarding"), "1")])
        assert "default via fe80" in ip_output("-6 route show default")


def table() -> FirewallState:
    """The firewall's table, as it is."""
    seen = look_at_tables(NAT)
    return FirewallState(seen.skeleton, seen.elements)


async def carried_out(desired: Desired, opened: frozenset[Opening], before: dict[str, int]) -> frozenset[Opening]:
    """What the planner wants of a kernel that has no `force_forwarding`, done to this one until nothing is left."""
    with Routes6() as routes:
        for _ in range(20):
            async with RatedLinks() as links:
                seen = links.snapshot
            of = sorted(seen)
            settings = look_at_settings([conf(one, key) for one in of for key in ("forwarding", "accept_ra")])
            state = replace(routes.look([], names()), settings=settings, before=dict(before))
            routing = Routing(table(), look_at_forwarding(of, by_link6=False), opened=opened)
            observed = Observed(links=seen, host=HostState(boot_id="now"), routing=routing, ipv6=state)
            wanted = [
                one
                for one in plan(desired, observed, 0.0).actions
                if isinstance(one, ChangeFirewall | ChangeForwarding | ChangeIpv6)
            ]
            if not wanted:
                return opened
            for one in wanted:
                if isinstance(one, ChangeFirewall):
                    change_tables(NAT, one.elements)
                elif isinstance(one, ChangeForwarding):
                    change_sysctls(one.settings)
                    opened = (opened | one.opens) - one.closes
                else:
                    before |= dict(one.remember)
                    change_sysctls([(name, str(value)) for name, value in (*one.settings, *one.restore)])
                    routes.change(one)
                    for name in (*(name for name, _ in one.restore), *one.forget):
                        before.pop(name, None)
    raise AssertionError("never settles")


async def test_an_older_kernel_forwards_as_a_whole_keeps_its_routes_and_becomes_no_open_router() -> None:
    with contextlib.ExitStack() as stack:
        router = stack.enter_context(Box("up0", addresses=(f"{FAR}/64",), gateways=(HOST,)))
        guest = stack.enter_context(Box("g0", addresses=("2001:db8:a::9/64",), gateways=("2001:db8:a::1",)))
        other = stack.enter_context(Box("o0", addresses=("2001:db8:b::9/64",), gateways=("2001:db8:b::1",)))
        ip(
            "link add br-a type bridge",
            f"link set br-a up alias {bridge_mark('br-a')}",
            "link set g0 master br-a",
            "addr add 2001:db8:a::1/64 dev br-a nodad",
            "addr add 2001:db8:b::1/64 dev o0 nodad",
            f"addr add {HOST}/64 dev up0 nodad",
        )
        router.ask("sysctl", "ipv6/conf/all/forwarding", "1")
        told_of_a_router(router)
        for box, name in ((router, "far"), (guest, "guest"), (other, "other")):
            box.serve(80, name)
        bridge = BridgeSpec("br-a", "02:00:00:00:00:01", addresses=("2001:db8:a::1/64",), ipv6="routed")
        ip(f"link set br-a address {bridge.mac}")
        before: dict[str, int] = {}
        opened = await carried_out(Desired({"br-a": bridge}), frozenset(), before)
        assert opened == {EVERYWHERE6}
        assert look_at_settings(NAMES) == {NAMES[0]: 2, NAMES[1]: 1}
        assert "default via fe80" in ip_output("-6 route show default")
        assert look_at_settings([conf("br-a", "accept_ra")]) == {conf("br-a", "accept_ra"): 1}
        assert guest.hear(FAR, 80) == "far 2001:db8:a::9"
        assert router.hear("2001:db8:a::9", 80) == f"guest {FAR}"
        assert router.hear("2001:db8:b::9", 80, timeout_s=0.3) is None
        assert other.hear(FAR, 80, timeout_s=0.3) is None
        left = await carried_out(Desired({"br-a": replace(bridge, ipv6="")}), opened, before)
        assert (left, before) == (frozenset(), {})
        assert look_at_settings(NAMES)[NAMES[1]] == 0
        assert not table().exists
        assert guest.hear(FAR, 80, timeout_s=0.3) is None
