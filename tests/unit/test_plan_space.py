"""A guest whose disk had no space left: exactly when it is let go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from agent.core.actions import ResumeVm
from agent.core.desired import Desired, DiskSpec, VmSpec
from agent.core.model.host import apply
from agent.core.observed import DiskState, HostState, Observed, VmState
from agent.core.planner.obstacles import LOOK_AGAIN_S
from agent.core.planner.pauses import RESUME_AGAIN_S, RESUME_FREE_BYTES
from agent.core.planning import plan
from agent.core.preconditions import PreconditionError
from agent.core.reasons import Reason
from agent.core.tell.describe import describe

DATA = DiskSpec("data", "/srv/data.raw", "raw", 0)
CD = DiskSpec("cd", "/srv/cd.raw", "raw", 1, read_only=True)
WEB = VmSpec("web", "uuid-web", 1_900_000_000, "web.toml", disks=(DATA, CD))
PAUSED = VmState(WEB, True, 4711, run_state="io-error")
HOST = HostState(boot_id="now")
DESIRED = Desired(vms={"web": WEB})
RESUME = ResumeVm("vm/web", Reason.SPACE, "web")


def seen(free: Mapping[str, int | None], state: VmState = PAUSED) -> Observed:
    disks = {path: DiskState(True, True, True, free_bytes=left) for path, left in free.items()}
    return Observed(vms={"web": state}, disks=disks, host=HOST)


@pytest.mark.parametrize("left", [None, 0, RESUME_FREE_BYTES - 1])
def test_without_known_room_it_waits_is_told_and_looked_at_again(left: int | None) -> None:
    decided = plan(DESIRED, seen({DATA.path: left, CD.path: 0}), 100.0)
    assert decided.actions == ()
    assert [condition.type for condition in decided.conditions] == ["PausedOnIoError"]
    assert "64 MiB" in decided.conditions[0].message
    assert decided.wake_at_s == 100.0 + LOOK_AGAIN_S


def test_a_disk_that_was_not_looked_at_is_no_disk_with_room() -> None:
    assert plan(DESIRED, seen({}), 100.0).actions == ()


def test_with_room_it_goes_on_whatever_a_read_only_disk_has() -> None:
    observed = seen({DATA.path: RESUME_FREE_BYTES, CD.path: 0})
    decided = plan(DESIRED, observed, 100.0)
    assert decided.actions == (RESUME,)
    after = apply(observed, RESUME, 100.0)
    assert after.vms["web"].run_state == "running"
    assert plan(DESIRED, after, 100.0).actions == ()
    with pytest.raises(PreconditionError):
        apply(after, RESUME, 100.0)


def test_one_that_is_paused_again_at_once_is_left_so_for_a_while() -> None:
    observed = seen({DATA.path: RESUME_FREE_BYTES}, replace(PAUSED, resumed_s=100.0))
    assert plan(DESIRED, observed, 100.0 + RESUME_AGAIN_S - 0.1).actions == ()
    assert plan(DESIRED, observed, 100.0 + RESUME_AGAIN_S).actions == (RESUME,)


def test_every_disk_that_is_written_to_needs_room() -> None:
    other = replace(DATA, id="more", path="/srv/more.raw")
    state = replace(PAUSED, spec=replace(WEB, disks=(DATA, other)))
    little = {DATA.path: RESUME_FREE_BYTES, other.path: RESUME_FREE_BYTES - 1}
    assert plan(Desired(vms={"web": state.spec}), seen(little, state), 100.0).actions == ()


def test_its_line_names_the_guest() -> None:
    assert describe(RESUME) == "let web go on: there is room on its disks again"
