"""When a guest that ended is started again: its restart policy, the backoff, and what makes a crash loop."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from agent.core.desired import Restart, VmSpec
from agent.core.observed import End, Intent

FAILURES = frozenset({"crash", "killed", "panic", "oom", "watchdog"})
"""The ends that `restart = "on-failure"` answers; a guest's own poweroff is none."""

STABLE_S = 120.0
"""A guest that ran this long has its earlier ends forgotten."""

CRASH_LOOP_ENDS = 5
CRASH_LOOP_WINDOW_S = 120.0
MAX_BACKOFF_S = 60.0
ENDS_KEPT = 16


def wants_to_run(spec: VmSpec, intent: Intent, ends: Sequence[End], boot_id: str) -> bool:
    """Whether a guest should be running: its operator's word first, then its unit's, then how it last ended.

    An end of an earlier boot of the host is no reason to stay off.
    """
    if intent.stopped or not spec.enabled:
        return False
    recent = [end for end in ends if end.boot_id == boot_id]
    if not recent or spec.restart is Restart.ALWAYS:
        return True
    return spec.restart is Restart.ON_FAILURE and recent[-1].reason in FAILURES


def streak(ends: Sequence[End], boot_id: str) -> tuple[End, ...]:
    """The latest ends with no stable run between them, oldest first."""
    found: list[End] = []
    for end in reversed(ends):
        if end.boot_id != boot_id:
            break
        found.append(end)
        if end.ran_s >= STABLE_S:
            break
    return tuple(reversed(found))


def next_start_s(name: str, ends: Sequence[End], boot_id: str) -> float:
    """The time from which a guest may be started: at once after a first end, then 1 s doubling to 60 s, full jitter.

    The jitter is drawn from the guest's name and the time of its end, so that the answer stays the same in each pass.
    """
    row = streak(ends, boot_id)
    if len(row) < 2:
        return 0.0
    ceiling_s = min(MAX_BACKOFF_S, 2.0 ** (len(row) - 2))
    seed = hashlib.sha256(f"{name}\0{row[-1].at_s!r}".encode()).digest()
    return row[-1].at_s + ceiling_s * int.from_bytes(seed[:4], "big") / 2**32


def in_crash_loop(ends: Sequence[End], boot_id: str, now_s: float) -> bool:
    """Whether a guest ended five times within two minutes, without a stable run since."""
    row = streak(ends, boot_id)
    if len(row) < CRASH_LOOP_ENDS or now_s - row[-1].at_s > CRASH_LOOP_WINDOW_S:
        return False
    return row[-1].at_s - row[-CRASH_LOOP_ENDS].at_s <= CRASH_LOOP_WINDOW_S
