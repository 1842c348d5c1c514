"""Screens of real guests: the firmware's picture over a Unix socket, over TCP, and through `vmhost vnc --listen`."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.agent_process import AgentProcess, kill_qemu
from tests.integration.conftest import bare_vm
from tests.integration.waiting import wait_for
from tests.rfb import Picture, look


def firmware_screen(address: str | tuple[str, int]) -> Picture:
    """The picture once the firmware has written on it: black before, white on black then."""
    seen: list[Picture] = []

    def written() -> bool:
        seen.append(look(address))
        return seen[-1].colours() > 1

    wait_for(written)
    return seen[-1]


def conditions(agent: AgentProcess, name: str) -> dict[str, dict[str, Any]]:
    """By type; none as long as the agent has not read its unit."""
    found = [vm for vm in agent.status()["vms"] if vm["name"] == name]
    return {condition["type"]: condition for vm in found for condition in vm["conditions"]}


def test_a_screen_on_a_socket_and_one_on_an_address(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web", "vnc = true"))
    agent.drop("db.toml", bare_vm("db", 'vnc = "127.0.0.1:7"\nmachine = "pc"'))
    agent.drop("plain.toml", bare_vm("plain"))
    agent.start()
    path = agent.run_dir / "vms" / "web" / "vnc.sock"
    for address, name in ((str(path), "web"), (("127.0.0.1", 5907), "db")):
        picture = firmware_screen(address)
        assert (picture.version, picture.name) == (b"RFB 003.008\n", f"QEMU ({name})")
        assert picture.width >= 640
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert path.stat().st_uid == (agent.run_dir / "vms" / "web" / "qmp.sock").stat().st_uid
    assert agent.vmhost("vnc", "web").splitlines()[0] == str(path)
    assert json.loads(agent.vmhost("vnc", "web", "--json")) == {"name": "web", "socket": str(path), "address": None}
    assert json.loads(agent.vmhost("vnc", "db", "--json"))["address"] == "127.0.0.1:5907"
    assert "vncviewer 127.0.0.1::5907" in agent.vmhost("vnc", "db")
    for name, why in {
        "plain": "vmhost: vm plain was started without a screen; `vnc = true` in its unit and `vmhost restart plain` "
        "give it one\n",
        "wbe": 'vmhost: no guest named "wbe" was ever started here; did you mean "web"?\n',
    }.items():
        refused = agent.command("vnc", name)
        assert (refused.returncode, refused.stdout, refused.stderr) == (1, "", why)
    # It comes with a restart and goes with one, and is found again by the next agent.
    agent.kill()
    agent.start()
    assert (agent.vm("web")["pending"], agent.vm("db")["pending"]) == ([], [])
    agent.drop("web.toml", bare_vm("web"))
    wait_for(lambda: agent.vm("web")["pending"])
    assert agent.pending("web") == [("vnc", "true", "false")]
    agent.vmhost("restart", "web")
    assert not path.exists()


def test_a_port_that_is_passed_on_to_the_socket(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web", "vnc = true"))
    agent.start()
    command = [sys.executable, "-m", "agent.cli.main", *agent.flags, "vnc", "web", "--listen", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as passing:
        try:
            assert passing.stdout is not None
            words = passing.stdout.readline().split()
            assert words[0] == "vncviewer"
            host, port = words[1].split("::")
            assert firmware_screen((host, int(port))).name == "QEMU (web)"
            agent.vmhost("restart", "web")
            assert firmware_screen((host, int(port))).name == "QEMU (web)"
            taken = agent.command("vnc", "web", "--listen", port)
            name = Path(f"/proc/{passing.pid}/comm").read_text().strip()
            why = f"{name} (pid {passing.pid}) listens there; end it, or take another port"
            assert (taken.returncode, taken.stderr) == (1, f"vmhost: 127.0.0.1:{port}: {why}\n")
        finally:
            passing.send_signal(signal.SIGINT)
            assert passing.wait(60) == 0
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True) as passing:
        assert passing.stdout is not None
        assert json.loads(passing.stdout.readline())["listens"].startswith("127.0.0.1:")
        passing.send_signal(signal.SIGINT)
    outside = agent.command("vnc", "web", "--listen", "0.0.0.0:5999")
    assert (outside.returncode, "not on this host alone" in outside.stderr) == (2, True)


def test_a_viewer_is_opened_where_the_screen_is(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web", "vnc = true"))
    agent.start()
    none = subprocess.run(
        [sys.executable, "-m", "agent.cli.main", *agent.flags, "vnc", "web", "--open"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": str(agent.folder)},
    )
    assert (none.returncode, "apt install tigervnc-viewer" in none.stderr) == (1, True)
    # Stands for a viewer, which needs a screen of its own: it only asks what there is where it was sent to.
    viewer = agent.folder / "vncviewer"
    viewer.write_text(
        f"#!{sys.executable}\nimport socket, sys\nhost, port = sys.argv[1].split('::')\n"
        "print(socket.create_connection((host, int(port))).recv(12))\n"
    )
    viewer.chmod(0o755)
    opened = subprocess.run(
        [sys.executable, "-m", "agent.cli.main", *agent.flags, "vnc", "web", "--open"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": str(agent.folder)},
        timeout=120,
    )
    assert (opened.returncode, opened.stdout, opened.stderr) == (0, "b'RFB 003.008\\n'\n", "")


@pytest.mark.parametrize(("family", "any_host"), [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")])
def test_what_listens_in_place_of_a_screen_is_named(
    agent: AgentProcess, family: socket.AddressFamily, any_host: str
) -> None:
    agent.drop("web.toml", bare_vm("web", 'restart = "never"\nvnc = "127.0.0.1:7"'))
    agent.start()
    agent.kill()
    kill_qemu(record_pid(agent, "web"), agent.run_dir)
    with socket.socket(family) as foreign:
        if family is socket.AF_INET6:
            foreign.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # The last of QEMU's threads lets go of the port a moment after the first is gone.
        wait_for(lambda: is_free(5907))
        foreign.bind((any_host, 5907))
        foreign.listen()
        refused = agent.command("vnc", "web")
    assert f"(pid {os.getpid()}) listens at 127.0.0.1:5907, not QEMU of vm web: end it, or" in refused.stderr
    assert refused.returncode == 1


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def record_pid(agent: AgentProcess, name: str) -> int:
    return int(tomllib.loads((agent.run_dir / "vms" / name / "launch.toml").read_text())["pid"])


def test_a_display_belongs_to_one(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web", 'vnc = "127.0.0.1:7"'))
    agent.start()
    agent.drop("db.toml", bare_vm("db", 'vnc = "127.0.0.1:7"'))
    wait_for(lambda: len(agent.status()["units"]) == 2)
    agent.vmhost("wait", "settled")
    (unit,) = [unit for unit in agent.status()["units"] if unit["state"] == "invalid"]
    problem = f"display 127.0.0.1:7 is also that of [vm.web] in {agent.units}/web.toml"
    assert (Path(unit["file"]).name, [error["problem"] for error in unit["errors"]]) == ("db.toml", [problem])
    with socket.create_server(("127.0.0.1", 5908)):
        agent.drop("db.toml", bare_vm("db", 'vnc = "127.0.0.1:8"'))
        holder = f"{Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()})"
        told = f"Address already in use; {holder} listens at 127.0.0.1:5908: end it, or give the guest another display"
        wait_for(lambda: told in conditions(agent, "db").get("LaunchFailed", {}).get("message", ""))
    agent.vmhost("wait", "running", "db", "--timeout", "110")
    assert firmware_screen(("127.0.0.1", 5908)).name == "QEMU (db)"
