"""What the agent and a guest may do in a real systemd: the lists of docs/security.md, tried out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.lab.probe import PROGRAM, TRIES
from tests.lab.service import UNIT, Installed

pytestmark = pytest.mark.timeout(600)  # the first one boots the lab and its guests

MOST_EXPOSED = 2.9
FIRST_UID = 1_900_000_000
CAPABILITIES = {"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_NET_ADMIN": 12, "CAP_SYS_PTRACE": 19}
SECURITY = Path(__file__).parent.parent.parent / "docs/security.md"


def test_the_exposure_is_small(installed: Installed) -> None:
    said = installed.lab.output(f"systemd-analyze security --no-pager {UNIT}", check=False)
    (line,) = [line for line in said.splitlines() if "Overall exposure" in line]
    print(line)
    assert float(re.findall(r"[0-9]+\.[0-9]+", line)[0]) <= MOST_EXPOSED


def test_the_agent_has_the_capabilities_that_are_explained_and_no_others(installed: Installed) -> None:
    lines = installed.lab.output(f"cat /proc/{installed.property('MainPID')}/status").splitlines()
    status = dict(line.split(":\t") for line in lines if line.startswith("Cap"))
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == sum(1 << bit for bit in CAPABILITIES.values())
    explained = re.findall(r"^\| `(CAP_[A-Z_]+)` \|", SECURITY.read_text(), re.MULTILINE)
    assert sorted(explained) == sorted(CAPABILITIES)


def test_each_qemu_has_a_user_of_its_own_and_no_rights(installed: Installed) -> None:
    users = set()
    for pid in installed.pids().values():
        lines = installed.lab.output(f"cat /proc/{pid}/status").splitlines()
        status = dict(line.split(":\t") for line in lines if ":\t" in line)
        assert {int(status[key], 16) for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        ids = {*status["Uid"].split(), *status["Gid"].split(), *status["Groups"].split()}
        assert len(ids) == 1, status
        users |= ids
    assert len(users) == 2
    assert min(map(int, users)) >= FIRST_UID


def test_a_probe_in_qemus_place_reaches_nothing_but_its_own_folder(installed: Installed) -> None:
    lab = installed.lab
    lab.copy_in(Path(__file__).with_name("probe.py"), PROGRAM)
    lab.write("/var/cache/vmhost/pid-of-web", str(installed.pids()["web"]).encode())
    lab.output("touch /var/tmp/start_cases.py; mkdir -p /run/vmhost/vms/probe")
    python = "/opt/vmhost/bin/python3 -I"
    assert lab.output(f"{python} {PROGRAM}").splitlines() == list(TRIES)  # root can do all of it
    lab.output("rm -r /run/vmhost/vms/probe")
    try:
        assert lab.output(f"{python} {PROGRAM} run").splitlines() == ["use its own folder"]
    finally:
        lab.output("rm -rf /run/vmhost/vms/probe")
