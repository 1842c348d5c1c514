"""`vmhost doctor` and other people's rules: each is made on a real host, found there, and mended by its own command."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.agent_process import AgentProcess
from tests.integration.doctor_world import (
    DB,
    FILTERED,
    FILTERED6,
    HOST,
    STRANGER,
    WEB,
    Boxes,
    World,
    healthy_host,
    nft,
    sh,
    uplink,
)

needs_iptables = pytest.mark.skipif(shutil.which("iptables-nft") is None, reason="iptables is not installed")


@pytest.fixture
def boxes(agent: AgentProcess) -> Iterator[Boxes]:
    with uplink(agent) as made:
        yield made


@pytest.fixture
def world(agent: AgentProcess, boxes: Boxes) -> World:
    return healthy_host(agent, boxes)


def test_a_policy_that_drops(world: World) -> None:
    nft("table inet theirs { chain guard { type filter hook forward priority 0; policy drop; } }")
    assert world.is_cut_off()
    assert world.stranger.hear(HOST, 80, timeout_s=0.3) is None
    assert world.db.hear(WEB, 80, timeout_s=0.3) is None  # frames that are only bridged die as well
    found = world.examine()
    policy = "policy drop of chain guard of table inet theirs"
    insert = "nft insert rule inet theirs guard"
    assert [(one["finding"], one["resource"], one["what"], one["commands"]) for one in found] == [
        ("ForeignDrop", "bridge/br-a", policy, [f"{insert} iifname br-a accept", f"{insert} oifname br-a accept"]),
        ("BridgeFiltered", "bridge/br-a", f"{FILTERED6} is 1, and {policy}", [f"sysctl -w {FILTERED6}=0"]),
        ("BridgeFiltered", "bridge/br-a", f"{FILTERED} is 1, and {policy}", [f"sysctl -w {FILTERED}=0"]),
    ]
    assert "what guests send to elsewhere, the answers" in found[0]["why"]
    told = world.agent.command("doctor").stdout
    assert f"bridge/br-a: ForeignDrop: {policy}\n" in told
    assert f"  $ {insert} iifname br-a accept\n" in told
    assert told.endswith("3 findings\n")
    world.mends(found)
    assert world.goes_out()
    assert world.stranger.hear(HOST, 80) == f"web {STRANGER}"
    assert world.db.hear(WEB, 80) == f"web {DB}"
    assert world.agent.command("doctor").stdout == "nothing found that would break guests\n"


def test_rules_against_a_bridge_its_subnet_and_a_guest(world: World) -> None:
    sh(f"sysctl -q -w {FILTERED}=0 {FILTERED6}=0")
    nft(
        "table ip theirs { set bad { type ipv4_addr; elements = { 192.0.2.7, 192.168.0.100 }; }; chain more { };"
        " chain guard { type filter hook forward priority 5; ct state established accept; jump more; }; }"
    )
    place = "in chain more of table ip theirs"
    for rule, shown, resource in (
        ('iifname "br-a" counter drop', 'iifname "br-a" drop', "bridge/br-a"),
        ("ip saddr 192.168.0.0/25 reject", "ip saddr 192.168.0.0/25 reject", "vm/web"),
    ):
        nft(f"add rule ip theirs more {rule}")
        assert world.is_cut_off()
        (one,) = world.examine()
        handle = one["what"].partition(" handle ")[2].partition(" ")[0]
        world.finds(
            "ForeignDrop",
            resource,
            f"rule `{shown}` handle {handle} {place}",
            f"nft delete rule ip theirs more handle {handle}",
        )
        assert world.goes_out()
    nft("add rule ip theirs more ip saddr @bad drop")  # a set of somebody's, with a guest in it: the rule stays
    assert world.is_cut_off()
    world.finds(
        "ForeignDrop", "vm/web", "rule `ip saddr @bad drop`", "nft insert rule ip theirs guard iifname br-a accept"
    )
    assert world.goes_out()
    nft("add rule ip theirs more tcp dport 25 drop")
    nft("add rule ip theirs more ip daddr 198.51.100.0/24 meta mark 7 drop")
    world.is_healthy()  # somebody's own rules about other things


@needs_iptables
def test_docker_s_policy(world: World) -> None:
    sh(f"sysctl -q -w {FILTERED}=0 {FILTERED6}=0")
    sh(
        "iptables-nft -P FORWARD DROP; iptables-nft -N DOCKER-USER; iptables-nft -A DOCKER-USER -j RETURN;"
        "iptables-nft -A FORWARD -j DOCKER-USER;"
        "iptables-nft -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT;"
        "iptables-nft -A FORWARD -i docker0 ! -o docker0 -j ACCEPT"
    )
    assert world.is_cut_off()
    found = world.examine()
    user = "iptables-nft -I DOCKER-USER"
    assert {one["what"] for one in found} == {"policy drop of chain FORWARD of table ip filter, Docker's"}
    assert found[0]["commands"] == [f"{user} -i br-a -j ACCEPT", f"{user} -o br-a -j ACCEPT"]
    world.mends(found)
    assert world.goes_out()
    # Where answers are admitted for everybody, as ufw does, what guests begin is not.
    sh("iptables-nft -F DOCKER-USER; iptables-nft -I FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
    assert world.is_cut_off()
    found = world.examine()
    assert found[0]["commands"] == [f"{user} -i br-a -j ACCEPT", f"{user} -o br-a -j ACCEPT"], found
    world.mends(found)
    assert world.goes_out()
    # Docker wants bridged frames in its rules, so it is not the parameter that is changed.
    sh(f"iptables-nft -F DOCKER-USER; sysctl -q -w {FILTERED}=1")
    bridged = [one for one in world.examine() if one["finding"] == "BridgeFiltered"]
    assert [one["commands"] for one in bridged] == [[f"{user} -i br-a -o br-a -j ACCEPT"]]
    sh(bridged[0]["commands"][0])
    assert world.db.hear(WEB, 80) == f"web {DB}"
    assert [one["finding"] for one in world.examine()] == ["ForeignDrop"]


@needs_iptables
def test_iptables_before_nftables(world: World) -> None:
    sh(f"sysctl -q -w {FILTERED}=0")
    sh("iptables-legacy -A FORWARD -s 192.168.0.0/24 -o up0 -p udp -m comment --comment 'no $(reboot)' -j DROP")
    world.is_healthy()  # only UDP: what else guests send, passes
    sh("iptables-legacy -A FORWARD -s 192.168.0.0/24 -o up0 -m comment --comment 'no $(reboot)' -j DROP")
    assert world.is_cut_off()
    rule = '-A FORWARD -s 192.168.0.0/24 -o up0 -m comment --comment "no $(reboot)" -j DROP'
    world.finds(
        "ForeignDrop",
        "bridge/br-a",
        f"rule `{rule}` in chain FORWARD of table ip filter (iptables-legacy)",
        "iptables-legacy -D FORWARD -s 192.168.0.0/24 -o up0 -m comment --comment 'no $(reboot)' -j DROP",
    )
    sh("iptables-legacy -F; iptables-legacy -P FORWARD DROP")
    assert world.is_cut_off()
    world.mends(world.examine())
    assert world.goes_out()


def test_what_a_bridge_s_servers_are_asked(world: World) -> None:
    world.serve()
    nft(
        "table inet theirs { chain in { type filter hook input priority 0; policy drop;"
        ' iifname lo accept; ct state { established, related } accept; iifname "up0" tcp dport 22 accept; } }'
    )
    (one,) = world.examine()
    assert (
        "guests' DHCP requests (udp 67), guests' DNS questions (tcp 53), guests' DNS questions (udp 53)" in one["why"]
    )
    rule = "nft insert rule inet theirs in iifname br-a"
    world.finds(
        "ForeignDrop",
        "bridge/br-a",
        "policy drop of chain in of table inet theirs",
        f"{rule} udp dport 67 accept",
        f"{rule} tcp dport 53 accept",
        f"{rule} udp dport 53 accept",
    )


def test_frames_that_another_table_drops(world: World) -> None:
    nft("table bridge theirs { chain guard { type filter hook forward priority 0; policy drop; } }")
    assert world.db.hear(WEB, 80, timeout_s=0.3) is None
    world.finds(
        "ForeignDrop",
        "bridge/br-a",
        "policy drop of chain guard of table bridge theirs",
        "nft insert rule bridge theirs guard iifname '{ db0, web-lan, web0 }' accept",
    )
    assert world.db.hear(WEB, 80) == f"web {DB}"


def test_bridged_packets_that_somebody_s_nat_rewrites(world: World) -> None:
    """As in the host that somebody built by hand: `-s 192.168.0.0/24 -j MASQUERADE`, and br_netfilter."""
    nft(
        "table ip theirs { chain post { type nat hook postrouting priority 90;"
        ' oifname "up0" masquerade; ip saddr 192.168.0.0/24 masquerade; } }'
    )
    assert world.db.hear(WEB, 80) == "web 192.168.0.1"
    world.finds(
        "BridgeFiltered",
        "bridge/br-a",
        f"{FILTERED} is 1, and rule `ip saddr 192.168.0.0/24 masquerade` handle 3 in chain post of table ip theirs",
        f"sysctl -w {FILTERED}=0",
    )
    assert world.db.hear(WEB, 80) == f"web {DB}"
