"""States of earlier versions, which agents of today must understand for ever."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import tomli_w

from agent.core.desired import NicSpec, VmSpec
from agent.core.memory import VERSION
from agent.core.migrations import STEPS, migrated, version_of
from agent.core.observed import Intent
from agent.host.launches import Launches, LaunchRecord
from agent.host.statedir import LaterStateError, StateDirectory

OF_VERSION_1 = """
seed = "6f1b2a3c-0000-4000-8000-000000000001"
version = 1
boot_id = "b"
known_disks = ["/srv/root.qcow2"]
enslaved = [["br-lan", "eth1"]]

[allocations.uids]
6f1b2a3c-0000-4000-8000-000000000002 = 1900000001

[intents.web]
stopped = true
generation = 3
reset_generation = 1

[restarts]
web = 7
"""


def load(folder: Path, text: str) -> StateDirectory:
    folder.mkdir()
    (folder / "state.toml").write_text(text)
    return StateDirectory(folder)


def test_there_is_a_step_from_every_version_to_the_next() -> None:
    assert sorted(STEPS) == list(range(1, VERSION))


@pytest.mark.parametrize(
    ("state", "version"), [({}, 1), ({"version": "2"}, 1), ({"version": True}, 1), ({"version": 9}, 9)]
)
def test_a_state_says_its_version(state: dict[str, object], version: int) -> None:
    assert version_of(state) == version


def test_what_version_1_knew_is_known(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    memory, problem = load(folder, OF_VERSION_1).load()
    assert (problem, memory.version) == ("", VERSION)
    assert memory.seed == "6f1b2a3c-0000-4000-8000-000000000001"
    assert memory.intents == {"web": Intent(stopped=True, generation=3, reset_generation=1)}
    assert memory.restarts == {"web": 7}
    assert memory.known_disks == frozenset({"/srv/root.qcow2"})
    assert memory.enslaved == frozenset({("br-lan", "eth1")})
    assert list(memory.allocations.uids.values()) == [1_900_000_001]


def test_the_state_before_is_kept_and_named_to_whoever_goes_back(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    state = load(folder, OF_VERSION_1)
    memory, _ = state.load()
    state.save(memory)
    assert tomllib.loads((folder / "state.toml").read_text())["version"] == VERSION
    assert (folder / "state.toml.v1").read_text() == OF_VERSION_1
    (folder / "state.toml").rename(folder / f"state.toml.v{VERSION}")
    (folder / "state.toml").write_text(f"version = {VERSION + 1}\n")
    with pytest.raises(LaterStateError, match=f"or go back to what this one knew with `mv .*state.toml.v{VERSION} "):
        state.load()


def test_a_migrated_state_stays_as_it_is() -> None:
    state = tomllib.loads(OF_VERSION_1)
    assert migrated(migrated(state)) == migrated(state)


def test_a_launch_of_an_agent_that_knew_one_queue_a_nic_is_known(tmp_path: Path) -> None:
    launches = Launches(tmp_path)
    launches.open()
    lan = NicSpec("lan", "br0", "02:00:00:00:00:02", "web-lan", 0)
    launches.directory("web").mkdir()
    launches.save(LaunchRecord(VmSpec("web", "u", 7, nics=(lan,)), nic_fds={"lan": (5,)}))
    path = launches.directory("web") / "launch.toml"
    written = tomllib.loads(path.read_text())
    assert written["nic_fds"] == {"lan": [5]}
    del written["vhosts"], written["detached"]
    for key in ("queues", "vhost", "direct"):
        del written["spec"]["nics"][0][key]
    path.write_text(tomli_w.dumps({**written, "nic_fds": {"lan": 5}}))
    (record,) = launches.read()
    assert isinstance(record, LaunchRecord)
    assert (record.nic_fds, record.vhosts, record.detached) == ({"lan": (5,)}, (), {})
    assert record.spec.nics == (lan,)
