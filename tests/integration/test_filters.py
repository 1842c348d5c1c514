"""What guests may send and get, through the whole agent: each lie is dropped and counted, its honest twin passes.

The kernel and the agent are real. Its guests wait for a path that is never there, and boxes have their taps' names:
what is filtered is told by that name, and is in place before there is a tap.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from agent.core.filters_wanted import link_local
from tests.agent_process import AgentProcess
from tests.frames import ICMPV6, TCP, UDP, arp, icmpv6, ipv4, ipv6, neighbour, router, udp
from tests.integration.conftest import bare_vm
from tests.integration.waiting import wait_for
from tests.internet import Box
from tests.netns import ip, ip_output
from tests.probe import wait_until_listening

BRIDGE_MAC = "de:ad:be:ef:00:0a"
MAC, OTHER = "de:ad:be:ef:01:00", "de:ad:be:ef:01:01"
WEB, WEB6, DB, DB6 = "192.168.0.100", "fd00:a::100", "192.168.0.101", "fd00:a::101"
HOST, HOST6 = "192.168.0.1", "fd00:a::1"
STRANGER = "198.51.100.9"
LOCAL = link_local(MAC)
NETWORK = f"""
[bridge.br-a]
addresses = ["{HOST}/24", "{HOST6}/64"]
mac = "{BRIDGE_MAC}"
nat = true
"""


def guest(name: str, mac: str, addresses: str, more: str = "") -> str:
    nic = f'[vm.{name}.nic.lan]\nbridge = "br-a"\ntap = "{name}-lan"\nmac = "{mac}"\naddress = {addresses}\n{more}\n'
    return bare_vm(name, f'after = ["path:/srv/none"]\n{nic}')
