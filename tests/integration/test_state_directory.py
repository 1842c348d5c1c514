"""The state directory on a real file system."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from agent.core.memory import Memory
from agent.host.statedir import StateDirectory, StateRefusedError


def test_what_a_killed_agent_was_writing_goes_with_the_next_one(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    state.open()
    state.save(Memory("seed"))
    state.save_good_units({"a.toml": b"[vm.a]\n"}, frozenset())
    state.close()
    for folder in (tmp_path / "state", tmp_path / "state" / "units"):
        (folder / ".0123456789abcdef.new").write_bytes(b"half")
    state = StateDirectory(tmp_path / "state")
    state.open()
    assert not list((tmp_path / "state").rglob("*.new"))
    assert (state.load()[0].seed, state.good_units()) == ("seed", {"a.toml": b"[vm.a]\n"})
    state.close()


def test_variables_that_were_being_made_go_and_nothing_else_of_a_guest(tmp_path: Path) -> None:
    firmware = tmp_path / "firmware"
    firmware.mkdir()
    guest, unfinished = "6f1b2a3c-0000-4000-8000-000000000001.fd", f".{uuid.uuid4()}.fd.{uuid.uuid4().hex}"
    kept = [guest, f"{guest}.bak", f".{guest}.swp", f".{guest}.{'g' * 32}", unfinished[1:]]
    for name in (unfinished, *kept):
        (firmware / name).write_bytes(b"half")
    first = StateDirectory(tmp_path)
    first.open()
    assert {path.name for path in firmware.iterdir()} == set(kept)
    (firmware / unfinished).write_bytes(b"by the agent that runs")
    with pytest.raises(StateRefusedError):
        StateDirectory(tmp_path).open()
    assert (firmware / unfinished).exists()
    first.close()


def test_what_did_not_change_is_not_written_again(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    state.open()
    state.save(Memory("seed"))
    state.close()
    path = tmp_path / "state" / "state.toml"
    written = path.stat().st_ino
    state = StateDirectory(tmp_path / "state")
    state.open()
    memory, problem = state.load()
    state.save(memory)
    assert (problem, path.stat().st_ino) == ("", written)
    state.save(Memory("another"))
    assert path.stat().st_ino != written
    state.close()
