"""Guests in units of their own: systemd keeps how each ended, also while no agent runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.lab.service import UNIT, Installed

pytestmark = pytest.mark.timeout(600)  # the first one boots the lab and its guests


def unit_property(installed: Installed, vm: str, name: str) -> str:
    return installed.lab.output(f"systemctl show --property={name} --value vmhost-vm-{vm}.service").strip()


def wait_for_no_unit(installed: Installed, vm: str) -> None:
    """Systemd forgets a unit a moment after nobody needs it any more."""
    installed.lab.wait_until(lambda: unit_property(installed, vm, "LoadState") == "not-found", "its unit to be gone")


def test_each_guest_is_a_service_in_the_slice(installed: Installed) -> None:
    installed.wait_settled()
    for vm, pid in installed.pids().items():
        assert unit_property(installed, vm, "MainPID") == str(pid)
        assert unit_property(installed, vm, "ActiveState") == "active"
        assert unit_property(installed, vm, "ControlGroup") == f"/vmhost.slice/vmhost-vm-{vm}.service"
        assert "vmhost-guests.service" in unit_property(installed, vm, "Before").split()
    assert "qemu" not in installed.lab.output(f"systemctl status --no-pager {UNIT} | grep -A9 CGroup")
    assert "Started vmhost-vm-web.service" in installed.lab.output("journalctl --no-pager -u vmhost-vm-web")


@pytest.mark.parametrize(("number", "reason"), [("KILL", "killed"), ("SEGV", "crash"), ("TERM", "killed")])
@pytest.mark.parametrize("agent_runs", [True, False])
def test_why_a_guest_ended_is_known(installed: Installed, number: str, reason: str, *, agent_runs: bool) -> None:
    if number == "TERM" and not agent_runs:
        reason = "host"  # QEMU exits with 0, and that a signal asked for it, it tells only who is connected
    lab = installed.lab
    lab.output("vmhost start db")
    installed.wait_settled()
    pid = installed.pids()["db"]
    seen = len(installed.events()) if agent_runs else 0
    if not agent_runs:
        lab.output(f"systemctl stop {UNIT}")
    lab.output(f"kill -{number} {pid}")
    lab.wait_until(lambda: unit_property(installed, "db", "MainPID") != str(pid), "the guest to end")
    if not agent_runs:
        assert unit_property(installed, "db", "ExecMainPID") == str(pid)  # who it was is still known
        lab.output(f"systemctl start {UNIT}")
    told = ended(installed, "db", seen)
    lab.wait_until(lambda: told() != [], "the end to be told")
    assert told() == [f"put away what is left of db ({reason})"]
    if number != "TERM":
        assert f"QEMU of db was killed by SIG{number}" in lab.output("vmhost events")
    lab.output("vmhost start db")
    installed.wait_settled()
    assert unit_property(installed, "db", "Result") == "success"
    assert installed.pids()["db"] != pid


def ended(installed: Installed, vm: str, seen: int) -> Callable[[], list[str]]:
    """What is told of a guest's end after the first events."""

    def told() -> list[str]:
        events = [event for event in installed.events()[seen:] if event["resource"] == f"vm/{vm}"]
        return [event["message"].partition(": ")[0] for event in events if event["kind"] == "end-vm"]

    return told


def test_a_stopped_guest_leaves_no_unit(installed: Installed) -> None:
    installed.lab.output("vmhost stop db", timeout_s=40)
    try:
        wait_for_no_unit(installed, "db")
    finally:
        installed.lab.output("vmhost start db")


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ('cpu = "z80"', "unable to find CPU model 'z80'"),
        ('extra-args = ["-netdev", "bridge,id=extra,br=lo"]', "did not start: killed by SIGSYS: its sandbox forbids"),
    ],
)
def test_one_that_cannot_start_says_why_and_leaves_no_unit(installed: Installed, key: str, why: str) -> None:
    lab = installed.lab
    try:
        lab.write("/etc/vmhost.d/odd.toml", f'[vm.odd]\nmemory = "32M"\naccel = "tcg"\n{key}\n'.encode())
        lab.wait_until(lambda: why in lab.output("vmhost why odd", check=False), "the condition")
    finally:
        lab.output("rm /etc/vmhost.d/odd.toml")
        installed.wait_settled()
    wait_for_no_unit(installed, "odd")
