"""A short storm with each run of the tests; `VMHOST_CHAOS_FAULTS` and `VMHOST_CHAOS_SEED` change length and seed."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess
from tests.chaos.scene import Scene, run_folders
from tests.chaos.storm import Storm
from tests.netns import network_namespace

FAULTS = int(os.environ.get("VMHOST_CHAOS_FAULTS", "500"))
SEED = int(os.environ.get("VMHOST_CHAOS_SEED", "3"))


@pytest.mark.timeout(60 + FAULTS)
def test_whatever_happens_it_settles_and_nobody_is_lost_or_doubled() -> None:
    with network_namespace(), tempfile.TemporaryDirectory(prefix="vmhost-chaos-", dir="/var/tmp") as folder:
        run_folders(Path(folder))
        scene = Scene(AgentProcess(Path(folder)))
        try:
            scene.set_up()
            tally = Storm(scene, random.Random(SEED)).rage(FAULTS)
        finally:
            scene.tear_down()
    assert tally.faults == FAULTS
