"""The state directory on a real file system."""

from __future__ import annotations

from pathlib import Path

from agent.core.memory import Memory
from agent.host.statedir import StateDirectory


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
