"""A kernel whose bridges know no VLANs: what is in one is connected to nothing, and told; everything else goes on."""

from __future__ import annotations

import subprocess

import pytest

from tests.agent_process import AgentProcess
from tests.integration.conftest import bare_vm
from tests.integration.waiting import wait_for
from tests.netns import ip, ip_output, network_namespace

UNITS = """\
[bridge.br0]
ports = ["eth1"]
addresses = ["10.77.0.1/24"]
[bridge.br0.vlan.30]
addresses = ["10.78.0.1/24"]
[vlan.v40]
link = "free"
id = 40
"""
NICS = '[vm.web.nic.lan]\nbridge = "br0"\n[vm.web.nic.dmz]\nbridge = "br0"\nvlan = 20\n'


def knows_vlans() -> bool:
    with network_namespace():
        ip("link add name br9 type bridge")
        return "vlan_default_pvid" in ip_output("-d link show br9")


@pytest.mark.timeout(180)
def test_it_is_told_and_everything_else_goes_on(agent: AgentProcess) -> None:
    if knows_vlans():
        pytest.skip("this kernel's bridges know VLANs")
    ip("link add eth1 type veth peer name far", "link add free type veth peer name other")
    agent.drop("net.toml", UNITS)
    agent.drop("web.toml", bare_vm("web", NICS))
    agent.start()
    status = agent.status()
    told = {one["resource"]: one for one in conditions(status)}
    assert {(name, one["type"]) for name, one in told.items()} == {
        ("tap/web/dmz", "VlanUnsupported"),
        ("bridge/br0/vlan/30", "VlanUnsupported"),
        ("vlan/v40", "VlanUnsupported"),
    }
    assert "dmz of web is connected to nothing" in told["tap/web/dmz"]["message"]
    assert agent.vm("web")["state"] == "running"
    assert "master br0" in ip_output("link show web-lan")
    assert "master" not in ip_output("link show web-dmz")
    assert "master br0" in ip_output("link show eth1")
    assert "10.77.0.1/24" in ip_output("addr show br0")
    tried = agent.metric('vmhost_actions_total{kind="create-vlan",outcome="failed"}')
    agent.drop("more.toml", "[bridge.br1]\n")
    agent.vmhost("wait", "settled")
    assert agent.metric('vmhost_actions_total{kind="create-vlan",outcome="failed"}') == tried, "no storm of retries"
    agent.drop("web.toml", bare_vm("web", NICS.replace("vlan = 20\n", "")))
    wait_for(lambda: "master br0" in ip_output("link show web-dmz"))
    agent.drop("web.toml", bare_vm("web", NICS))
    wait_for(lambda: "master" not in ip_output("link show web-dmz"))
    assert subprocess.run(["ip", "link", "show", "v40"], capture_output=True, timeout=20, check=False).returncode


def conditions(status: dict[str, list[dict[str, list[dict[str, str]]]]]) -> list[dict[str, str]]:
    """All that is told, of whatever."""
    holders = [*status["bridges"], *status["vms"], *status["vlans"]]
    return [one for holder in holders for one in holder["conditions"]]
