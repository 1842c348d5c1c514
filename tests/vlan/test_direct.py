"""A guest's NIC on a VLAN link of the host: an edit of that link waits for the guest, which does not notice."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.agent_process import AgentProcess
from tests.integration.conftest import bare_vm
from tests.netns import ip, ip_output

pytestmark = pytest.mark.kernel("8021q")


def unit(number: int) -> str:
    nic = '[vm.web.nic.lan]\ndirect = "v20"\ntap = "web-lan"\n'
    return f'[vlan.v20]\nlink = "eth1"\nid = {number}\n' + bare_vm("web", nic)


def about(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ip_output(f"-d -j link show dev {name}"))[0]
    return found


def vlan() -> int:
    number: int = about("v20")["linkinfo"]["info_data"]["id"]
    return number


def test_another_vlan_waits_for_the_guest(agent: AgentProcess) -> None:
    ip("link add eth1 type veth peer name far", "link set far up")
    agent.drop("web.toml", unit(20))
    agent.start()
    index = about("web-lan")["ifindex"]
    agent.drop("web.toml", unit(30))
    agent.vmhost("wait", "settled", "--timeout", "120")
    assert (vlan(), about("web-lan")["ifindex"], about("web-lan")["link"]) == (20, index, "v20")
    assert "`vmhost restart web` does it" in agent.vmhost("status")
    agent.vmhost("restart", "web")
    agent.vmhost("wait", "in-sync", "--timeout", "120")
    assert (vlan(), about("web-lan")["link"]) == (30, "v20")
