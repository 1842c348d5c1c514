"""The host's routes by a bridge, with a real main table: healed, changed without a gap, and nobody else's touched."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from select import select

from tests.agent_process import AgentProcess
from tests.integration.waiting import wait_for
from tests.netns import ip, ip_output

ADDRESSES = 'addresses = ["192.0.2.2/24", "2001:db8:7::2/64"]\n'
GATEWAYS = 'gateway = ["192.0.2.1", "2001:db8:7::1"]\n'
ROUTES = 'routes = [{ to = "10.0.0.0/8", via = "192.0.2.254", metric = 100 }]\n'


def unit(*keys: str) -> str:
    return f"[bridge.br-test]\n{ADDRESSES}{''.join(keys)}"


def routes(version: int = 4) -> set[tuple[str, str, int]]:
    """Destination, gateway and metric of all that is ours."""
    found = json.loads(ip_output(f"-{version} -j route show proto 119"))
    return {(one["dst"], one.get("gateway", ""), one.get("metric", 0)) for one in found}


def told(agent: AgentProcess) -> dict[str, str]:
    """The conditions of the bridge, by reason."""
    return {one["reason"]: one["message"] for one in agent.status()["bridges"][0]["conditions"]}


@contextmanager
def events_of_routes() -> Iterator[list[str]]:
    """What the kernel tells of IPv4 routes meanwhile."""
    heard: list[str] = []
    with subprocess.Popen(["ip", "-4", "monitor", "route"], stdout=subprocess.PIPE, text=True) as monitor:
        assert monitor.stdout is not None
        while not select([monitor.stdout], [], [], 0.1)[0]:  # until it listens, nothing is heard
            ip("route add 198.51.100.0/30 dev lo", "route del 198.51.100.0/30 dev lo")
        yield heard
        ip("route add 198.51.100.8/30 dev lo")
        for line in monitor.stdout:
            heard.append(line)
            if "198.51.100.8" in line:
                break
        monitor.kill()


DEFAULT, DEFAULT6 = ("default", "192.0.2.1", 0), ("default", "2001:db8:7::1", 1024)
TEN = ("10.0.0.0/8", "192.0.2.254", 100)


def test_they_are_healed_and_gone_with_their_keys(agent: AgentProcess) -> None:
    agent.drop("net.toml", unit(GATEWAYS, ROUTES))
    agent.start()
    assert routes() == {DEFAULT, TEN}
    assert routes(6) == {DEFAULT6}
    for lose in (
        "route del default",
        "route del ::/0 via 2001:db8:7::1",
        "route flush proto 119",
        "link set br-test down",
        "link del br-test",
    ):
        ip(lose)
        wait_for(lambda: (routes(), routes(6)) == ({DEFAULT, TEN}, {DEFAULT6}))
    agent.vmhost("wait", "in-sync")
    agent.kill()
    ip("route del 10.0.0.0/8")
    agent.start()
    assert routes() == {DEFAULT, TEN}
    agent.drop("net.toml", unit(GATEWAYS))
    wait_for(lambda: routes() == {DEFAULT})
    agent.drop("net.toml", unit())
    wait_for(lambda: (routes(), routes(6)) == (set(), set()))
    agent.vmhost("wait", "in-sync")


def test_a_gateway_is_changed_in_one_go(agent: AgentProcess) -> None:
    agent.drop("net.toml", unit('gateway = "192.0.2.1"\n'))
    agent.start()
    with events_of_routes() as heard:
        agent.drop("net.toml", unit('gateway = "192.0.2.9"\n'))
        wait_for(lambda: routes() == {("default", "192.0.2.9", 0)})
    assert [line for line in heard if "default" in line and "192.0.2.9" in line]
    assert not [line for line in heard if "Deleted default" in line]


def test_a_refused_gateway_leaves_the_good_one(agent: AgentProcess) -> None:
    agent.drop("net.toml", unit('gateway = "192.0.2.1"\n'))
    agent.start()
    agent.drop("net.toml", unit('gateway = "203.0.113.1"\n'))
    wait_for(lambda: "RouteRefused" in told(agent))
    assert re.search("[Nn]exthop has invalid gateway", told(agent)["RouteRefused"])
    assert routes() == {DEFAULT}
    other = 'routes = [{ to = "0.0.0.0/0", via = "203.0.113.1", metric = 50 }]\n'
    agent.drop("net.toml", unit(other))
    wait_for(lambda: "metric 50" in told(agent).get("RouteRefused", ""))
    assert routes() == {DEFAULT}
    agent.drop("net.toml", unit(other).replace('"192.0.2.2/24"', '"192.0.2.2/24", "203.0.113.2/24"'))
    wait_for(lambda: routes() == {("default", "203.0.113.1", 50)})
    agent.vmhost("wait", "in-sync")


def test_somebody_else_s_routes_stay(agent: AgentProcess) -> None:
    ip("link add other0 type veth peer name other1", "link set other0 up", "link set other1 up")
    ip("addr add 198.18.0.2/24 dev other0", "route add default via 198.18.0.1", "route add 10.0.0.0/8 via 198.18.0.1")
    before = ip_output("route show dev other0")
    agent.drop("net.toml", unit('gateway = "192.0.2.1"\n', ROUTES))
    agent.start()
    assert "leads via 198.18.0.1 by other0" in told(agent)["Conflict"]
    assert routes() == {TEN}
    assert ip_output("route show dev other0") == before
    agent.drop("net.toml", unit('gateway = "192.0.2.1"\n'))
    wait_for(lambda: routes() == set())
    assert ip_output("route show dev other0") == before
    ip("route del default via 198.18.0.1")
    wait_for(lambda: routes() == {DEFAULT})
    wait_for(lambda: told(agent) == {})


def test_a_route_without_a_metric_goes_alone(agent: AgentProcess) -> None:
    """The kernel takes one of any metric for a request without one."""
    first = '{ to = "10.0.0.0/8", via = "192.0.2.254" }'
    second = '{ to = "10.0.0.0/8", via = "192.0.2.254", metric = 100 }'
    agent.drop("net.toml", unit(f"routes = [{first}, {second}]\n"))
    agent.start()
    ip("route add 10.0.0.0/8 via 192.0.2.254 metric 7 dev br-test")
    assert routes() == {("10.0.0.0/8", "192.0.2.254", 0), TEN}
    agent.drop("net.toml", unit(ROUTES))
    wait_for(lambda: routes() == {TEN})
    assert "metric 7" in ip_output("route show 10.0.0.0/8")
