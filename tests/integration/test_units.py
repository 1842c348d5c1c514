"""From views of the unit directory to what is wanted, with a real state directory beneath."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

from agent.core.memory import Memory
from agent.host.statedir import StateDirectory
from agent.host.unitdir import DirectoryView
from agent.host.unitdir.reading import UnitContent
from agent.runtime.keeper import Keeper
from agent.runtime.units import Units
from tests.integration.conftest import bare_vm


def view_of(folder: Path, *names: str) -> DirectoryView:
    paths = [str(folder / f"{name}.toml") for name in names]
    files = {path: UnitContent(path, bare_vm(name).encode()) for path, name in zip(paths, names, strict=True)}
    return DirectoryView(True, "", files)


async def test_two_views_that_are_taken_at_once_are_kept_one_after_the_other(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    state.open()
    units = Units(tmp_path, state, Keeper(state, Memory(str(uuid.uuid4()))), "machine")
    names: list[str] = []
    for number in range(20):
        names.append(f"g{number}")

        async def read() -> DirectoryView:
            return view_of(tmp_path, *names)

        await asyncio.gather(*(units.take_latest(read) for _ in range(4)))
        assert units.unsaved == ""
    assert state.good_units().keys() == {f"{name}.toml" for name in names}
    state.close()
