"""IPv6 modes: mistakes in units word for word, what is wanted and seen, and exactly what follows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.desired import BridgeSpec, Desired, DnsSpec, NicSpec, VmSpec
from agent.core.marks import ADDRESS_PROTOCOL, bridge_mark
from agent.core.observed import AddressState, HostState, LinkState, Observed
from agent.core.planning import plan
from agent.core.reasons import Reason
from agent.core.routing.firewall import FirewallState, ForwardingState, Routing
from agent.core.routing.firewall_wanted import wanted_openings, wish_of
from agent.core.routing.ipv6 import GATEWAY, PROTOCOL, Ipv6State, Place, conf, derived_ula, proxy_delay
from agent.core.routing.ipv6_actions import ChangeIpv6
from agent.core.routing.ruleset import Element
from agent.core.services.dnsmasq import LeaseHost, dnsmasq_spec
from agent.core.tell.describe import describe
from agent.unitfile.parse import parse_unit
from agent.unitfile.specs import bridge_spec

WEB, DB = "2001:db8:5::100", "2001:db8:5::101"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            'ipv6 = "routed"',
            (
                '2:1: error: ipv6 = "routed" needs a prefix of the bridge\'s own in addresses, of length 64 '
                '(add addresses = ["2001:db8:1::1/64"], or ipv6 = "ndp-proxy" where the provider routes none)'
            ),
        ),
        (
            'addresses = ["2001:db8:1::1/56"]\nipv6 = "routed"',
            (
                '3:1: error: ipv6 = "routed" needs a prefix of the bridge\'s own in addresses, of length 64 '
                '(add addresses = ["2001:db8:1::1/64"], or ipv6 = "ndp-proxy" where the provider routes none)'
            ),
        ),
        (
            'addresses = ["10.0.0.1/24", "2001:db8:1::1/64"]\nipv6 = "nat66"',
            (
                '3:1: error: ipv6 = "nat66" needs a unique local prefix in addresses, of length 64 '
                '(add addresses = ["fd00:a::1/64"])'
            ),
        ),
        (
            'addresses = ["10.0.0.1/24", "2001:db8:1::1/64"]\nipv6 = "ndp-proxy"',
            (
                "2:29: error: 2001:db8:1::1/64 is a prefix of this bridge's own: with ndp-proxy guests' addresses are "
                'of the uplink\'s (take it out, or ipv6 = "routed")'
            ),
        ),
        (
            'ipv6 = "ndp-proxy"\nuplink = "br0"',
            '3:1: error: uplink names the bridge "br0" itself',
        ),
        (
            'ipv6 = "ndp-proxy"\nports = ["eth0"]\nuplink = "eth0"',
            '4:1: error: uplink "eth0" is a port of this bridge: guests are on that link already',
        ),
        (
            'uplink = "eth0"',
            '2:1: error: uplink is the link that leads out over IPv6, and needs ipv6 (add ipv6 = "ndp-proxy")',
        ),
        (
            'ipv6 = "slaac"',
            '2:1: error: ipv6 must be "routed", "ndp-proxy" or "nat66", not "slaac"',
        ),
    ],
)
def test_mistakes_are_told_at_their_place(text: str, error: str) -> None:
    parsed = parse_unit("u.toml", f"[bridge.br0]\n{text}\n".encode())
    assert [str(one).partition("u.toml:")[2] for one in parsed.errors] == [error]


def test_a_bridge_with_ndp_proxy_has_the_guests_gateway_and_a_prefix_that_never_changes() -> None:
    parsed = parse_unit(
        "u.toml", b'[bridge.br0]\naddresses = ["10.0.0.1/24", "fe80::1/64"]\nipv6 = "ndp-proxy"\ndns = true\n'
    )
    assert not parsed.errors
    spec = bridge_spec("br0", parsed.bridges["br0"], "u.toml", "machine")
    assert spec.addresses == ("10.0.0.1/24", GATEWAY, derived_ula("machine", "br0"))
    assert (spec.ipv6, spec.uplink) == ("ndp-proxy", "")
    assert derived_ula("machine", "br0") != derived_ula("machine", "br1")
    assert PROTOCOL == ADDRESS_PROTOCOL


HOSTS = (LeaseHost("web's lan", "web", ("02::1",), ("10.0.0.5", WEB)), LeaseHost("db's lan", "db", ("02::2",), (WEB,)))


def lines(bridge: BridgeSpec, *hosts: LeaseHost) -> list[str]:
    (conf_file, *_) = dnsmasq_spec(bridge, hosts).files
    return conf_file.text.splitlines()[8:]


def test_what_dnsmasq_says_of_each_mode() -> None:
    routed = BridgeSpec("br0", "02::", addresses=("2001:db8:5::1/64", "fd00::1/48", "fe80::5/64"), ipv6="routed")
    assert lines(routed) == ["port=0", "enable-ra", "dhcp-range=2001:db8:5::,ra-only,64,43200"]
    served = lines(routed, *HOSTS)
    assert served[:3] == ["port=0", "enable-ra", "dhcp-range=2001:db8:5::,static,slaac,64,43200"]
    assert "dhcp-leasefile=/dev/stdin" in served
    proxy = replace(routed, addresses=(GATEWAY, "fd12:3:4::1/64"), ipv6="ndp-proxy", dns=DnsSpec(()))
    assert lines(proxy, *HOSTS)[5:10] == [
        "enable-ra",
        "dhcp-range=fd12:3:4::,static,off-link,64,43200",
        "dhcp-range=2001:db8:5::,static,off-link,64,43200",
        "shared-network=br0,2001:db8:5::",
        "dhcp-lease-max=1000",
    ]
    static = {one.name: one.text for one in dnsmasq_spec(proxy, HOSTS).files}["static-leases"]
    assert static == f"02::1,[{WEB}],web\n02::2,db\n"
    assert dnsmasq_spec(routed, ()).capabilities == ("net_bind_service", "net_admin", "net_raw")
    assert dnsmasq_spec(routed, ()).kept == ""
    assert dnsmasq_spec(routed, HOSTS).kept == dnsmasq_spec(proxy, ()).kept == "leases/br0"


BRIDGE = BridgeSpec("br0", "02:00:00:00:00:01", addresses=(GATEWAY,), ipv6="ndp-proxy")
OTHER = replace(BRIDGE, name="br1", mac="02:00:00:00:00:02")


def guest(name: str, bridge: str, *addresses: str) -> VmSpec:
    nic = NicSpec("lan", bridge, f"02:00:00:00:01:{name[:2].encode().hex()[:2]}", f"{name}-lan", 0, address=addresses)
    return VmSpec(name, f"uuid-{name}", 1_900_000_000, after=("path:/srv/none",), nics=(nic,))


def link(index: int, spec: BridgeSpec) -> LinkState:
    addresses = (AddressState(GATEWAY, own=True, link_local=True),)
    return LinkState(index, spec.name, "bridge", True, 1500, spec.mac, None, bridge_mark(spec.name), 0, addresses)


UPLINK = LinkState(
    2, "eth0", None, True, addresses=(AddressState("2001:db8:5::2/64"), AddressState("fe80::9/64", link_local=True))
)
LINKS = {"eth0": UPLINK, "br0": link(10, BRIDGE), "br1": link(11, OTHER)}


def settings(**changes: int) -> dict[str, int]:
    found = {conf("eth0", "accept_ra"): 1}
    for name in ("eth0", "br0", "br1"):
        found |= {conf(name, "forwarding"): 0, conf(name, "proxy_ndp"): 0, proxy_delay(name): 80}
    return found | changes


STATE = Ipv6State(uplink="eth0", gateway="2001:db8:5::1", settings=settings())
DESIRED = Desired({"br0": BRIDGE, "br1": OTHER}, {"web": guest("web", "br0", WEB), "db": guest("db", "br1", DB)})


def actions(desired: Desired, state: Ipv6State, links: dict[str, LinkState] | None = None) -> list[ChangeIpv6]:
    seen = Observed(links=links or LINKS, host=HostState(boot_id="now"), ipv6=state)
    return [one for one in plan(desired, seen, 0.0).actions if isinstance(one, ChangeIpv6)]


def told(desired: Desired, state: Ipv6State, links: dict[str, LinkState] | None = None) -> list[tuple[str, str, str]]:
    seen = Observed(links=links or LINKS, host=HostState(boot_id="now"), ipv6=state)
    return [
        (c.resource, c.type, c.message)
        for c in plan(desired, seen, 0.0).conditions
        if c.type in {"UplinkMissing", "NotInSubnet", "AddressTaken", "Conflict"}
    ]


def test_all_that_a_proxy_needs_is_done_at_once_and_in_a_safe_order() -> None:
    (action,) = actions(DESIRED, STATE)
    assert action.settings[0] == ("ipv6/conf/eth0/accept_ra", 2)
    assert dict(action.settings[1:]) == {
        name: 0 if name.endswith("proxy_delay") else 1 for name in settings() if not name.endswith("accept_ra")
    }
    assert action.remember == tuple((name, settings()[name]) for name, _ in action.settings[1:])
    assert action.add_routes == (Place(WEB, "br0"), Place(DB, "br1"))
    beyond = {"2001:db8:5::1", "2001:db8:5::2"}
    assert {one.address for one in action.add_proxies if one.link == "eth0"} == {WEB, DB}
    assert {one.address for one in action.add_proxies if one.link == "br0"} == {DB, *beyond}
    assert {one.address for one in action.add_proxies if one.link == "br1"} == {WEB, *beyond}
    assert describe(action).startswith("IPv6: net/ipv6/conf/eth0/accept_ra = 2, net/ipv6/conf/br0/forwarding = 1")


def test_a_bridge_of_ours_heeds_router_advertisements_only_where_it_leads_out() -> None:
    wan = replace(OTHER, name="br-wan", ipv6="")
    carrier = replace(link(12, wan), addresses=(AddressState("2001:db8:5::3/64"),))
    advertised = {conf(name, "accept_ra"): 1 for name in ("eth0", "br0", "br1", "br-wan")}
    for default, heeding in (("eth0", ["eth0"]), ("br-wan", ["eth0", "br-wan"])):
        state = replace(STATE, uplink=default, settings=settings(**advertised))
        (action,) = actions(Desired({"br0": BRIDGE, "br-wan": wan}), state, {**LINKS, "br-wan": carrier})
        assert [one for one in action.settings if one[1] == 2] == [(conf(name, "accept_ra"), 2) for name in heeding]


def test_what_stands_in_the_way_is_told_and_stays() -> None:
    foreign = replace(STATE, foreign_routes={WEB: "eth0"}, foreign_proxies=frozenset({Place(DB, "eth0")}))
    (action,) = actions(DESIRED, foreign)
    assert action.add_routes == (Place(DB, "br1"),)
    assert Place(DB, "eth0") not in action.add_proxies
    assert told(DESIRED, foreign) == [
        (
            "vm/db",
            "Conflict",
            (
                f"somebody else has this host answer for {DB} on eth0 already; "
                f"it stays when this guest goes: ip -6 neigh del proxy {DB} dev eth0"
            ),
        ),
        ("vm/web", "Conflict", f"a route to {WEB} that is not ours leads to eth0: ip -6 route del {WEB}"),
    ]
    twice = replace(
        DESIRED,
        vms={
            "a": guest("a", "br0", WEB),
            "b": guest("b", "br1", WEB, "2001:db8:5::2", "2001:db8:5::1", "2001:db8:6::1"),
        },
    )
    (action,) = actions(twice, STATE)
    assert action.add_routes == (Place(WEB, "br0"),)
    assert told(twice, STATE) == [
        ("vm/b", "AddressTaken", "2001:db8:5::1 of lan is the gateway of this host's default route; take another one"),
        ("vm/b", "AddressTaken", f"{WEB} of lan is the address of a's lan; change one of them"),
        ("vm/b", "AddressTaken", "2001:db8:5::2 of lan is this host's own, on eth0; take another one"),
        (
            "vm/b",
            "NotInSubnet",
            "2001:db8:6::1 of lan is not of 2001:db8:5::/64, which is on eth0: nobody looks for it there",
        ),
    ]


@pytest.mark.parametrize(
    ("uplink", "state", "links", "why"),
    [
        ("", replace(STATE, uplink=""), LINKS, "there is no IPv6 default route, so which link leads out is not known"),
        ("", replace(STATE, uplink="br0"), LINKS, "the IPv6 default route leads into br0 itself"),
        ("eth7", STATE, LINKS, "there is no link eth7, its uplink"),
        (
            "eth0",
            STATE,
            {**LINKS, "eth0": replace(UPLINK, addresses=())},
            "eth0, its uplink, has no IPv6 address with a",
        ),
        (
            "eth0",
            STATE,
            {**LINKS, "eth0": replace(UPLINK, master=11)},
            "eth0 is a port of br1, which has its addresses",
        ),
    ],
)
def test_without_a_way_out_it_is_told_and_all_stays_as_it_is(
    uplink: str, state: Ipv6State, links: dict[str, LinkState], why: str
) -> None:
    wanted = replace(DESIRED, bridges={"br0": replace(BRIDGE, uplink=uplink)}, vms={"web": guest("web", "br0", WEB)})
    present = replace(state, routes=frozenset({Place(WEB, "br0")}), before={conf("eth0", "proxy_ndp"): 0})
    for action in actions(wanted, present, links):
        assert (action.remove_routes, action.restore) == ((), ())
    assert any(
        one[:2] == ("bridge/br0", "UplinkMissing") and one[2].startswith(why) for one in told(wanted, present, links)
    )


def test_a_guest_that_moved_is_led_to_where_it_is_also_while_another_bridge_has_no_way_out() -> None:
    """The kernel takes no second route to one address."""
    lost = BridgeSpec("br2", "02::3", addresses=BRIDGE.addresses, ipv6="ndp-proxy", uplink="eth7")
    wanted = Desired({**DESIRED.bridges, "br2": lost}, {"web": guest("web", "br1", WEB)})
    present = replace(STATE, routes=frozenset({Place(WEB, "br0"), Place(DB, "br0")}))
    (action,) = actions(wanted, present, {**LINKS, "br2": link(12, lost)})
    assert (action.add_routes, action.remove_routes) == ((Place(WEB, "br1"),), (Place(WEB, "br0"),))


def test_what_is_at_the_uplink_stays_while_a_bridge_is_made_anew() -> None:
    (first,) = actions(DESIRED, STATE)
    there = replace(STATE, routes=frozenset({Place(DB, "br1")}), proxies=frozenset(first.add_proxies))
    without = {name: one for name, one in LINKS.items() if name != "br0"}
    for action in actions(DESIRED, there, without):
        assert (action.remove_routes, action.remove_proxies, action.restore) == ((), (), ())


def test_what_nobody_wants_is_taken_away_and_given_back() -> None:
    state = Ipv6State(
        frozenset({Place(WEB, "br0")}),
        frozenset({Place(WEB, "eth0")}),
        {},
        frozenset({Place(DB, "eth0")}),
        "eth0",
        settings=settings(),
        before={conf("eth0", "proxy_ndp"): 0, conf("gone0", "proxy_ndp"): 0},
    )
    (action,) = actions(Desired({"br0": replace(BRIDGE, ipv6="", addresses=())}), state)
    assert (action.remove_routes, action.remove_proxies) == ((Place(WEB, "br0"),), (Place(WEB, "eth0"),))
    assert (action.restore, action.forget) == (((conf("eth0", "proxy_ndp"), 0),), (conf("gone0", "proxy_ndp"),))
    assert action.reason is Reason.UNWANTED
    assert not actions(Desired(complete=False), state)


def test_what_the_firewall_holds_of_each_mode() -> None:
    routed = BridgeSpec("br2", "02::3", addresses=("2001:db8:7::1/64", "fe80::1/64"), ipv6="routed")
    nat = BridgeSpec("br3", "02::4", addresses=("fd00:a::1/64",), ipv6="nat66")
    wish = wish_of({"br0": BRIDGE, "br2": routed, "br3": nat}, {"web": guest("web", "br0", "10.0.0.5", WEB)})
    assert wish.routes(6)
    assert not wish.routes(4)
    assert wish.elements == {
        *(Element("inside6", f'"{name}"') for name in ("br0", "br2", "br3")),
        Element("reached6", f'"br0" . {WEB}'),
        Element("reached6", '"br2" . 2001:db8:7::/64'),
        Element("nat6", '"br3" . fd00:a::/64'),
        Element("subnets6", f'"br0" . {WEB}'),
        Element("subnets6", '"br2" . 2001:db8:7::/64'),
        Element("subnets6", '"br3" . fd00:a::/64'),
    }
    links = {**LINKS, "wan0": LinkState(3, "wan0", None, True)}
    opened = wanted_openings(wish, links, ForwardingState(links6={}), Routing(FirewallState()), 6, frozenset({"wan0"}))
    assert opened == {"br0", "eth0", "wan0"}
