"""When a guest that ended is started again: to the second, and to the last end that counts."""

from __future__ import annotations

from agent.core.desired import Restart, VmSpec
from agent.core.observed import End, Intent
from agent.core.planner.policy import in_crash_loop, next_start_s, streak, wants_to_run


def ends(*at_s: float, ran_s: float = 1.0, boot_id: str = "now", reason: str = "crash") -> tuple[End, ...]:
    return tuple(End(at, ran_s, boot_id, reason) for at in at_s)


def test_a_streak_begins_with_the_last_stable_run_or_boot() -> None:
    row = ends(10.0, 20.0, 30.0)
    assert streak(row, "now") == row
    stable = End(25.0, 120.0, "now", "crash")
    assert streak((*row[:2], stable, row[2]), "now") == (stable, row[2])
    nearly = End(25.0, 119.9, "now", "crash")
    assert streak((*row[:2], nearly, row[2]), "now") == (*row[:2], nearly, row[2])
    earlier = ends(5.0, boot_id="earlier")
    assert streak((*ends(1.0), *earlier, *row), "now") == row
    assert streak(earlier, "now") == ()


def test_the_backoff_doubles_from_a_second_to_a_minute_with_full_jitter() -> None:
    assert next_start_s("web", (), "now") == 0.0
    assert next_start_s("web", ends(10.0), "now") == 0.0
    for number, ceiling_s in ((2, 1.0), (3, 2.0), (4, 4.0), (7, 32.0), (8, 60.0), (16, 60.0)):
        waits = [
            next_start_s(f"g{guest}", ends(*(100.0 + i for i in range(number))), "now") - 100.0 - (number - 1)
            for guest in range(200)
        ]
        assert 0.0 <= min(waits) < 0.1 * ceiling_s
        assert 0.9 * ceiling_s < max(waits) < ceiling_s
    assert next_start_s("web", ends(1.0, 2.0), "now") == next_start_s("web", ends(1.0, 2.0), "now")


def test_a_crash_loop_is_five_ends_in_two_minutes_until_two_minutes_later() -> None:
    assert not in_crash_loop(ends(1.0, 2.0, 3.0, 4.0), "now", 4.0)
    five = ends(1.0, 2.0, 3.0, 4.0, 5.0)
    assert in_crash_loop(five, "now", 5.0)
    assert in_crash_loop(five, "now", 125.0)
    assert not in_crash_loop(five, "now", 125.1)
    assert in_crash_loop(ends(0.0, 30.0, 60.0, 90.0, 120.0), "now", 120.0)
    assert not in_crash_loop(ends(0.0, 30.0, 60.0, 90.0, 120.1), "now", 121.0)
    assert in_crash_loop((*ends(0.0), *ends(200.0, 201.0, 202.0, 203.0, 204.0)), "now", 204.0)
    assert not in_crash_loop(five, "later", 5.0)


def test_who_is_started_again() -> None:
    def runs(
        restart: Restart, *reasons: str, stopped: bool = False, enabled: bool = True, boot_id: str = "now"
    ) -> bool:
        spec = VmSpec("web", "u", 1, restart=restart, enabled=enabled)
        row = tuple(End(float(i), 1.0, boot_id, reason) for i, reason in enumerate(reasons))
        return wants_to_run(spec, Intent(stopped=stopped), row, "now")

    for restart in Restart:
        assert runs(restart)
        assert not runs(restart, stopped=True)
        assert not runs(restart, enabled=False)
        assert runs(restart, "guest_shutdown", boot_id="earlier")
    for reason in ("crash", "killed", "panic", "oom"):
        assert runs(Restart.ON_FAILURE, reason)
        assert runs(Restart.ON_FAILURE, "guest_shutdown", reason)
        assert not runs(Restart.NEVER, reason)
    assert not runs(Restart.ON_FAILURE, "crash", "guest_shutdown")
    assert runs(Restart.ALWAYS, "guest_shutdown")
