"""The host's haproxy: published IPv6 ports of guests that have IPv4 only, from a stranger to boxes in guests' places.

As in test_nat the agent's guests wait for a path that is never there: what is published does not depend on whether
they run.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.agent_process import AgentProcess
from tests.integration.test_nat import conditions, guest, table
from tests.integration.waiting import wait_for
from tests.internet import Box
from tests.netns import ip, ip_output

HOST, HOST6, SECOND6 = "198.51.100.1", "2001:db8:1::1", "2001:db8:1::2"
STRANGER, STRANGER6 = "198.51.100.9", "2001:db8:1::9"
WEB, DB, BOTH, BOTH6 = "192.168.0.100", "192.168.0.101", "192.168.0.102", "fd00:a::102"
GATEWAY = "192.168.0.1"
WEB_SAYS, DB_SAYS = f"web {GATEWAY}", f"db {GATEWAY}"
"""What they answer by haproxy: they see this host, as with any proxy."""
NETWORK = '[bridge.br-a]\naddresses = ["192.168.0.1/24", "fd00:a::1/64"]\nnat = true\n'
HAPROXY_UID = "1899999901"
CAP_NET_BIND_SERVICE = 1 << 10


@dataclass(slots=True)
class World:
    """The host's agent, the stranger, and what stands for the guests: two with IPv4 only, one with both."""

    agent: AgentProcess
    stranger: Box
    web: Box
    db: Box
    both: Box

    def service(self) -> dict[str, Any]:
        """What status says of haproxy; empty if it is not wanted."""
        found = [one for one in self.agent.status()["agent"]["services"] if one["name"] == "haproxy"]
        return dict(found[0]) if found else {}

    def hears6(self, port: int, host: str = HOST6) -> str | None:
        """Who answers the stranger over IPv6, and whom it sees; a port that nobody has refuses at once."""
        heard: str | None = self.stranger.ask("greet", host, port, 10.0)
        return heard

    def publish(self, web: str, db: str = '["[::]:8080:80", "0.0.0.0:8081:80"]', both: str = '["81:80"]') -> None:
        """Let the guests publish these."""
        self.agent.drop("web.toml", guest("web", "br-a", f'"{WEB}"', web))
        self.agent.drop("db.toml", guest("db", "br-a", f'"{DB}"', db))
        self.agent.drop("both.toml", guest("both", "br-a", f'["{BOTH}", "{BOTH6}"]', both))

    def settled(self) -> None:
        """Return once all is as it is wanted."""
        self.agent.vmhost("wait", "settled", "--timeout", "60")


def told(agent: AgentProcess) -> list[str]:
    """The types of what stands in the way, but for what the guests wait for."""
    status = agent.status()
    every = [*status["agent"]["conditions"], *(one for vm in status["vms"] for one in vm["conditions"])]
    return [one["type"] for one in every if one["type"] != "Waiting"]


@pytest.fixture
def world(agent: AgentProcess) -> Iterator[World]:
    with contextlib.ExitStack() as boxes:
        stranger = boxes.enter_context(
            Box("up0", addresses=(f"{STRANGER}/24", f"{STRANGER6}/64"), gateways=(HOST, HOST6))
        )
        ip(f"addr add {HOST}/24 dev up0", f"addr add {HOST6}/64 dev up0 nodad")
        agent.drop("net.toml", NETWORK)
        agent.start()
        web = boxes.enter_context(Box("web0", addresses=(f"{WEB}/24",), gateways=(GATEWAY,)))
        db = boxes.enter_context(Box("db0", addresses=(f"{DB}/24",), gateways=(GATEWAY,)))
        both = boxes.enter_context(
            Box("both0", addresses=(f"{BOTH}/24", f"{BOTH6}/64"), gateways=(GATEWAY, "fd00:a::1"))
        )
        ip(*(f"link set {one} master br-a" for one in ("web0", "db0", "both0")))
        web.serve(80, "web")
        for port in (5000, 5001, 5002):
            web.serve(port, f"web{port}")
        db.serve(80, "db")
        both.serve(80, "both")
        one = World(agent, stranger, web, db, both)
        one.publish('["80", "[::]:5000-5002"]')
        one.settled()
        wait_for(lambda: "tentative" not in ip_output("addr show dev br-a"))
        yield one


def test_ipv6_ports_of_ipv4_guests_are_carried_and_others_are_not(world: World) -> None:
    stranger = world.stranger
    assert stranger.hear(HOST, 80) == f"web {STRANGER}"
    assert world.hears6(80) == WEB_SAYS
    assert [world.hears6(port) for port in (5000, 5002, 5003)] == [f"web5000 {GATEWAY}", f"web5002 {GATEWAY}", None]
    assert stranger.hear(HOST, 5000, timeout_s=0.3) is None
    assert world.hears6(8080) == DB_SAYS
    assert stranger.hear(HOST, 8080, timeout_s=0.3) is None
    assert stranger.hear(HOST6, 8081, timeout_s=0.3) is None
    assert stranger.hear(HOST6, 81) == f"both {STRANGER6}"  # not by haproxy: it has an IPv6 address
    with socket.create_server(("::1", 80), family=socket.AF_INET6), socket.create_connection((HOST6, 80), 2.0) as one:
        assert one.recv(100).decode() == WEB_SAYS  # loopback stays the host's own
    assert told(world.agent) == []
    for vm, port in (("web", "80"), ("web", "5000-5002"), ("db", "8080"), ("both", "81")):
        up = f'vmhost_forward_up{{port="{port}",proto="tcp",vm="{vm}"}} 1.0'
        wait_for(lambda up=up: up in world.agent.metrics())  # type: ignore[misc]


def test_it_has_no_right_but_to_its_ports(world: World) -> None:
    pid = world.service()["pid"]
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {HAPROXY_UID}
    assert {int(status[name], 16) for name in ("CapEff", "CapBnd", "CapAmb")} == {CAP_NET_BIND_SERVICE}
    assert status["NoNewPrivs"].strip() == "1"


@pytest.mark.parametrize("whose", ["master", "worker"])
def test_killed_it_is_back(world: World, whose: str) -> None:
    pid = int(world.service()["pid"])
    children = Path(f"/proc/{pid}/task/{pid}/children")
    wait_for(lambda: len(children.read_text().split()) == 1)  # one that a reload took the place of may be ending
    os.kill(pid if whose == "master" else int(children.read_text().split()[-1]), signal.SIGKILL)
    began = time.monotonic()
    wait_for(lambda: world.hears6(80) == WEB_SAYS)
    print(f"{whose} killed: back after {(time.monotonic() - began) * 1000:.0f} ms")
    wait_for(lambda: 'vmhost_service_restarts_total{service="haproxy"} 1.0' in world.agent.metrics())
    assert world.stranger.hear(HOST, 80) == f"web {STRANGER}"


def test_an_edit_cuts_nobody(world: World) -> None:
    pid = world.service()["pid"]
    assert world.stranger.ask("open_stream", HOST6, 80).startswith("web")
    for number in range(3):
        world.publish('["80", "[::]:5001"]', f'["[::]:{9000 + number}:80"]')
        wait_for(functools.partial(world.hears6, 9000 + number))
        world.settled()
        assert world.hears6(80) == WEB_SAYS
        assert world.stranger.ask("stream_lives", 80)
    assert [world.hears6(port) for port in (5000, 9000, 8080)] == [None, None, None]
    assert world.service()["pid"] == pid
    assert world.service()["restarts"] == 0


def test_no_connection_is_refused_while_it_is_reloaded(world: World) -> None:
    for number in range(3):
        world.publish('["80"]', f'["[::]:{9000 + number}:80"]')
        until = time.monotonic() + 0.7
        while time.monotonic() < until:
            assert world.hears6(80) == WEB_SAYS
    world.settled()
    assert world.hears6(9002) == DB_SAYS


def test_an_address_that_comes_later_is_waited_for_and_keeps_no_other_port_waiting(world: World) -> None:
    world.publish(f'["80", "[{SECOND6}]:443:80"]')
    wait_for(lambda: "AddressMissing" in conditions(world.agent))
    assert f"no link of this host has the address {SECOND6} yet" in conditions(world.agent)
    assert world.agent.vm("web")["in_sync"] is False
    assert world.hears6(80) == WEB_SAYS
    ip(f"addr add {SECOND6}/64 dev up0")  # with DAD: it is there, and cannot be listened on for a second
    wait_for(lambda: world.hears6(443, SECOND6) == WEB_SAYS)
    assert world.hears6(443) is None
    assert world.hears6(80, SECOND6) == WEB_SAYS
    world.settled()
    assert told(world.agent) == []
    ip(f"addr del {SECOND6}/64 dev up0")
    wait_for(lambda: "AddressMissing" in conditions(world.agent))
    assert world.hears6(80) == WEB_SAYS


def test_a_link_that_was_down_and_lost_its_addresses_cuts_nobody(world: World) -> None:
    world.publish(f'["[{HOST6}]:80"]', '["0.0.0.0:8081:80"]')
    wait_for(lambda: world.service().get("pid") and world.hears6(8080) is None)
    world.settled()
    pid, up = world.service()["pid"], 'vmhost_forward_up{port="80",proto="tcp",vm="web"}'
    assert world.stranger.ask("open_stream", HOST6, 80).startswith("web")
    ip("link set up0 down")
    wait_for(lambda: "AddressMissing" in conditions(world.agent))
    wait_for(lambda: f"{up} 0.0" in world.agent.metrics())
    ip("link set up0 up", f"addr add {HOST6}/64 dev up0 nodad")
    wait_for(lambda: "AddressMissing" not in conditions(world.agent))
    wait_for(lambda: world.stranger.ask("stream_lives", 80))
    assert world.hears6(80) == WEB_SAYS
    assert world.service()["pid"] == pid
    wait_for(lambda: f"{up} 1.0" in world.agent.metrics())


def test_one_address_goes_before_what_a_guest_with_ipv6_publishes_on_all(world: World) -> None:
    ip(f"addr add {SECOND6}/64 dev up0 nodad")
    world.publish(f'["[{SECOND6}]:81:80"]')
    wait_for(lambda: world.hears6(81, SECOND6) == WEB_SAYS)
    assert world.stranger.hear(HOST6, 81) == f"both {STRANGER6}"
    world.publish('["82:80"]')
    wait_for(lambda: (world.stranger.hear(SECOND6, 81, timeout_s=0.5) or "").startswith("both"))


def test_a_port_that_a_process_of_the_host_has_is_told_and_ours_is_no_stranger(world: World) -> None:
    with socket.create_server((HOST6, 8000), family=socket.AF_INET6) as holder:
        holder.setblocking(False)
        world.publish('["80", "[::]:8000:80"]')
        wait_for(lambda: "PortTaken" in conditions(world.agent))
        assert "[::]:8000:80/tcp is not published: python" in conditions(world.agent)
        assert world.hears6(80) == WEB_SAYS
        assert world.agent.vm("web")["in_sync"] is False
    wait_for(lambda: world.hears6(8000) == WEB_SAYS)
    world.settled()
    # Looked at again while haproxy listens there: by another text, and by another agent.
    world.publish('["80/tcp", "[::]:8000:81"]')
    world.settled()
    world.agent.kill()
    world.agent.start()
    assert "PortTaken" not in conditions(world.agent)
    assert world.hears6(80) == WEB_SAYS


def test_it_outlives_the_agent_is_taken_over_and_goes_when_nobody_wants_it(world: World) -> None:
    pid = world.service()["pid"]
    world.publish('["80", "[::]:5001"]')
    wait_for(lambda: world.hears6(5000) is None)  # reloaded: the worker has the master's command line
    world.settled()
    world.agent.kill()
    assert world.hears6(80) == WEB_SAYS
    world.agent.start()
    assert world.service()["pid"] == pid
    assert world.service()["restarts"] == 0
    world.publish('["0.0.0.0:80"]', '["0.0.0.0:8080:80"]')
    wait_for(lambda: not world.service())
    wait_for(lambda: not _runs(pid))
    assert world.hears6(80) is None
    assert world.stranger.hear(HOST, 80) == f"web {STRANGER}"


def _runs(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_without_haproxy_its_package_is_named_and_ipv4_goes_on(agent: AgentProcess) -> None:
    with Box("up0", addresses=(f"{STRANGER}/24", f"{STRANGER6}/64"), gateways=(HOST, HOST6)) as stranger:
        ip(f"addr add {HOST}/24 dev up0", f"addr add {HOST6}/64 dev up0 nodad")
        agent.drop("net.toml", NETWORK)
        agent.drop("web.toml", guest("web", "br-a", f'"{WEB}"', '["80"]'))
        hide = 'for one in /usr/sbin/haproxy /sbin/haproxy; do mount --bind /dev/null "$one"; done; exec "$@"'
        command = [sys.executable, "-m", "agent", *agent.flags, "--listen", "127.0.0.1:9177"]
        agent.process = subprocess.Popen(["unshare", "--mount", "sh", "-c", hide, "sh", *command])
        agent.vmhost("wait", "settled", "--timeout", "60")
        (told,) = agent.status()["agent"]["conditions"]
        assert (told["resource"], "apt install haproxy" in told["message"]) == ("service/haproxy", True)
        with Box("web0", addresses=(f"{WEB}/24",), gateways=(GATEWAY,)) as web:
            ip("link set web0 master br-a")
            web.serve(80, "web")
            wait_for(lambda: stranger.hear(HOST, 80, timeout_s=0.5) == f"web {STRANGER}")
        assert "192.168.0.100 . 80" in table()
