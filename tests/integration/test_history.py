"""`vmhost init`, `history` and `undo`: with a real agent that keeps what was good, and without one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agent.host.statedir import StateDirectory, UnitHistory
from agent.host.statedir.history import KEPT_VERSIONS
from tests.agent_process import AgentProcess
from tests.integration.conftest import bare_vm


def versions(agent: AgentProcess, name: str) -> list[tuple[int, bool, bool]]:
    rows = json.loads(agent.vmhost("history", name, "--json"))
    return [(row["version"], row["good"], row["present"]) for row in rows]


def test_undo_puts_back_what_the_agent_had_found_good(agent: AgentProcess) -> None:
    first, second = bare_vm("web", "cpus = 1"), bare_vm("web", "cpus = 2")
    agent.drop("web.toml", first)
    agent.start()
    agent.drop("web.toml", second)
    agent.vmhost("wait")
    assert versions(agent, "web") == [(1, True, False), (2, True, True)]
    path = agent.units / "web.toml"
    path.chmod(0o640)
    assert agent.vmhost("undo", "web.toml") == f"{path} is version 1 again\n"
    assert (path.read_text(), path.stat().st_mode & 0o777) == (first, 0o640)
    agent.vmhost("wait", "in-sync")  # what waited for a restart waits no more
    assert versions(agent, "web") == [(1, True, True), (2, True, False), (3, True, True)]
    agent.vmhost("undo", "web")
    assert path.read_text() == second, "undo is undone by undo"


def test_a_broken_edit_is_undone_and_kept(agent: AgentProcess) -> None:
    good, broken = bare_vm("web"), "[vm.web]\nmemory = \n"
    agent.drop("web.toml", good)
    agent.start()
    pid = agent.vm("web")["pid"]
    agent.drop("web.toml", broken)
    agent.vmhost("wait")
    assert agent.status()["units"][0]["state"] == "held"
    told = agent.vmhost("undo", "web")
    assert "kept as version 2; `vmhost undo web.toml --to 2` brings it back\n" in told
    agent.vmhost("wait", "in-sync")
    assert (agent.vm("web")["pid"], (agent.units / "web.toml").read_text()) == (pid, good)
    assert "set aside by undo" in agent.vmhost("history", "web")
    agent.vmhost("undo", "web", "--to", "2")
    assert (agent.units / "web.toml").read_text() == broken
    assert agent.vmhost("history", "web", "2") == broken


def test_a_deleted_file_comes_back_with_its_guest(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web"))
    agent.start()
    uuid = agent.vm("web")["uuid"]
    (agent.units / "web.toml").unlink()
    agent.vmhost("wait")
    assert agent.status()["vms"] == []
    assert agent.vmhost("history").splitlines()[1].split()[::3] == ["web.toml", "gone"]
    agent.vmhost("undo", "web")
    agent.vmhost("wait", "running", "web", "--timeout", "60")
    assert agent.vm("web")["uuid"] == uuid


def test_init_writes_what_the_agent_starts(agent: AgentProcess) -> None:
    agent.start()
    disk = agent.folder / "web.qcow2"
    done = agent.vmhost("init", "web", "--memory", "32M", "--disk", f"{disk}:1M", "--bridge", "br-test")
    assert done.startswith(f"{agent.units}/web.toml written")
    agent.vmhost("wait", "running", "web", "--timeout", "60")
    assert (agent.vm("web")["nics"][0]["bridge"], disk.exists()) == ("br-test", True)
    before = (agent.units / "web.toml").read_bytes()
    again = agent.command("init", "web")
    assert (again.returncode, again.stderr) == (
        1,
        f"vmhost: {agent.units}/web.toml is there already; it is left as it is\n",
    )
    clash = agent.command("init", "db", "--bridge", "br-test", "--disk", str(disk))
    assert clash.returncode == 1
    assert str(disk) in clash.stderr
    assert [path.name for path in agent.units.iterdir()] == ["web.toml"]
    assert (agent.units / "web.toml").read_bytes() == before
    assert "[bridge" not in agent.vmhost("init", "db", "--bridge", "br-test", "--print")


@pytest.fixture
def offline(tmp_path: Path) -> AgentProcess:
    """Folders without an agent."""
    agent = AgentProcess(tmp_path)
    agent.units.mkdir()
    return agent


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["undo", "web"], "no good version of web.toml is known"),
        (["undo", "/etc/passwd"], "/etc/passwd is not in the unit directory"),
        (["undo", "bd"], 'no good version of bd.toml is known; did you mean "db.toml"?'),
        (["undo", "db", "--to", "7"], "db.toml has no version 7; there are 1"),
        (["undo", "db"], "db.toml never had another good version than the one that is there"),
        (["history", ".hidden"], ".hidden is no name of a unit file"),
        (["init", "../x"], "the name of a guest must be"),
        (["init", "x", "--disk", "x.img"], "--disk must be an absolute path"),
    ],
)
def test_what_cannot_be_had(offline: AgentProcess, words: list[str], why: str) -> None:
    keep(offline, "db.toml", b"[vm.db]\n")
    (offline.units / "db.toml").write_bytes(b"[vm.db]\n")
    done = offline.command(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"vmhost: {why}")
    assert [path.name for path in offline.units.iterdir()] == ["db.toml"]


def keep(agent: AgentProcess, name: str, data: bytes) -> None:
    state = StateDirectory(agent.folder / "state")
    state.open()
    try:
        state.save_good_units({name: data}, frozenset())
    finally:
        state.close()


def test_no_history_yet(offline: AgentProcess) -> None:
    state = offline.folder / "state"
    assert offline.vmhost("history") == f"no unit file has a history in {state} yet\n"
    assert (offline.vmhost("history", "--json"), state.exists()) == ("[]\n", False)


def test_undo_writes_through_a_symlink(offline: AgentProcess) -> None:
    for data in (b"[vm.web]\n", b"[vm.web]\ncpus = 2\n"):
        keep(offline, "web.toml", data)
    target = offline.folder / "web-in-git.toml"
    target.write_bytes(b"[vm.web]\ncpus = 2\n")
    (offline.units / "web.toml").symlink_to(target)
    offline.vmhost("undo", "web")
    assert (offline.units / "web.toml").is_symlink()
    assert target.read_bytes() == b"[vm.web]\n"


def test_only_so_many_versions_are_kept_and_none_is_written_over(offline: AgentProcess) -> None:
    texts = [f"[vm.web]\ncpus = {cpus}\n".encode() for cpus in range(1, KEPT_VERSIONS + 6)]
    for text in texts:
        keep(offline, "web.toml", text)
        keep(offline, "web.toml", text)
    history = UnitHistory(offline.folder / "state")
    assert [version.data for version in history.versions("web.toml")] == texts[-KEPT_VERSIONS:]
    assert history.versions("web.toml")[-1].number == len(texts)


def test_the_good_version_of_a_state_without_histories_is_the_first(offline: AgentProcess) -> None:
    kept = offline.folder / "state" / "units" / "web.toml"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"[vm.web]\n")
    keep(offline, "web.toml", b"[vm.web]\ncpus = 2\n")
    found = UnitHistory(offline.folder / "state").versions("web.toml")
    assert [version.data for version in found] == [b"[vm.web]\n", b"[vm.web]\ncpus = 2\n"]


def test_a_history_that_cannot_be_written_loses_no_good_version(offline: AgentProcess) -> None:
    (offline.folder / "state").mkdir()
    (offline.folder / "state" / "history").touch()
    with pytest.raises(OSError, match="history"):
        keep(offline, "web.toml", b"[vm.web]\n")
    assert (offline.folder / "state" / "units" / "web.toml").read_bytes() == b"[vm.web]\n"


def test_the_oldest_histories_of_many_files_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.host.statedir.history.KEPT_FILES", 2)
    history = UnitHistory(tmp_path)
    for age, name in enumerate(["new.toml", "older.toml", "oldest.toml"]):
        history.set_aside(name, b"x")
        os.utime(tmp_path / "history" / name, (1000 - age, 1000 - age))
    history.forget_oldest()
    assert history.files() == ["new.toml", "older.toml"]
