"""Waiting for what only the world can tell."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from tests.patience import SLOWER


def ip_links() -> set[str]:
    """The names of all links in this network namespace."""
    return {name for _, name in socket.if_nameindex()}


def wait_for(holds: Callable[[], object], timeout_s: float = 30.0, says: Callable[[], str] = lambda: "") -> None:
    """Return when something is true, asking again and again: for what no event of the agent announces.

    `says` tells what is so instead once the time is over, which is longer in the virtual lab.
    """
    deadline = time.monotonic() + timeout_s * SLOWER
    while True:
        last = time.monotonic() >= deadline  # who was kept from asking until then asks once all the same
        if holds():
            return
        assert not last, f"did not become true in time {says()}"
        time.sleep(0.02)
