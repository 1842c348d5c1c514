"""`vmhost doctor` and the host's parameters, routes, links and servers: each changed, found, and mended by command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess
from tests.integration.doctor_world import (
    WEB,
    Boxes,
    World,
    healthy_host,
    nft,
    sh,
    uplink,
    with_guests,
)
from tests.integration.waiting import wait_for
from tests.internet import Box
from tests.netns import ip


@pytest.fixture
def boxes(agent: AgentProcess) -> Iterator[Boxes]:
    with uplink(agent) as made:
        yield made


@pytest.fixture
def world(agent: AgentProcess, boxes: Boxes) -> World:
    return healthy_host(agent, boxes)


def test_reverse_paths(world: World, boxes: Boxes) -> None:
    sh("sysctl -q -w net.ipv4.conf.all.rp_filter=1")
    world.is_healthy()  # strict, and every path is symmetric
    assert world.goes_out()
    ip(f"route add {WEB}/32 dev up0")
    assert world.is_cut_off()
    found = world.examine()
    assert f"because the route to {WEB} leads to up0" in found[0]["why"]
    world.finds(
        "RpFilter", "bridge/br-a", "net.ipv4.conf.all.rp_filter is 1", "sysctl -w net.ipv4.conf.br-a.rp_filter=2"
    )
    ip(f"route del {WEB}/32 dev up0")
    boxes[0].enter_context(Box("up1", addresses=("203.0.113.9/24",), gateways=("203.0.113.1",)))
    ip("addr add 203.0.113.1/24 dev up1")
    world.is_healthy()  # a second network is no second way to everybody
    ip("route add default via 203.0.113.9 metric 500")
    world.finds(
        "RpFilter", "bridge/br-a", "net.ipv4.conf.all.rp_filter is 1", "sysctl -w net.ipv4.conf.up1.rp_filter=2"
    )


def test_a_second_dhcp_server(world: World, boxes: Boxes) -> None:
    world.serve()
    rival = boxes[0].enter_context(Box("rival0", addresses=("192.168.0.2/24",)))
    ip("link set rival0 master br-a")
    command = [
        "nsenter", "--net", "--target", str(rival.pid), "dnsmasq", "--conf-file=/dev/null", "--keep-in-foreground",
        "--port=0", "--interface=eth0", "--dhcp-range=192.168.0.200,192.168.0.210", "--no-ping", "--user=root",
        f"--dhcp-leasefile={world.agent.folder / 'rival.leases'}", "--pid-file=", "--bind-interfaces",
    ]  # fmt: skip
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for(world.examine, 30.0)
        (one,) = world.examine()
        assert one["what"].startswith("192.168.0.2 (")
        assert one["what"].endswith(" behind rival0) serves DHCP on br-a, too")
        assert one["finding"] == "SecondDhcpServer"
        assert all("dhcp-guard" in command for command in one["commands"])
        for line in one["commands"]:
            sh(line)
        wait_for(lambda: not world.examine(), 30.0)
        assert (world.agent.folder / "rival.leases").read_text() == ""  # nobody ever requested what was offered
    finally:
        server.kill()
        server.wait()


def test_links(world: World) -> None:
    ip("link set web0 mtu 1400")
    world.finds(
        "MtuPath",
        "port/web0",
        "web0 takes packets of 1400 bytes, its bridge br-a of 1500",
        "ip link set dev web0 mtu 1500",
    )
    ip("link set up0 mtu 1400")
    world.is_healthy()  # ICMP tells of it
    nft(
        "table inet theirs { chain out { type filter hook output priority 0;"
        " icmp type destination-unreachable drop; } }"
    )
    world.finds(
        "MtuPath",
        "bridge/br-a",
        "up0 takes packets of 1400 bytes and br-a of 1500, and rule `icmp type destination-unreachable drop` handle 2",
        "nft insert rule inet theirs out oifname br-a icmp type destination-unreachable accept",
    )


def test_told_by_status_events_and_metrics(world: World) -> None:
    ip("addr add 203.0.113.5/24 dev web0")
    metric = 'vmhost_findings{finding="PortAddressed",resource="port/web0"} 1.0'
    wait_for(lambda: metric in world.agent.metrics(), 30.0)
    status = world.agent.status()
    (told,) = (one for one in status["agent"]["conditions"] if one["type"] == "PortAddressed")
    assert told["resource"] == "port/web0"
    assert "ip address del 203.0.113.5/24 dev web0" in told["message"]
    assert told["since"]
    assert all(bridge["in_sync"] for bridge in status["bridges"])  # told, and no deviation
    assert "PortAddressed: web0, a port of br-a, has 203.0.113.5/24" in world.agent.vmhost("events")
    world.finds("PortAddressed", "port/web0", "web0, a port of br-a", "ip address del 203.0.113.5/24 dev web0")
    wait_for(lambda: metric not in world.agent.metrics(), 30.0)
    assert "PortAddressed is over" in world.agent.vmhost("events")


def start_with_mounts(agent: AgentProcess, mounts: str) -> None:
    """Start the agent where it sees other files than its host does."""
    command = [sys.executable, "-m", "agent", *agent.flags, "--listen", "127.0.0.1:9177"]
    with (agent.folder / "agent.log").open("ab") as log:
        agent.process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-ec", f'{mounts}; exec "$@"', "sh", *command], stdout=log, stderr=log
        )
    agent.vmhost("wait", "settled", "--timeout", "60")


def test_forwarding_that_the_agent_cannot_switch_on(agent: AgentProcess, boxes: Boxes) -> None:
    start_with_mounts(agent, "mount --bind /proc/sys/net /proc/sys/net; mount -o remount,bind,ro /proc/sys/net")
    world = with_guests(agent, boxes)
    found = world.examine()
    assert [(one["finding"], one["what"], one["commands"]) for one in found] == [
        (
            "ForwardingOff",
            f"net.ipv4.conf.{link}.forwarding is 0",
            [f"sysctl -w net.ipv4.conf.{link}.forwarding=1"],
        )
        for link in ("br-a", "up0")
    ]
    world.mends(found)
    assert world.goes_out()


def test_a_file_that_keeps_switching_forwarding_off(agent: AgentProcess, boxes: Boxes) -> None:
    folder = agent.folder / "sysctl.d"
    folder.mkdir()
    (folder / "60-hardening.conf").write_text("# as an auditor asked\nnet.ipv4.ip_forward = 0\n")
    start_with_mounts(agent, f"mount --bind {folder} /etc/sysctl.d")
    world = with_guests(agent, boxes)
    world.is_healthy()  # a line that nobody applies while the agent runs
    forwarding = Path("/proc/thread-self/root/proc/sys/net/ipv4/conf/br-a/forwarding")
    for _ in range(3):
        sh("sysctl -q -w net.ipv4.ip_forward=1; sysctl -q -w net.ipv4.ip_forward=0")
        wait_for(lambda: forwarding.read_text() == "1\n")
    found = world.examine()
    line = "/etc/sysctl.d/60-hardening.conf:2 sets it to 0"
    assert found[0]["what"].endswith(line)
    # Both were switched off; whichever the agent had seen often enough by then is told.
    what = found[0]["what"].partition(" was switched off again and again")[0]
    assert what in {f"net.ipv4.conf.{link}.forwarding" for link in ("br-a", "up0")}
    assert found[0]["commands"][0] == "sed -i '2s/^/# /' /etc/sysctl.d/60-hardening.conf"
    assert agent.process is not None
    subprocess.run(
        ["nsenter", "--mount", "--target", str(agent.process.pid), "sh", "-ec", "; ".join(found[0]["commands"])],
        check=True,
        timeout=20,
    )
    assert (folder / "60-hardening.conf").read_text().endswith("# net.ipv4.ip_forward = 0\n")
    world.is_healthy()


def test_without_an_agent(agent: AgentProcess) -> None:
    done = agent.command("doctor")
    assert done.returncode == 3
    assert "no agent answers" in done.stderr
