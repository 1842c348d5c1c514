"""A state that another version of vmhost wrote: a later one is left as it is, an earlier one is migrated."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from agent.core.memory import VERSION
from tests.agent_process import AgentProcess
from tests.integration.conftest import bare_vm

LATER = VERSION + 1
WAY_OUT = "install that version again"


def contents(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every file of the state with what would tell that it was written: its inode and its time."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "agent.lock"]
    return {str(path): (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def as_of(version: int, text: str) -> str:
    """A state as another version would have written it."""
    changed, found = re.subn(rf"^version = {VERSION}$", f"version = {version}", text, flags=re.MULTILINE)
    assert found == 1
    return changed


def test_a_later_state_is_refused_without_damage_and_guests_run_on(agent: AgentProcess) -> None:
    agent.drop("one.toml", bare_vm("one"))
    agent.start()
    pid = agent.vm("one")["pid"]
    agent.kill()
    state = agent.folder / "state" / "state.toml"
    text = state.read_text()
    state.write_text(as_of(LATER, text) + "\n[new-table]\nnew-key = 7\n")
    before = contents(agent.folder / "state")
    assert any("units/one.toml" in path for path in before)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(agent.folder / "notify"))
        environment = {**os.environ, "NOTIFY_SOCKET": str(agent.folder / "notify")}
        command = [sys.executable, "-m", "agent", *agent.flags]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)
        told = manager.recv(4096, socket.MSG_DONTWAIT).decode()
    line = f"{state}: written by a later vmhost (state version {LATER}, this one knows {VERSION}); {WAY_OUT}"
    assert (refused.returncode, refused.stdout) == (os.EX_CONFIG, "")  # which keeps systemd from trying again
    assert told == f"STATUS={line}"
    assert refused.stderr == f"vmhost-agent: {line}\n"
    assert contents(agent.folder / "state") == before
    assert Path(f"/proc/{pid}").exists()

    state.write_text(text)
    agent.start()
    assert agent.vm("one")["pid"] == pid


def test_an_earlier_state_is_migrated_and_kept_and_guests_run_on(agent: AgentProcess) -> None:
    agent.drop("one.toml", bare_vm("one"))
    agent.drop("off.toml", bare_vm("off"))
    agent.start()
    agent.vmhost("stop", "off")
    pid = agent.vm("one")["pid"]
    agent.kill()
    state = agent.folder / "state" / "state.toml"
    earlier = as_of(1, state.read_text())
    state.write_text(earlier)

    agent.start()
    assert agent.vm("one")["pid"] == pid
    assert agent.vm("off")["state"] == "stopped"
    agent.vmhost("hold", "one")
    agent.kill()
    assert f"\nversion = {VERSION}\n" in state.read_text()
    kept = state.with_name("state.toml.v1")
    assert kept.read_text() == earlier
