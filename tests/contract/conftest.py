"""A folder and run directories for real QEMUs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host.launches import Launches
from tests.qemu import short_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that any user may pass."""
    with short_folder() as path:
        yield path


@pytest.fixture
def launches(folder: Path) -> Launches:
    """Run directories in it."""
    found = Launches(folder / "run")
    found.open()
    return found
