"""A healthy host for the tests of `vmhost doctor`.

It is a namespace with an agent, a bridge with NAT and a published port, an uplink, and two boxes in guests' places; as
it is made, with the defaults of a fresh namespace, nothing is found.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.agent_process import AgentProcess
from tests.integration.conftest import bare_vm
from tests.internet import Box
from tests.netns import ip

HOST, STRANGER, WEB, DB = "198.51.100.1", "198.51.100.9", "192.168.0.100", "192.168.0.101"
NETWORK = """
[bridge.br-a]
addresses = ["192.168.0.1/24"]
nat = true
"""
SERVED = (
    NETWORK
    + """
dhcp = { range = ["192.168.0.150", "192.168.0.160"] }
dns = { upstream = [] }
"""
)
WEB_UNIT = bare_vm(
    "web", f'after = ["path:/srv/none"]\npublish = ["80"]\n[vm.web.nic.lan]\nbridge = "br-a"\naddress = "{WEB}"\n'
)
FILTERED, FILTERED6 = "net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"


@dataclass(slots=True)
class World:
    """The host's agent, a stranger behind its uplink, and what stands for its guests."""

    agent: AgentProcess
    stranger: Box
    web: Box
    db: Box

    def examine(self) -> list[dict[str, Any]]:
        """What `vmhost doctor` finds; its exit code says whether there is anything."""
        done = self.agent.command("doctor", "--json")
        answer = json.loads(done.stdout)
        assert done.returncode == bool(answer["findings"]), done
        assert answer["unexamined"] == [], answer
        found: list[dict[str, Any]] = answer["findings"]
        return found

    def is_healthy(self) -> None:
        assert self.examine() == []

    def finds(self, finding: str, resource: str, where: str, *commands: str) -> None:
        """Exactly this is found, with these commands; they are run, and nothing is found any more."""
        found = self.examine()
        assert [(one["finding"], one["resource"]) for one in found] == [(finding, resource)], found
        assert where in found[0]["what"], found
        assert found[0]["commands"] == list(commands), found
        self.mends(found)

    def serve(self) -> None:
        """Have the bridge serve DHCP and DNS from now on."""
        self.agent.drop("net.toml", SERVED)
        self.agent.vmhost("wait", "settled", "--timeout", "60")
        self.is_healthy()

    def mends(self, found: list[dict[str, Any]]) -> None:
        for one in found:
            for command in one["commands"]:
                sh(command)
        self.is_healthy()

    def goes_out(self) -> bool:
        """Whether a guest reaches the stranger, who may be slow."""
        return self.web.hear(STRANGER, 443) == f"stranger {HOST}"

    def is_cut_off(self) -> bool:
        """Whether a guest hears nothing of the stranger for a while."""
        return self.web.hear(STRANGER, 443, timeout_s=0.4) is None


Boxes = tuple[contextlib.ExitStack, Box]


@contextlib.contextmanager
def uplink(agent: AgentProcess) -> Iterator[Boxes]:
    """The uplink, before there is an agent."""
    with contextlib.ExitStack() as stack:
        stranger = stack.enter_context(Box("up0", addresses=(f"{STRANGER}/24",), gateways=(HOST,)))
        ip(f"addr add {HOST}/24 dev up0", f"route add default via {STRANGER}")
        stranger.serve(443, "stranger")
        agent.drop("net.toml", NETWORK)
        agent.drop("web.toml", WEB_UNIT)
        yield stack, stranger


def with_guests(agent: AgentProcess, boxes: Boxes) -> World:
    stack, stranger = boxes
    web = stack.enter_context(Box("web0", addresses=(f"{WEB}/24",), gateways=("192.168.0.1",)))
    db = stack.enter_context(Box("db0", addresses=(f"{DB}/24",), gateways=("192.168.0.1",)))
    ip("link set web0 master br-a", "link set db0 master br-a")
    web.serve(80, "web")
    db.serve(80, "db")
    return World(agent, stranger, web, db)


def healthy_host(agent: AgentProcess, boxes: Boxes) -> World:
    """A healthy host: what is found on it is what a test did."""
    agent.start()
    made = with_guests(agent, boxes)
    assert Path("/proc/thread-self/root/proc/sys/net/bridge/bridge-nf-call-iptables").read_text() == "1\n"
    made.is_healthy()
    assert made.goes_out()
    return made


def sh(command: str) -> None:
    subprocess.run(["sh", "-ec", command], stdout=subprocess.DEVNULL, check=True, timeout=20)


def nft(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text.replace("} }", "}\n}"), text=True, check=True, timeout=20)
