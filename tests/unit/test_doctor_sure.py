"""What the doctor must not claim, and what it must not spend, on hosts that are only full of rules."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from agent.core.desired import DhcpSpec, VmSpec
from agent.core.doctor.diagnosis import Diagnosis, Judged, diagnose, told_after
from agent.core.doctor.findings import Finding
from agent.core.doctor.kernel import OUTSIDE, route_questions
from agent.core.doctor.packets import Packet, Steps, sure_drop
from agent.core.doctor.rules import TRANSLATED, Ruleset
from agent.core.doctor.scene import Offer, RouteAnswer, RouteQuestion
from agent.core.doctor.values import MAX_MEMBERS, named_span, span_set
from agent.core.routing.firewall_wanted import wish_of
from tests.unit.test_doctor import (
    ACCEPT,
    ANSWERS,
    BRIDGE,
    DROP,
    NIC,
    PUBLISHED,
    SCENE,
    WEB,
    chain,
    found,
    iif,
    is_dropped,
    match,
    oif,
    source,
    xt,
)

SOURCE = {"payload": {"protocol": "ip", "field": "saddr"}}
TARGET = {"payload": {"protocol": "ip", "field": "daddr"}}
LIMIT = {"limit": {"rate": 100, "per": "second", "inv": True}}


@pytest.mark.parametrize(
    "rule",
    [
        [{"set": {"op": "update", "elem": SOURCE, "set": "@flood", "stmt": [LIMIT]}}, DROP],
        [{"meter": {"key": SOURCE, "stmt": LIMIT, "size": 100, "name": "flood"}}, DROP],
        [{"xt": None}, DROP],  # nft 1.0.2 of `-m hashlimit … -j DROP`
    ],
)
def test_what_is_dropped_above_some_rate_only(rule: list[Any]) -> None:
    assert found(chain(rule)) == []


def blocked(number: int) -> tuple[str, ...]:
    return tuple(str(ip_address(0x0B000000 + 2 * one)) for one in range(number))


def test_a_list_of_blocked_addresses_is_read_once() -> None:
    guests: dict[str, VmSpec] = {}
    for number in range(40):
        nic = replace(NIC, tap=f"g{number}", address=(f"192.168.0.{number + 2}",))
        guests[f"g{number}"] = replace(WEB, name=f"g{number}", nics=(nic,), publish=(f"{number + 8000}/tcp",))
    scene = replace(SCENE, vms=guests, wish=wish_of({"br-a": BRIDGE}, guests))
    names = {("ip", "filter", "blocked"): (*blocked(5000), "192.168.0.9")}
    rules = chain([match(SOURCE, "@blocked"), DROP], [match(TARGET, "@blocked"), DROP])
    diagnosis = diagnose(replace(scene, rules=Ruleset((rules,), names)))
    assert (diagnosis.unexamined, {one.resource for one in diagnosis.findings}) == ((), {"vm/g7"})
    steps = Steps()
    assert steps.set_of(names["ip", "filter", "blocked"]) is steps.set_of(names["ip", "filter", "blocked"])
    assert steps.left == Steps().left


def test_a_set_too_large_to_be_read_is_not_known() -> None:
    rule = [source("@many"), DROP]
    few, many = ("192.168.0.100",), ("192.168.0.100", *blocked(MAX_MEMBERS))
    assert found(chain(rule), sets={("ip", "filter", "many"): few})
    assert found(chain(rule), sets={("ip", "filter", "many"): many}) == []
    assert not is_dropped([source("@many", "!="), ACCEPT], sets={("ip", "filter", "many"): many})


@pytest.mark.parametrize(
    ("members", "known", "held"),
    [
        (["10.0.0.1"], "10.0.0.1", True),
        (["10.0.0.1", "10.0.0.3"], "10.0.0.2", False),
        ([{"prefix": {"addr": "10.0.0.0", "len": 8}}], "10.1.0.0/16", True),
        ([{"range": ["10.0.0.0", "10.0.0.9"]}, "11.0.0.0"], "10.0.0.0/28", None),
        (["10.0.0.9"], "10.0.0.0/24", None),
        (["10.0.0.0"], "10.0.0.0/24", None),
        (["9.255.255.255", "10.0.1.0"], "10.0.0.0/24", False),
        (["fd00::1"], "10.0.0.0/24", False),
        (["10.0.0.1"], "fd00::/64", False),
        ([{"elem": {"val": "10.0.0.1", "timeout": 60}}], "10.0.0.1", True),
        (["10.0.0.1", "a-name"], "10.0.0.1", True),
        (["10.0.0.1", "a-name"], "10.0.0.2", None),
    ],
)
def test_what_a_set_has(members: list[Any], known: str, held: bool | None) -> None:
    if "/" in known:
        address, length = known.split("/")
        span = named_span({"prefix": {"addr": address, "len": int(length)}})
    else:
        span = named_span(known)
    assert span_set(members).holds(span) is held


def guests_leave(*answers: tuple[RouteQuestion, RouteAnswer]) -> list[Finding]:
    """What is found of a rule that lets guests leave by a VPN only, where the default route leads elsewhere."""
    rule = [iif("br-a"), oif("wg0", "!="), DROP]
    return found(chain(rule), scene=replace(SCENE, routes=dict(answers)))


def test_where_guests_leave_by_is_what_the_kernel_says() -> None:
    host = RouteQuestion(OUTSIDE)
    guest = RouteQuestion(OUTSIDE, "192.168.0.100", "br-a")
    assert {host, guest} <= set(route_questions(SCENE))
    assert guests_leave()
    assert guests_leave((host, RouteAnswer(link="eth0")), (guest, RouteAnswer(refused=True)))
    assert not guests_leave((host, RouteAnswer(link="wg0")))
    assert not guests_leave((host, RouteAnswer(link="eth0")), (guest, RouteAnswer(link="wg0")))


def test_an_uplink_is_trusted_with_nothing() -> None:
    """Firewalld's zone `trusted` would open the whole host to whoever is behind that link."""
    links = {**SCENE.links, "eth0": replace(SCENE.links["eth0"], mtu=9000)}
    rule = [match({"payload": {"protocol": "icmp", "field": "type"}}, "destination-unreachable"), DROP]
    output = chain(rule, name="filter_OUTPUT", hook="output", family="inet", table="firewalld")
    (one,) = found(output, scene=replace(SCENE, links=links), tools=("firewall-cmd",))
    where = "inet firewalld filter_OUTPUT oifname eth0"
    assert (one.name, one.commands) == (
        "MtuPath",
        (f"nft insert rule {where} icmp type destination-unreachable accept",),
    )


def test_a_server_whose_port_is_not_known_is_told_by_its_mac() -> None:
    dhcp = DhcpSpec("192.168.0.150", "192.168.0.160", 3600)
    offers = {"br-a": (Offer("192.168.0.9", "02:00:00:00:00:09", "192.168.0.77"),)}
    (one,) = diagnose(replace(SCENE, bridges={"br-a": replace(BRIDGE, dhcp=dhcp)}, offers=offers)).findings
    assert one.commands[-1].endswith("'ether saddr 02:00:00:00:00:09 udp sport 67 udp dport 68 counter drop'")


@pytest.mark.parametrize("status", [{}, {"status": "none"}, {"status": "dnat"}])
def test_translated_beside_states_that_nobody_tells(status: dict[str, object]) -> None:
    """`--ctstate RELATED,ESTABLISHED,DNAT`: what is translated passes; of the rest, what answers."""
    rule = chain([xt("match", TRANSLATED), ACCEPT], policy="drop")
    dropped = sure_drop(Ruleset((rule,)), rule, Packet("", 4, {"state": "new", **status}), Steps())
    assert (dropped is not None) == (status == {"status": "none"})


def test_what_could_not_be_looked_at_is_not_over() -> None:
    drop, port = (Finding(name, "bridge/br-a", "x", "y", ()) for name in ("ForeignDrop", "PortAddressed"))
    before = told_after({}, Diagnosis((drop, port)), "then")
    assert told_after(before, Diagnosis((), (("ForeignDrop", "nft did not end"),)), "now") == {drop.key: (drop, "then")}
    assert told_after(before, Diagnosis((drop,)), "now") == {drop.key: (drop, "then")}
    assert told_after(before, Diagnosis(), "now") == {}


def test_what_lets_icmp_pass_drops_the_rest() -> None:
    """As ufw's chains do with what is forwarded."""
    ping = [match({"payload": {"protocol": "icmp", "field": "type"}}, "echo-request"), ACCEPT]
    (one,) = found(chain(ANSWERS, PUBLISHED, ping, policy="drop"))
    assert "all TCP of what guests send to elsewhere" in one.why
    sysctls = {**SCENE.sysctls, "bridge/bridge-nf-call-iptables": 1}
    every = found(chain(ANSWERS, PUBLISHED, ping, policy="drop"), scene=replace(SCENE, sysctls=sysctls))
    assert [one.name for one in every] == ["ForeignDrop", "BridgeFiltered"]


@pytest.mark.parametrize("ipv6", ["routed", "ndp-proxy", "nat66"])
def test_what_drops_ipv6_of_a_bridge_that_has_it(ipv6: str) -> None:
    bridge = replace(BRIDGE, ipv6=ipv6, addresses=("192.168.0.1/24", "fd00::1/64"))
    sysctls = {**SCENE.sysctls, "ipv6/conf/all/forwarding": 1}
    scene = replace(SCENE, bridges={"br-a": bridge}, sysctls=sysctls, uplinks={4: ("eth0",), 6: ("eth0",)})
    drop = chain(family="ip6", policy="drop")
    (one,) = found(drop, scene=scene)
    assert (one.resource, one.why.partition(";")[0]) == (
        "bridge/br-a",
        "it drops what guests send to elsewhere, the answers",
    )
    assert found(chain([iif("br-a"), ACCEPT], ANSWERS, family="ip6", policy="drop"), scene=scene) == []
    assert found(drop, scene=replace(scene, bridges={"br-a": replace(bridge, ipv6="")})) == []
    other = [match({"payload": {"protocol": "ip6", "field": "saddr"}}, "fd00::/64", "!="), DROP]
    assert found(chain(other, family="ip6"), scene=scene) == []


def test_what_was_judged_is_not_judged_again() -> None:
    judged, scene = Judged(), replace(SCENE, rules=Ruleset((chain(policy="drop"),)))
    first = judged.diagnose(scene)
    again = judged.diagnose(replace(scene, rules=Ruleset((chain(policy="drop"),)), links=dict(SCENE.links)))
    assert first.findings
    assert again is first
    assert judged.diagnose(replace(scene, rules=Ruleset())).findings == ()
    assert judged.diagnose(replace(scene, sysctls={})).findings == first.findings
    assert judged.diagnose(scene) is not first


def test_nobody_is_told_to_forward_without_a_table() -> None:
    off = replace(SCENE, sysctls={"ipv4/conf/br-a/forwarding": 0})
    assert [one.name for one in diagnose(off).findings] == ["ForwardingOff"]
    diagnosis = diagnose(replace(off, unexamined={"ForwardingOff": "there is no nft"}))
    assert (diagnosis.findings, diagnosis.unexamined) == ((), (("ForwardingOff", "there is no nft"),))


def test_kubernetes_keeps_bridges_filtered() -> None:
    scene = replace(SCENE, sysctls={**SCENE.sysctls, "bridge/bridge-nf-call-iptables": 1})
    drop = chain([source({"prefix": {"addr": "192.168.0.0", "len": 24}}), DROP])
    (_, filtered) = found(drop, chain(name="KUBE-FORWARD", hook="", type=""), scene=scene, tools=("iptables",))
    assert filtered.commands == ("iptables -I FORWARD -i br-a -o br-a -j ACCEPT",)
    (_, filtered) = found(drop, scene=scene, tools=("iptables",))
    assert filtered.commands == ("sysctl -w net.bridge.bridge-nf-call-iptables=0",)


def test_states_that_nobody_tells_of_a_rule_about_our_addresses() -> None:
    """nft may be built without what tells them; `-s SUBNET -m conntrack --ctstate NEW -j ACCEPT` is usual."""
    ours = source({"prefix": {"addr": "192.168.0.0", "len": 24}})
    assert not is_dropped([ours, xt("match", "conntrack"), ACCEPT])
    assert is_dropped([xt("match", "conntrack"), ACCEPT])


def test_a_server_that_takes_our_name_is_told() -> None:
    dhcp = DhcpSpec("192.168.0.150", "192.168.0.160", 3600)
    own, liar = (Offer("192.168.0.1", mac, "192.168.0.151", "eth1") for mac in (BRIDGE.mac, "02:00:00:00:00:66"))
    scene = replace(SCENE, bridges={"br-a": replace(BRIDGE, dhcp=dhcp)}, offers={"br-a": (own, liar)})
    (one,) = diagnose(scene).findings
    assert one.what == "192.168.0.1 (02:00:00:00:00:66 behind eth1) serves DHCP on br-a, too"


@pytest.mark.parametrize(
    ("table", "tools", "commands"),
    [
        ("theirs", (), ("nft insert rule inet theirs INPUT tcp dport 80 accept",)),
        (
            "firewalld",
            ("firewall-cmd",),
            ("firewall-cmd --add-port=80/tcp", "firewall-cmd --permanent --add-port=80/tcp"),
        ),
    ],
)
def test_what_haproxy_carries_comes_to_the_host_itself(
    table: str, tools: tuple[str, ...], commands: tuple[str, ...]
) -> None:
    web = replace(WEB, publish=("[::]:80:8080/tcp",))
    wish = wish_of({"br-a": BRIDGE}, {"web": web})
    scene = replace(SCENE, wish=wish, vms={"web": web}, carried=frozenset({"web [::]:80:8080/tcp"}))
    place = {"family": "inet", "table": table, "name": "INPUT", "hook": "input"}
    (one,) = found(chain(ANSWERS, policy="drop", **place), scene=scene, tools=tools)
    assert (one.resource, one.commands) == ("vm/web", commands)
    assert "what comes in for [::]:80:8080/tcp over IPv6, to haproxy" in one.why
    port = [match({"payload": {"protocol": "tcp", "field": "dport"}}, 80), ACCEPT]
    assert found(chain(ANSWERS, port, policy="drop", **place), scene=scene) == []
    assert found(chain(ANSWERS, policy="drop", **place), scene=replace(scene, carried=frozenset())) == []


@pytest.mark.parametrize(
    ("tools", "command"),
    [(("ufw",), "ufw allow 80/tcp"), (("ip6tables",), "ip6tables -I INPUT -p tcp --dport 80 -j ACCEPT")],
)
def test_what_haproxy_carries_is_let_in_by_ufw_or_ip6tables(tools: tuple[str, ...], command: str) -> None:
    web = replace(WEB, publish=("[::]:80:8080/tcp",))
    wish = wish_of({"br-a": BRIDGE}, {"web": web})
    scene = replace(SCENE, wish=wish, vms={"web": web}, carried=frozenset({"web [::]:80:8080/tcp"}))
    theirs = chain(family="ip6", name="ufw6-user-input", hook="", type="")
    dropping = chain(family="ip6", name="INPUT", hook="input", policy="drop")
    (one,) = found(dropping, *([theirs] if "ufw" in tools else []), scene=scene, tools=tools)
    assert one.commands == (command,)
