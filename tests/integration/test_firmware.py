"""Guests with UEFI: they boot, and keep their variables by their uuid."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST, bare_vm
from tests.integration.waiting import wait_for
from tests.probe import answers_within, run_in_guest

BOOT_S = 180.0
UUID = "5f2f2b9c-7f0c-4e35-9a56-0d7b6a3f0f11"
VARIABLE = "/sys/firmware/efi/efivars/VmhostTest-6b6c4b0e-1d2f-4c58-9d1b-2f6c5d0a7e11"


def unit(name: str, boot_files: str) -> str:
    return (
        f'[vm.{name}]\nuuid = "{UUID}"\nfirmware = "uefi"\nmemory = "256M"\naccel = "tcg"\n{boot_files}'
        f'[vm.{name}.nic.lan]\nbridge = "br-test"\n'
    )


def store(agent: AgentProcess, guest_uuid: str = UUID) -> Path:
    return agent.folder / "state" / "firmware" / f"{guest_uuid}.fd"


@pytest.mark.timeout(600)
def test_a_variable_outlives_rename_restart_and_unit(agent: AgentProcess, boot_files: str) -> None:
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", unit("web", boot_files))
    agent.start()
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    # The first four bytes are its attributes: non-volatile, for boot services and the running system (UEFI, 8.2).
    assert run_in_guest(GUEST, rf"printf '\007\000\000\000kept' >{VARIABLE} && echo written") == "written\n"
    pid = agent.vm("web")["pid"]
    agent.drop("web.toml", unit("www", boot_files))
    wait_for(lambda: [vm["name"] for vm in agent.status()["vms"]] == ["www"])
    assert agent.vm("www")["pid"] == pid
    agent.vmhost("restart", "www")
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    assert agent.vm("www")["pid"] != pid
    assert run_in_guest(GUEST, f"tail -c 4 {VARIABLE}") == "kept"
    (agent.units / "web.toml").unlink()
    agent.vmhost("wait", "stopped", "www", "--timeout", "110")
    agent.vmhost("wait", "settled", "--timeout", "60")
    assert "VmhostTest".encode("utf-16-le") in store(agent).read_bytes()
    assert store(agent).stat().st_mode & 0o777 == 0o600
    assert store(agent).parent.stat().st_mode & 0o777 == 0o700


def test_variables_that_do_not_fit_are_told_and_waited_for(agent: AgentProcess) -> None:
    uefi = f'uuid = "{UUID}"\nfirmware = "uefi"\n'
    agent.drop("web.toml", bare_vm("web", uefi))
    agent.start()
    agent.drop("db.toml", bare_vm("db"))
    agent.drop("web.toml", bare_vm("web", uefi + "secure-boot = true\n"))
    agent.vmhost("wait", "running", "db", "--timeout", "60")
    wait_for(lambda: agent.pending("web") == [("secure-boot", "false", "true")])
    agent.vmhost("restart", "web", "--no-wait")
    wait_for(lambda: "SecureBootKeysMissing" in conditions(agent))
    assert agent.vm("db")["state"] == "running"
    os.truncate(store(agent), 4096)
    wait_for(lambda: "FirmwareVariablesUnusable" in conditions(agent), 90)
    assert "move it away to begin with new ones" in agent.vmhost("why", "web")
    store(agent).rename(store(agent).with_suffix(".old"))
    agent.vmhost("wait", "running", "web", "--timeout", "110")
    wait_for(lambda: conditions(agent) == set())


def conditions(agent: AgentProcess) -> set[str]:
    return {condition["type"] for condition in agent.vm("web")["conditions"]}
