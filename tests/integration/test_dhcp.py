"""A bridge's dnsmasq, asked by real DHCP and DNS clients: leases, names, edits, and each way in which it is lost."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent_process import AgentProcess
from tests.dhcp_client import Client, client_on
from tests.integration.waiting import wait_for
from tests.netns import ip
from tests.probe import answers_within, run_in_guest

BRIDGE, SERVER = "br-test", "10.77.0.1"
BOOT_S = 180.0
DYNAMIC, STATIC = "02:00:00:00:77:01", "02:00:00:00:77:02"


def net(dhcp: str = 'range = ["10.77.0.100", "10.77.0.110"], lease = "1h"', dns: str = 'domain = "lan"') -> str:
    return f'[bridge.{BRIDGE}]\naddresses = ["10.77.0.1/24"]\ndhcp = {{ {dhcp} }}\ndns = {{ upstream = [], {dns} }}\n'


def web(address: str = '"10.77.0.10"', mac: str = STATIC) -> str:
    """A guest that is off: its NIC's address is reserved all the same, and a client with its MAC stands for it."""
    return f'[vm.web]\nenabled = false\n[vm.web.nic.lan]\nbridge = "{BRIDGE}"\nmac = "{mac}"\naddress = {address}\n'


@pytest.fixture
def served(agent: AgentProcess) -> AgentProcess:
    """An agent with a bridge that is served, and a guest that has an address there."""
    agent.drop("net.toml", net())
    agent.drop("web.toml", web())
    agent.start()
    return agent


@pytest.fixture
def client(served: AgentProcess) -> Iterator[Client]:
    with client_on(BRIDGE, DYNAMIC, served.folder) as one:
        yield one


@pytest.fixture
def guest(served: AgentProcess) -> Iterator[Client]:
    """What stands for the guest."""
    with client_on(BRIDGE, STATIC, served.folder, "c1") as one:
        yield one


def bridge(agent: AgentProcess) -> dict[str, Any]:
    return agent.told("bridges", BRIDGE)


def service(agent: AgentProcess) -> dict[str, Any]:
    (found,) = bridge(agent)["services"]
    return dict(found)


def pid_of(agent: AgentProcess) -> int:
    found = service(agent)
    assert found["running"], found
    return int(found["pid"])


def settled(agent: AgentProcess) -> None:
    agent.vmhost("wait", "in-sync", "--timeout", "60")


def test_addresses_and_names_are_given_and_seen(served: AgentProcess, client: Client, guest: Client) -> None:
    lease = client.lease()
    assert lease["ip"] in {f"10.77.0.{last}" for last in range(100, 111)}
    assert {key: lease[key] for key in ("mask", "router", "dns", "domain", "lease")} == {
        "mask": "24",
        "router": SERVER,
        "dns": SERVER,
        "domain": "lan",
        "lease": "3600",
    }
    assert guest.lease()["ip"] == "10.77.0.10"
    assert client.resolve("web", SERVER) == client.resolve("web.lan", SERVER) == ["10.77.0.10"]
    assert client.resolve("nobody.lan", SERVER) == []
    wait_for(lambda: len(bridge(served)["dhcp"]["leases"]) == 2)
    told = {one["mac"]: (one["address"], one["name"]) for one in bridge(served)["dhcp"]["leases"]}
    assert told == {DYNAMIC: (lease["ip"], None), STATIC: ("10.77.0.10", "web")}
    assert bridge(served)["dhcp"]["pool_size"] == 12
    wait_for(lambda: f'vmhost_dhcp_leases{{bridge="{BRIDGE}"}} 2.0' in served.metrics())
    assert f'vmhost_dhcp_pool_size{{bridge="{BRIDGE}"}} 12.0' in served.metrics()


def test_a_client_cannot_take_a_guest_s_name(served: AgentProcess, client: Client) -> None:
    served.drop("web.toml", web("[]"))
    settled(served)
    client.lease("-x", "hostname:web")
    wait_for(lambda: bridge(served)["dhcp"]["leases"])
    assert [one["name"] for one in bridge(served)["dhcp"]["leases"]] == [None]
    assert client.resolve("web", SERVER) == []


def test_names_that_mean_something_to_dnsmasq_are_names(agent: AgentProcess) -> None:
    """A lease time, a word of its own, and one that no label of DNS has room for (dnsmasq(8), --dhcp-host)."""
    long = "a" * 63
    macs = {name: f"02:00:00:00:78:0{number}" for number, name in enumerate(("5m", "ignore", "infinite", "1200"))}
    for number, (name, mac) in enumerate(macs.items()):
        address = f'"10.77.0.{10 + number}"' if number < 2 else "[]"
        agent.drop(f"{name}.toml", web(address, mac).replace("vm.web", f"vm.{name}"))
    nics = [f'[vm.{long}.nic.{nic}]\nbridge = "{BRIDGE}"\naddress = "10.77.0.3{nic}"\n' for nic in "01"]
    agent.drop("long.toml", f'[vm.{long}]\nenabled = false\n{"".join(nics)}mac = "02:00:00:00:78:09"\n')
    agent.drop("net.toml", net())
    agent.start()
    for number, (name, mac) in enumerate(macs.items()):
        with client_on(BRIDGE, mac, agent.folder, f"n{number}") as client:
            lease = client.lease("-x", "hostname:web")
            assert (lease["lease"], lease["ip"] == f"10.77.0.{10 + number}") == ("3600", number < 2), name
            assert client.resolve(f"{name}.lan", SERVER) == [lease["ip"]]
    with client_on(BRIDGE, "02:00:00:00:78:09", agent.folder) as client:
        assert client.lease("-x", "hostname:web")["ip"] == "10.77.0.31"
        assert client.resolve(f"{long}.lan", SERVER) == ["10.77.0.30"]
        assert client.resolve("web.lan", SERVER) == []
    wait_for(lambda: len(bridge(agent)["dhcp"]["leases"]) == 5)
    assert {one["name"] for one in bridge(agent)["dhcp"]["leases"]} == {*macs, None}
    log = agent.run_dir.joinpath("services", f"dnsmasq-{BRIDGE}", "log").read_text()
    assert "bad" not in log


def test_it_has_no_rights_but_to_its_ports_and_addresses(served: AgentProcess) -> None:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid_of(served)}/status").read_text().splitlines())
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"1899999900"}
    # CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW (capabilities(7)).
    assert {int(status[name], 16) for name in ("CapEff", "CapBnd", "CapAmb")} == {1 << 10 | 1 << 12 | 1 << 13}
    assert status["NoNewPrivs"].strip() == "1"


def test_killed_it_is_back_and_knows_its_leases(served: AgentProcess, client: Client) -> None:
    lease, pid = client.lease()["ip"], pid_of(served)
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    wait_for(lambda: client.resolve("web", SERVER, 2.0) == ["10.77.0.10"])
    print(f"killed: answers again after {(time.monotonic() - began) * 1000:.0f} ms")
    settled(served)  # it answers a moment before that is seen
    assert pid_of(served) != pid
    assert client.lease()["ip"] == lease
    assert [one["address"] for one in bridge(served)["dhcp"]["leases"]] == [lease]
    assert service(served)["restarts"] == 1
    wait_for(lambda: 'vmhost_service_restarts_total{service="dnsmasq-br-test"} 1.0' in served.metrics())
    wait_for(lambda: 'vmhost_repairs_total{kind="service",reason="exited"} 1.0' in served.metrics())


def test_it_outlives_the_agent_and_is_taken_over(served: AgentProcess, client: Client) -> None:
    pid, lease = pid_of(served), client.lease()["ip"]
    served.kill()
    assert client.lease()["ip"] == lease
    served.start()
    assert pid_of(served) == pid
    served.drop("web.toml", web('"10.77.0.11"'))
    wait_for(lambda: client.resolve("web", SERVER, 2.0) == ["10.77.0.11"])
    assert pid_of(served) == pid
    served.kill()
    os.kill(pid, signal.SIGKILL)
    served.start()
    assert pid_of(served) != pid
    assert client.lease()["ip"] == lease


def test_edits_are_live_and_lose_no_lease(served: AgentProcess, client: Client, guest: Client) -> None:
    pid, lease = pid_of(served), client.lease()["ip"]
    assert guest.lease()["ip"] == "10.77.0.10"
    served.drop("web.toml", web('"10.77.0.12"'))
    settled(served)
    assert client.resolve("web.lan", SERVER) == ["10.77.0.12"]
    assert guest.lease()["ip"] == "10.77.0.12"
    assert pid_of(served) == pid
    served.drop("net.toml", net('range = ["10.77.0.100", "10.77.0.150"], lease = "2h"', 'domain = "home.arpa"'))
    settled(served)
    assert pid_of(served) != pid
    again = client.lease()
    assert (again["ip"], again["lease"], again["domain"]) == (lease, "7200", "home.arpa")
    assert client.resolve("web.home.arpa", SERVER) == ["10.77.0.12"]
    assert service(served)["restarts"] == 0


def test_names_are_told_on_an_address_that_comes_later(served: AgentProcess, client: Client) -> None:
    client.run("ip", "addr", "add", "10.78.0.2/24", "dev", "eth0")
    served.drop("net.toml", net().replace('["10.77.0.1/24"]', '["10.77.0.1/24", "10.78.0.1/24"]'))
    settled(served)
    assert client.resolve("web", "10.78.0.1") == ["10.77.0.10"]
    assert service(served)["restarts"] == 0


def test_it_follows_its_bridge(served: AgentProcess, client: Client) -> None:
    lease = client.lease()["ip"]
    for fault in ("link del br-test", "addr del 10.77.0.1/24 dev br-test", "link set br-test down", "link del br-test"):
        ip(fault)
        began = time.monotonic()
        settled(served)
        ip("link set c0 master br-test up")
        wait_for(lambda: client.resolve("web", SERVER, 2.0) == ["10.77.0.10"])
        print(f"{fault}: {(time.monotonic() - began) * 1000:.0f} ms")
        assert client.lease()["ip"] == lease, fault


def test_nobody_wants_it_any_more(served: AgentProcess) -> None:
    pid = pid_of(served)
    served.drop("net.toml", '[bridge.br-test]\naddresses = ["10.77.0.1/24"]\n')
    settled(served)
    assert bridge(served)["services"] == []
    assert not is_alive(pid)
    assert not list(served.run_dir.glob("services/*"))
    served.drop("net.toml", net())
    settled(served)
    assert is_alive(pid_of(served))


def test_where_no_lease_can_be_kept_that_is_told_and_all_else_goes_on(agent: AgentProcess) -> None:
    folder = agent.folder / "state" / "leases"
    folder.parent.mkdir()
    folder.write_text("")
    agent.drop("net.toml", net())
    agent.start()
    assert bridge(agent)["up"]
    assert "StateUnusable" in agent.command("status").stdout
    folder.unlink()
    wait_for(lambda: service(agent)["running"], 90.0)


def test_a_port_that_somebody_else_has_is_told_in_its_own_words(agent: AgentProcess) -> None:
    ip("link add other type bridge", "addr add 10.77.0.1/24 dev other", "link set other up")
    with socket.create_server((SERVER, 53)):
        agent.drop("net.toml", net())
        agent.start(settle=False)
        wait_for(lambda: re.search("ServiceFailed.*Address already in use", agent.command("status").stdout))
    wait_for(lambda: service(agent)["running"], 90.0)


def test_without_dnsmasq_its_package_is_named_and_all_else_goes_on(agent: AgentProcess) -> None:
    """In a mount namespace of its own, where nothing can be executed under that name until it is unmounted."""
    hide = 'for one in /usr/sbin/dnsmasq /sbin/dnsmasq; do mount --bind /dev/null "$one"; done; exec "$@"'
    command = [sys.executable, "-m", "agent", *agent.flags, "--listen", "127.0.0.1:9177"]
    agent.drop("net.toml", net())
    agent.process = subprocess.Popen(["unshare", "--mount", "sh", "-c", hide, "sh", *command])
    agent.vmhost("wait", "settled", "--timeout", "60")
    found = bridge(agent)
    assert found["up"]
    assert [(one["type"], "apt install dnsmasq-base" in one["message"]) for one in found["conditions"]] == [
        ("ProgramMissing", True)
    ]
    assert not found["services"][0]["running"]
    enter = ["nsenter", "--mount", "--target", str(agent.process.pid)]
    for _ in range(2):
        subprocess.run([*enter, "umount", "/usr/sbin/dnsmasq"], check=False, capture_output=True)
    agent.vmhost("wait", "settled", "--timeout", "60")
    assert service(agent)["running"]


def test_a_real_guest_boots_with_what_it_is_given(agent: AgentProcess, boot_files: str) -> None:
    agent.drop("net.toml", net())
    files = boot_files.replace("vmhost.nic0=10.77.0.10/24,10.77.0.1", "vmhost.nic0=dhcp")
    unit = f'[vm.web]\nmemory = "128M"\naccel = "tcg"\n{files}[vm.web.nic.lan]\nbridge = "{BRIDGE}"\n'
    agent.drop("web.toml", unit)
    agent.start()
    wait_for(lambda: agent.vm("web")["nics"][0]["address"] is not None, BOOT_S)
    (nic,) = agent.vm("web")["nics"]
    assert nic["address"] == nic["leased"]
    answers_within(nic["address"], BOOT_S, BRIDGE)
    assert "web.lan" in run_in_guest(nic["address"], "nslookup web.lan")
    assert f"=> {nic['address']}" in run_in_guest(nic["address"], "nslookup web.lan").replace("Address: ", "=> ")
    assert f"lan:{BRIDGE}={nic['address']}" in agent.vmhost("status")


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
