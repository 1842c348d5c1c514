"""A real guest on a link of the host itself: who reaches it, who cannot, and what becomes of it without that link."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests.agent_process import AgentProcess
from tests.integration.conftest import GUEST
from tests.integration.waiting import ip_links, wait_for
from tests.internet import Box
from tests.netns import ip, ip_output
from tests.probe import UPTIME_PORT

BOOT_S = 180.0
HEAL_S = 60.0
PEER = "10.77.0.2/24"


def unit(boot_files: str, nic: str = 'direct = "eth1"\n') -> str:
    return f'[vm.web]\nmemory = "128M"\naccel = "tcg"\n{boot_files}[vm.web.nic.lan]\n{nic}'


@pytest.fixture
def peer(agent: AgentProcess) -> Iterator[Box]:
    """Somebody at the far end of the host's link eth1; the agent's namespace is there before."""
    assert agent.process is None
    with Box("eth1", addresses=(PEER,)) as box:
        ip("link set eth1 down")
        yield box


def answer(peer: Box) -> str:
    """What the guest tells the peer of its boot; empty while it is not reached."""
    return (peer.ask("greet", GUEST, UPTIME_PORT, 5.0) or "").rpartition(" ")[2]


def boot_of(peer: Box) -> str:
    """What the guest tells of its boot, once it is up."""
    told: list[str] = []

    def says() -> str:
        told.append(answer(peer))
        return told[-1]

    wait_for(says, BOOT_S)
    return told[-1]


def host_reaches() -> bool:
    """Whether the host itself gets a connection to the guest."""
    with contextlib.suppress(OSError), socket.create_connection((GUEST, UPTIME_PORT), 2.0):
        return True
    return False


def messages(agent: AgentProcess) -> str:
    return " ".join(one["message"] for one in agent.vm("web")["conditions"]) + agent.vmhost("status")


def attached(agent: AgentProcess) -> bool:
    return bool(agent.vm("web")["nics"][0]["attached"])


@pytest.mark.timeout(400)
def test_a_guest_on_a_link_of_the_host(agent: AgentProcess, peer: Box, boot_files: str) -> None:
    agent.drop("web.toml", unit(boot_files))
    agent.start()
    booted, pid = boot_of(peer), agent.vm("web")["pid"]
    nic = agent.vm("web")["nics"][0]
    assert (nic["direct"], nic["bridge"], nic["attached"]) == ("eth1", None, True)
    assert "macvtap mode bridge" in ip_output("-d link show web-lan")
    assert "state UP" in ip_output("link show eth1")

    # The host is on the same network, and all the same out of reach, which was told before anybody tried.
    ip("addr add 10.77.0.3/24 dev eth1")
    assert not host_reaches()
    assert "by lan the guest and this host cannot talk" in messages(agent)
    agent.vmhost("wait", "in-sync", "--timeout", "60")

    # What the guest sends and receives is counted as for any other.
    sent = 'vmhost_nic_transmit_bytes_total{nic="lan",vm="web"}'
    received = 'vmhost_nic_receive_bytes_total{nic="lan",vm="web"}'
    wait_for(lambda: f"{sent} " in agent.metrics() and f"{received} " in agent.metrics())
    before = agent.metric(sent), agent.metric(received)
    peer.ask("send_frames", [f"{nic['mac'].replace(':', '')}02000000000288b5{'00' * 1400}"] * 100)
    wait_for(lambda: agent.metric(received) - before[1] >= 140_000)
    assert agent.metric(sent) - before[0] < 140_000

    # Another agent takes it over; a macvtap that is changed is put right beneath the guest.
    agent.kill()
    agent.start()
    assert attached(agent)
    ip("link set web-lan down", "link set web-lan mtu 900")
    wait_for(lambda: "mtu 1500" in ip_output("link show web-lan") and answer(peer) == booted)
    assert agent.vm("web")["pid"] == pid


@pytest.mark.timeout(400)
def test_a_lost_macvtap_is_healed_by_a_replug_and_a_lost_link_waited_for(
    agent: AgentProcess, peer: Box, boot_files: str
) -> None:
    agent.drop("web.toml", unit(boot_files, 'direct = "eth1"\nqueues = 2\n'))
    agent.start()
    booted, pid = boot_of(peer), agent.vm("web")["pid"]
    ip("link del web-lan")
    wait_for(lambda: answer(peer) == booted, HEAL_S)
    noticed = "a macvtap's descriptor cannot be attached to another one, the guest notices"
    wait_for(lambda: noticed in agent.vmhost("events"))

    peer.close()  # the link's other end goes with its namespace, and the link and the macvtap with it
    wait_for(lambda: "there is no link eth1; lan is put on it when it appears" in messages(agent))
    assert not attached(agent)
    assert "web-lan" not in ip_links()
    with Box("eth1", addresses=(PEER,)) as again:
        wait_for(lambda: answer(again) == booted, HEAL_S)
        agent.vmhost("wait", "in-sync", "--timeout", "60")
        assert agent.vm("web")["pid"] == pid

        # Under another name it goes on, and is told.
        ip("link set eth1 down", "link set eth1 name wan9", "link set wan9 up")
        wait_for(lambda: "eth1 is called wan9 by now, and lan goes on on it" in messages(agent))
        wait_for(lambda: answer(again) == booted)
        ip("link set wan9 down", "link set wan9 name eth1", "link set eth1 up")
        wait_for(lambda: "is called wan9" not in messages(agent))

    agent.vmhost("stop", "web")
    (agent.units / "web.toml").unlink()
    wait_for(lambda: "web-lan" not in ip_links())


@pytest.mark.timeout(400)
def test_a_guest_waits_for_its_link_and_what_was_left_half_made_is_replaced(
    agent: AgentProcess, boot_files: str
) -> None:
    agent.drop("web.toml", unit(boot_files))
    agent.start()
    assert agent.vm("web")["pid"] is None
    assert "there is no link eth1" in messages(agent)
    agent.kill()
    with Box("eth1", addresses=(PEER,)) as peer:
        ip("link add br0 type bridge", "link set eth1 master br0")
        agent.start()
        assert "eth1 is a port of br0, and the kernel puts no macvtap on a port" in messages(agent)
        agent.kill()
        ip("link set eth1 nomaster", "link add link eth1 name web-lan type macvtap mode bridge")
        ip(f"link set web-lan group {0x766D686F}")
        half = socket.if_nametoindex("web-lan")
        agent.start()
        boot_of(peer)
        assert socket.if_nametoindex("web-lan") != half

        # To a bridge, as everything that a running guest cannot take over: at its next start.
        agent.drop("net.toml", '[bridge.br-test]\naddresses = ["10.77.1.1/24"]\n')
        agent.drop("web.toml", unit(boot_files, 'bridge = "br-test"\n'))
        wait_for(lambda: bool(agent.pending("web")))
        assert agent.pending("web") == [("nic.lan.bridge", "", "br-test"), ("nic.lan.direct", "eth1", "")]
        agent.vmhost("restart", "web")
        wait_for(lambda: "master br-test" in ip_output("link show web-lan"))
        assert "macvtap" not in ip_output("-d link show web-lan")
