"""An agent that dies, or loses what it wrote, at the worst moment: what its successor makes of that."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, bare_vm
from tests.integration.test_edits import pids, remove_all_units, unit_states
from tests.integration.waiting import ip_links, wait_for
from tests.netns import ip

WITH_NIC = '[vm.web.nic.lan]\nbridge = "br-test"'


def state_of(agent: AgentProcess, name: str) -> str:
    return str(agent.vm(name)["state"])


def record_of(agent: AgentProcess, name: str) -> Path:
    return agent.run_dir / "vms" / name / "launch.toml"


def test_a_file_that_is_back_during_its_guests_stop_gets_it_finished_and_started(agent: AgentProcess) -> None:
    unit = bare_vm("web").replace('"1s"', '"10s"')
    agent.drop("web.toml", unit)
    agent.start()
    before = pids(agent)["web"]
    (agent.units / "web.toml").unlink()
    wait_for(lambda: "stopping = true" in record_of(agent, "web").read_text())
    agent.kill()
    agent.drop("web.toml", unit)
    agent.start()
    agent.vmhost("wait", "running", "web", "--timeout", "60")
    assert pids(agent)["web"] not in (before, None)


def test_a_launch_that_was_never_spawned_is_no_end(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web", 'restart = "never"'))
    agent.start()
    agent.vmhost("stop", "web")
    written = (
        f'generation = 0\nreset_generation = 0\ndigest = ""\n[nic_fds]\n[spec]\nname = "web"\n'
        f'uuid = "{agent.vm("web")["uuid"]}"\nuid = 1900000000\n'
    )
    agent.kill()
    record_of(agent, "web").write_text(written)
    agent.start()
    agent.vmhost("start", "web")
    assert state_of(agent, "web") == "running"


def test_a_torn_launch_record_is_made_again_from_what_runs(agent: AgentProcess) -> None:
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", bare_vm("web", WITH_NIC))
    agent.start()
    before, uuid = pids(agent), agent.vm("web")["uuid"]
    agent.kill()
    record_of(agent, "web").write_bytes(record_of(agent, "web").read_bytes()[:30])
    agent.start()
    assert pids(agent) == before
    assert agent.vm("web")["uuid"] == uuid
    ip("link del web-lan")
    wait_for(lambda: "web-lan" in ip_links())
    agent.vmhost("wait", "in-sync", "--timeout", "60")
    assert pids(agent) == before
    (agent.units / "web.toml").unlink()
    wait_for(lambda: pids(agent) == {} and "web-lan" not in ip_links())


def test_a_disk_that_a_lost_state_may_have_known_is_never_made_anew(agent: AgentProcess) -> None:
    disk = agent.folder / "web.qcow2"
    agent.drop("web.toml", bare_vm("web", f'[vm.web.disk.root]\npath = "{disk}"\nsize = "1M"'))
    agent.start()
    assert disk.exists()
    agent.vmhost("stop", "web")
    agent.kill()
    disk.unlink()
    (agent.folder / "state" / "state.toml").unlink()
    agent.start()
    agent.vmhost("wait", "settled")
    assert not disk.exists()
    assert [condition["type"] for condition in agent.vm("web")["conditions"]] == ["DiskMissing"]


def test_an_operator_may_stop_a_guest_that_waits_for_an_approval(agent: AgentProcess) -> None:
    for number in range(5):
        agent.drop(f"g{number}.toml", bare_vm(f"g{number}"))
    agent.start("--max-disruption", "2")
    remove_all_units(agent)
    wait_for(lambda: agent.status()["agent"]["approvals"])
    agent.vmhost("stop", "g0", "--timeout", "60")
    assert set(pids(agent)) == {"g1", "g2", "g3", "g4"}
    refused = agent.command("restart", "g1")
    assert refused.returncode == 1
    assert "no valid unit names g1" in refused.stderr


def test_an_approval_is_for_what_was_asked_then(agent: AgentProcess) -> None:
    for number in range(2):
        agent.drop(f"g{number}.toml", bare_vm(f"g{number}"))
    agent.start("--max-disruption", "0")
    kept = (agent.units / "g0.toml").read_text()
    remove_all_units(agent)
    wait_for(lambda: agent.status()["agent"]["approvals"])
    (approval,) = agent.status()["agent"]["approvals"]
    agent.drop("g0.toml", kept)
    wait_for(lambda: agent.status()["agent"]["approvals"] != [approval])
    assert agent.command("approve", approval["id"]).returncode == 1
    assert set(pids(agent)) == {"g0", "g1"}


def test_names_that_no_file_should_have_are_told_and_the_others_served(agent: AgentProcess) -> None:
    for name in (b"bad\xff.toml", b"a" * 250 + b".toml"):
        with open(os.fsencode(agent.units) + b"/" + name, "w") as file:
            file.write(bare_vm(re.sub(rb"[^a-z]", b"", name)[:9].decode()))
    agent.drop("web.toml", bare_vm("web"))
    agent.start()
    before = pids(agent)
    assert before["web"] is not None
    told = [unit for unit in agent.status()["units"] if unit["errors"]]
    assert [error["problem"] for unit in told for error in unit["errors"]] == ["its name is not UTF-8; rename it"]
    agent.drop("web.toml", "[vm.web")
    wait_for(lambda: unit_states(agent)["web.toml"] == "held")
    agent.kill()
    agent.start()
    assert pids(agent) == before
    assert agent.command("check", str(agent.units)).returncode == 1
