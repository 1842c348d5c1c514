"""The installed service, as an operator sees it from a shell of the lab."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from tests.lab.machine import Lab

UNIT = "vmhost-agent.service"
GUEST_ADDRESS = "192.168.77.10"
GUEST_TIMEOUT_S = 120.0


class Machine(Protocol):
    """What both labs can do: tests/lab/machine.py and tests/lab/virtual.py say how."""

    def try_run(self, command: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]: ...
    def output(self, command: str, *, check: bool = True, timeout_s: float = ...) -> str: ...
    def copy_in(self, source: Path, target: str) -> None: ...
    def write(self, target: str, data: bytes) -> None: ...
    def wait_until(self, holds: Callable[[], bool], what: str, timeout_s: float = ...) -> None: ...


class Service:
    """The package in either lab; `patience` is how many times longer everything may take there."""

    def __init__(self, lab: Machine, patience: int = 1) -> None:
        self.lab = lab
        self._patience = patience

    def install(self, package: Path) -> str:
        """Install a package, as `apt install ./FILE` does where all dependencies are there; what was said."""
        self.lab.copy_in(package, "/var/tmp/vmhost.deb")
        return self.lab.output(
            "DEBIAN_FRONTEND=noninteractive dpkg --force-unsafe-io --install /var/tmp/vmhost.deb 2>&1",
            timeout_s=120 * self._patience,
        )

    def property(self, name: str) -> str:
        """What systemd says of the unit."""
        return self.lab.output(f"systemctl show --property={name} --value {UNIT}").strip()

    def status(self) -> dict[str, Any]:
        """`vmhost status --json`."""
        answer: dict[str, Any] = json.loads(self.lab.output("vmhost status --json"))
        return answer

    def pids(self) -> dict[str, int]:
        """The pid of each guest's QEMU, as the agent says, which must be that of a QEMU that runs."""
        found = {vm["name"]: int(vm["pid"]) for vm in self.status()["vms"]}
        for name, pid in found.items():
            command = self.lab.output(f"tr '\\0' ' ' </proc/{pid}/cmdline")
            assert "qemu-system" in command
            assert f"guest={name}" in command
        return found

    def guest_boot(self) -> str:
        """Which boot of the first guest answers over TCP (tests/guest/README.md); empty while none does."""
        ask = f"timeout 5 bash -c 'exec 3<>/dev/tcp/{GUEST_ADDRESS}/7777 && head -n 1 <&3'"
        return self.lab.output(ask, check=False).partition("boot=")[2].strip()

    def wait_for_guest(self) -> str:
        """Wait until the first guest answers; which boot of it does."""
        answers: list[str] = []

        def answered() -> bool:
            answers.append(self.guest_boot())
            return answers[-1] != ""

        self.lab.wait_until(answered, "the guest to answer", GUEST_TIMEOUT_S)
        return answers[-1]

    def wait_settled(self) -> None:
        """Wait for the agent, also one that is only starting, to have done what there is to do."""
        self.wait("settled")

    def wait(self, *words: str) -> None:
        """`vmhost wait`, for long enough."""
        most_s = 30 * self._patience
        self.lab.output(f"vmhost wait {' '.join(words)} --timeout {most_s}", timeout_s=most_s + 10 * self._patience)

    def wait_gone(self, names: set[str]) -> None:
        """Wait for guests without a unit to be gone; approves their end, which is asked for where many end at once."""
        self.lab.wait_until(lambda: self._are_gone(names), f"{', '.join(sorted(names))} to be gone")
        self.wait_settled()

    def _are_gone(self, names: set[str]) -> bool:
        status = self.status()
        for approval in status["agent"]["approvals"]:
            self.lab.output(f"vmhost approve {approval['id']}", check=False)
        return not names & {vm["name"] for vm in status["vms"]}

    def events(self) -> list[dict[str, Any]]:
        """What happened since the present agent began."""
        return [json.loads(line) for line in self.lab.output("vmhost events --json").splitlines()]


class Installed(Service):
    """The package in a lab of systemd-nspawn."""

    lab: Lab

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
