"""DHCP clients by their command lines, as Debian 12's show them in /proc/PID/cmdline."""

from __future__ import annotations

import pytest

from agent.core.uplinks.clients import client_serving


@pytest.mark.parametrize(
    ("argv", "program"),
    [
        (
            ["dhclient", "-4", "-v", "-i", "-pf", "/run/dhclient.up0.pid", "-lf", "/var/lib/dhcp/up0.leases", "up0"],
            "dhclient",
        ),
        (["/sbin/dhclient", "-nw", "up0", "other"], "dhclient"),
        (["dhclient", "-pf", "/run/dhclient.pid"], "dhclient"),
        (["dhclient", "-p", "6800"], "dhclient"),
        (["dhclient", "-H", "web"], "dhclient"),
        (["dhclient", "-H", "up0", "other"], ""),
        (["dhclient", "other"], ""),
        (["dhcpcd: up0 [ip4] [ip6]"], "dhcpcd"),
        (["dhcpcd: [manager] [ip4] [ip6]"], "dhcpcd"),
        (["dhcpcd: [privileged proxy] up0 [ip4] [ip6]"], ""),
        (["dhcpcd: [BPF ARP] up0 192.0.2.52"], ""),
        (["dhcpcd: other [ip4]"], ""),
        (["dhcpcd", "-B", "up0"], "dhcpcd"),
        (["dhcpcd", "-B"], "dhcpcd"),
        (["busybox", "udhcpc", "-i", "up0", "-f"], "udhcpc"),
        (["busybox", "udhcpc", "-f"], ""),  # takes eth0
        (["udhcpc", "-R", "-iup0"], "udhcpc"),
        (["udhcpc", "-nqi", "up0", "-s", "/x"], "udhcpc"),
        (["udhcpc", "-fbiup0"], "udhcpc"),
        (["udhcpc", "--inter", "up0"], "udhcpc"),
        (["/bin/busybox.static", "udhcpc", "-i", "up0"], "udhcpc"),
        (["sh", "/sbin/dhclient", "up0"], "dhclient"),
        (["/sbin/udhcpc6", "--interface=up0"], "udhcpc6"),
        (["udhcpc", "-i", "other", "-x", "hostname:up0"], ""),
        (["grep", "dhclient", "up0"], ""),
        ([], ""),
    ],
)
def test_whether_a_client_serves_a_link(argv: list[str], program: str) -> None:
    assert client_serving(argv, "up0") == program


@pytest.mark.parametrize(
    ("conf", "served"),
    [
        ("hostname\n# denyinterfaces up0\n", True),
        ("denyinterfaces eth9 up0\n", False),
        ("denyinterfaces eth9\ndenyinterfaces tap*,up*\n", False),
        ("allowinterfaces wlan0\n", False),
        ("allowinterfaces up*\n", True),
        ("allowinterfaces up*\ndenyinterfaces up0\n", False),
    ],
)
def test_what_dhcpcd_is_told_to_leave_alone(conf: str, served: bool) -> None:
    assert bool(client_serving(["dhcpcd: [manager] [ip4]"], "up0", conf)) is served
    assert client_serving(["dhcpcd: up0 [ip4]"], "up0", conf) == "dhcpcd"  # told by name, it serves it all the same
