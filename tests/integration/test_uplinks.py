"""A host whose only way out is a card with addresses: that card becomes a bridge's port, or all stays as it was."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time

import pytest

from agent.runtime.clock import boot_id
from tests.agent_process import AgentProcess
from tests.integration.conftest import bare_vm
from tests.integration.uplink_world import (
    GATEWAYS,
    OWN,
    UNIT,
    adopted,
    are_again,
    at_home,
    conditions,
    moves,
    settled,
    shown,
    state,
    tables,
)
from tests.integration.waiting import wait_for
from tests.internet import Box
from tests.netns import ip, ip_output, network_namespace_of


class Stream:
    """A hundred questions a second from the provider to the host, each with its answer, or none."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._over = threading.Event()
        self.answered_s: list[float] = []
        self._threads = [threading.Thread(target=run) for run in (self._answer, self._ask)]

    def __enter__(self) -> Stream:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("0.0.0.0", 7007))
        for thread in self._threads:
            thread.start()
        wait_for(lambda: len(self.answered_s) > 20)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._socket.close()

    def _answer(self) -> None:
        while not self._over.is_set():
            if select.select([self._socket], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self._socket.sendto(*self._socket.recvfrom(64))

    def _ask(self) -> None:
        with network_namespace_of(self._box.pid), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            while not self._over.is_set():
                with contextlib.suppress(OSError):
                    asking.sendto(b"?", ("192.0.2.5", 7007))
                if select.select([asking], [], [], 0.01)[0]:
                    with contextlib.suppress(OSError):
                        asking.recv(64)
                        self.answered_s.append(time.monotonic())
                time.sleep(0.005)

    def silence_s(self) -> float:
        """The longest time without an answer, once answers come again."""
        count = len(self.answered_s)
        wait_for(lambda: len(self.answered_s) > count + 20)
        return max(b - a for a, b in zip(self.answered_s, self.answered_s[1:], strict=False))


def test_a_card_with_addresses_becomes_a_port_and_its_way_back(agent: AgentProcess, provider: Box) -> None:
    before = tables()
    agent.drop("net.toml", UNIT + 'probe = ["192.0.2.1"]\n')
    with Stream(provider) as stream:
        agent.start()
        wait_for(adopted)
        print(f"silence of the move: {stream.silence_s():.3f} s")
    assert (moves(agent)["br0"]["state"], conditions(agent)) == ("kept", {})
    assert "via 192.0.2.1 dev br0" in ip_output("route")
    assert "via 2001:db8::1 dev br0" in ip_output("-6 route")
    mac = json.loads(ip_output("-j link show up0"))[0]["address"]
    assert json.loads(ip_output("-j link show br0"))[0]["address"] == mac
    assert "up0" in agent.vmhost("move")
    assert agent.command("confirm").returncode == 1

    agent.kill()
    agent.start()
    assert adopted()
    assert state(agent) == "kept"

    agent.drop("net.toml", "")
    settled(agent)
    wait_for(at_home)
    assert "br0" not in ip_output("link")
    are_again(before)
    agent.drop("net.toml", UNIT)  # and it may come again
    wait_for(adopted)


@pytest.mark.usefixtures("provider")
def test_a_card_by_its_mac_with_the_gateways_of_the_unit_is_renamed_and_given_back(agent: AgentProcess) -> None:
    (card,) = json.loads(ip_output("-j link show up0"))
    gateway = "gateway = " + json.dumps(list(GATEWAYS)) + "\n"
    agent.drop("net.toml", UNIT.replace("up0", f"mac:{card['address']}") + gateway)
    agent.start()
    wait_for(adopted)
    settled(agent)
    assert conditions(agent) == {}
    ip("link set up0 down", "link set up0 name lan0", "link set lan0 up")
    settled(agent)
    agent.drop("net.toml", "")
    wait_for(lambda: all(one in shown("lan0") for one in OWN) and "br0" not in ip_output("link"), 30.0)
    wait_for(lambda: "via 192.0.2.1 dev lan0" in ip_output("route"))


def test_with_nobody_who_answers_everything_is_put_back_and_told(agent: AgentProcess, provider: Box) -> None:
    provider.ask("ip", ["link set eth0 arp off", "addr del 192.0.2.1/24 dev eth0"])
    before = tables()
    agent.drop("net.toml", UNIT + 'probe-timeout = "1s"\n')
    agent.start(settle=False)
    wait_for(lambda: state(agent) == "put-back", 30.0)
    settled(agent)
    are_again(before, "br0")
    assert "192.0.2.1 does not answer ARP" in conditions(agent)["MovePutBack"]
    assert "192.0.2.1" in moves(agent)["br0"]["why"]
    count = agent.vmhost("events").count("prove that it works")
    agent.kill()
    agent.start()
    assert state(agent) == "put-back"  # not tried again by the next agent either
    assert "prove that it works" not in agent.vmhost("events")
    assert count == 1

    provider.ask("ip", ["link set eth0 arp on", "addr add 192.0.2.1/24 dev eth0"])
    agent.drop("net.toml", UNIT + 'probe-timeout = "12s"\n')
    wait_for(adopted, 30.0)


def test_a_move_waits_for_a_word_and_is_put_back_without(agent: AgentProcess, provider: Box) -> None:
    before = tables()
    agent.drop("net.toml", UNIT + 'confirm = "20s"\n')
    agent.start(settle=False)
    wait_for(lambda: "vmhost confirm br0" in agent.command("status").stdout)
    assert "put back what up0 carried" in agent.vmhost("plan")
    provider.ask("ip", ["link set eth0 arp off"])  # the gateway is gone meanwhile: nothing else would notice
    wait_for(lambda: state(agent) == "put-back", 60.0)
    assert "nobody confirmed it" in moves(agent)["br0"]["why"]
    settled(agent)
    are_again(before, "br0")

    provider.ask("ip", ["link set eth0 arp on"])
    agent.drop("net.toml", UNIT + 'confirm = "10m"\n')
    wait_for(lambda: state(agent) == "proven", 30.0)
    assert "br0 keeps" in agent.vmhost("confirm")
    assert (state(agent), adopted()) == ("kept", True)
    assert moves(agent)["br0"]["left_s"] is None
    assert agent.command("confirm", "nothing").returncode == 1


@pytest.mark.usefixtures("provider")
@pytest.mark.parametrize("step", ["moved", "proven"])
def test_an_agent_that_is_killed_in_the_middle(agent: AgentProcess, step: str) -> None:
    before = tables()
    silent = 'probe = ["192.0.2.200"]\nprobe-timeout = "60s"\n' if step == "moved" else 'confirm = "10m"\n'
    agent.drop("net.toml", UNIT + silent)
    agent.start(settle=False)
    wait_for(lambda: state(agent) == step, 30.0)
    agent.kill()
    agent.start()
    if step == "proven":
        assert (state(agent), adopted()) == ("proven", True)
        agent.vmhost("confirm", "br0")
        assert state(agent) == "kept"
        return
    assert (state(agent), at_home()) == ("put-back", True)
    assert "the agent was lost" in conditions(agent)["MovePutBack"]
    are_again(before, "br0")


def test_an_agent_that_ends_in_the_middle_puts_back_first_and_the_next_one_tries_again(
    agent: AgentProcess, provider: Box
) -> None:
    agent.drop("net.toml", UNIT + 'probe = ["192.0.2.200"]\nprobe-timeout = "60s"\n')
    agent.start(settle=False)
    wait_for(lambda: state(agent) == "moved", 30.0)
    agent.terminate()
    assert at_home()
    provider.ask("ip", ["addr add 192.0.2.200/24 dev eth0"])
    agent.start()
    wait_for(adopted)
    assert state(agent) == "kept"


@pytest.mark.usefixtures("provider")
def test_a_journal_that_cannot_be_written_means_that_nothing_is_moved(agent: AgentProcess) -> None:
    (agent.folder / "state").mkdir()
    (agent.folder / "state" / "moves").symlink_to("/proc/self/fdinfo")  # a folder in which nothing can be made
    agent.drop("net.toml", UNIT)
    agent.start(settle=False)
    wait_for(lambda: "nothing was moved" in agent.command("status").stdout)
    assert at_home()


@pytest.mark.usefixtures("provider")
def test_a_journal_that_nobody_can_read_ends_no_agent(agent: AgentProcess) -> None:
    folder = agent.folder / "state" / "moves"
    folder.mkdir(parents=True)
    (folder / "br0.move").write_bytes(b"\0" * 700)
    agent.drop("net.toml", UNIT)
    agent.start()
    assert "br0.move cannot be read" in conditions(agent)["MoveUnreadable"]
    assert "unreadable" in agent.vmhost("move")
    assert at_home()
    (folder / "br0.move").unlink()
    agent.kill()
    agent.start()
    wait_for(adopted)


@pytest.mark.usefixtures("provider")
def test_after_a_boot_of_the_host_it_is_moved_again_and_never_just_enslaved(agent: AgentProcess) -> None:
    agent.drop("net.toml", UNIT)
    agent.start()
    wait_for(adopted)
    agent.kill()
    for addressed in (True, False):  # the boot's own configuration addresses the card again, or not
        of_another_boot(agent)
        ip("link del br0", "addr flush dev up0 scope global")
        if addressed:
            ip(*(f"addr add {one} dev up0" for one in OWN))
            ip("route add default via 192.0.2.1", "route add default via 2001:db8::1 dev up0")
        agent.start()
        wait_for(adopted)
        assert "via 192.0.2.1 dev br0" in ip_output("route")
        assert "via 2001:db8::1 dev br0" in ip_output("-6 route")
        assert "put up0 into br0" not in agent.vmhost("events")
        assert state(agent) == "kept"
        agent.kill()


def test_a_gateway_that_boots_after_the_host_is_asked_again(agent: AgentProcess, provider: Box) -> None:
    agent.drop("net.toml", UNIT + 'probe-timeout = "5s"\n')
    agent.start()
    wait_for(adopted)
    agent.kill()
    of_another_boot(agent)
    ip("link del br0", "addr flush dev up0 scope global", *(f"addr add {one} dev up0" for one in OWN))
    ip("route add default via 192.0.2.1", "route add default via 2001:db8::1 dev up0")
    provider.ask("ip", ["link set eth0 arp off", "addr del 192.0.2.1/24 dev eth0"])
    agent.start(settle=False)
    wait_for(lambda: state(agent) == "put-back", 30.0)
    wait_for(lambda: "tried again" in conditions(agent).get("MovePutBack", ""), 30.0)
    wait_for(at_home)
    provider.ask("ip", ["link set eth0 arp on", "addr add 192.0.2.1/24 dev eth0"])
    wait_for(adopted, 90.0)


def of_another_boot(agent: AgentProcess) -> None:
    """Have the journal be one that was written before the host booted."""
    path = agent.folder / "state" / "moves" / "br0.move"
    path.write_text(path.read_text().replace(boot_id(), "11111111-1111-4111-8111-111111111111"))


@pytest.mark.usefixtures("provider")
def test_a_bridge_that_somebody_deletes_gets_back_what_it_carried(agent: AgentProcess) -> None:
    agent.drop("net.toml", UNIT)
    agent.start()
    wait_for(adopted)
    ip("link del br0")
    wait_for(lambda: "br0" in ip_output("link") and adopted(), 30.0)
    wait_for(lambda: "via 192.0.2.1 dev br0" in ip_output("route"))


@pytest.mark.usefixtures("provider")
def test_a_second_port_with_addresses_is_told(agent: AgentProcess) -> None:
    ip("link add up1 type veth peer name far1", "link set up1 up", "link set far1 up", "addr add 10.1.0.1/24 dev up1")
    agent.drop("net.toml", UNIT.replace('"up0"', '"up0", "up1"'))
    agent.start()
    wait_for(adopted)
    settled(agent)
    assert "up1 carries 10.1.0.1/24" in conditions(agent)["PortAddressed"]
    assert "10.1.0.1/24" in ip_output("addr show up1")


def test_what_cannot_be_proved_is_refused(agent: AgentProcess, provider: Box) -> None:
    ip("route del default via 192.0.2.1", "route del default via 2001:db8::1 dev up0")
    agent.drop("net.toml", UNIT)
    agent.start()
    assert "nothing could prove" in conditions(agent)["PortAddressed"]
    # In this order: with a gateway, and not for a while only, it could be moved, and would be at once.
    ip("addr change 192.0.2.5/24 dev up0 valid_lft 900 preferred_lft 900", "route add default via 192.0.2.1")
    agent.vmhost("wait", "settled", "--timeout", "60")
    assert "192.0.2.5/24" in conditions(agent)["PortAddressed"]
    provider.ask("ip", ["link set eth0 down"])
    ip("addr change 192.0.2.5/24 dev up0 valid_lft forever preferred_lft forever")
    wait_for(lambda: "has no carrier" in conditions(agent).get("PortAddressed", ""))
    ip("rule add iif up0 table 100 priority 1000")
    provider.ask("ip", ["link set eth0 up"])
    wait_for(adopted, 30.0)
    assert "ip rule 1000" in agent.vmhost("events")
    assert "iif up0" in ip_output("rule")


@pytest.mark.usefixtures("provider")
def test_a_card_beneath_a_guest_is_moved_once_that_is_gone(agent: AgentProcess) -> None:
    """A macvtap holds the card as a bridge would, so the kernel refuses the port with EBUSY."""
    agent.drop("net.toml", bare_vm("web", '[vm.web.nic.lan]\ndirect = "up0"\ntap = "web-lan"\n'))
    agent.start()
    agent.drop("net.toml", UNIT + bare_vm("web", '[vm.web.nic.lan]\nbridge = "br0"\ntap = "web-lan"\n'))
    settled(agent)
    told = conditions(agent)["PortAddressed"]
    assert "web-lan, of web, is on up0" in told
    assert "`vmhost restart web` does it" in told
    assert moves(agent) == {}
    assert at_home()
    agent.vmhost("restart", "web")
    wait_for(adopted)
