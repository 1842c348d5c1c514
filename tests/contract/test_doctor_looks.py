"""What the doctor's adapters read of a real kernel and of real files."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.core.doctor.rules import TRANSLATED, Ruleset
from agent.core.doctor.scene import RouteAnswer, RouteQuestion, Setter
from agent.core.errors import ObservationError
from agent.host.dhcp_probe import Answer, find_offers, read_answers
from agent.host.netlink.routes import ask_routes, find_ports, find_uplinks
from agent.host.ruleset import list_rules
from agent.host.sysctl_files import find_setters
from agent.host.sysctls import read_parameters
from agent.runtime.beside import ChildBeside
from agent.runtime.raw_looks import ask_servers
from tests.netns import ip, network_namespace


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    with network_namespace():
        yield


def test_which_line_sets_a_parameter(tmp_path: Path) -> None:
    etc, lib = tmp_path / "etc", tmp_path / "lib"
    etc.mkdir()
    lib.mkdir()
    (lib / "50-default.conf").write_text("net.ipv4.conf.*.rp_filter = 1\nnet.ipv4.ip_forward=1\n")
    (lib / "60-hidden.conf").write_text("net.ipv4.ip_forward = 7\n")
    (etc / "60-hidden.conf").write_text("# net.ipv4.ip_forward = 8\n; net.ipv4.ip_forward = 9\n")
    (etc / "40-early.conf").write_text("net.ipv4.conf.br-a.rp_filter = 2\n")
    (etc / "99-sysctl.conf").symlink_to(tmp_path / "sysctl.conf")
    (tmp_path / "sysctl.conf").write_text("\n-net/ipv4/conf/eth0.5/rp_filter = 0\nnet.ipv4.conf.eth0/6.rp_filter=0\n")
    names = [f"ipv4/conf/{link}/rp_filter" for link in ("br-a", "eth0.5", "eth0.6")] + ["ipv4/ip_forward"]
    found = find_setters(names, (str(etc), str(lib)), str(tmp_path / "none"))
    assert found == {
        names[0]: Setter(str(lib / "50-default.conf"), 1, "1"),
        names[1]: Setter(str(tmp_path / "sysctl.conf"), 2, "0"),
        names[2]: Setter(str(tmp_path / "sysctl.conf"), 3, "0"),
        names[3]: Setter(str(lib / "50-default.conf"), 2, "1"),
    }


def test_uplinks_of_the_main_table_and_of_several_hops() -> None:
    assert find_uplinks() == {4: (), 6: ()}
    for number in range(4):
        ip(f"link add up{number} type bridge", f"link set up{number} up", f"addr add 10.0.{number}.1/24 dev up{number}")
    ip(
        "route add default via 10.0.0.9",
        "route add default via 10.0.1.9 table 7",
        "route add default metric 9 nexthop via 10.0.2.9 nexthop via 10.0.3.9",
        "route add unreachable default metric 99",
        "route add 10.9.0.0/16 via 10.0.0.9",
    )
    found = find_uplinks()
    assert (set(found[4]), found[6]) == ({"up0", "up2", "up3"}, ())


def test_routes_as_the_kernel_decides() -> None:
    ip("link add br-a type bridge", "link set br-a up", "addr add 192.168.0.1/24 dev br-a")
    ip("link add up0 type bridge", "link set up0 up", "addr add 10.0.0.1/24 dev up0", "route add default via 10.0.0.9")
    Path("/proc/thread-self/root/proc/sys/net/ipv4/conf/all/rp_filter").write_text("1")
    assert read_parameters(["ipv4/conf/all/rp_filter", "ipv4/conf/none/rp_filter"]) == {"ipv4/conf/all/rp_filter": 1}
    asked, back = RouteQuestion("192.168.0.1", "192.168.0.100", "br-a"), RouteQuestion("192.168.0.100")
    gone = RouteQuestion("192.168.0.1", "192.168.0.100", "br-b")
    assert ask_routes([asked, back, gone]) == {asked: RouteAnswer(link="lo"), back: RouteAnswer(link="br-a")}
    ip("route add 192.168.0.100/32 dev up0")
    assert ask_routes([asked, back]) == {asked: RouteAnswer(refused=True), back: RouteAnswer(link="up0")}


def test_the_port_that_a_mac_is_behind() -> None:
    ip("link add br-a type bridge", "link add p0 type veth peer name p1", "link set p0 master br-a")
    ip("link set br-a up", "link set p0 up", "link set p1 up")
    subprocess.run(["bridge", "fdb", "add", "02:00:00:00:00:09", "dev", "p0", "master"], check=True)
    assert find_ports(["02:00:00:00:00:09", "02:00:00:00:00:08"]) == {"02:00:00:00:00:09": "p0"}


def test_no_rules_no_offers() -> None:
    assert list_rules({}).rules.chains == ()


async def test_a_bridge_that_is_gone_cannot_be_asked() -> None:
    with pytest.raises(ObservationError, match="br-a cannot be asked"):
        await find_offers("br-a", 0.1)


async def test_the_probe_as_a_command_of_its_own() -> None:
    ip("link add br-b type bridge", "link set br-b up")
    lost, asked = await ask_servers(ChildBeside(), ["br-a", "br-b"])
    assert (lost.bridge, lost.offers) == ("br-a", ())
    assert "br-a cannot be asked: No such device" in lost.problem
    assert asked == Answer("br-b")
    with pytest.raises(ObservationError, match="cannot be read"):
        read_answers("{}\n")


def iptables(*lines: str) -> None:
    for line in lines:
        subprocess.run(["iptables-nft", *line.split()], check=True, timeout=10)


def test_connection_states_of_iptables_are_read() -> None:
    iptables(
        "-A FORWARD -s 192.168.0.0/24 -m conntrack --ctstate NEW -j ACCEPT",
        "-A FORWARD -m state ! --state NEW,INVALID -m comment --comment ct -j ACCEPT",
        "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT",
        "-A FORWARD -m conntrack --ctstate NEW --ctdir ORIGINAL -j ACCEPT",
    )
    (chain,) = list_rules({}).rules.chains
    first, second, third, fourth = (rule.expressions for rule in chain.rules)
    assert {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["new"]}} in first
    negated = next(one["match"] for one in second if "match" in one)
    assert (negated["op"], set(negated["right"])) == ("!=", {"new", "invalid"})
    assert {"xt": {"type": "match", "name": TRANSLATED}} in third
    assert {"xt": {"type": "match", "name": "conntrack"}} in fourth
    assert chain.rules[0].text == "ip saddr 192.168.0.0/24 ct state new accept"


def test_sets_larger_than_what_is_read_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    elements = ", ".join(f"10.{one >> 8}.{one & 255}.1" for one in range(2000))
    made = f"table inet f {{\n set s {{\n type ipv4_addr\n elements = {{ {elements} }}\n}}\n chain c {{\n}}\n}}\n"
    subprocess.run(["nft", "-f", "-"], input=made, text=True, check=True, timeout=10)
    rules = list_rules({}).rules
    assert len(rules.sets["inet", "f", "s"]) == 2000
    monkeypatch.setattr("agent.host.ruleset.MAX_BYTES", 10_000)
    assert list_rules({}).rules == Ruleset(rules.chains)
    monkeypatch.setattr("agent.host.ruleset.MAX_BYTES", 100)
    with pytest.raises(ObservationError, match="more than the"):
        list_rules({})


def test_what_iptables_legacy_saved_may_be_odd() -> None:
    with pytest.raises(ObservationError, match=r"iptables: .* cannot be read"):
        list_rules({"ip": '*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m comment --comment "a\nb" -j DROP\n'})


def test_a_file_of_parameters_may_be_anything(tmp_path: Path) -> None:
    (tmp_path / "10-loop.conf").symlink_to("10-loop.conf")
    os.mkfifo(tmp_path / "20-fifo.conf")
    (tmp_path / "30-folder.conf").mkdir()
    (tmp_path / "40-gone.conf").symlink_to("nowhere")
    (tmp_path / "50-good.conf").write_text("net.ipv4.ip_forward=0\n")
    found = find_setters(["ipv4/ip_forward"], (str(tmp_path),), str(tmp_path / "none"))
    assert found == {"ipv4/ip_forward": Setter(str(tmp_path / "50-good.conf"), 1, "0")}


def test_counted_packets_change_no_rules() -> None:
    made = "table inet f {\n chain c {\n type filter hook output priority 0\n counter\n}\n}\n"
    subprocess.run(["nft", "-f", "-"], input=made, text=True, check=True, timeout=10)
    first = list_rules({}).rules
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        sending.sendto(b"x", ("127.0.0.1", 9))
    assert list_rules({}).rules is first
    subprocess.run(["nft", "add", "rule", "inet", "f", "c", "drop"], check=True, timeout=10)
    assert len(list_rules({}).rules.chains[0].rules) == 2
