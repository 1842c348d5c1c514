"""DHCP clients at work on a card: real ones, leased by a real dnsmasq. Each is named, and nothing is moved."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess
from tests.dhcp_client import ASK, SCRIPT
from tests.integration.uplink_world import UNIT, conditions, moves
from tests.integration.waiting import wait_for
from tests.internet import Box
from tests.netns import ip, ip_output

DHCLIENT = """#!/bin/sh
[ "$reason" = BOUND ] && ip addr add "$new_ip_address/24" dev "$interface"
exit 0
"""
APART = 'mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib/dhcpcd && exec "$@"'
"""dhcpcd keeps its sockets and leases at places that are its own; it is not to wait for udev, which is not here."""

Client = Callable[[Path], list[str]]


@contextlib.contextmanager
def running(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a group of its own, which ends whole."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def leasing(provider: Box, tmp_path: Path) -> Iterator[None]:
    """The provider leases addresses, and the card has none yet."""
    serve = ["dnsmasq", "--conf-file=/dev/null", "--keep-in-foreground", "--port=0", "--bind-interfaces", "--no-ping"]
    serve += ["--interface=eth0", "--dhcp-range=192.0.2.50,192.0.2.59,1h", f"--dhcp-leasefile={tmp_path}/leases"]
    ip("addr flush dev up0 scope global")
    with running(["nsenter", "--net", "--target", str(provider.pid), *serve]):
        yield


def script(folder: Path, text: str) -> str:
    path = folder / "script"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def udhcpc(folder: Path) -> list[str]:
    asking = [word.replace("eth0", "up0") for word in ASK if word not in {"-q", "-n"}]
    return [*asking, script(folder, SCRIPT)]


def dhclient(folder: Path) -> list[str]:
    """As ifupdown calls it, but for staying in the foreground."""
    files = ["-pf", f"{folder}/dhclient.pid", "-lf", f"{folder}/dhclient.leases"]
    return ["dhclient", "-4", "-d", *files, "-sf", script(folder, DHCLIENT), "up0"]


def dhcpcd(_: Path) -> list[str]:
    return ["unshare", "--mount", "sh", "-c", APART, "sh", "dhcpcd", "-B", "-4", "-C", "resolv.conf", "--nodev", "up0"]


def dhcpcd_of_all_links(_: Path) -> list[str]:
    return dhcpcd(_)[:-1]


@pytest.mark.usefixtures("leasing")
@pytest.mark.parametrize("client", [udhcpc, dhclient, dhcpcd, dhcpcd_of_all_links], ids=lambda one: one.__name__)
def test_a_dhcp_client_is_named_and_nothing_is_moved(agent: AgentProcess, tmp_path: Path, client: Client) -> None:
    with running(client(tmp_path)) as process:
        wait_for(lambda: "inet 192.0.2.5" in ip_output("addr show up0"), 60.0)
        agent.drop("net.toml", UNIT + 'confirm = "1m"\n')
        agent.start()
        told = conditions(agent)["PortAddressed"]
        assert f"{client.__name__.split('_')[0]} (pid {process.pid}" in told
        assert ("denyinterfaces up0" in told) is (client is dhcpcd_of_all_links)
        assert "have it serve br0 instead of up0" in told
        assert "master" not in ip_output("link show up0")
        assert moves(agent) == {}
