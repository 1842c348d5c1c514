"""What the doctor finds, from a scene: rules of every kind that nft can list, parameters, links and offers."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.desired import BridgeSpec, DhcpSpec, NicSpec, VmSpec
from agent.core.doctor.dhcp import COOKIE, discover, parse_offer
from agent.core.doctor.diagnosis import TOO_MANY, diagnose
from agent.core.doctor.findings import Finding
from agent.core.doctor.rules import Chain, Rule, Ruleset, parse_legacy, parse_ruleset
from agent.core.doctor.scene import Offer, RouteAnswer, RouteQuestion, Scene, Setter, dotted
from agent.core.observed import AddressState, LinkState
from agent.core.routing.firewall_wanted import wish_of

NIC = NicSpec("lan", "br-a", "02:00:00:00:00:01", "web-lan", 0, address=("192.168.0.100",))
WEB = VmSpec("web", "u", 1900000000, file="/u/web.toml", nics=(NIC,), publish=("80/tcp",))
BRIDGE = BridgeSpec("br-a", "02:00:00:00:00:02", addresses=("192.168.0.1/24",), nat=True)
LINKS = {
    "br-a": LinkState(2, "br-a", "bridge", up=True),
    "web-lan": LinkState(3, "web-lan", "tun", up=True, master=2),
    "eth1": LinkState(4, "eth1", up=True, master=2),
    "eth0": LinkState(5, "eth0", up=True),
}
SYSCTLS = {"ipv4/conf/br-a/forwarding": 1, "ipv4/conf/eth0/forwarding": 1}
SCENE = Scene(
    bridges={"br-a": BRIDGE},
    vms={"web": WEB},
    links=LINKS,
    wish=wish_of({"br-a": BRIDGE}, {"web": WEB}),
    rules=Ruleset(),
    sysctls=SYSCTLS,
    uplinks={4: ("eth0",), 6: ()},
)
ACCEPT, DROP = {"accept": None}, {"drop": None}


def match(left: Any, right: Any, op: str = "==") -> Any:
    return {"match": {"op": op, "left": left, "right": right}}


def iif(name: Any, op: str = "==") -> Any:
    return match({"meta": {"key": "iifname"}}, name, op)


def oif(name: Any, op: str = "==") -> Any:
    return match({"meta": {"key": "oifname"}}, name, op)


def source(right: Any, op: str = "==") -> Any:
    return match({"payload": {"protocol": "ip", "field": "saddr"}}, right, op)


def state(right: Any) -> Any:
    return match({"ct": {"key": "state"}}, right, "in")


def xt(kind: str, name: str) -> Any:
    return {"xt": {"type": kind, "name": name}}


PAIR = {"concat": ["br-a", "eth0"]}
ANSWERS = [state(["established", "related"]), ACCEPT]
PUBLISHED = [match({"ct": {"key": "status"}}, "dnat", "in"), ACCEPT]


def chain(*rules: list[Any], policy: str = "accept", name: str = "FORWARD", **more: Any) -> Chain:
    made = tuple(Rule(tuple(one), f"rule {number}", number + 10) for number, one in enumerate(rules))
    shape = {"family": "ip", "table": "filter", "type": "filter", "hook": "forward", "policy": policy, **more}
    return Chain(name=name, rules=made, **shape)


def found(*chains: Chain, scene: Scene = SCENE, tools: Iterable[str] = (), sets: Any = None) -> list[Finding]:
    rules = Ruleset(chains, sets or {})
    diagnosis = diagnose(replace(scene, rules=rules, tools=frozenset(tools)))
    assert diagnosis.unexamined == ()
    return list(diagnosis.findings)


def is_dropped(*rules: list[Any], policy: str = "drop", sets: Any = None) -> bool:
    """Whether what guests begin is surely dropped; answers and what is published are let through."""
    return bool(found(chain(ANSWERS, PUBLISHED, *rules, policy=policy), sets=sets))


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert diagnose(SCENE).findings == ()
    assert found(chain(), chain(policy="accept", name="INPUT", hook="input")) == []


@pytest.mark.parametrize(
    "rule",
    [
        [iif("br-a"), ACCEPT],
        [iif("br-*"), ACCEPT],
        [oif("eth0"), ACCEPT],
        [iif("eth9", "!="), ACCEPT],
        [iif({"set": ["br-a", "br-b"]}), ACCEPT],
        [iif("@ours"), ACCEPT],
        [source({"prefix": {"addr": "192.168.0.0", "len": 16}}), ACCEPT],
        [source({"range": ["192.168.0.0", "192.168.0.255"]}), ACCEPT],
        [match({"meta": {"key": "nfproto"}}, "ipv4"), ACCEPT],
        [match({"concat": [{"meta": {"key": "iifname"}}, {"meta": {"key": "oifname"}}]}, {"set": [PAIR]}), ACCEPT],
        [{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": {"set": [["br-b", DROP], ["br-a", ACCEPT]]}}}],
        [state(["new"]), ACCEPT],
        [xt("match", "comment"), iif("br-a"), ACCEPT],
    ],
)
def test_what_surely_passes(rule: list[Any]) -> None:
    assert not is_dropped(rule, sets={("ip", "filter", "ours"): ("lo", {"elem": {"val": "br-a", "counter": {}}})})


@pytest.mark.parametrize(
    "rule",
    [
        [match({"payload": {"protocol": "tcp", "field": "dport"}}, 443), ACCEPT],
        [match({"payload": {"protocol": "ip", "field": "daddr"}}, "192.0.2.1"), ACCEPT],
        [match({"meta": {"key": "mark"}}, 7), ACCEPT],
        [iif("@unknown"), ACCEPT],
        [{"limit": {"rate": 10}}, ACCEPT],
        [xt("match", "physdev"), ACCEPT],
        [iif("br-a"), xt("match", "conntrack"), ACCEPT],
        [{"queue": None}],
        [{"vmap": {"key": {"meta": {"key": "mark"}}, "data": "@verdicts"}}],
        [{"jump": {"target": "nowhere"}}],
    ],
)
def test_what_may_pass_is_no_finding(rule: list[Any]) -> None:
    assert not is_dropped(rule)


@pytest.mark.parametrize(
    "rule",
    [
        [iif("docker0"), ACCEPT],
        [iif("br-a", "!="), ACCEPT],
        [source({"prefix": {"addr": "10.0.0.0", "len": 8}}), ACCEPT],
        [match({"payload": {"protocol": "ip6", "field": "saddr"}}, "::1", "!="), ACCEPT],
        [oif("docker0"), xt("match", "conntrack"), ACCEPT],
        [xt("match", "conntrack"), ACCEPT],
        [xt("target", "LOG")],
        [{"return": None}],
        [iif("docker0"), {"goto": {"target": "FORWARD"}}],
    ],
)
def test_what_surely_does_not_pass(rule: list[Any]) -> None:
    assert is_dropped(rule)


def test_chains_that_are_jumped_to() -> None:
    user = chain([iif("br-a"), ACCEPT], [{"return": None}], [DROP], name="USER", hook="")
    jump = [{"jump": {"target": "USER"}}]
    assert found(chain(ANSWERS, PUBLISHED, jump, policy="drop"), user) == []
    ends = chain([iif("eth9"), ACCEPT], name="USER", hook="")
    (one,) = found(
        chain(ANSWERS, PUBLISHED, [{"goto": {"target": "USER"}}], [iif("br-a"), ACCEPT], policy="drop"), ends
    )
    assert one.what == "policy drop of chain FORWARD of table ip filter"
    (one,) = found(chain(jump), chain([iif("br-a"), DROP], name="USER", hook=""))
    assert one.what == "rule `rule 0` handle 10 in chain USER of table ip filter"
    assert one.commands == ("nft delete rule ip filter USER handle 10",)


def test_a_rule_that_may_match_is_not_blamed_for_the_one_that_does() -> None:
    maybe = [match({"meta": {"key": "mark"}}, 7), DROP]
    (one,) = found(chain(maybe, [oif("eth0"), xt("target", "REJECT")]))
    assert one.what == "rule `rule 1` handle 11 in chain FORWARD of table ip filter"
    assert one.commands == ("nft insert rule ip filter FORWARD iifname br-a accept",)


def test_owners_and_their_tools() -> None:
    ufw = (chain(policy="drop"), chain(name="ufw-user-forward", hook=""))
    (one,) = found(*ufw, tools=("ufw", "iptables-nft"))
    assert one.what == "policy drop of chain FORWARD of table ip filter, ufw's"
    assert one.commands == ("ufw route allow in on br-a", "ufw route allow out on br-a")
    (one,) = found(*ufw, tools=("iptables",))
    assert one.commands == ("iptables -I FORWARD -i br-a -j ACCEPT", "iptables -I FORWARD -o br-a -j ACCEPT")
    (one,) = found(chain([xt("target", "REJECT")], family="inet", table="firewalld"), tools=("firewall-cmd",))
    assert one.what.endswith("table inet firewalld, firewalld's")
    change = "--zone=trusted --change-interface=br-a"
    assert one.commands == (f"firewall-cmd {change}", f"firewall-cmd --permanent {change}")
    odd = replace(SCENE, bridges={"br*": replace(BRIDGE, name="br*")})
    (one,) = found(chain(ANSWERS, family="inet", table="my fw", policy="drop"), scene=odd)
    assert one.commands == ("""nft insert rule inet 'my fw' FORWARD iifname '"br*"' accept""",)


def test_docker_s_chain_is_used_where_packets_come_by_it_first() -> None:
    user = chain([{"return": None}], name="DOCKER-USER", hook="")
    jump = [{"jump": {"target": "DOCKER-USER"}}]
    (one,) = found(chain(jump, policy="drop"), user, tools=("iptables",))
    assert one.commands[0] == "iptables -I DOCKER-USER -i br-a -j ACCEPT"
    (one,) = found(chain([oif("eth0"), DROP], jump), user, tools=("iptables",))
    assert one.commands == ("iptables -I FORWARD -i br-a -j ACCEPT",)


def test_one_guest_s_own_and_everybody_s() -> None:
    published = [match({"ct": {"key": "status"}}, "dnat", "in"), DROP]
    (one,) = found(chain(published))
    assert one.resource == "vm/web"
    assert one.why.startswith("it drops what comes in for 80/tcp, what is answered on 80/tcp;")
    half = [source({"prefix": {"addr": "192.168.0.128", "len": 25}}), ACCEPT]  # of the subnet, without web
    (one,) = found(chain(ANSWERS, PUBLISHED, half, policy="drop"))
    assert (one.resource, one.why.partition(";")[0]) == ("vm/web", "it drops what 192.168.0.100 sends to elsewhere")
    frames = chain([iif("web-lan"), DROP], family="bridge", table="theirs", name="guard")
    (one,) = found(frames)
    assert (one.resource, one.commands) == ("tap/web/lan", ("nft delete rule bridge theirs guard handle 10",))
    ingress = chain([DROP], family="netdev", table="theirs", name="in", hook="ingress", devices=("web-lan",))
    (one,) = found(ingress)
    assert one.resource == "tap/web/lan"
    assert found(replace(ingress, devices=("eth0",))) == []


def test_bridged_frames_in_rules_for_routed_ones() -> None:
    filtered = replace(SCENE, sysctls={**SYSCTLS, "bridge/bridge-nf-call-iptables": 1})
    assert found(chain(), scene=filtered) == []
    kept = [source({"prefix": {"addr": "192.168.0.0", "len": 24}}), {"masquerade": None}]
    nat = {"table": "nat", "name": "POSTROUTING", "hook": "postrouting", "type": "nat"}
    assert found(chain([oif("br-a", "!="), *kept], **nat), scene=filtered) == []
    (one,) = found(chain(kept, **nat), scene=filtered)
    assert one.name == "BridgeFiltered"
    assert one.commands == ("sysctl -w net.bridge.bridge-nf-call-iptables=0",)
    docker = chain(name="DOCKER-USER", hook="")
    (one,) = found(chain(kept, **nat), docker, scene=filtered, tools=("iptables",))
    assert one.commands == ("iptables -t nat -I POSTROUTING -o br-a -j ACCEPT",)
    lonely = replace(filtered, links={name: one for name, one in LINKS.items() if name != "eth1"})
    assert found(chain(kept, **nat), scene=lonely) == []


def test_more_rules_than_are_looked_at_are_said() -> None:
    many = chain(*[[iif("eth9"), DROP]] * 500, [{"jump": {"target": "FORWARD"}}])
    twice = chain(*[[match({"meta": {"key": "mark"}}, 1), {"jump": {"target": "FORWARD"}}]] * 100)
    assert diagnose(replace(SCENE, rules=Ruleset((many,)))).findings == ()
    assert dict(diagnose(replace(SCENE, rules=Ruleset((twice,)))).unexamined)["ForeignDrop"] == TOO_MANY


LEGACY = """\
# Generated by iptables-save
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:mine - [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD ! -i eth+ -p tcp -m tcp --dport 1:65535 -m comment --comment "all of it" -j mine
-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT
-A mine -s 192.168.0.0/24 -j RETURN
-A mine -j REJECT --reject-with icmp-port-unreachable
COMMIT
"""


def test_iptables_before_nftables() -> None:
    rules = parse_legacy(LEGACY, "ip")
    assert [(one.name, one.hook, one.policy, len(one.rules)) for one in rules.chains] == [
        ("INPUT", "input", "accept", 0),
        ("FORWARD", "forward", "drop", 3),
        ("OUTPUT", "output", "accept", 0),
        ("mine", "", "accept", 2),
    ]
    (one,) = found(*rules.chains)
    assert one.what == "policy drop of chain FORWARD of table ip filter (iptables-legacy)"
    assert one.commands[0] == "iptables-legacy -I FORWARD -i br-a -j ACCEPT"


def test_our_own_tables_are_not_foreign() -> None:
    listing = {
        "nftables": [
            {"metainfo": {}},
            {"table": {"family": "inet", "name": "vmhost", "handle": 1}},
            {"chain": {"family": "inet", "table": "vmhost", "name": "forward", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "ip", "table": "x", "name": "f", "hook": "forward", "prio": 0, "policy": "drop"}},
        ]
    }
    assert [one.table for one in parse_ruleset(listing).chains] == ["x"]


def kernel(**more: Any) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(one.name, one.what, one.commands) for one in diagnose(replace(SCENE, **more)).findings]


def test_forwarding() -> None:
    off = {**SYSCTLS, "ipv4/conf/eth0/forwarding": 0}
    one = ("net.ipv4.conf.eth0.forwarding is 0", ("sysctl -w net.ipv4.conf.eth0.forwarding=1",))
    assert kernel(sysctls=off) == [("ForwardingOff", *one)]
    setter = {"ipv4/ip_forward": Setter("/etc/sysctl.d/a b.conf", 3, "0")}
    assert kernel(setters=setter) == []
    assert kernel(switched_off={"br-a": 3}) == []
    ((_, what, commands),) = kernel(switched_off={"br-a": 3}, setters=setter)
    assert what.endswith("was switched off again and again, and /etc/sysctl.d/a b.conf:3 sets it to 0")
    assert commands[0] == "sed -i '3s/^/# /' '/etc/sysctl.d/a b.conf'"


def test_forwarding_of_a_bridge_with_ipv6() -> None:
    off = {**SYSCTLS, "ipv6/conf/all/forwarding": 0, "ipv6/conf/br-a/force_forwarding": 0}
    assert kernel(sysctls=off) == []
    ((_, what, commands),) = kernel(sysctls=off, bridges={"br-a": replace(BRIDGE, ipv6="routed")})
    assert (what, commands) == (
        "net.ipv6.conf.br-a.force_forwarding is 0",
        ("sysctl -w net.ipv6.conf.br-a.force_forwarding=1",),
    )


def test_reverse_paths() -> None:
    asked, back = RouteQuestion("192.168.0.1", "192.168.0.100", "br-a"), RouteQuestion("192.168.0.100")
    strict = {**SYSCTLS, "ipv4/conf/all/rp_filter": 1}
    elsewhere = {asked: RouteAnswer(refused=True), back: RouteAnswer(link="eth0")}
    assert kernel(routes=elsewhere, sysctls=strict) == [
        ("RpFilter", "net.ipv4.conf.all.rp_filter is 1", ("sysctl -w net.ipv4.conf.br-a.rp_filter=2",))
    ]
    assert kernel(routes={**elsewhere, back: RouteAnswer(link="br-a")}, sysctls=strict) == []
    assert kernel(routes={asked: RouteAnswer(link="lo")}, sysctls=strict) == []


def test_links() -> None:
    small = {**LINKS, "eth1": replace(LINKS["eth1"], mtu=1400, addresses=(AddressState("192.0.2.2/24"),))}
    assert [(name, commands) for name, _, commands in kernel(links=small)] == [
        ("MtuPath", ("ip link set dev eth1 mtu 1500",)),
        ("PortAddressed", ("ip address del 192.0.2.2/24 dev eth1",)),
    ]
    local = replace(LINKS["eth1"], mtu=9000, addresses=(AddressState("fe80::1/64", link_local=True),))
    assert kernel(links={**LINKS, "eth1": local}) == []
    for mtu in (1400, 9000):
        vms = {"web": replace(WEB, nics=(replace(NIC, mtu=mtu),))}
        links = {**LINKS, "web-lan": replace(LINKS["web-lan"], mtu=mtu)}
        (one,) = diagnose(replace(SCENE, vms=vms, links=links)).findings
        assert (one.name, one.resource, one.commands) == ("MtuPath", "tap/web/lan", ())
        assert one.why.endswith(f"in /u/web.toml, [vm.web.nic.lan]: mtu = 1500, or mtu = {mtu} in [bridge.br-a]")


def test_a_black_hole() -> None:
    uplink = {**LINKS, "eth0": replace(LINKS["eth0"], mtu=1400)}
    scene = replace(SCENE, links=uplink)
    out = {"name": "out", "hook": "output", "table": "theirs", "family": "inet"}
    icmp = [match({"meta": {"key": "l4proto"}}, "icmp"), DROP]
    assert found(chain(ANSWERS, icmp, **out), scene=scene) == []
    (one,) = found(chain(icmp, **out), scene=scene)
    assert one.commands == ("nft insert rule inet theirs out oifname br-a icmp type destination-unreachable accept",)
    assert found(chain(icmp, **out)) == []


def test_dhcp_offers() -> None:
    served = {"br-a": replace(BRIDGE, dhcp=DhcpSpec("192.168.0.150", "192.168.0.160", 60))}
    rival = Offer("192.168.0.2", "02:00:00:00:00:09", "192.168.0.200", "web-lan")
    scene = replace(SCENE, bridges=served, offers={"br-a": (Offer("192.168.0.1", "02:00:00:00:00:02", "x"), rival)})
    (one,) = diagnose(scene).findings
    where = "02:00:00:00:00:09 behind web-lan, of guest web"
    assert one.what == f"192.168.0.2 ({where}) serves DHCP on br-a, too"
    assert "web-lan" in one.commands[-1]
    assert diagnose(replace(scene, bridges={"br-a": BRIDGE})).findings == ()


def test_a_question_and_its_answer() -> None:
    mac, xid = bytes.fromhex("021122334455"), 0x01020304
    asked = discover(mac, bytes(6), xid)
    bootp = asked[42:]
    assert asked[:6] == b"\xff" * 6
    assert len(asked) == 14 + 20 + 8 + 300
    assert (bootp[10:12], bootp[28:34]) == (b"\x80\x00", mac)
    options = bytes((53, 1, 2, 54, 4, 192, 168, 0, 2, 255))
    answer = b"\x02" + bootp[1:16] + bytes((192, 168, 0, 200)) + bootp[20:236] + COOKIE + options
    udp = struct.pack("!HHHH", 67, 68, 8 + len(answer), 0)
    frame = b"\xff" * 6 + bytes.fromhex("020000000009") + asked[12:34] + udp + answer
    assert parse_offer(frame, mac, xid) == Offer("192.168.0.2", "02:00:00:00:00:09", "192.168.0.200")
    assert parse_offer(frame, mac, xid + 1) is None
    assert parse_offer(asked, mac, xid) is None


@given(st.binary(max_size=400), st.integers(0, 400))
def test_no_frame_is_too_odd(junk: bytes, cut: int) -> None:
    mac, xid = bytes.fromhex("021122334455"), 7
    parse_offer(junk, mac, xid)
    head = discover(mac, bytes(6), xid)
    reply = bytearray(head[:34] + struct.pack("!HH", 67, 68) + head[38:42] + b"\x02" + head[43:282] + junk)
    parse_offer(bytes(reply[: 282 + cut]), mac, xid)


JSON = st.recursive(
    st.none() | st.integers() | st.sampled_from(["br-a", "@ours", "drop", "iifname", "192.168.0.0"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["match", "left", "right", "meta", "key", "vmap", "data", "set", "jump", "drop", "xt", "concat"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(st.lists(st.lists(JSON, max_size=3), max_size=4))
def test_no_rule_is_too_odd(rules: list[list[Any]]) -> None:
    diagnose(replace(SCENE, rules=Ruleset((chain(*rules, policy="drop"),))))


def test_parameters_by_name() -> None:
    assert dotted("ipv4/conf/br-a/forwarding") == "net.ipv4.conf.br-a.forwarding"
    assert dotted("ipv4/conf/eth0.5/forwarding") == "net/ipv4/conf/eth0.5/forwarding"
