"""A running guest takes over an edited unit: the same QEMU throughout, and a real Linux that says what it sees."""

from __future__ import annotations

import random
import time
from functools import partial
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST
from tests.integration.monitor import on_monitor
from tests.integration.test_edits import conditions
from tests.integration.waiting import ip_links, wait_for
from tests.netns import ip_output
from tests.probe import answers_within, run_in_guest, tell_guest, uptime

BOOT_S = 180.0
OTHER_BRIDGE = '[bridge.br-other]\naddresses = ["10.78.0.1/24"]\n'
NIC = '[vm.web.nic.lan]\nbridge = "br-test"\n'
SECOND_NIC = '[vm.web.nic.dmz]\nbridge = "br-other"\n'


@pytest.fixture
def web(agent: AgentProcess, boot_files: str) -> Web:
    """A guest with one NIC, that answers on TCP."""
    return Web(agent, boot_files)


class Web:
    """The guest, its agent, and how its unit is written anew."""

    def __init__(self, agent: AgentProcess, boot_files: str) -> None:
        self.agent = agent
        self.disk = agent.folder / "data.qcow2"
        self._boot = boot_files.replace('10.77.0.1"', '10.77.0.1 vmhost.nic1=10.78.0.10/24"')
        agent.drop("net.toml", BRIDGE + OTHER_BRIDGE)
        self.edit(NIC)
        agent.start()
        answers_within(GUEST, BOOT_S, BRIDGE_LINK)
        self.pid, self.boot = agent.vm("web")["pid"], uptime(GUEST).boot

    def edit(self, devices: str, keys: str = "") -> None:
        """Write the unit with these devices."""
        self.agent.drop("web.toml", f'[vm.web]\nmemory = "128M"\naccel = "tcg"\n{self._boot}{keys}\n{devices}')

    def data(self, size: str) -> str:
        """A second disk."""
        return f'[vm.web.disk.data]\npath = "{self.disk}"\nsize = "{size}"\n'

    def settle(self) -> None:
        """Wait until the guest is as its unit says, and see that it is the same one."""
        self.agent.vmhost("wait", "in-sync", "--timeout", "60")
        assert (self.agent.vm("web")["pid"], uptime(GUEST).boot) == (self.pid, self.boot)

    def has_both(self, expected: bool) -> bool:
        """Whether the guest sees the second NIC and the second disk, or neither."""
        return ("eth1" in self.says("ls /sys/class/net")) == ("vda" in self.says("ls /sys/block")) == expected

    def says(self, command: str) -> str:
        """What a command in the guest prints."""
        return run_in_guest(GUEST, command)


def test_a_second_nic_and_a_second_disk_come_grow_move_and_go(web: Web) -> None:
    web.edit(NIC + SECOND_NIC + web.data("64M"))
    web.settle()
    wait_for(lambda: "eth1" in web.says("ls /sys/class/net"))
    wait_for(lambda: web.says("cat /sys/block/vda/size").strip() == str(64 << 11))
    wait_for(lambda: ip_output("-4 neigh show") is not None and "10.78.0.10" in web.says("ip addr show eth1"))
    answers_within("10.78.0.10", 60, "br-other")
    address = web.says("readlink -f /sys/class/net/eth1/device /sys/block/vda/device")

    web.edit(NIC + SECOND_NIC + web.data("96M"))
    web.settle()
    wait_for(lambda: web.says("cat /sys/block/vda/size").strip() == str(96 << 11))

    web.edit(NIC + SECOND_NIC.replace("br-other", "br-test") + web.data("96M"))
    web.settle()
    assert "master br-test" in ip_output("link show web-dmz")
    assert web.says("readlink -f /sys/class/net/eth1/device /sys/block/vda/device") == address

    web.edit(NIC)
    web.settle()
    assert "eth1" not in web.says("ls /sys/class/net")
    assert "vda" not in web.says("ls /sys/block")
    assert "web-dmz" not in ip_links()
    assert web.disk.exists()
    fds = [path.resolve() for path in Path(f"/proc/{web.pid}/fd").iterdir() if path.exists()]
    assert web.disk not in fds, "QEMU has closed the disk"


def test_what_needs_a_restart_waits_while_the_rest_is_taken_over(web: Web) -> None:
    web.edit(NIC + SECOND_NIC, 'cpus = 2\ndescription = "new"')
    wait_for(lambda: "eth1" in web.says("ls /sys/class/net"), timeout_s=60)
    wait_for(lambda: web.agent.pending("web") == [("cpus", "1", "2")])  # the guest sees it before the agent has done it
    vm = web.agent.vm("web")
    assert (vm["pid"], vm["description"]) == (web.pid, "new")


def test_a_nic_that_the_guest_throws_out_is_plugged_again(web: Web) -> None:
    web.edit(NIC + SECOND_NIC)
    web.settle()
    wait_for(lambda: "eth1" in web.says("ls /sys/class/net"))
    slot = web.says("for s in /sys/bus/pci/slots/*; do [ $(cat $s/power) = 1 ] && echo $s; done").split()
    assert slot
    before = web.says("cat /sys/class/net/eth1/ifindex")
    device = web.says("basename $(dirname $(readlink -f /sys/class/net/eth1/device))").strip()
    address = device.rsplit(".", 1)[0]
    tell_guest(GUEST, f"for s in /sys/bus/pci/slots/*; do grep -q {address} $s/address && echo 0 > $s/power; done")
    wait_for(lambda: web.says("cat /sys/class/net/eth1/ifindex") not in ("", before), timeout_s=60)
    web.settle()


def test_an_agent_killed_at_any_moment_leaves_the_same_end(web: Web) -> None:
    """Each round edits, kills the agent somewhere in the middle, and looks at the end: nothing twice, nothing left."""
    dice = random.Random(20261121)
    with_both, with_neither = NIC + SECOND_NIC + web.data("64M"), NIC
    for round_ in range(8):
        devices = with_both if round_ % 2 == 0 else with_neither
        web.edit(devices)
        time.sleep(dice.uniform(0.0, 1.6))
        web.agent.kill()
        web.agent.start(settle=False)
        web.settle()
        both = devices is with_both
        wait_for(partial(web.has_both, both))
        assert ("web-dmz" in ip_links()) is both


def test_a_held_guest_takes_over_nothing_and_a_paused_one_what_needs_no_answer_of_its_own(web: Web) -> None:
    agent = web.agent
    agent.vmhost("hold", "web")
    web.edit(NIC + SECOND_NIC + web.data("64M"), 'description = "both"')
    wait_for(lambda: agent.vm("web")["pending"] != [])
    agent.vmhost("wait", "settled")
    assert (agent.vm("web")["state"], web.disk.exists(), "web-dmz" in ip_links()) == ("held", False, False)
    agent.vmhost("release", "web")
    web.settle()
    wait_for(partial(web.has_both, True))

    agent.vmhost("pause", "web")
    web.edit(NIC + web.data("96M"))
    wait_for(lambda: "Detaching" in conditions(agent, "vms", "web"))
    wait_for(lambda: 96 << 20 in [one["image"]["virtual-size"] for one in on_monitor(agent, "query-named-block-nodes")])
    assert (agent.vm("web")["state"], "web-dmz" in ip_links()) == ("paused", True)
    agent.vmhost("resume", "web")
    web.settle()
    wait_for(lambda: "eth1" not in web.says("ls /sys/class/net"))

    agent.vmhost("pause", "web")
    web.edit(NIC + SECOND_NIC + web.data("96M"))
    agent.vmhost("wait", "in-sync", "--timeout", "60")
    assert (agent.vm("web")["state"], "web-dmz" in ip_links()) == ("paused", True)
    agent.vmhost("resume", "web")
    wait_for(partial(web.has_both, True))
    web.settle()
