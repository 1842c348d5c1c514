"""When each guest has its turn within the interval at which all are looked at.

A process that wakes for one guest finds caches cold, and pays for the waking: a look by itself costs 1.6 ms of
processor time, among ten others 1.0 ms. All at once would hold up everything else. So some share a moment.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

SHARE = 8
"""As many guests share a moment, up to twice as many, on average; and all, where there are no more than that."""

OWN_WITHIN_S = 1.0
"""Of few guests too: what is waited for there delays the next look at that guest."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds from the beginning of an interval: the moment that a guest shares with others, and one of its own.

    Its own is less than `within_s` after the shared one, a second at most, and before others have theirs.
    """

    shared_s: float
    own_s: float
    within_s: float


def moments(guests: int) -> int:
    """How many moments an interval has for so many guests, a power of two."""
    return 1 << max(0, (guests // SHARE).bit_length() - 1)


def turn_of(uuid: str, guests: int, interval_s: float) -> Turn:
    """A guest's turn, one of so many guests: the same over restarts of the agent, whatever order guests come in.

    Where there come to be twice as many, moments are split in two, and others stay.
    """
    number = moments(guests)
    moment, place = divmod(zlib.crc32(uuid.encode()) * number, 1 << 32)
    shared_s = moment * interval_s / number
    within_s = min(interval_s / number, OWN_WITHIN_S)
    return Turn(shared_s, shared_s + place / (1 << 32) * within_s, within_s)
