"""Ports of a bridge by every name that a card may have, with real links that are renamed, go and return."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.agent_process import AgentProcess
from tests.integration.test_edits import master_of
from tests.integration.waiting import ip_links, wait_for
from tests.netns import ip, ip_output

MAC, OTHER = "52:54:00:00:77:01", "52:54:00:00:77:02"


def told(agent: AgentProcess) -> dict[str, str]:
    """The conditions of br-test's ports, by type."""
    bridges = agent.status()["bridges"]
    return {one["type"]: one["message"] for bridge in bridges for one in bridge["conditions"]}


def new_card(name: str, mac: str = MAC) -> None:
    ip(f"link add {name} address {mac} type veth peer name far-{name}")


def link(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ip_output(f"-j -d link show {name}"))[0]
    return found


def guarded() -> str:
    """The ports by which no DHCP passes, as the kernel has them."""
    command = ["nft", "list", "set", "bridge", "vmhost", "ports"]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout


def test_a_card_is_found_by_its_mac_whatever_it_is_called(agent: AgentProcess) -> None:
    agent.drop("net.toml", f'[bridge.br-test]\nports = ["mac:{MAC.upper()}"]\n')
    agent.start()
    assert MAC in told(agent)["PortMissing"]
    for name in ("card0", "card1", "card0"):
        new_card(name)
        wait_for(lambda name=name: master_of(name) == "br-test")  # type: ignore[misc]
        wait_for(lambda: told(agent) == {})
        ip(f"link del {name}")
        wait_for(lambda: "PortMissing" in told(agent))
    new_card("card0")
    wait_for(lambda: master_of("card0") == "br-test")
    ip("link set card0 name card5")
    new_card("later0", OTHER)  # whoever looks at this one has looked at the other
    agent.vmhost("wait", "in-sync")
    assert master_of("card5") == "br-test"
    assert agent.status()["bridges"][0]["ports"] == ["card5"]


def test_what_lies_on_a_card_is_not_taken_for_it_and_a_second_card_is_told(agent: AgentProcess) -> None:
    agent.drop("net.toml", f'[bridge.br-test]\nports = ["mac:{MAC}"]\n')
    ip("link add base0 type veth peer name base1")
    ip(f"link add link base0 name upon0 address {MAC} type macvlan")
    agent.start()
    assert "PortMissing" in told(agent)
    new_card("card0")
    wait_for(lambda: master_of("card0") == "br-test")
    new_card("card1")
    wait_for(lambda: "card0 stays in br-test" in told(agent).get("PortAmbiguous", ""))
    assert (master_of("card0"), master_of("card1"), master_of("upon0")) == ("br-test", None, None)
    ip("link del card1")
    agent.vmhost("wait", "in-sync")
    assert told(agent) == {}


def test_an_altname_is_a_name_and_a_port_that_is_renamed_stays(agent: AgentProcess) -> None:
    agent.drop("net.toml", '[bridge.br-test]\nports = ["the-card-of-the-lan", "eth7"]\n')
    new_card("card0")
    new_card("eth7", OTHER)
    ip("link set card0 up", "link property add dev card0 altname the-card-of-the-lan")
    agent.start()
    assert (master_of("card0"), master_of("eth7")) == ("br-test", "br-test")
    number = link("eth7")["ifindex"]
    ip("link set eth7 name lan7", "link set card0 name lan0")
    agent.vmhost("wait", "in-sync")
    assert (master_of("lan0"), master_of("lan7")) == ("br-test", "br-test")
    agent.kill()
    agent.start()
    assert (master_of("lan7"), link("lan7")["ifindex"], told(agent)) == ("br-test", number, {})
    agent.drop("net.toml", "[bridge.br-test]\n")
    wait_for(lambda: master_of("lan0") is None and master_of("lan7") is None)


def test_a_foreign_link_with_a_former_port_s_name_stays_where_it_is(agent: AgentProcess) -> None:
    agent.drop("net.toml", '[bridge.br-test]\nports = ["eth7"]\n')
    new_card("eth7")
    agent.start()
    assert master_of("eth7") == "br-test"
    agent.kill()
    ip("link del eth7")
    new_card("eth7", OTHER)
    ip("link set eth7 master br-test up")
    agent.drop("net.toml", "[bridge.br-test]\nmtu = 1400\n")
    agent.start()
    agent.vmhost("wait", "in-sync")
    assert link("br-test")["mtu"] == 1400
    assert master_of("eth7") == "br-test"


def test_dhcp_is_kept_from_a_card_under_each_of_its_names(agent: AgentProcess) -> None:
    """That its name is in the table before it is in the bridge is told by tests/unit/test_ports.py."""
    agent.drop(
        "net.toml",
        f'[bridge.br-test]\nports = ["mac:{MAC}"]\naddresses = ["10.77.0.1/24"]\n'
        'dhcp = { range = ["10.77.0.100", "10.77.0.110"] }\n',
    )
    agent.start()
    for name in ("card0", "card1"):
        new_card(name)
        wait_for(lambda name=name: master_of(name) == "br-test")  # type: ignore[misc]
        assert f'"{name}"' in guarded()
        ip(f"link del {name}")
    new_card("card0")
    wait_for(lambda: master_of("card0") == "br-test")
    ip("link set card0 name card9")
    wait_for(lambda: '"card9"' in guarded())
    wait_for(lambda: '"card1"' not in guarded())
    assert "card9" in ip_links()
    assert master_of("card9") == "br-test"
