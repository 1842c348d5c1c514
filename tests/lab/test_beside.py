"""Both ways to run a command beside the agent hold to one contract: as a child here, as a service in a lab."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.contract.beside_cases import CASES, run_case
from tests.lab.service import Installed

pytestmark = pytest.mark.timeout(600)  # the first one boots the lab and its guests

PROGRAM = "/var/tmp/beside_cases.py"
PYTHON = "/opt/vmhost/bin/python3 -I"


@pytest.mark.parametrize("case", CASES)
async def test_as_a_child(case: str, tmp_path: Path) -> None:
    await run_case(case, tmp_path, as_units=False)


@pytest.mark.parametrize("case", CASES)
def test_as_a_service(case: str, installed: Installed) -> None:
    lab = installed.lab
    lab.copy_in(Path(__file__).parent.parent / "contract/beside_cases.py", PROGRAM)
    assert lab.output(f"{PYTHON} {PROGRAM} {case} /run/vmhost") == ""


def test_the_doctor_reads_iptables_legacy_within_its_confinement(installed: Installed) -> None:
    lab = installed.lab
    lab.write("/etc/vmhost.d/nat.toml", b'[bridge.br-nat]\naddresses = ["10.56.0.1/24"]\nnat = true\n')
    try:
        installed.wait_settled()
        assert json.loads(lab.output("vmhost doctor --json")) == {"findings": [], "unexamined": []}
        lab.output("iptables-legacy -P FORWARD DROP")
        answer = json.loads(lab.output("vmhost doctor --json", check=False))
        assert answer["unexamined"] == []
        assert {one["what"] for one in answer["findings"] if one["finding"] == "ForeignDrop"} == {
            "policy drop of chain FORWARD of table ip filter (iptables-legacy)"
        }
        lab.output("mv /usr/sbin/xtables-legacy-multi /usr/sbin/away")
        unexamined = {
            one["finding"] for one in json.loads(lab.output("vmhost doctor --json", check=False))["unexamined"]
        }
        assert unexamined == {"ForeignDrop", "BridgeFiltered"}
    finally:
        lab.output("mv /usr/sbin/away /usr/sbin/xtables-legacy-multi", check=False)
        lab.output("iptables-legacy -P FORWARD ACCEPT; rm /etc/vmhost.d/nat.toml", check=False)
        installed.wait_settled()
