"""A bridge's dnsmasq under a real systemd: a service of its own, confined, reloaded, and back when it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.service import UNIT, Installed

pytestmark = pytest.mark.timeout(600)  # the first one boots the lab and its guests

FILE, SERVICE = "/etc/vmhost.d/dhcp.toml", "vmhost-dnsmasq-br-dhcp.service"
MAC = "02:00:00:00:55:01"
NET = """[bridge.br-dhcp]
addresses = ["10.55.0.1/24"]
dhcp = { range = ["10.55.0.100", "10.55.0.110"], lease = "1h" }
dns = { upstream = [], domain = "lan" }
"""
GUEST = '[vm.kim]\nenabled = false\n[vm.kim.nic.lan]\nbridge = "br-dhcp"\nmac = "02:00:00:00:55:02"\naddress = "%s"\n'
CLIENT = f"""set -e
cat >/root/lease.sh <<'END'
#!/bin/sh
[ "$1" = bound ] && ip addr replace "$ip/$mask" dev "$interface" && echo "got $ip"
exit 0
END
chmod 755 /root/lease.sh
ip netns add client
ip link add c0 type veth peer name c1 address {MAC} netns client
ip link set c0 master br-dhcp up
ip -n client link set c1 up
"""


@pytest.fixture
def served(installed: Installed) -> Iterator[Installed]:
    """A bridge with DHCP and DNS, and a client on it."""
    lab = installed.lab
    lab.write(FILE, (NET + GUEST % "10.55.0.7").encode())
    try:
        installed.wait_settled()
        lab.output(CLIENT)
        yield installed
    finally:
        lab.output(f"rm -f {FILE}; ip netns del client; ip link del c0", check=False)
        lab.output(f"systemctl start {UNIT}")
        lab.wait_until(lambda: "br-dhcp" not in lab.output("ip -o link"), "the bridge to be gone")
        installed.wait_settled()


def lease(installed: Installed) -> str:
    said = installed.lab.output("ip netns exec client busybox udhcpc -i c1 -f -q -n -t 8 -T 1 -s /root/lease.sh 2>&1")
    found = re.search(r"^got (\S+)$", said, re.MULTILINE)
    assert found is not None, said
    return found[1]


def resolves(installed: Installed, name: str) -> bool:
    said = installed.lab.output(f"ip netns exec client timeout 2 busybox nslookup {name} 10.55.0.1", check=False)
    return "Name:" in said


def shown(installed: Installed, *names: str) -> dict[str, str]:
    said = installed.lab.output(f"systemctl show -p {','.join(names)} {SERVICE}")
    return dict(line.split("=", 1) for line in said.splitlines())


def service(installed: Installed) -> dict[str, Any]:
    (bridge,) = [one for one in installed.status()["bridges"] if one["name"] == "br-dhcp"]
    (found,) = bridge["services"]
    return dict(found)


def leased(installed: Installed) -> list[str]:
    """The addresses that the agent knows to be leased."""
    (bridge,) = [one for one in installed.status()["bridges"] if one["name"] == "br-dhcp"]
    return [one["address"] for one in bridge["dhcp"]["leases"]]


def findings(installed: Installed) -> list[dict[str, str]]:
    """What the doctor finds."""
    found: list[dict[str, str]] = json.loads(installed.lab.output("vmhost doctor --json", check=False))["findings"]
    return found


def test_it_is_a_confined_service_that_gives_addresses_and_names(served: Installed) -> None:
    properties = shown(served, "ActiveState", "Slice", "MainPID", "ProtectSystem", "NoNewPrivileges")
    pid = properties.pop("MainPID")
    assert properties == {
        "ActiveState": "active",
        "Slice": "vmhost.slice",
        "ProtectSystem": "strict",
        "NoNewPrivileges": "yes",
    }
    found = service(served)
    assert (str(found["pid"]), found["unit"], found["running"]) == (pid, SERVICE, True)
    status = served.lab.output(f"cat /proc/{pid}/status")
    assert re.search(r"^Uid:\s1899999900\s", status, re.MULTILINE)
    assert re.search(rf"^CapEff:\s{1 << 10 | 1 << 12 | 1 << 13:016x}$", status, re.MULTILINE)
    address = lease(served)
    assert address.startswith("10.55.0.10") or address == "10.55.0.110"
    served.lab.wait_until(lambda: resolves(served, "kim.lan"), "the name to be told")
    assert served.lab.output("cat /var/lib/vmhost/leases/br-dhcp").split()[1:3] == [MAC, address]
    served.lab.wait_until(lambda: leased(served) == [address], "the agent to have read the lease")


def test_killed_it_is_back_with_its_leases(served: Installed) -> None:
    address, pid = lease(served), service(served)["pid"]
    served.lab.output(f"systemctl kill --signal=KILL {SERVICE}")
    served.lab.wait_until(lambda: service(served)["running"] and service(served)["pid"] != pid, "dnsmasq to be back")
    assert lease(served) == address
    assert service(served)["restarts"] == 1
    assert shown(served, "ActiveState")["ActiveState"] == "active"


def test_it_outlives_the_agent_which_reloads_what_it_took_over(served: Installed) -> None:
    address, pid = lease(served), service(served)["pid"]
    served.lab.output(f"systemctl restart {UNIT}")
    served.wait_settled()
    assert service(served)["pid"] == pid
    assert lease(served) == address
    assert not resolves(served, "lee.lan")
    served.lab.write(FILE, (NET + (GUEST % "10.55.0.7").replace("kim", "lee")).encode())
    served.lab.wait_until(lambda: resolves(served, "lee.lan"), "the new name to be known")
    served.wait_settled()
    assert service(served)["pid"] == pid


def test_the_doctor_finds_another_server_within_its_confinement(served: Installed) -> None:
    lab = served.lab
    healthy = json.loads(lab.output("vmhost doctor --json"))
    assert healthy == {"findings": [], "unexamined": []}
    lab.output("ip -n client addr add 10.55.0.2/24 dev c1")
    rival = "--conf-file=/dev/null --port=0 --interface=c1 --bind-interfaces --no-ping --dhcp-leasefile=/root/rival"
    lab.output(f"ip netns exec client dnsmasq {rival} --pid-file=/root/rival.pid --dhcp-range=10.55.0.50,10.55.0.60")
    try:
        seen: list[list[dict[str, str]]] = []

        def are_found() -> bool:
            seen.append(findings(served))
            return seen[-1] != []

        lab.wait_until(are_found, "the other server to be found", 90)
        (one,) = seen[-1]
        assert "10.55.0.2" in str(one)
        assert (one["finding"], one["resource"]) == ("SecondDhcpServer", "bridge/br-dhcp")
        assert "behind c0" in one["what"]
        assert "vmhost-dhcp-probe" not in lab.output("journalctl --no-pager")
    finally:
        lab.output("kill $(cat /root/rival.pid)", check=False)


def test_it_ends_with_its_bridge_and_leaves_no_unit(served: Installed) -> None:
    served.lab.output(f"rm {FILE}")
    served.lab.wait_until(lambda: "not-found" in served.lab.output(f"systemctl show -p LoadState {SERVICE}"), "its end")
    assert served.lab.output("ls /run/vmhost/services").strip() == ""
