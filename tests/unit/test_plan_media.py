"""What the planner makes of extra arguments and of removable media."""

from __future__ import annotations

from dataclasses import replace

from agent.core.desired import DiskSpec
from agent.core.observed import DiskState
from agent.core.planning import plan
from tests.unit.planning_world import ABSENT, DESIRED, SETTLED, WEB, said, types, with_vm

CD = DiskSpec("cd", "/srv/a.iso", "raw", 1, read_only=True, media="cdrom", bus="sata")
HATCH = replace(WEB, extra_args=("-device", "edu"))


def test_extra_args_are_told_and_hold_nothing_up() -> None:
    decided = plan(replace(DESIRED, vms={"web": HATCH}), with_vm(spec=HATCH), 0.0)
    assert (decided.actions, decided.deviating, decided.awaited) == ((), frozenset(), frozenset())
    ((resource, type_, reason, message),) = said(decided)
    assert (resource, type_, reason) == ("vm/web", "Unsupported", "Unsupported")
    assert "not promised any more" in message
    # What runs is what counts: an edit that waits for a restart marks nothing yet, nor unmarks.
    assert types(plan(replace(DESIRED, vms={"web": HATCH}), SETTLED, 0.0)) == []
    assert types(plan(DESIRED, with_vm(spec=HATCH), 0.0)) == [("vm/web", "Unsupported")]
    assert types(plan(replace(DESIRED, vms={"web": HATCH}), ABSENT, 0.0)) == [("vm/web", "Unsupported")]


def test_a_missing_medium_is_waited_for_and_an_empty_drive_is_not() -> None:
    empty = replace(WEB, disks=(replace(CD, path=""),))
    assert [type(action).__name__ for action in plan(replace(DESIRED, vms={"web": empty}), ABSENT, 0.0).actions] == [
        "LaunchVm"
    ]
    gone = replace(ABSENT, disks={CD.path: DiskState(False, True, False)})
    decided = plan(replace(DESIRED, vms={"web": replace(WEB, disks=(CD,))}), gone, 0.0)
    assert decided.actions == ()
    assert said(decided) == [
        (
            "vm/web/disk/cd",
            "DiskMissing",
            "DiskMissing",
            "/srv/a.iso does not exist; it is waited for, without path = there is none",
        )
    ]
