"""`vmhost doctor` on hosts whose firewall is only usual, and asked by many."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from agent.cli.client import AgentClient
from tests.agent_process import AgentProcess
from tests.integration.doctor_world import FILTERED, FILTERED6, HOST, STRANGER, Boxes, World, healthy_host, sh, uplink
from tests.integration.waiting import wait_for
from tests.netns import ip

pytestmark = pytest.mark.skipif(shutil.which("iptables-nft") is None, reason="iptables is not installed")


@pytest.fixture
def boxes(agent: AgentProcess) -> Iterator[Boxes]:
    with uplink(agent) as made:
        yield made


@pytest.fixture
def world(agent: AgentProcess, boxes: Boxes) -> World:
    made = healthy_host(agent, boxes)
    sh(f"sysctl -q -w {FILTERED}=0 {FILTERED6}=0")
    return made


def test_a_firewall_that_admits_guests_by_connection_states(world: World) -> None:
    sh(
        "iptables-nft -P FORWARD DROP;"
        "iptables-nft -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT;"
        "iptables-nft -A FORWARD -i br-a -s 192.168.0.0/24 -m conntrack --ctstate NEW -j ACCEPT;"
        "iptables-nft -A FORWARD -m conntrack --ctstate DNAT -j ACCEPT"
    )
    assert world.goes_out()
    assert world.stranger.hear(HOST, 80) == f"web {STRANGER}"
    world.is_healthy()


def test_a_firewall_that_admits_pings_only(world: World) -> None:
    sh(
        "iptables-nft -P FORWARD DROP;"
        "iptables-nft -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT;"
        "iptables-nft -A FORWARD -p icmp --icmp-type echo-request -j ACCEPT"
    )
    assert world.is_cut_off()
    assert world.stranger.hear(HOST, 80) == f"web {STRANGER}"
    world.finds(
        "ForeignDrop",
        "bridge/br-a",
        "policy drop of chain FORWARD of table ip filter",
        "iptables-nft -I FORWARD -i br-a -j ACCEPT",
    )
    assert world.goes_out()


def test_a_firewall_that_keeps_everybody_from_haproxy(world: World) -> None:
    ip("addr add 2001:db8:1::1/64 dev up0 nodad")
    wait_for(lambda: 'vmhost_service_up{service="haproxy"} 1.0' in world.agent.metrics())
    world.is_healthy()
    sh("ip6tables-nft -P INPUT DROP; ip6tables-nft -A INPUT -p ipv6-icmp -j ACCEPT")
    world.finds(
        "ForeignDrop",
        "vm/web",
        "policy drop of chain INPUT of table ip6 filter",
        "ip6tables-nft -I INPUT -p tcp --dport 80 -j ACCEPT",
    )


def test_many_who_ask_at_once_get_the_same_looks(world: World) -> None:
    def ask(_: int) -> float:
        began = time.monotonic()
        assert AgentClient(world.agent.run_dir).doctor()["findings"] == []
        return time.monotonic() - began

    alone_s = min(map(ask, range(3)))
    with ThreadPoolExecutor(20) as pool:
        assert max(pool.map(ask, range(20))) < 6 * max(alone_s, 0.1)
