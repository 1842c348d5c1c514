"""Disks that are just being made, and those that another guest has still."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.actions import kind_of
from agent.core.desired import Desired, DiskSpec, VmSpec
from agent.core.observed import DiskState, Observed, VmState
from agent.core.planning import plan
from agent.core.qemu.argv import devices_at_launch
from tests.unit.planning_world import DB, HOST, said

DATA = DiskSpec("data", "/srv/data.raw", "raw", 0, size_bytes=1 << 20)
THERE = {DATA.path: DiskState(True, True, True, 1 << 20)}
WEB = VmSpec("web", "uuid-web", 1_900_000_000, disks=(DATA,))
WITHOUT = replace(WEB, disks=())
HAS_IT = VmState(WEB, True, 4711, run_state="running", devices=devices_at_launch(WEB))
LETS_GO = replace(HAS_IT, spec=WITHOUT, leaving_disks=(DATA,))
NEW = replace(DB, disks=(replace(DATA, id="store"),))
RUNS = VmState(DB, True, 4712, run_state="running", devices=devices_at_launch(DB))
WAITS = (
    "vm/db/disk/store",
    "Waiting",
    "DiskInUse",
    "waits for web to let go of /srv/data.raw, which is its disk data, or to stop",
)


def kinds(observed: Observed, *wanted: VmSpec) -> set[str]:
    return {
        kind_of(action) for action in plan(Desired(vms={spec.name: spec for spec in wanted}), observed, 1.0).actions
    }


@pytest.mark.parametrize("state", [HAS_IT, LETS_GO, replace(LETS_GO, devices=None)])
@pytest.mark.parametrize("other", [{}, {"db": replace(RUNS, spec=NEW)}])
def test_a_disk_that_another_guest_has_is_waited_for(state: VmState, other: dict[str, VmState]) -> None:
    observed = Observed(vms={"web": state, **other}, disks=THERE, host=HOST)
    decided = plan(Desired(vms={"web": WITHOUT, "db": NEW}), observed, 1.0)
    assert not {"plug-disk", "launch-vm", "grow-disk"} & {kind_of(action) for action in decided.actions}
    assert WAITS in said(decided)
    assert "vm/db/disk/store" in decided.deviating


@pytest.mark.parametrize(
    "state",
    [
        replace(LETS_GO, devices=devices_at_launch(WITHOUT)),
        replace(HAS_IT, alive=False),
        replace(HAS_IT, spec=WITHOUT),
    ],
)
def test_one_that_nobody_has_any_more_is_not(state: VmState) -> None:
    observed = Observed(vms={"web": state, "db": replace(RUNS, spec=NEW)}, disks=THERE, host=HOST)
    assert "plug-disk" in kinds(observed, WITHOUT, NEW)
    assert "launch-vm" in kinds(replace(observed, vms={"web": state}), WITHOUT, NEW)


def test_what_is_only_read_may_be_anybodys() -> None:
    shared = replace(DATA, read_only=True)
    web, db = replace(WEB, disks=(shared,)), replace(NEW, disks=(replace(shared, id="store"),))
    state = replace(HAS_IT, spec=web)
    assert "launch-vm" in kinds(Observed(vms={"web": state}, disks=THERE, host=HOST), web, db)
    assert "launch-vm" not in kinds(Observed(vms={"web": HAS_IT}, disks=THERE, host=HOST), WEB, db)


def test_a_disk_that_is_just_being_made_is_not_missing() -> None:
    """It is known before it is looked at, and a disk that is known and gone was lost."""
    seen = {DATA.path: DiskState(False, True, True)}
    lost = Observed(disks=seen, host=HOST)
    assert [type_ for _, type_, _, _ in said(plan(Desired(vms={"web": WEB}), lost, 1.0))] == ["DiskMissing"]
    decided = plan(Desired(vms={"web": WEB}), replace(lost, in_flight={"vm/web/disk/data": "create-disk"}), 1.0)
    assert (decided.actions, decided.conditions) == ((), ())
    assert "vm/web/disk/data" in decided.deviating
