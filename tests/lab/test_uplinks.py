"""The dead man's switch of a move of an uplink: a real timer of systemd, beside the installed service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.service import UNIT, Installed

pytestmark = pytest.mark.timeout(300)  # the first one boots the lab and its guests

TIMER = "vmhost-put-back-br-up.timer"
FILE = "/etc/vmhost.d/uplink.toml"
BRIDGE = '[bridge.br-up]\nports = ["up0"]\nadopt-addresses = true\n'
OWN = "198.51.100.5/24"


@pytest.fixture
def card(installed: Installed) -> Iterator[Installed]:
    """A card `up0` with an address and a gateway in a namespace of its own; the unit is not there yet."""
    lab = installed.lab
    lab.output(
        "ip netns add gateway && ip link add up0 type veth peer name eth0 netns gateway && "
        "ip -n gateway link set lo up && ip -n gateway addr add 203.0.113.1/32 dev lo && "
        "ip -n gateway addr add 198.51.100.1/24 dev eth0 && ip -n gateway link set eth0 up && "
        f"ip link set up0 up && ip addr add {OWN} dev up0 && ip route add 203.0.113.0/24 via 198.51.100.1"
    )
    try:
        yield installed
    finally:
        lab.output(f"rm -f {FILE}; systemctl start {UNIT}; vmhost wait settled --timeout 60", timeout_s=80)
        lab.output("ip link del up0; ip netns del gateway; rm -f /var/lib/vmhost/moves/*")


def moves(card: Installed) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(card.lab.output("vmhost move --json"))["moves"]
    return found


def state(card: Installed) -> str:
    return next((str(one["state"]) for one in moves(card) if one["bridge"] == "br-up"), "")


def timer(card: Installed) -> str:
    return card.lab.output(f"systemctl show --property=ActiveState --value {TIMER}").strip()


def at_home(card: Installed) -> bool:
    shown = card.lab.output("ip -4 addr show up0; ip link show up0; ip route")
    return OWN in shown and "master" not in shown and "via 198.51.100.1 dev up0" in shown


def test_a_move_is_proved_as_a_service_and_its_timer_is_gone_then(card: Installed) -> None:
    """The host that is asked is behind the gateway: a command beside the agent asks it by ICMP."""
    card.lab.write(FILE, (BRIDGE + 'probe = ["203.0.113.1"]\nconfirm = "5m"\n').encode())
    card.lab.wait_until(lambda: state(card) == "proven", "the move to be proven")
    assert timer(card) == "active"
    card.lab.output("vmhost confirm br-up")
    assert state(card) == "kept"
    assert timer(card) == "inactive"
    assert OWN in card.lab.output("ip -4 addr show br-up")
    card.lab.output(f"rm {FILE}; vmhost wait settled --timeout 60", timeout_s=80)
    card.lab.wait_until(lambda: at_home(card), "the card to have its addresses back")


def test_a_probe_that_nobody_answers_puts_back_and_the_timer_goes(card: Installed) -> None:
    card.lab.write(FILE, (BRIDGE + 'probe = ["203.0.113.77"]\nprobe-timeout = "2s"\n').encode())
    card.lab.wait_until(lambda: state(card) == "put-back", "the move to be put back")
    assert "203.0.113.77 answers no echo" in moves(card)[0]["why"]
    assert at_home(card)
    card.lab.wait_until(lambda: timer(card) == "inactive", "the timer to be gone")


def test_the_timer_puts_back_when_the_agent_is_killed_and_stays_away(card: Installed) -> None:
    card.lab.write(FILE, (BRIDGE + 'confirm = "20s"\nprobe-timeout = "3s"\n').encode())
    card.lab.wait_until(lambda: state(card) == "proven", "the move to be proven")
    assert timer(card) == "active"
    card.lab.output(f"systemctl kill --signal=KILL {UNIT}; systemctl stop {UNIT}")
    assert not at_home(card)
    card.lab.wait_until(lambda: at_home(card), "the timer to put back", 120.0)
    card.lab.wait_until(lambda: timer(card) == "inactive", "the timer to be gone")
    card.lab.output(f"systemctl start {UNIT} && vmhost wait settled --timeout 60", timeout_s=80)
    assert state(card) == "put-back"
    assert "nobody confirmed it" in moves(card)[0]["why"]
    assert at_home(card)
