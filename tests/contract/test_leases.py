"""Lease files are followed whatever somebody does with their folder."""

from __future__ import annotations

import asyncio
import contextlib
import os
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


async def test_a_look_that_was_slow_does_not_undo_a_later_one(tmp_path: Path) -> None:
    """As when a busy host holds up the thread that has just read the file, while the server writes another lease."""
    folder, rung = tmp_path / "leases", asyncio.Event()
    leases = Leases(folder, lambda _: rung.set())
    async with asyncio.TaskGroup() as group:
        leases.follow_in(group)
        os.mkfifo(folder / "br0")  # whoever reads it waits for who writes
        async with asyncio.timeout(60):
            slow = await _opened(folder / "br0")
            try:
                (folder / "new").write_text("0 02:00:00:00:00:01 10.0.0.100 * *\n")
                (folder / "new").rename(folder / "br0")
                while "br0" not in leases.states():
                    await rung.wait()
                    rung.clear()
                os.write(slow, b"0 02:00:00:00:00:01 10.0.0.99 * *\n")
            finally:
                os.close(slow)
        leases.close()
    assert [one.address for one in leases.states()["br0"]] == ["10.0.0.100"]


async def _opened(pipe: Path) -> int:
    """The end of a named pipe that one writes to, once somebody reads it (fifo(7): ENXIO before)."""
    while True:
        with contextlib.suppress(OSError):
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        await asyncio.sleep(0.01)
