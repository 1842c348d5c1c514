"""The demo against the installed service: what heals in a namespace of the checkout heals for an operator too."""

from __future__ import annotations

from typing import Any

import pytest

from tests.demo.__main__ import FAULTS, Fault, go_through
from tests.lab.service import UNIT, Installed
from tests.netns import network_namespace_of

pytestmark = pytest.mark.timeout(600)  # the first one boots the lab and its guests


class Shown:
    """The installed service as the demo shows an agent."""

    def __init__(self, installed: Installed) -> None:
        self._installed = installed
        self._killed = ""

    def vm(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(vm for vm in self._installed.status()["vms"] if vm["name"] == name)
        return {**found, "pid": self._installed.lab.host_pid(int(found["pid"]))}

    def kill(self) -> None:
        self._killed = self._installed.property("MainPID")
        self._installed.lab.output(f"systemctl kill --kill-who=main --signal=KILL {UNIT}")

    def start(self) -> None:
        lab, before = self._installed.lab, {"0", self._killed}
        lab.wait_until(lambda: self._installed.property("MainPID") not in before, "systemd to start another agent")
        self._installed.wait_settled()

    def vmhost(self, *words: str) -> str:
        return self._installed.lab.output(f"vmhost {' '.join(words)}")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.title)
def test_each_fault_of_the_demo_heals(installed: Installed, fault: Fault, capsys: pytest.CaptureFixture[str]) -> None:
    installed.wait_for_guest()
    with network_namespace_of(installed.lab.init_pid):
        assert go_through(Shown(installed), fault), capsys.readouterr().out
