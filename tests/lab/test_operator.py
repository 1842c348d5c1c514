"""What an operator of an installed host is shown: mistakes, plans, reasons, questions, and how guests ended."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.demo.__main__ import HOST
from tests.lab.service import GUEST_TIMEOUT_S, UNIT, Installed
from tests.netns import network_namespace_of
from tests.probe import tell_guest

pytestmark = pytest.mark.timeout(600)  # the first one boots the lab and its guests

OF_DB = "192.168.77.11"
FIVE_MISTAKES = b"""[bridge.br-lan]
ports = ["eth1", "eth/2"]
mtu = 20
[vm.other]
memroy = "1G"
accel = "kvmm"
after = ["vm:othr"]
"""
FROM_NOTHING = [  # but for the disk, which is there already
    "make bridge br-demo",
    "make tap web-lan in br-demo",
    "launch QEMU for web",
    "let web run",
    "make tap db-lan in br-demo",
    "launch QEMU for db",
    "let db run",
]
BARE = '[vm.{name}]\nmemory = "32M"\naccel = "tcg"\nstop-timeout = "1s"\n{more}\n'


@contextmanager
def units(installed: Installed, texts: dict[str, str]) -> Iterator[None]:
    """More guests, by name, for a while; each without a kernel, so its QEMU is up in milliseconds."""
    lab = installed.lab
    try:
        for name, text in texts.items():
            lab.write(f"/etc/vmhost.d/{name}.toml", text.encode())
        lab.wait_until(lambda: len(installed.status()["units"]) == 3 + len(texts), "the units to be read")
        installed.wait_settled()
        yield
    finally:
        for name in texts:
            lab.output(f"rm -f /etc/vmhost.d/{name}.toml")
        installed.wait_gone(set(texts))


def reasons(installed: Installed, name: str) -> str:
    """`vmhost why`, as it is printed."""
    return installed.lab.output(f"vmhost why {name}", check=False)


def pid_of(installed: Installed, name: str) -> int | None:
    """The pid of a guest's QEMU, as the agent says."""
    (pid,) = [vm["pid"] for vm in installed.status()["vms"] if vm["name"] == name]
    return None if pid is None else int(pid)


def is_another(installed: Installed, name: str, former: int | None) -> bool:
    """Whether the agent knows that a guest's former QEMU is gone."""
    return pid_of(installed, name) != former


def test_five_mistakes_are_shown_each_at_its_place(installed: Installed) -> None:
    installed.lab.write("/var/cache/vmhost/mistakes/bad.toml", FIVE_MISTAKES)
    done = installed.lab.try_run("cd /var/cache/vmhost && vmhost check mistakes")
    assert done.returncode == 1
    *errors, total = done.stdout.decode().splitlines()
    assert [error.partition(": error: ")[0] for error in errors] == [
        f"mistakes/bad.toml:{place}" for place in ("2:18", "3:1", "5:1", "6:1", "7:10")
    ]
    assert total == "1 file, 5 errors"


def test_a_plan_names_what_would_be_done_and_nothing_when_all_is_done(installed: Installed) -> None:
    lab = installed.lab
    nobody = "vmhost --units /usr/share/doc/vmhost/examples/demo --run-dir /run/none plan --json"
    before = lab.try_run(nobody)
    assert before.returncode == 3  # no agent answers there
    assert [step["text"] for step in json.loads(before.stdout)["actions"]] == FROM_NOTHING
    assert lab.output("vmhost plan") == "nothing to do\n"
    edited = lab.output("cat /etc/vmhost.d/network.toml") + "stp = true\n"
    lab.write("/var/cache/vmhost/new/network.toml", edited.encode())
    plan: dict[str, Any] = json.loads(lab.output("vmhost plan --json /var/cache/vmhost/new/network.toml"))
    assert [step["text"] for step in plan["actions"]] == ["set stp of br-demo (settings)"]
    assert lab.output("vmhost plan") == "nothing to do\n"


def test_why_tells_each_guest_s_story(installed: Installed) -> None:
    lab = installed.lab
    texts = {
        "waiting": BARE.format(name="waiting", more='after = ["vm:missing"]'),
        "missing": BARE.format(name="missing", more='[vm.missing.disk.root]\npath = "/srv/none.qcow2"'),
        "taken": BARE.format(name="taken", more='[vm.taken.nic.lan]\nbridge = "br-demo"'),
        "held": BARE.format(name="held", more=""),
        "loops": BARE.format(name="loops", more=""),
    }
    lab.output("ip link add taken-lan type bridge")
    try:
        with units(installed, texts):
            assert "waits for vm missing to run" in reasons(installed, "waiting")
            assert "a link taken-lan exists that is not ours" in reasons(installed, "taken")
            lab.write("/etc/vmhost.d/held.toml", texts["held"].replace("accel", "accle").encode())
            lab.wait_until(lambda: "its last good version" in reasons(installed, "held"), "the held unit to be told")
            assert "mend /etc/vmhost.d/held.toml" in reasons(installed, "held")
            told = ""
            for _ in range(9):
                lab.output("vmhost wait running loops --timeout 60", timeout_s=80)
                pid = pid_of(installed, "loops")
                lab.output(f"kill -9 {pid}")
                lab.wait_until(functools.partial(is_another, installed, "loops", pid), "its end to be noticed")
                if "CrashLoop" in (told := reasons(installed, "loops")):
                    break
            assert "it is started again in " in told
    finally:
        lab.output("ip link delete taken-lan")


def test_all_units_removed_at_once_are_a_question_and_stop_nobody(installed: Installed) -> None:
    lab = installed.lab
    with units(installed, {f"g{n}": BARE.format(name=f"g{n}", more="") for n in range(6)}):
        before = installed.pids()
        assert len(before) == 8
        lab.output(
            "mkdir /var/cache/vmhost/kept && cp /etc/vmhost.d/*.toml /var/cache/vmhost/kept && rm /etc/vmhost.d/*"
        )
        try:
            lab.wait_until(lambda: installed.status()["agent"]["approvals"] != [], "the question")
            (approval,) = installed.status()["agent"]["approvals"]
            assert f"`vmhost approve {approval['id']}` stops it" in reasons(installed, "web")
            assert installed.pids() == before
        finally:
            lab.output("mv /var/cache/vmhost/kept/* /etc/vmhost.d/ && rmdir /var/cache/vmhost/kept")
        lab.wait_until(lambda: installed.status()["agent"]["approvals"] == [], "the question to be withdrawn")
        installed.wait_settled()
        assert installed.pids() == before


def test_a_guest_that_powers_itself_off_while_no_agent_runs_is_treated_by_its_policy(installed: Installed) -> None:
    lab = installed.lab
    lab.output("vmhost start db")
    installed.wait_settled()
    before, boot = installed.pids(), installed.wait_for_guest()
    with network_namespace_of(lab.init_pid):
        lab.output(f"systemctl stop {UNIT}")
        for address in (HOST, OF_DB):
            tell_guest(address, "poweroff -f")
    lab.output(f"systemctl start {UNIT}")
    lab.output("vmhost wait stopped db --timeout 30")
    try:
        # restart = "always"; it may take its time to power itself off
        lab.wait_until(lambda: installed.guest_boot() not in {"", boot}, "another boot to answer", GUEST_TIMEOUT_S)
        (db,) = [vm for vm in installed.status()["vms"] if vm["name"] == "db"]
        assert (db["state"], db["pid"]) == ("off", None)  # restart = "on-failure"
        assert 'does not answer an end by "guest_shutdown"' in reasons(installed, "db")
        lab.output("vmhost start db")
        installed.wait_settled()
        assert not set(installed.pids().values()) & set(before.values())
    finally:
        lab.output("vmhost start db")
