"""Both ways to run QEMU hold to one contract: as a child here, as a service in a lab's systemd."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.start_cases import CASES, Ways
from tests.lab.service import Installed
from tests.qemu import short_folder

pytestmark = pytest.mark.timeout(600)  # the first one boots the lab and its guests

PROGRAM = "/var/tmp/start_cases.py"


@pytest.mark.parametrize("case", CASES)
async def test_as_a_child(case: str) -> None:
    with short_folder() as folder:
        await CASES[case](Ways(folder, as_units=False))


@pytest.mark.parametrize("case", CASES)
def test_as_a_service(case: str, installed: Installed) -> None:
    lab = installed.lab
    lab.copy_in(Path(__file__).parent.parent / "contract/start_cases.py", PROGRAM)
    lab.output("mkdir -p /run/start-cases")
    said = lab.output(f"/opt/vmhost/bin/python3 -I {PROGRAM} {case} /run/start-cases")
    assert said == ""
    left = lab.output("systemctl list-units --all --no-legend --plain 'vmhost-vm-start-case*'")
    assert left == ""
