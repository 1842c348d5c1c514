"""`vmhost plan`, `why` and `show`, asked of a real agent with real bridges, taps and QEMUs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, bare_vm
from tests.integration.waiting import wait_for
from tests.netns import ip

NIC = '[vm.{name}.nic.lan]\nbridge = "br-test"'


def demo_like(folder: Path) -> dict[str, str]:
    """A bridge, a guest with a disk, and a guest that starts after it, as in units/demo."""
    disk = f'[vm.web.disk.data]\npath = "{folder}/web.qcow2"\nsize = "64M"\n'
    return {
        "network.toml": BRIDGE,
        "web.toml": bare_vm("web", disk + NIC.format(name="web")),
        "db.toml": bare_vm("db", 'after = ["vm:web"]\n' + NIC.format(name="db")),
    }


FROM_NOTHING = [
    "make bridge br-test",
    "create {folder}/web.qcow2 (qcow2, 67108864 bytes)",
    "make tap web-lan in br-test",
    "launch QEMU for web",
    "let web run",
    "make tap db-lan in br-test",
    "launch QEMU for db",
    "let db run",
]


def planned(agent: AgentProcess, *files: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(agent.vmhost("plan", "--json", *map(str, files)))
    return answer


def texts(plan: dict[str, Any]) -> list[str]:
    return [step["text"] for step in plan["actions"]]


def reasons(agent: AgentProcess, name: str) -> dict[str, str]:
    """By topic; several of one topic joined."""
    (found,) = json.loads(agent.vmhost("why", name, "--json"))["found"]
    told: dict[str, str] = {}
    for one in found["reasons"]:
        told[one["topic"]] = f"{told[one['topic']]} | {one['text']}" if one["topic"] in told else one["text"]
    return told


def test_a_plan_names_every_action_before_and_none_after_and_an_edit_s_alone(agent: AgentProcess) -> None:
    agent.start()
    new = agent.folder / "new"
    new.mkdir()
    units = demo_like(agent.folder)
    for name, text in units.items():
        (new / name).write_text(text)
    before = planned(agent, new)
    in_order = [text.format(folder=agent.folder) for text in FROM_NOTHING]
    assert sorted(texts(before)) == sorted(in_order)
    assert [text for text in texts(before) if text.startswith(("make bridge", "launch", "let"))] == [
        text for text in in_order if text.startswith(("make bridge", "launch", "let"))
    ]
    assert {step["disruption"] for step in before["actions"]} == {"none"}
    assert [Path(unit["file"]).parent for unit in before["units"]] == [agent.units] * 3
    assert agent.status()["vms"] == []
    for name, text in units.items():
        agent.drop(name, text)
    agent.vmhost("wait", "settled", "--timeout", "60")
    done = [event["message"].partition(": done in")[0] for event in events(agent) if "outcome" in event["fields"]]
    assert sorted(done) == sorted(texts(before))
    assert planned(agent) == {
        "actions": [], "approvals": [], "complete": True, "conditions": [], "pending": [], "units": []
    }  # fmt: skip
    assert agent.vmhost("plan") == "nothing to do\n"
    edited = new / "network.toml"
    edited.write_text(BRIDGE + 'mtu = 1400\nports = ["eth7"]\n')
    plan = planned(agent, edited)
    assert sorted(texts(plan)) == [
        "db takes over nic.lan.mtu while it runs",
        "have a reboot of db apply what waits for it",
        "have a reboot of web apply what waits for it",
        "set mtu of br-test (mtu)",
        "set mtu of db-lan (mtu)",
        "set mtu of web-lan (mtu)",
        "web takes over nic.lan.mtu while it runs",
    ]
    told = [(one["vm"], one["key"], one["from"], one["to"]) for one in plan["pending"]]
    assert told == [(name, "nic.lan.mtu", "1500", "1400") for name in ("db", "web")]
    assert [one["type"] for one in plan["conditions"]] == ["PortMissing"]
    edited.write_text(units["db.toml"].replace("stop-timeout", "enabled = false\nstop-timeout"))
    edited.rename(new / "db.toml")
    plan = planned(agent, new / "db.toml")
    assert [(step["text"], step["disruption"]) for step in plan["actions"]] == [
        ("shut db down within 1 s (unwanted)", "stop")
    ]
    plan = json.loads(agent.vmhost("plan", "--json", "--without", "db.toml"))
    assert texts(plan) == ["shut db down within 1 s (unwanted)", "delete db-lan"]
    assert planned(agent)["actions"] == []


def uuid_of(number: int) -> str:
    return f'uuid = "00000000-0000-4000-8000-00000000000{number}"\n'


def pids(agent: AgentProcess) -> dict[str, int | None]:
    return {vm["name"]: vm["pid"] for vm in agent.status()["vms"]}


@contextmanager
def at_once(agent: AgentProcess) -> Iterator[None]:
    """What is done to several files in the block is one edit to the agent: it stands still meanwhile."""
    assert agent.process is not None
    agent.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        agent.process.send_signal(signal.SIGCONT)


def done_since(agent: AgentProcess, seen: int) -> list[str]:
    """What was carried out after the first events, in the words of a plan."""
    later = [event for event in events(agent)[seen:] if "outcome" in event["fields"]]
    return [event["message"].partition(": done in")[0] for event in later]


def test_names_that_move_on_are_planned_as_they_are_carried_out(agent: AgentProcess) -> None:
    agent.drop("all.toml", "".join(bare_vm(name, uuid_of(n)) for n, name in enumerate(("off", "on", "again"))))
    agent.start()
    agent.vmhost("stop", "off")
    agent.vmhost("restart", "again")
    agent.vmhost("wait", "settled")
    before = pids(agent)
    new = agent.folder / "all.toml"
    # Whom the operator stopped stays stopped, and whoever gets a name is not restarted for its former bearer.
    new.write_text("".join(bare_vm(name, uuid_of(n)) for name, n in {"shop": 0, "again": 1, "off": 2}.items()))
    plan, seen = planned(agent, new), len(events(agent))
    assert texts(plan) == ["carry again over to its new name off", "carry on over to its new name again"]
    agent.drop("all.toml", new.read_text())
    wait_for(lambda: pids(agent) == {"shop": None, "again": before["on"], "off": before["again"]})
    agent.vmhost("wait", "settled")
    assert done_since(agent, seen) == texts(plan)


def test_a_unit_file_that_is_renamed_and_broken_is_planned_as_it_is_held(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web") + bare_vm("db"))
    agent.start()
    new = agent.folder / "site.toml"
    new.write_text(bare_vm("web", "cpu = 2") + bare_vm("db"))
    plan = json.loads(agent.command("plan", "--json", str(new), "--without", "web.toml").stdout)
    seen = len(events(agent))
    with at_once(agent):
        (agent.units / "web.toml").rename(agent.units / ".web")
        agent.drop("site.toml", new.read_text())
    agent.vmhost("wait", "settled")
    assert [(Path(unit["file"]).name, unit["state"]) for unit in plan["units"]] == [("site.toml", "held")]
    assert [(Path(unit["file"]).name, unit["state"]) for unit in agent.status()["units"]] == [("site.toml", "held")]
    moved = [f"{vm} takes over where its unit is while it runs" for vm in ("db", "web")]
    assert sorted(done_since(agent, seen)) == sorted(texts(plan)) == moved
    assert {condition["type"] for condition in plan["conditions"]} == set()


def test_a_guest_that_moves_to_another_file_is_planned_as_it_stays(agent: AgentProcess) -> None:
    agent.drop("both.toml", bare_vm("web") + bare_vm("db"))
    agent.drop("net.toml", BRIDGE)
    agent.start()
    new = agent.folder / "net.toml"
    for text, state in ((BRIDGE + bare_vm("web", "cpu = 2"), "held"), (BRIDGE + bare_vm("web"), "valid")):
        new.write_text(text)
        (agent.folder / "both.toml").write_text(bare_vm("db"))
        plan = json.loads(agent.command("plan", "--json", str(new), str(agent.folder / "both.toml")).stdout)
        seen = len(events(agent))
        with at_once(agent):
            agent.drop("net.toml", text)
            agent.drop("both.toml", bare_vm("db"))
        agent.vmhost("wait", "settled")
        states = {Path(unit["file"]).name: unit["state"] for unit in plan["units"]}
        assert states == {"net.toml": state, "both.toml": "valid"}
        moved = ["web takes over where its unit is while it runs"] if state == "valid" else []
        assert done_since(agent, seen) == texts(plan) == moved


def events(agent: AgentProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in agent.vmhost("events", "--json").splitlines()]


def test_an_edit_that_needs_a_restart_is_told_as_pending_and_a_mistake_at_its_line(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web"))
    agent.start()
    new = agent.folder / "web.toml"
    new.write_text(bare_vm("web").replace("32M", "48M"))
    plan = planned(agent, new)
    assert [action["action"] for action in plan["actions"]] == ["change-reboot"]
    assert plan["pending"] == [
        {
            "vm": "web",
            "key": "memory",
            "from": "32M",
            "to": "48M",
            "effect": "restart",
            "outage": "restart: down until it has stopped (at most 1 s) and booted again",
        }
    ]
    new.write_text(bare_vm("web").replace("memory", "memroy"))
    done = agent.command("plan", str(new))
    assert done.returncode == 1
    assert f"{agent.units}/web.toml:2:1: error:" in done.stdout
    assert done.stdout.endswith("nothing to do\n")
    new.write_bytes(b'[vm.web]\nmemory = "\xff"\n')
    done = agent.command("plan", str(new))
    assert (done.returncode, f"{agent.units}/web.toml:2:" in done.stdout) == (1, True)
    done = agent.command("plan", str(agent.folder / "web.yaml"))
    assert (done.returncode, "no unit by its name" in done.stderr) == (2, True)


def test_without_an_agent_a_plan_begins_from_nothing_and_says_so(agent: AgentProcess) -> None:
    for name, text in demo_like(agent.folder).items():
        agent.drop(name, text)
    done = agent.command("plan", "--json")
    assert done.returncode == 3
    assert "no agent answers" in done.stderr
    assert "Planned from nothing instead" in done.stderr
    offline = texts(json.loads(done.stdout))
    assert sorted(offline) == sorted(text.format(folder=agent.folder) for text in FROM_NOTHING)


def test_why_tells_of_a_guest_that_is_as_wanted_and_of_one_that_waits(agent: AgentProcess) -> None:
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", "\n" + bare_vm("web", f'[vm.web.disk.root]\npath = "{agent.folder}/none.qcow2"'))
    agent.drop("db.toml", bare_vm("db", 'after = ["vm:web"]'))
    agent.drop("ok.toml", bare_vm("ok", NIC.format(name="ok")))
    agent.start()
    fine = reasons(agent, "ok")
    assert fine["unit"] == f"{agent.units}/ok.toml:1 defines it"
    assert "running: QEMU runs as pid" in fine["now"]
    assert fine["next"] == "nothing: it is as its unit says"
    assert "launch QEMU for ok: done" in fine["event"]
    waiting = reasons(agent, "db")
    assert waiting["wanted"] == 'it is to run, after web; restart = "on-failure" says what follows an end'
    assert "Waiting: waits for vm web to run" in waiting["condition"]
    assert "vm/web/disk/root in turn: DiskMissing" in waiting["condition"]
    assert waiting["next"] == "it waits for vm web to run, and starts by itself as soon as that is so"
    missing = reasons(agent, "web")
    assert missing["unit"] == f"{agent.units}/web.toml:2 defines it"
    assert missing["next"].startswith("it goes on by itself as soon as this is mended")
    assert reasons(agent, "br-test")["next"] == "nothing: it is as its unit says"
    done = agent.command("why", "wbe")
    assert (done.returncode, 'did you mean "web"?' in done.stderr) == (1, True)


def test_why_tells_of_crashes_and_of_what_the_operator_stopped(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web", 'restart = "never"'))
    agent.start()
    os.kill(agent.vm("web")["pid"], signal.SIGKILL)
    agent.vmhost("wait", "stopped", "web")
    crashed = reasons(agent, "web")
    assert crashed["wanted"] == 'restart = "never" does not answer an end by "killed", so it stays off'
    assert crashed["end"].startswith("it ended once: killed after ")
    assert crashed["next"] == "`vmhost start web` starts it"
    agent.vmhost("start", "web")
    agent.vmhost("stop", "web")
    assert reasons(agent, "web")["wanted"] == "the operator stopped it, and that holds until `vmhost start`"


def test_why_tells_a_crash_loop_and_when_the_next_start_is(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web"))
    agent.start()
    told: dict[str, str] = {}
    for _ in range(9):
        agent.vmhost("wait", "running", "web")
        pid = agent.vm("web")["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: agent.vm("web")["pid"] != pid)  # type: ignore[misc]  # it was noticed
        told = reasons(agent, "web")
        if "CrashLoop" in told.get("condition", ""):
            break
    assert ", last by killed; see its qemu.log" in told["condition"]
    assert " times without a stable run in between: killed after" in told["end"]
    assert told["wanted"] == 'restart = "on-failure" answers its end by "killed", so it is to run again'
    assert told["next"].startswith("it is started again in ")


def test_why_tells_of_conflicts_in_files_and_in_the_kernel(agent: AgentProcess) -> None:
    agent.drop("net.toml", BRIDGE)
    agent.drop("a.toml", bare_vm("a", f'{NIC.format(name="a")}\nmac = "02:00:00:00:00:01"'))
    agent.start()
    agent.drop("b.toml", bare_vm("b", f'{NIC.format(name="b")}\nmac = "02:00:00:00:00:01"'))
    ip("link add c-lan type bridge")
    agent.drop("c.toml", bare_vm("c", NIC.format(name="c")))
    wait_for(lambda: len(agent.status()["units"]) == 4)
    agent.vmhost("wait", "settled")
    newcomer = reasons(agent, "b")
    assert newcomer["unit"].startswith(f"{agent.units}/b.toml:1 defines it, but nothing of a file with mistakes begins")
    assert f"{agent.units}/b.toml:7:1: error:" in newcomer["unit"]
    assert newcomer["next"] == f"mend {agent.units}/b.toml; it begins by itself then"
    foreign = reasons(agent, "c")
    assert "tap/c/lan: Conflict: a link c-lan exists that is not ours" in foreign["condition"]
    assert "a link c-lan exists that is not ours" in foreign["next"]


def test_why_and_show_tell_of_a_guest_that_is_held(agent: AgentProcess) -> None:
    text = bare_vm("web")
    agent.drop("web.toml", text)
    agent.start()
    agent.drop("web.toml", text.replace('"32M"', '"48M"').replace("accel", "accle"))
    wait_for(lambda: agent.status()["units"][0]["state"] == "held")
    held = reasons(agent, "web")
    assert held["unit"].startswith(f"{agent.units}/web.toml:1 defines it and has mistakes, so its last good version")
    assert held["next"] == f"mend {agent.units}/web.toml; what it says now takes effect then"
    (found,) = json.loads(agent.vmhost("show", "web", "--json"))["found"]
    (unit,) = found["units"]
    assert (unit["state"], unit["last_good"], found["runs"]) == ("held", text, True)
    assert [line for line in unit["diff"] if line.startswith(("-", "+"))][2:] == [
        '-memory = "32M"', '-accel = "tcg"', '+memory = "48M"', '+accle = "tcg"'
    ]  # fmt: skip
    agent.drop("web.toml", text.replace('"32M"', '"48M"'))
    agent.vmhost("wait", "settled")
    (found,) = json.loads(agent.vmhost("show", "web", "--json"))["found"]
    assert [one for one in found["settings"] if one["differs"]] == [
        {"key": "memory", "unit": "48M", "runs": "32M", "differs": True}
    ]
    shown = agent.vmhost("show", "web")
    assert 'memory = "48M"' in shown
    assert "1 of " in shown
    assert "its own reboot, or `vmhost restart web`, applies what waits for it" in reasons(agent, "web")["next"]


def test_why_tells_how_to_answer_a_question(agent: AgentProcess) -> None:
    for number in range(5):
        agent.drop(f"g{number}.toml", bare_vm(f"g{number}"))
    agent.start()
    with at_once(agent):
        for path in agent.units.glob("*.toml"):
            path.unlink()
    wait_for(lambda: agent.status()["agent"]["approvals"])
    (approval,) = agent.status()["agent"]["approvals"]
    told = reasons(agent, "g0")
    assert told["unit"] == "no unit file names it any more"
    assert told["next"] == f"`vmhost approve {approval['id']}` stops it; bringing its unit back keeps it"
    plan = planned(agent)
    assert (plan["actions"], [one["id"] for one in plan["approvals"]]) == ([], [approval["id"]])
