"""From views of the unit directory to what is wanted, with a real state directory beneath."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.memory import Memory
from agent.host.statedir import StateDirectory
from agent.host.unitdir import DirectoryView
from agent.host.unitdir.reading import UnitContent
from agent.runtime.keeper import Keeper
from agent.runtime.units import Units
from tests.integration.conftest import bare_vm


def view_of(number: int, folder: Path, *names: str) -> DirectoryView:
    paths = [str(folder / f"{name}.toml") for name in names]
    files = {path: UnitContent(path, bare_vm(name).encode()) for path, name in zip(paths, names, strict=True)}
    return DirectoryView(True, "", files, number)


async def test_two_views_that_are_taken_at_once_are_kept_one_after_the_other(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    state.open()
    units = Units(tmp_path, state, Keeper(state, Memory(str(uuid.uuid4()))), "machine", lambda: None)
    names: list[str] = []
    for number in range(20):
        names.append(f"g{number}")
        await asyncio.gather(*(units.take(view_of(number, tmp_path, *names)) for _ in range(4)))
        assert units.unsaved == ""
    assert state.good_units().keys() == {f"{name}.toml" for name in names}
    state.close()


async def test_a_view_that_is_older_than_the_last_one_changes_nothing(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    state.open()
    changes: list[int] = []
    units = Units(tmp_path, state, Keeper(state, Memory(str(uuid.uuid4()))), "machine", lambda: changes.append(1))
    await units.take(view_of(2, tmp_path, "web", "mail"))
    await units.take(view_of(1, tmp_path, "web"))
    assert units.desired.vms.keys() == {"web", "mail"}
    assert len(changes) == 1
    state.close()


async def test_nobody_sees_units_that_are_loaded_but_want_nothing_yet(tmp_path: Path) -> None:
    """A plan for that moment would take every guest for unwanted."""
    state = StateDirectory(tmp_path / "state")
    state.open()
    units = Units(tmp_path, state, Keeper(state, Memory(str(uuid.uuid4()))), "machine", lambda: None)
    taking = asyncio.create_task(units.take(view_of(1, tmp_path, "web")))
    while not taking.done():
        assert bool(units.desired.vms) == units.loaded
        await asyncio.sleep(0)
    assert units.loaded
    state.close()


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_file_that_is_renamed_and_broken_at_once_keeps_its_guests(tmp_path: Path, restarted: bool) -> None:
    state = StateDirectory(tmp_path / "state")
    state.open()
    units = Units(tmp_path, state, Keeper(state, Memory(str(uuid.uuid4()))), "machine", lambda: None)
    await units.take(view_of(1, tmp_path, "web", "mail"))
    before = units.desired.vms["web"]
    if restarted:
        units = Units(tmp_path, state, Keeper(state, state.load()[0]), "machine", lambda: None)
        await units.load_last_good()
    moved = UnitContent(str(tmp_path / "moved.toml"), b"[vm.web]\nmemory = \n")
    mail = view_of(2, tmp_path, "mail")
    broken = replace(mail, files={**mail.files, moved.path: moved})
    for _ in range(2):  # the second time it is its own last good version
        await units.take(broken)
        assert replace(units.desired.vms["web"], file=before.file) == before
        assert [file.state for file in units.files if file.path == moved.path] == ["held"]
    assert state.good_units().keys() == {"mail.toml", "moved.toml"}
    await units.take(replace(mail, number=3))
    assert units.desired.vms.keys() == {"mail"}
    state.close()
