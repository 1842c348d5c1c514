"""A host whose only way out is a card with addresses: that card becomes a bridge's port, or all stays as it was."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.core.uplinks.carried import LinkPicture, carried_texts
from agent.core.uplinks.moves import Move, Progress, Step
from agent.core.uplinks.order import Request, begin, carry
from agent.host.netlink.moving import move_to_bridge, picture_of, put_all_back
from agent.host.netlink.raw import send_all
from agent.host.statedir.moves import Journals
from agent.runtime.clock import boot_id, now_s
from tests.agent_process import AgentProcess
from tests.dhcp_client import ASK, SCRIPT
from tests.integration.waiting import wait_for
from tests.internet import Box
from tests.netns import ip, ip_output, network_namespace_of

UNIT = '[bridge.br0]\nports = ["up0"]\nadopt-addresses = true\n'
OWN = ("192.0.2.5/24", "2001:db8::5/64")
GATEWAYS = ("192.0.2.1", "2001:db8::1")
CARRIED = (
    "addr add 192.0.2.5/24 brd + dev up0",
    "addr add 192.0.2.6/24 dev up0 label up0:more",
    "addr add 198.51.100.7 peer 198.51.100.8/32 dev up0",
    "addr add 203.0.113.9/24 dev up0 metric 77 noprefixroute",
    "addr add 10.8.0.1/24 dev up0 scope link",
    "addr add 2001:db8::5/64 dev up0",
    "addr add 2001:db8::6/64 dev up0 nodad",
    "addr add 2001:db8:1::5/64 dev up0 noprefixroute",
    "route add default via 192.0.2.1 metric 5",
    "route add default via 192.0.2.1 metric 6 proto static",
    "route add 10.0.0.0/8 via 192.0.2.1 table 100 proto static",
    "route add 10.9.0.0/16 dev up0 mtu lock 1400",
    "route add default via 2001:db8::1 pref high",
    "route add 2001:db8:9::/48 via fe80::1 dev up0 metric 10",
    "neigh add 192.0.2.77 lladdr 02:00:00:00:00:77 dev up0 nud permanent",
    "neigh add proxy 192.0.2.99 dev up0",
)
LEG = "route add 10.10.0.0/16 nexthop via 192.0.2.1 dev up0 nexthop via 172.16.0.2 dev other"
TABLES = (
    *("-j addr", "-j -4 route show table all", "-j -6 route show table all"),
    *("-j neigh show nud permanent", "-j neigh show proxy"),
)


@pytest.fixture
def provider(agent: AgentProcess) -> Iterator[Box]:
    """The gateway behind the host's only card, `up0`; the host is the test's own namespace."""
    assert agent.process is None
    with Box("up0", addresses=("192.0.2.1/24", "2001:db8::1/64")) as box:
        ip("addr add 192.0.2.5/24 brd + dev up0", "addr add 2001:db8::5/64 dev up0")
        ip("route add default via 192.0.2.1", "route add default via 2001:db8::1")
        quiet()
        yield box


def quiet() -> None:
    """Wait until every IPv6 address is valid."""
    wait_for(lambda: "tentative" not in ip_output("-6 addr"))


def tables(*but: str) -> list[Any]:
    """All that `ip -j` says of addresses, routes and neighbours, but of some links."""
    found = [json.loads(ip_output(command) or "[]") for command in TABLES]
    return [[row for row in table if not {row.get("dev"), row.get("ifname")} & {*but}] for table in found]


def moves(agent: AgentProcess) -> dict[str, Any]:
    """`vmhost move --json`, by bridge."""
    return {one["bridge"]: one for one in json.loads(agent.vmhost("move", "--json"))["moves"]}


def state(agent: AgentProcess) -> str:
    """How far the move of br0 is; empty while there is none, or no agent answers yet."""
    said = agent.command("move", "--json")
    found = [one["state"] for one in json.loads(said.stdout or '{"moves": []}')["moves"] if one["bridge"] == "br0"]
    return str(found[0]) if found else ""


def conditions(agent: AgentProcess) -> dict[str, str]:
    """The conditions of br0 with its ports, type and message."""
    status = agent.status()
    return {c["type"]: c["message"] for bridge in status["bridges"] for c in bridge["conditions"]}


def settled(agent: AgentProcess) -> None:
    agent.vmhost("wait", "settled", "--timeout", "60")


def shown(link: str) -> str:
    """The addresses of a link; empty where there is none of this name."""
    found: list[str] = [line for line in ip_output("-o addr").splitlines() if f": {link} " in line]
    return "\n".join(found)


def adopted() -> bool:
    return all(one in shown("br0") and one not in shown("up0") for one in OWN)


def at_home() -> bool:
    """Whether the port has everything again, and is no port."""
    card = shown("up0")
    routes = ip_output("route") + ip_output("-6 route")
    return (
        all(one in card for one in OWN)
        and "master" not in ip_output("link show up0")
        and all(f"via {g} dev up0" in routes for g in GATEWAYS)
    )


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
    quiet()
    assert "br0" not in ip_output("link")
    assert tables() == before
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
    assert "via 192.0.2.1 dev lan0" in ip_output("route")


def test_with_nobody_who_answers_everything_is_put_back_and_told(agent: AgentProcess, provider: Box) -> None:
    provider.ask("ip", ["link set eth0 arp off", "addr del 192.0.2.1/24 dev eth0"])
    before = tables()
    agent.drop("net.toml", UNIT + 'probe-timeout = "1s"\n')
    agent.start(settle=False)
    wait_for(lambda: state(agent) == "put-back", 30.0)
    settled(agent)
    quiet()
    assert tables("br0") == before
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
    quiet()
    assert tables("br0") == before

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
    quiet()
    assert tables("br0") == before


@pytest.mark.usefixtures("provider")
def test_an_agent_that_ends_in_the_middle_puts_back_first(agent: AgentProcess) -> None:
    agent.drop("net.toml", UNIT + 'probe = ["192.0.2.200"]\nprobe-timeout = "60s"\n')
    agent.start(settle=False)
    wait_for(lambda: state(agent) == "moved", 30.0)
    agent.terminate()
    assert at_home()


def broken_off_after(count: int) -> Callable[[Sequence[Request]], None]:
    """Sends so many requests, and drops all others: whoever sent was killed."""
    left = count

    def send(requests: Sequence[Request]) -> None:
        nonlocal left
        now, left = min(left, len(requests)), left - min(left, len(requests))
        if now:
            send_all(requests[:now])

    return send


def pictures() -> tuple[LinkPicture, LinkPicture]:
    port, bridge = picture_of("up0"), picture_of("br0")
    assert port is not None
    assert bridge is not None
    return port, bridge


@pytest.fixture
def rich(agent: AgentProcess) -> Iterator[tuple[Move, list[Any]]]:
    """A card that carries a bit of everything, its bridge, and what `ip` says of all but the bridge."""
    assert agent.process is None
    with Box("up0", addresses=("192.0.2.1/24", "2001:db8::1/64")):
        ip("link add other type veth peer name far", "link set other up", "link set far up")
        ip("addr add 172.16.0.1/24 dev other", *CARRIED, LEG, "link add br0 type bridge", "link set br0 up")
        quiet()
        yield Move("br0", "digest", boot_id(), now_s(), 10.0, 0.0, *pictures()), tables("br0")


def same(before: list[Any]) -> None:
    """Assert that all is as it was; the kernel says some of it a moment later."""
    wait_for(lambda: tables("br0") == before, says=lambda: f"{tables('br0')} {before}")


def test_a_move_that_is_broken_off_before_any_request_is_put_back_whole(rich: tuple[Move, list[Any]]) -> None:
    move, before = rich
    count = len(begin(move.port, move.bridge_was, None)) + len(carry(move.port, move.port, move.bridge_was))
    assert count > 30
    for done in range(count + 1):
        move_to_bridge(move, None, send=broken_off_after(done))
        assert put_all_back(move) == ""
        same(before)
        assert [a for a in pictures()[1].addresses if b"\xc0\x00\x02" in a] == []


def test_a_card_that_was_renamed_meanwhile_is_put_back_and_no_other_of_its_name(rich: tuple[Move, list[Any]]) -> None:
    move, _ = rich
    move_to_bridge(move, None)
    ip("link set up0 down", "link set up0 name lan0", "link set lan0 up")
    ip("link add up0 type veth peer name elsewhere", "link set up0 up", "link set elsewhere up")
    assert put_all_back(move) == ""
    assert "inet" not in ip_output("-4 addr show up0")
    assert "192.0.2.5/24" not in shown("br0")
    card = picture_of("lan0")
    assert card is not None
    assert (card.master, {*carried_texts(card)}) == (0, {*carried_texts(move.port)})


def test_a_way_that_the_unit_added_meanwhile_leads_nobody_astray(rich: tuple[Move, list[Any]]) -> None:
    move, before = rich
    ip("addr add 172.20.0.1/24 dev br0")  # with its last address a bridge would lose its routes by itself
    move = replace(move, bridge_was=pictures()[1])
    move_to_bridge(move, None)
    ip("route add default via 192.0.2.1 dev br0 proto 119", "route add 10.77.0.0/16 via 172.20.0.9 proto static")
    ip("route add default via 2001:db8::1 dev br0 proto 119 metric 9")
    assert "br0" in ip_output("route get 203.0.113.200")
    assert put_all_back(move) == ""
    assert "dev up0" in ip_output("route get 203.0.113.200")
    assert "dev up0" in ip_output("-6 route get 2001:db8:ffff::1")
    assert "172.20.0.9" in ip_output("route")
    same(before)


def test_a_put_back_that_is_broken_off_is_begun_again(rich: tuple[Move, list[Any]]) -> None:
    move, before = rich
    whole: list[Request] = []
    move_to_bridge(move, None)

    def noting(requests: Sequence[Request]) -> None:
        whole.extend(requests)
        send_all(requests)

    assert put_all_back(move, noting) == ""
    for done in range(len(whole) + 1):
        move_to_bridge(move, None)
        put_all_back(move, broken_off_after(done))
        assert put_all_back(move) == ""
        same(before)


def test_all_of_it_is_on_the_bridge(rich: tuple[Move, list[Any]]) -> None:
    move, before = rich
    move_to_bridge(move, None)
    there = tables("up0")
    words = json.dumps(before).replace('"up0', '"br0')
    wanted = json.loads(words)
    for table in range(1, 5):
        moved = [row for row in wanted[table] if row.get("protocol") != "kernel" and row not in there[table]]
        assert moved == []
    (bridge,) = (one["addr_info"] for one in there[0] if one["ifname"] == "br0")
    (port,) = (one["addr_info"] for one in wanted[0] if one["ifname"] == "br0")
    assert [a for a in bridge if not a["local"].startswith("fe80")] == [
        a for a in port if not a["local"].startswith("fe80")
    ]


def test_the_next_agent_puts_back_what_an_agent_left_between_two_requests(
    rich: tuple[Move, list[Any]], agent: AgentProcess
) -> None:
    move, before = rich
    journal = Journals(agent.folder / "state").of("br0")
    for done in (0, 1, 3, 9, 15, 25):
        journal.write(move, Progress(Step.WRITTEN, "2026-01-01T00:00:00.000+00:00"))
        move_to_bridge(move, None, send=broken_off_after(done))
        agent.start()
        assert state(agent) == "put-back"
        agent.kill()
        same(before)


def test_the_switch_and_the_next_agent_do_it_once(rich: tuple[Move, list[Any]], agent: AgentProcess) -> None:
    move, before = rich
    journal = Journals(agent.folder / "state").of("br0")
    journal.write(move, Progress(Step.MOVED, "2026-01-01T00:00:00.000+00:00"))
    move_to_bridge(move, None)
    command = [sys.executable, "-m", "agent.put_back", str(journal.path)]
    with journal.lock():  # each waits for whoever is at it
        switches = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        assert all(one.poll() is None for one in switches)
    said = [one.communicate(timeout=60)[1] for one in switches]
    assert [one.returncode for one in switches] == [0, 0]
    assert sorted(bool(words) for words in said) == [False, True]
    same(before)
    found = journal.read()
    assert found is not None
    assert found[1].step is Step.PUT_BACK


FULL = """set -e
mount -t tmpfs -o size=64k,mode=700 tmpfs "$1"
cp "$2" "$1/br0.move"
: >"$1/br0.lock"
cat /dev/zero >"$1/filler" 2>/dev/null || :
if cp "$2" "$1/another" 2>/dev/null; then exit 9; fi
[ "$3" = full ] || mount -o remount,ro "$1"
"$4" -m agent.put_back "$1/br0.move" || [ "$3" != full ]
cat "$1/br0.move"
"""


@pytest.mark.parametrize("disk", ["full", "read-only"])
def test_a_disk_that_takes_nothing_keeps_nothing_from_being_put_back(
    rich: tuple[Move, list[Any]], tmp_path: Path, disk: str
) -> None:
    move, before = rich
    journal = Journals(tmp_path).of("br0")
    journal.write(move, Progress(Step.MOVED, "2026-01-01T00:00:00.000+00:00"))
    move_to_bridge(move, None)
    place = tmp_path / "disk"
    place.mkdir()
    words = ["unshare", "--mount", "sh", "-c", FULL, "sh", str(place), str(journal.path), disk, sys.executable]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    same(before)
    assert ('"step": "put-back"' in done.stdout) is (disk == "full")
    assert disk == "full" or "Read-only file system" in done.stderr


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
    assert "via 192.0.2.1 dev br0" in ip_output("route")


@pytest.mark.usefixtures("provider")
def test_a_second_port_with_addresses_is_told(agent: AgentProcess) -> None:
    ip("link add up1 type veth peer name far1", "link set up1 up", "link set far1 up", "addr add 10.1.0.1/24 dev up1")
    agent.drop("net.toml", UNIT.replace('"up0"', '"up0", "up1"'))
    agent.start()
    wait_for(adopted)
    settled(agent)
    assert "up1 carries 10.1.0.1/24" in conditions(agent)["PortAddressed"]
    assert "10.1.0.1/24" in ip_output("addr show up1")


def test_a_dhcp_client_is_named_and_nothing_is_moved(agent: AgentProcess, provider: Box, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    serve = ["dnsmasq", "--conf-file=/dev/null", "--keep-in-foreground", "--port=0", "--bind-interfaces", "--no-ping"]
    serve += ["--interface=eth0", "--dhcp-range=192.0.2.50,192.0.2.59,1h", f"--dhcp-leasefile={tmp_path}/leases"]
    ip("addr flush dev up0 scope global")
    asking = [word.replace("eth0", "up0") for word in ASK if word not in {"-q", "-n"}]
    with (
        running(["nsenter", "--net", "--target", str(provider.pid), *serve]),
        running([*asking, str(script)]) as client,
    ):
        wait_for(lambda: "inet 192.0.2.5" in ip_output("addr show up0"), 30.0)
        agent.drop("net.toml", UNIT + 'confirm = "1m"\n')
        agent.start()
        told = conditions(agent)["PortAddressed"]
        assert f"udhcpc (pid {client.pid})" in told
        assert "have it serve br0 instead of up0" in told
        assert "master" not in ip_output("link show up0")


@contextlib.contextmanager
def running(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_what_cannot_be_proved_is_refused(agent: AgentProcess, provider: Box) -> None:
    ip("route del default via 192.0.2.1", "route del default via 2001:db8::1 dev up0")
    agent.drop("net.toml", UNIT)
    agent.start()
    assert "nothing could prove" in conditions(agent)["PortAddressed"]
    ip("route add default via 192.0.2.1")
    ip("addr change 192.0.2.5/24 dev up0 valid_lft 900 preferred_lft 900")
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
