"""Guests that wait: for a guest that is ready, for a path, for a port; and all of them stopped within one budget."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST, bare_vm
from tests.integration.test_edits import conditions, pids
from tests.integration.waiting import wait_for
from tests.probe import answers_within, run_in_guest

BOOT_S = 180.0
NIC = f'[vm.db.nic.lan]\nbridge = "br-test"\naddress = ["{GUEST}", "fd00::10"]\n'


def waits(agent: AgentProcess, name: str) -> str:
    """What a guest says that it waits for; empty if for nothing."""
    return str(conditions(agent, "vms", name).get("Waiting", {"message": ""})["message"])


def database(boot_files: str, ready: str, more: str = "") -> str:
    return f'[vm.db]\nmemory = "128M"\naccel = "tcg"\nready = "{ready}"\n{more}{boot_files}{NIC}'


def test_a_guest_starts_when_the_one_before_it_takes_connections(agent: AgentProcess, boot_files: str) -> None:
    agent.drop("net.toml", BRIDGE)
    agent.drop("db.toml", database(boot_files, "tcp:7780"))
    agent.drop("app.toml", bare_vm("app", 'after = ["vm:db"]'))
    agent.start(settle=False)
    agent.vmhost("wait", "running", "db", "--timeout", "60")
    wait_for(
        lambda: waits(agent, "app").startswith(f"waits for vm db to be ready: {GUEST}:7780 takes no connections (")
    )
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    assert pids(agent)["app"] is None
    run_in_guest(GUEST, "nc -ll -p 7780 -e true </dev/null >/dev/null 2>&1 &")
    agent.vmhost("wait", "running", "app", "--timeout", "110")
    (nic,) = agent.vm("db")["nics"]
    assert (nic["address"], nic["addresses"]) == (GUEST, [GUEST, "fd00::10"])
    agent.vmhost("wait", "in-sync", "--timeout", "60")


def test_one_that_does_not_become_ready_is_told_and_an_edit_helps_without_a_restart(
    agent: AgentProcess, boot_files: str
) -> None:
    agent.drop("net.toml", BRIDGE)
    agent.drop("db.toml", database(boot_files, "tcp:9", 'ready-timeout = "1s"\n'))
    agent.drop("app.toml", bare_vm("app", 'after = ["vm:db"]'))
    agent.start(settle=False)
    agent.vmhost("wait", "running", "db", "--timeout", "60")
    wait_for(lambda: "NotReady" in conditions(agent, "vms", "db"), 60)
    assert "it runs and is not ready after 1 s" in conditions(agent, "vms", "db")["NotReady"]["message"]
    agent.vmhost("wait", "settled", "--timeout", "60")
    assert agent.vm("app")["state"] == "waiting"
    assert "waits for vm db to be ready" in agent.vmhost("why", "app")
    pid = pids(agent)["db"]
    agent.drop("db.toml", database(boot_files, "tcp:7777"))
    agent.vmhost("wait", "running", "app", "--timeout", "110")
    agent.vmhost("wait", "in-sync", "--timeout", "60")
    assert pids(agent)["db"] == pid


def test_a_guest_waits_for_a_path_and_for_ports_of_both_kinds(agent: AgentProcess, tmp_path: Path) -> None:
    place = tmp_path / "mounted" / "disk"
    after = f'after = ["path:{place}", "tcp:127.0.0.1:5353", "tcp:[::1]:5353"]'
    agent.drop("web.toml", bare_vm("web", after))
    agent.start()
    assert {c["reason"] for c in agent.vm("web")["conditions"]} == {"PathMissing", "Unreachable"}
    place.mkdir(parents=True)
    wait_for(lambda: {c["reason"] for c in agent.vm("web")["conditions"]} == {"Unreachable"})
    refused = "127.0.0.1:5353 to take connections (connection refused, for "
    wait_for(lambda: refused in agent.vmhost("status", "web"))
    with socket.create_server(("127.0.0.1", 5353)):
        wait_for(lambda: len(agent.vm("web")["conditions"]) == 1)
        with socket.create_server(("::1", 5353), family=socket.AF_INET6):
            agent.vmhost("wait", "running", "web", "--timeout", "60")
    place.rmdir()
    agent.vmhost("wait", "in-sync", "--timeout", "60")


def test_nobody_is_asked_when_nobody_waits(agent: AgentProcess) -> None:
    with socket.create_server(("127.0.0.1", 5353)) as server:
        server.settimeout(0.1)
        agent.drop("web.toml", bare_vm("web", 'after = ["tcp:127.0.0.1:5353"]'))
        agent.start()
        agent.vmhost("wait", "running", "web", "--timeout", "60")
        agent.vmhost("wait", "settled", "--timeout", "60")
        while True:
            try:
                server.accept()[0].close()
            except TimeoutError:
                break
        server.settimeout(2.5)
        try:
            server.accept()
        except TimeoutError:
            return
        raise AssertionError("it is asked although the guest runs")


STUBBORN = 'stop-timeout = "10m"\n'
"""A bare guest has nobody who hears the power button."""


def in_a_row(agent: AgentProcess) -> None:
    units = {"a": "", "b": 'after = ["vm:a"]\n', "c": 'after = ["vm:b"]\n'}
    for name, after in units.items():
        agent.drop(f"{name}.toml", bare_vm(name, after).replace('stop-timeout = "1s"\n', STUBBORN))
    agent.start()
    assert None not in pids(agent).values()


def test_all_guests_stop_in_order_within_one_budget_and_stay_down(agent: AgentProcess) -> None:
    in_a_row(agent)
    began = time.monotonic()
    done = agent.command("shutdown-all", "--timeout", "16")  # long enough for a machine that stalls for seconds
    took_s = time.monotonic() - began
    assert done.returncode == 0, done.stdout + done.stderr
    assert 10 < took_s < 16 + 16  # the command's own start and a busy host included
    lines = [line.partition(" s  ")[2] for line in done.stdout.splitlines()[:-1]]
    assert [line for line in lines if line.split()[1:] == ["has", "stopped"]] == [
        f"{name} has stopped" for name in "cba"
    ]
    assert "a stops when b has stopped" in lines
    last = "all guests are stopped (3); none is started before `vmhost up` or the host's next boot"
    assert done.stdout.splitlines()[-1] == last
    stops = re.findall(r"shut ([abc]) down within ([0-9.]+) s \(host-down\): done", agent.vmhost("events"))
    assert [name for name, _ in stops] == ["c", "b", "a"]
    # Thirds of the sixteen, less the time to kill; a stall of the machine is shared by those that come later.
    assert all(0.5 < float(share_s) <= 4.1 for _, share_s in stops), stops
    agent.kill()
    agent.start()
    assert set(pids(agent).values()) == {None}
    agent.vmhost("up")
    assert None not in pids(agent).values()


def test_a_budget_reaches_guests_whose_stop_began_before_and_qemus_that_hang(agent: AgentProcess) -> None:
    in_a_row(agent)
    agent.vmhost("stop", "c", "--no-wait")
    hung = pids(agent)["a"]
    assert hung is not None
    os.kill(hung, signal.SIGSTOP)
    began = time.monotonic()
    done = agent.command("shutdown-all", "--timeout", "12", "--json")
    took_s = time.monotonic() - began
    assert json.loads(done.stdout) == {"ok": True, "stopped": ["a", "b", "c"], "left": []}
    assert took_s < 12 + 16


def test_without_an_agent_nothing_is_shut_down(agent: AgentProcess) -> None:
    assert agent.command("shutdown-all", "--timeout", "1").returncode == 3
