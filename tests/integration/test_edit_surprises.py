"""Edits that must not do more than they say: files, places and names that change together, with real QEMUs."""

from __future__ import annotations

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, bare_vm
from tests.integration.test_edits import conditions, pids
from tests.integration.waiting import wait_for

MIB = 1 << 20
NIC = '[vm.web.nic.lan]\nbridge = "br-test"\nmac = "02:00:00:00:00:77"\n'


def disk(agent: AgentProcess, file: str = "a.raw", size: str = "1M", of: str = "web.disk.data") -> str:
    return f'[vm.{of}]\npath = "{agent.folder}/{file}"\nsize = "{size}"\n'


def pending(agent: AgentProcess) -> list[str]:
    return [change["key"] for change in agent.vm("web")["pending"]]


def test_a_size_that_comes_with_another_file_leaves_the_present_one_as_it_is(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web", disk(agent)))
    agent.start()
    agent.drop("web.toml", bare_vm("web", f'description = "seen"\n{disk(agent, "b.raw", "3M")}'))
    wait_for(lambda: agent.vm("web")["description"] == "seen")
    agent.vmhost("wait", "settled")
    assert pending(agent) == ["disk.data.path"]
    assert (agent.folder / "a.raw").stat().st_size == MIB
    agent.vmhost("restart", "web", "--timeout", "60")
    assert [(agent.folder / name).stat().st_size for name in ("a.raw", "b.raw")] == [MIB, 3 * MIB]


def test_a_disk_and_a_nic_whose_tables_are_renamed_stay_plugged_until_the_guest_starts_anew(
    agent: AgentProcess,
) -> None:
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", bare_vm("web", NIC + disk(agent)))
    agent.start()
    before = pids(agent)
    agent.drop("web.toml", bare_vm("web", NIC.replace("nic.lan", "nic.wan") + disk(agent, of="web.disk.root")))
    wait_for(lambda: pending(agent) == ["disk.data", "disk.root", "nic.lan", "nic.wan"])
    agent.vmhost("wait", "settled")
    assert (pids(agent), conditions(agent, "vms", "web")) == (before, {})
    agent.vmhost("restart", "web", "--timeout", "60")
    agent.vmhost("wait", "in-sync", "--timeout", "60")


def test_a_disk_that_moves_to_another_guest_is_waited_for_until_the_first_has_let_go(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web", disk(agent)))
    agent.drop("old.toml", bare_vm("old"))
    agent.start()
    agent.drop("web.toml", bare_vm("web"))
    agent.drop("new.toml", bare_vm("new", disk(agent, of="new.disk.data")))
    wait_for(lambda: "Waiting" in conditions(agent, "vms", "new"))
    waits = f"waits for web to let go of {agent.folder}/a.raw, which is its disk data, or to stop"
    assert conditions(agent, "vms", "new")["Waiting"]["message"] == waits
    (agent.units / "new.toml").unlink()
    agent.drop("old.toml", bare_vm("old", disk(agent, of="old.disk.data")))
    wait_for(lambda: "Waiting" in conditions(agent, "vms", "old"))
    agent.vmhost("stop", "web", "--timeout", "60")
    agent.vmhost("wait", "in-sync", "--timeout", "60")
    assert "refused" not in agent.vmhost("events").lower()


def test_a_guest_that_is_to_be_another_one_takes_over_what_is_live_meanwhile(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web"))
    agent.start()
    before = pids(agent)
    uuid = "11111111-2222-4333-8444-555555555555"
    agent.drop("web.toml", bare_vm("web", f'uuid = "{uuid}"\ndescription = "shop"'))
    wait_for(lambda: agent.vm("web")["description"] == "shop" and "uuid" in pending(agent))
    agent.vmhost("wait", "settled")
    assert (pids(agent), conditions(agent, "vms", "web")) == (before, {})
    assert "failed" not in agent.vmhost("events")
    agent.vmhost("restart", "web", "--timeout", "60")
    assert agent.vm("web")["uuid"] == uuid


def test_a_guest_that_starts_anew_does_not_wait_for_what_the_former_one_was_to_let_go_of(agent: AgentProcess) -> None:
    unit = NIC + disk(agent)
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", bare_vm("web", unit))
    agent.start()
    agent.drop("web.toml", bare_vm("web"))
    wait_for(lambda: "Detaching" in conditions(agent, "vms", "web"))
    agent.drop("web.toml", bare_vm("web", unit))
    wait_for(lambda: "Detaching" not in conditions(agent, "vms", "web"))
    before = agent.vmhost("events").splitlines()
    agent.vmhost("restart", "web", "--timeout", "60")
    since = "\n".join(agent.vmhost("events").splitlines()[len(before) :])
    assert "has not let go of" not in since, "it was waited for until DETACH_WITHIN_S were over"
