"""A set of units as it is shipped, on an agent of a test's own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.agent_process import AgentProcess
from tests.integration.conftest import agent_in_a_folder
from tests.netns import network_namespace

UNITS = Path(__file__).resolve().parents[2] / "units"
FILES = "/var/cache/vmhost/demo"
"""Where shipped units expect kernel and disks."""


@contextmanager
def shipped(name: str, *boot_files: Path) -> Iterator[AgentProcess]:
    """The set `units/NAME` in an agent's unit directory, in a network namespace of its own; it is not started yet.

    Kernel and disks are in the agent's folder, where QEMU's user can read them wherever the checkout lies.
    """
    with network_namespace(), agent_in_a_folder() as agent:
        for file in boot_files:
            shutil.copy(file, agent.folder / file.name)
            (agent.folder / file.name).chmod(0o644)
        for unit in (UNITS / name).glob("*.toml"):
            agent.drop(unit.name, unit.read_text().replace(FILES, str(agent.folder)))
        yield agent
