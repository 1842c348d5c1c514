"""Limits of what passes a NIC: how a rate is written, and how much of a burst and of a queue it needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

UNITS_BPS = {"kbit": 1_000, "Mbit": 1_000_000, "Gbit": 1_000_000_000}
"""Powers of ten, as network cards count."""

BURST_S = 0.01
"""What may pass at once, as time at the full rate: far more than a timer of the kernel is late."""
MIN_BURST_BYTES = 16 << 10
"""Ten full frames. With 64 KiB, a whole segment of TCP's, 1 Mbit/s let 8 % too much through in four seconds."""
FRAME_BYTES = 64
"""What a frame may have beyond its link's MTU. One that is longer than the burst never passes (tc-tbf(8))."""
QUEUE_S = 0.1
"""What waits for its turn; what comes beyond that is dropped, and tells TCP to slow down."""
MIN_QUEUE_BYTES = 64 << 10
"""Below this TCP loses too much to use what it may have: at 1 Mbit/s it is half a second."""
MAX_QUEUE_BYTES = 32 << 20
"""What the host gives for one NIC at most."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a token bucket (tc-tbf(8)) lets through: a rate, what may pass at once, and what waits."""

    rate_bps: int
    burst_bytes: int
    queue_bytes: int


@lru_cache(4096)
def shape_of(rate_bps: int, mtu: int) -> Shape:
    """The token bucket for a rate, of a NIC with this MTU."""
    bytes_per_s = rate_bps / 8
    burst = max(int(bytes_per_s * BURST_S), MIN_BURST_BYTES, mtu + FRAME_BYTES)
    queue = max(int(bytes_per_s * QUEUE_S), MIN_QUEUE_BYTES, burst)
    return Shape(rate_bps, burst, min(queue, MAX_QUEUE_BYTES))


def is_shape(seen: Shape | None, wanted: Shape) -> bool:
    """Whether a bucket that was read is the wanted one. The kernel keeps a burst as time, in ticks of 64 ns."""
    return (
        seen is not None
        and (seen.rate_bps, seen.queue_bytes) == (wanted.rate_bps, wanted.queue_bytes)
        and abs(seen.burst_bytes - wanted.burst_bytes) * 100 <= wanted.burst_bytes
    )


def rate_text(rate_bps: int) -> str:
    """A rate as a unit file has it."""
    for unit, factor in reversed(UNITS_BPS.items()):
        if rate_bps % factor == 0:
            return f"{rate_bps // factor}{unit}"
    return f"{rate_bps}bit"
