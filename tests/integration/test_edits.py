"""What an edit of the unit directory does to running guests, and above all what it does not."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, bare_vm
from tests.integration.waiting import ip_links, wait_for
from tests.netns import ip, ip_output


def pids(agent: AgentProcess) -> dict[str, int | None]:
    return {vm["name"]: vm["pid"] for vm in agent.status()["vms"]}


def unit_states(agent: AgentProcess) -> dict[str, str]:
    return {Path(unit["file"]).name: unit["state"] for unit in agent.status()["units"]}


def conditions(agent: AgentProcess, kind: str, name: str) -> dict[str, dict[str, Any]]:
    found = agent.told(kind, name)
    return {condition["type"]: condition for condition in found["conditions"]}


def remove_all_units(agent: AgentProcess) -> None:
    """As `rm *.toml` does it: all before the agent takes the first for gone, however slowly this goes."""
    assert agent.process is not None
    agent.process.send_signal(signal.SIGSTOP)
    for path in agent.units.glob("*.toml"):
        path.unlink()
    agent.process.send_signal(signal.SIGCONT)


def test_rm_of_everything_stops_nobody_and_asks_once(agent: AgentProcess) -> None:
    for number in range(8):
        agent.drop(f"g{number}.toml", bare_vm(f"g{number}"))
    agent.start()
    before = pids(agent)
    assert len(before) == 8
    assert None not in before.values()
    remove_all_units(agent)
    wait_for(lambda: agent.status()["agent"]["approvals"])
    agent.vmhost("wait", "settled")
    assert pids(agent) == before
    (approval,) = agent.status()["agent"]["approvals"]
    assert sorted(approval["guests"]) == sorted(before)
    agent.kill()
    agent.start()
    assert pids(agent) == before
    assert agent.command("approve", "00000000").returncode == 1
    agent.vmhost("approve", approval["id"])
    wait_for(lambda: pids(agent) == {})
    assert agent.status()["agent"]["approvals"] == []


def test_an_invalid_file_holds_its_guest_on_the_last_good_version(agent: AgentProcess) -> None:
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", bare_vm("web", '[vm.web.nic.lan]\nbridge = "br-test"'))
    agent.start()
    before = pids(agent)
    agent.drop("web.toml", bare_vm("web", 'descripton = "x"\n[vm.web.nic.lan]\nbridge = "br-tset"'))
    wait_for(lambda: unit_states(agent)["web.toml"] == "held")
    assert pids(agent) == before
    (unit,) = [unit for unit in agent.status()["units"] if unit["state"] == "held"]
    assert [(error["line"], error["hint"]) for error in unit["errors"]] == [
        (5, 'did you mean "description"?'),
        (7, 'did you mean "br-test"?'),
    ]
    agent.kill()
    agent.start()
    assert pids(agent) == before
    ip("link del web-lan")
    wait_for(lambda: "web-lan" in ip_links())
    agent.drop("web.toml", bare_vm("web", '[vm.web.nic.lan]\nbridge = "br-test"'))
    wait_for(lambda: unit_states(agent)["web.toml"] == "valid")
    assert pids(agent) == before


def test_a_bridge_that_guests_use_stays_when_its_unit_goes(agent: AgentProcess) -> None:
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", bare_vm("web", '[vm.web.nic.lan]\nbridge = "br-test"'))
    agent.start()
    before = pids(agent)
    (agent.units / "net.toml").unlink()
    wait_for(lambda: unit_states(agent) == {"web.toml": "held"})
    agent.vmhost("wait", "settled")
    assert pids(agent) == before
    assert "StillNeeded" in conditions(agent, "bridges", "br-test")
    ip("link set br-test down")
    wait_for(lambda: "UP" in json.loads(ip_output("-j link show br-test"))[0]["flags"])
    (agent.units / "web.toml").unlink()
    wait_for(lambda: "br-test" not in ip_links())
    assert pids(agent) == {}


def test_a_directory_that_vanishes_means_nothing_and_one_that_comes_back_is_read(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web"))
    agent.start()
    before = pids(agent)
    aside = agent.units.with_name("aside")
    agent.units.rename(aside)
    agent.vmhost("wait", "settled")
    assert pids(agent) == before
    agent.kill()
    agent.start()
    assert pids(agent) == before
    shutil.copy(aside / "web.toml", aside / "other.toml")
    (aside / "other.toml").write_text(bare_vm("other"))
    aside.rename(agent.units)
    wait_for(lambda: set(pids(agent)) == {"web", "other"})
    assert pids(agent)["web"] == before["web"]


def test_a_config_map_flip_is_read(agent: AgentProcess) -> None:
    first, second = agent.units / "..v1", agent.units / "..v2"
    for folder, name in ((first, "one"), (second, "two")):
        folder.mkdir()
        (folder / "guests.toml").write_text(bare_vm(name))
    (agent.units / "..data").symlink_to("..v1")
    (agent.units / "guests.toml").symlink_to("..data/guests.toml")
    agent.start()
    assert set(pids(agent)) == {"one"}
    (agent.units / "..new").symlink_to("..v2")
    (agent.units / "..new").rename(agent.units / "..data")
    wait_for(lambda: {n for n, pid in pids(agent).items() if pid} == {"two"})


def test_foreign_links_stay_and_adoption_takes_them(agent: AgentProcess) -> None:
    ip("link add br-test type bridge", "link set br-test mtu 1400", "link add eth9 type veth peer name far9")
    before = ip_output("-d -j link show br-test")
    agent.drop("net.toml", '[bridge.br-test]\nports = ["eth9"]\naddresses = ["10.77.0.1/24"]\n')
    agent.start()
    assert "Conflict" in conditions(agent, "bridges", "br-test")
    assert ip_output("-d -j link show br-test") == before
    agent.drop("net.toml", '[bridge.br-test]\nadopt = true\nports = ["eth9"]\naddresses = ["10.77.0.1/24"]\n')
    wait_for(lambda: conditions(agent, "bridges", "br-test") == {})
    agent.vmhost("wait", "in-sync")
    assert master_of("eth9") == "br-test"


def master_of(link: str) -> str | None:
    master = json.loads(ip_output(f"-j link show {link}"))[0].get("master")
    return None if master is None else str(master)


def test_ports_are_enslaved_when_they_come_and_never_cut_off(agent: AgentProcess) -> None:
    agent.drop("net.toml", '[bridge.br-test]\nports = ["eth9", "eth8"]\n')
    ip("link add eth8 type veth peer name far8", "addr add 192.0.2.9/24 dev eth8")
    agent.start()
    told = {c["reason"] for c in conditions(agent, "bridges", "br-test").values()}
    assert {"PortMissing", "PortAddressed"} <= told
    for _ in range(2):
        ip("link add eth9 type veth peer name far9")
        wait_for(lambda: master_of("eth9") == "br-test")
        ip("link del eth9")
    assert master_of("eth8") is None
    ip("addr flush dev eth8")
    wait_for(lambda: master_of("eth8") == "br-test")
    agent.drop("net.toml", '[bridge.br-test]\nports = ["eth9"]\n')
    wait_for(lambda: master_of("eth8") is None)


def test_a_torn_state_file_is_kept_aside_and_rebuilt_from_what_runs(agent: AgentProcess) -> None:
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", bare_vm("web", '[vm.web.nic.lan]\nbridge = "br-test"'))
    agent.start()
    before, uuid = pids(agent), agent.vm("web")["uuid"]
    agent.kill()
    state = agent.folder / "state" / "state.toml"
    state.write_bytes(state.read_bytes()[:40] + b"\x00torn")
    agent.start()
    assert pids(agent) == before
    assert agent.vm("web")["uuid"] == uuid
    assert agent.vm("web")["pending"] == []
    assert list(state.parent.glob("state.toml.broken-*"))


def test_the_second_agent_names_the_first_and_leaves(agent: AgentProcess) -> None:
    agent.start()
    second = AgentProcess(agent.folder)
    second.start(settle=False)
    assert second.process is not None
    assert second.process.wait(60) == 1
    assert agent.process is not None
    assert f"pid {agent.process.pid}" in (agent.folder / "agent.log").read_text()


def test_what_was_asked_of_a_guest_goes_with_it_to_its_new_name(agent: AgentProcess) -> None:
    ids = {name: f"00000000-0000-4000-8000-00000000000{n}" for n, name in enumerate(("off", "on", "again"))}
    agent.drop("all.toml", "".join(bare_vm(name, f'uuid = "{uuid}"') for name, uuid in ids.items()))
    agent.start()
    agent.vmhost("stop", "off")
    agent.vmhost("restart", "again")
    agent.vmhost("wait", "settled")
    before = pids(agent)
    moved = {"shop": ids["off"], "again": ids["on"], "off": ids["again"]}
    agent.drop("all.toml", "".join(bare_vm(name, f'uuid = "{uuid}"') for name, uuid in moved.items()))
    expected = {"shop": None, "again": before["on"], "off": before["again"]}
    wait_for(lambda: pids(agent) == expected)
    agent.vmhost("wait", "settled")
    assert pids(agent) == expected
    agent.kill()
    agent.start()
    assert pids(agent) == expected


def test_a_guest_that_moves_to_another_file_with_a_mistake_stays(agent: AgentProcess) -> None:
    agent.drop("both.toml", bare_vm("web") + bare_vm("db"))
    agent.drop("net.toml", BRIDGE)
    agent.start()
    before = pids(agent)
    agent.drop("net.toml", BRIDGE + bare_vm("web", "cpu = 2"))
    agent.drop("new.toml", bare_vm("mail", f'uuid = "{agent.vm("db")["uuid"]}"\ncpu = 2'))
    agent.drop("both.toml", "")
    wait_for(lambda: {vm["name"]: vm["state"] for vm in agent.status()["vms"]} == {"web": "held", "db": "held"})
    assert "net.toml names it and has mistakes" in conditions(agent, "vms", "web")["Held"]["message"]
    assert "new.toml names it and has mistakes" in conditions(agent, "vms", "db")["Held"]["message"]
    agent.kill()
    agent.start()
    assert pids(agent) == before
    agent.drop("net.toml", BRIDGE + bare_vm("web"))
    wait_for(lambda: agent.vm("web")["state"] == "running")
    (agent.units / "new.toml").unlink()
    wait_for(lambda: pids(agent) == {"web": before["web"]})


def test_a_rename_with_the_same_uuid_keeps_the_guest(agent: AgentProcess) -> None:
    uuid = 'uuid = "6f0c3d1e-7d0b-4c5e-9a51-0f8a54b6a001"'
    agent.drop("web.toml", bare_vm("web", uuid))
    agent.start()
    pid = pids(agent)["web"]
    agent.drop("web.toml", bare_vm("shop", uuid))
    wait_for(lambda: pids(agent) == {"shop": pid})
    agent.kill()
    agent.start()
    assert pids(agent) == {"shop": pid}


def test_an_edit_that_needs_a_restart_is_pending_until_it_is_asked_for(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web"))
    agent.start()
    before = pids(agent)
    agent.drop("web.toml", bare_vm("web").replace("32M", "48M"))
    wait_for(lambda: agent.vm("web")["pending"])
    assert agent.pending("web") == [("memory", "32M", "48M")]
    assert pids(agent) == before
    assert agent.command("wait", "in-sync", "--timeout", "0.5").returncode == 1
    agent.vmhost("restart", "web")
    assert agent.vm("web")["pending"] == []
    assert pids(agent) != before


def test_a_qemu_that_will_not_start_is_told_with_its_own_words(agent: AgentProcess) -> None:
    agent.drop("bad.toml", bare_vm("bad", 'cpu = "no-such-cpu"'))
    agent.drop("good.toml", bare_vm("good"))
    agent.start(settle=False)
    agent.vmhost("wait", "running", "good")
    wait_for(lambda: any("no-such-cpu" in c["message"] for c in conditions(agent, "vms", "bad").values()))


def test_two_dozen_guests_come_up_and_the_agent_ends_without_them(agent: AgentProcess) -> None:
    agent.drop("net.toml", BRIDGE)
    for number in range(24):
        agent.drop(f"g{number}.toml", bare_vm(f"g{number}", f'[vm.g{number}.nic.lan]\nbridge = "br-test"'))
    agent.start()
    before = pids(agent)
    assert len(before) == 24
    assert None not in before.values()
    assert agent.terminate() == 0
    agent.start()
    assert pids(agent) == before


def test_limits_of_a_guest_that_is_no_service_are_told_and_hold_up_nothing(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web", 'cpu-weight = 200\ncpu-quota = "50%"'))
    agent.start()
    agent.vmhost("wait", "running", "web")
    before = pids(agent)
    told = conditions(agent, "vms", "web")["LimitsNotApplied"]
    assert told["message"] == (
        "cpu-weight, cpu-quota are not applied: its QEMU was started as a child of the agent, not as a service of its "
        "own; run the agent as vmhost-agent.service, then `vmhost restart web`"
    )
    assert told["resource"] == "vm/web/limits"
    agent.vmhost("wait", "settled")
    assert agent.vm("web")["pending"] == []
    assert told["message"] in agent.vmhost("why", "web")
    agent.drop("web.toml", bare_vm("web"))
    wait_for(lambda: agent.vm("web")["in_sync"])
    assert conditions(agent, "vms", "web") == {}
    assert pids(agent) == before
