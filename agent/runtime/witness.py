"""Who wants to hear of guests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class GuestWitness(Protocol):
    """Whoever wants to hear of guests: events and metrics."""

    def heard(self, vm: str, event: str, data: Mapping[str, Any]) -> None:
        """QEMU sent an event."""

    def killed(self, vm: str, how: str) -> None:
        """A QEMU that had been running was killed; `how` in words."""

    def answered(self, command: str, seconds: float) -> None:
        """QEMU answered a command."""

    def refused(self, command: str, error_class: str) -> None:
        """A command did not succeed."""

    def reconnected(self, vm: str) -> None:
        """A monitor connection that was lost is there again."""
