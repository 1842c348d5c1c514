"""Lease files are followed whatever somebody does with their folder."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from agent.runtime.leases import Leases


@pytest.mark.parametrize("is_file", [False, True])
async def test_a_folder_that_somebody_removed_is_made_and_followed_again(tmp_path: Path, is_file: bool) -> None:
    folder, rung = tmp_path / "leases", asyncio.Event()
    leases = Leases(folder, lambda _: rung.set())
    async with asyncio.TaskGroup() as group:
        leases.follow_in(group)
        shutil.rmtree(folder)
        if is_file:
            folder.write_text("")
            leases.look()
            folder.unlink()
        leases.look()
        folder.joinpath("br0").write_text("0 02:00:00:00:00:01 10.0.0.100 * *\n")
        await asyncio.wait_for(rung.wait(), 30)
        leases.close()
    assert [one.address for one in leases.states()["br0"]] == ["10.0.0.100"]
