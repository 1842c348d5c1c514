"""The limits of a NIC, with a real guest that sends and receives: the unit says so, and so it is, whatever happens."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable

import pytest

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST
from tests.integration.waiting import ip_links, wait_for
from tests.netns import ip
from tests.probe import answers_within, run_in_guest, uptime
from tests.throughput import share_within

BOOT_S = 180.0
TAP, IFB = "web-lan", "ifb-web-lan"
MBIT = 1_000_000
PORT = 5001
HOST = "10.77.0.1"
SENT_BYTES = 2_000_000
"""1.6 seconds at 10 Mbit/s."""
LIMITS = 'rate-in = "10Mbit"\nrate-out = "10Mbit"\n'


@pytest.fixture
def guest(agent: AgentProcess, boot_files: str) -> AgentProcess:
    """An agent with one limited guest that answers on TCP."""
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", unit(boot_files, LIMITS))
    agent.start()
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    return agent


def unit(boot_files: str, limits: str) -> str:
    return f'[vm.web]\nmemory = "128M"\naccel = "tcg"\n{boot_files}\n[vm.web.nic.lan]\nbridge = "br-test"\n{limits}'


def tc(command: str) -> str:
    return subprocess.run(["tc", *command.split()], capture_output=True, text=True, check=True, timeout=20).stdout


def bps_in() -> float:
    """What the guest takes, in bits per second: from the first byte to the guest's word that it has them all."""
    counted: list[str] = []
    listening = threading.Thread(
        target=lambda: counted.append(run_in_guest(GUEST, f"nc -l -p {PORT} </dev/null | wc -c", 60.0))
    )
    listening.start()
    with contextlib.closing(_connected()) as connection:
        began = time.monotonic()
        connection.sendall(bytes(SENT_BYTES))
    listening.join()
    assert counted[0].strip() == str(SENT_BYTES)
    return SENT_BYTES * 8 / (time.monotonic() - began)


def _connected() -> socket.socket:
    while True:
        try:
            return socket.create_connection((GUEST, PORT), 60.0)
        except ConnectionRefusedError:
            time.sleep(0.02)  # the guest's listener is not there yet


def bps_out() -> float:
    """What the guest gets out, in bits per second."""
    with socket.create_server((HOST, PORT)) as server:
        server.settimeout(60.0)
        command = f"dd if=/dev/zero bs=1000 count={SENT_BYTES // 1000} 2>/dev/null | nc {HOST} {PORT}"
        sending = threading.Thread(target=run_in_guest, args=(GUEST, command, 60.0))
        sending.start()
        taker, _ = server.accept()
        with taker:
            taken = len(taker.recv(1 << 16))
            began = time.monotonic()
            while part := taker.recv(1 << 16):
                taken += len(part)
            spent = time.monotonic() - began
        sending.join()
    assert taken == SENT_BYTES
    return taken * 8 / spent


def assert_passes(in_bps: int, out_bps: int) -> None:
    shares = share_within(lambda: bps_in() / in_bps), share_within(lambda: bps_out() / out_bps)
    print(f"of the limit: {shares[0]:.1%} in, {shares[1]:.1%} out")


def test_a_guest_keeps_to_its_limits_which_change_while_it_runs(guest: AgentProcess, boot_files: str) -> None:
    pid, before = guest.vm("web")["pid"], uptime(GUEST)
    assert_passes(10 * MBIT, 10 * MBIT)
    guest.drop("web.toml", unit(boot_files, 'rate-in = "20Mbit"\nrate-out = "5Mbit"\n'))
    wait_for(lambda: "rate 20Mbit" in tc(f"qdisc show dev {TAP}") and "rate 5Mbit" in tc(f"qdisc show dev {IFB}"))
    guest.vmhost("wait", "in-sync", "--timeout", "60")
    assert_passes(20 * MBIT, 5 * MBIT)
    guest.drop("web.toml", unit(boot_files, ""))
    wait_for(lambda: IFB not in ip_links() and not re.search("tbf|ingress", tc("qdisc show")))
    guest.vmhost("wait", "in-sync", "--timeout", "60")
    wait_for(lambda: bps_in() > 1.25 * 20 * MBIT, 120.0)  # once is enough: a limit lets it never
    vm = guest.vm("web")
    assert (vm["pid"], uptime(GUEST).boot, vm["pending"]) == (pid, before.boot, [])


FAULTS: dict[str, Callable[[], object]] = {
    "bucket deleted": lambda: tc(f"qdisc del dev {TAP} root"),
    "bucket changed": lambda: tc(f"qdisc change dev {TAP} root handle 766d: tbf rate 1mbit burst 9000 limit 9000"),
    "ingress deleted": lambda: tc(f"qdisc del dev {TAP} ingress"),
    "filter deleted": lambda: tc(f"filter del dev {TAP} ingress prio 30317"),
    "ifb deleted": lambda: ip(f"link del {IFB}"),
    "ifb down": lambda: ip(f"link set {IFB} down"),
    "ifb's bucket deleted": lambda: tc(f"qdisc del dev {IFB} root"),
    "tap deleted": lambda: ip(f"link del {TAP}"),
}


def is_limited() -> bool:
    try:
        return _is_limited()
    except subprocess.CalledProcessError:  # a link went while it was looked at
        return False


def _is_limited() -> bool:
    if not {TAP, IFB} <= ip_links():
        return False
    buckets = [tc(f"qdisc show dev {link}") for link in (TAP, IFB)]
    led = f"Redirect to device {IFB}" in tc(f"filter show dev {TAP} ingress")
    up = "UP" in subprocess.run(["ip", "link", "show", IFB], capture_output=True, text=True, check=True).stdout
    return led and up and all("tbf 766d: root" in shown and "rate 10Mbit" in shown for shown in buckets)


def test_each_fault_of_a_limit_is_healed(guest: AgentProcess) -> None:
    pid, before = guest.vm("web")["pid"], uptime(GUEST)
    assert is_limited()
    for name, inflict in FAULTS.items():
        began = time.monotonic()
        inflict()
        wait_for(is_limited)
        print(f"{name}: {(time.monotonic() - began) * 1000:.0f} ms")
        guest.vmhost("wait", "in-sync", "--timeout", "60")
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    assert (guest.vm("web")["pid"], uptime(GUEST).boot) == (pid, before.boot)
    assert guest.metric('vmhost_repairs_total{kind="tap",reason="rate"}') >= 5
    guest.kill()
    for inflict in FAULTS.values():
        with contextlib.suppress(subprocess.CalledProcessError):
            inflict()
    guest.start()
    wait_for(is_limited)
    guest.vmhost("wait", "in-sync", "--timeout", "60")
    assert guest.vm("web")["pid"] == pid


def test_what_an_operator_puts_on_a_tap_is_told_where_a_limit_is_wanted_and_left(
    guest: AgentProcess, boot_files: str
) -> None:
    guest.drop("web.toml", unit(boot_files, ""))
    wait_for(lambda: IFB not in ip_links())
    guest.vmhost("wait", "in-sync", "--timeout", "60")
    tc(f"qdisc add dev {TAP} root tbf rate 3mbit burst 9000 limit 9000")
    guest.vmhost("wait", "in-sync", "--timeout", "60")
    guest.drop("web.toml", unit(boot_files, 'rate-in = "10Mbit"\n'))
    wait_for(lambda: "rate-in" in str(guest.vm("web")["conditions"]))
    assert guest.vm("web")["in_sync"] is False
    assert "rate 3Mbit" in tc(f"qdisc show dev {TAP}")
    tc(f"qdisc del dev {TAP} root")
    wait_for(lambda: "rate 10Mbit" in tc(f"qdisc show dev {TAP}"))
    guest.vmhost("wait", "in-sync", "--timeout", "60")


def test_a_guest_that_goes_takes_its_ifb_along(guest: AgentProcess) -> None:
    (guest.units / "web.toml").unlink()
    guest.vmhost("wait", "stopped", "web", "--timeout", "110")
    wait_for(lambda: not {TAP, IFB} & ip_links())
