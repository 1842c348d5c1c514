"""A state that a later vmhost wrote: this one leaves everything as it is, and says so."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from tests.agent_process import AgentProcess
from tests.integration.conftest import bare_vm


def contents(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every file of the state with what would tell that it was written: its inode and its time."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "agent.lock"]
    return {str(path): (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_a_later_state_is_refused_without_damage_and_guests_run_on(agent: AgentProcess) -> None:
    agent.drop("one.toml", bare_vm("one"))
    agent.start()
    pid = agent.vm("one")["pid"]
    agent.kill()
    state = agent.folder / "state" / "state.toml"
    text = state.read_text()
    later, found = re.subn(r"^version = 1$", "version = 2\nnew-key = 7", text, flags=re.MULTILINE)
    assert found == 1
    state.write_text(later)
    before = contents(agent.folder / "state")
    assert any("units/one.toml" in path for path in before)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(agent.folder / "notify"))
        environment = {**os.environ, "NOTIFY_SOCKET": str(agent.folder / "notify")}
        command = [sys.executable, "-m", "agent", *agent.flags]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)
        told = manager.recv(4096, socket.MSG_DONTWAIT).decode()
    line = f"{state}: written by a later vmhost (state version 2, this one knows 1); install that version again"
    assert (refused.returncode, refused.stdout) == (os.EX_CONFIG, "")  # which keeps systemd from trying again
    assert told == f"STATUS={line}"
    assert refused.stderr == f"vmhost-agent: {line}\n"
    assert contents(agent.folder / "state") == before
    assert Path(f"/proc/{pid}").exists()

    state.write_text(text)
    agent.start()
    assert agent.vm("one")["pid"] == pid
