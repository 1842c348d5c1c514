"""The dead man's switch of a move: a timer of the service manager that puts it back, whatever becomes of this agent."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Protocol

import structlog

from agent.core.errors import ActionError
from agent.core.services.unit import put_back_properties, timer_properties
from agent.host.processes import ENVIRONMENT
from agent.host.systemd import ServiceManager

log = structlog.get_logger("vmhost.uplinks")


def switch_name(bridge: str) -> str:
    """The unit of a bridge's switch, without suffix; hashed where its name is none for a unit."""
    plain = bridge if bridge.isascii() and bridge.replace("-", "").replace("_", "").replace(".", "").isalnum() else ""
    return f"vmhost-put-back-{plain or hashlib.sha256(bridge.encode()).hexdigest()[:12]}"


class DeadMan(Protocol):
    """Whoever puts back when the agent cannot."""

    async def arm(self, bridge: str, journal: Path, after_s: float) -> None:
        """Have this journal's move put back after so long, in place of what was armed. Raises ActionError."""

    async def disarm(self, bridge: str) -> None:
        """There is nothing to be put back any more; never fails."""


class NoDeadMan:
    """Where there is no service manager: the next start of the agent puts back."""

    async def arm(self, bridge: str, journal: Path, after_s: float) -> None:
        """As `DeadMan.arm`: nobody is there."""

    async def disarm(self, bridge: str) -> None:
        """As `DeadMan.disarm`."""


class UnitDeadMan:
    """A transient timer of systemd, with its service."""

    def __init__(self, manager: ServiceManager) -> None:
        self._manager = manager

    async def arm(self, bridge: str, journal: Path, after_s: float) -> None:
        """As `DeadMan.arm`."""
        name = switch_name(bridge)
        await self._manager.stop_timer(name)
        command = [sys.executable, "-I", "-m", "agent.put_back", str(journal)]
        environment = [f"{key}={value}" for key, value in ENVIRONMENT.items()]
        service = put_back_properties(bridge, command, environment, str(journal.parent))
        await self._manager.start_timer(name, timer_properties(bridge, after_s), service)

    async def disarm(self, bridge: str) -> None:
        """As `DeadMan.disarm`. A timer that stays finds its journal over and does nothing."""
        try:
            await self._manager.stop_timer(switch_name(bridge))
        except ActionError as error:
            log.warning("a timer is left, which will do nothing", bridge=bridge, why=str(error))
