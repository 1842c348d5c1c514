"""The host's haproxy under a real systemd: a service of its own, confined, reloaded, and back when it ends."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.service import UNIT, Installed

pytestmark = pytest.mark.timeout(600)  # the first one boots the lab and its guests

FILE, SERVICE = "/etc/vmhost.d/proxy.toml", "vmhost-haproxy.service"
HOST6 = "2001:db8:66::1"
UNITS = """[bridge.br-proxy]
addresses = ["10.66.0.1/24"]
[vm.kim]
enabled = true
after = ["path:/srv/none"]
publish = ["[{host}]:{port}:80"]
[vm.kim.nic.lan]
bridge = "br-proxy"
address = "10.66.0.7"
"""
GUEST = """set -e
ip link add up6 type veth peer name up6-far
ip link set up6 up; ip link set up6-far up
ip addr add 2001:db8:66::1/64 dev up6 nodad
ip netns add guest
ip link add g0 type veth peer name g1 netns guest
ip link set g0 master br-proxy up
ip -n guest link set g1 up
ip -n guest addr add 10.66.0.7/24 dev g1
systemd-run --quiet --collect --unit=guest-answers ip netns exec guest busybox nc -ll -p 80 -e echo it is kim
"""
"""What stands for the guest, and an uplink with an address."""


def units(port: int) -> bytes:
    return UNITS.format(host=HOST6, port=port).encode()


@pytest.fixture
def carried(installed: Installed) -> Iterator[Installed]:
    lab = installed.lab
    lab.write(FILE, units(8080))
    try:
        installed.wait_settled()
        lab.output(GUEST)
        lab.wait_until(lambda: is_carried(installed, 8080), "the port to be carried")
        yield installed
    finally:
        lab.output("systemctl stop guest-answers", check=False)
        lab.output(f"rm -f {FILE}; ip netns del guest; ip link del g0; ip link del up6", check=False)
        lab.output(f"systemctl start {UNIT}")
        lab.wait_until(lambda: "br-proxy" not in lab.output("ip -o link"), "the bridge to be gone")
        installed.wait_settled()


def is_carried(installed: Installed, port: int) -> bool:
    ask = f"timeout 2 bash -c 'exec 3<>/dev/tcp/{HOST6}/{port} && head -n 1 <&3'"
    return installed.lab.output(f"{ask} 2>&1", check=False).strip() == "it is kim"


def is_let_go(installed: Installed, port: int) -> bool:
    return not is_carried(installed, port)


def service(installed: Installed) -> dict[str, Any]:
    (found,) = installed.status()["agent"]["services"]
    return dict(found)


def test_it_is_a_confined_service_that_is_reloaded_and_comes_back(carried: Installed) -> None:
    lab, pid = carried.lab, service(carried)["pid"]
    said = lab.output(f"systemctl show -p ActiveState,Slice,MainPID,ProtectSystem,NoNewPrivileges {SERVICE}")
    assert dict(line.split("=", 1) for line in said.splitlines()) == {
        "ActiveState": "active",
        "Slice": "vmhost.slice",
        "MainPID": str(pid),
        "ProtectSystem": "strict",
        "NoNewPrivileges": "yes",
    }
    status = lab.output(f"cat /proc/{pid}/status")
    assert re.search(r"^Uid:\s1899999901\s", status, re.MULTILINE)
    assert re.search(rf"^CapEff:\s{1 << 10:016x}$", status, re.MULTILINE)
    for port in (8081, 8082):  # the second time by an agent that took it over
        lab.write(FILE, units(port))
        lab.wait_until(functools.partial(is_carried, carried, port), "the new port to be carried")
        # The former worker lets go of its port a moment after the new one has begun.
        lab.wait_until(functools.partial(is_let_go, carried, port - 1), "the former port to be let go")
        assert service(carried)["pid"] == pid
        lab.output(f"systemctl restart {UNIT}")
        carried.wait_settled()
    lab.output(f"systemctl kill --kill-who=main --signal=KILL {SERVICE}")
    lab.wait_until(lambda: is_carried(carried, 8082), "haproxy to be back")
    carried.wait_settled()  # it takes connections before the agent knows
    assert service(carried)["restarts"] == 1
    lab.output(f"rm {FILE}")
    lab.wait_until(lambda: "not-found" in lab.output(f"systemctl show -p LoadState {SERVICE}"), "its end")
