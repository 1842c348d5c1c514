"""The actions on supervised programs."""

from __future__ import annotations

from dataclasses import dataclass

from agent.core.reasons import Disruption, Reason
from agent.core.services.spec import ServiceSpec


@dataclass(frozen=True, slots=True)
class StartService:
    """Check a configuration, end what runs with the former one (`replaces`, its pid), and start the program.

    A configuration that is refused changes nothing; a former one that does not run any more is started again then.
    `ended`: how often it ended unasked so far. After another end a configuration that was refused is tried anew.
    """

    resource: str
    reason: Reason
    spec: ServiceSpec
    replaces: int | None = None
    ended: int = 0
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class ReloadService:
    """Write the files that have changed, and have the running program read them again."""

    resource: str
    reason: Reason
    spec: ServiceSpec
    pid: int
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class StopService:
    """End a program that nobody wants any more, and forget it; what it kept in the state directory stays."""

    resource: str
    reason: Reason
    service: str
    disruption: Disruption = Disruption.NONE
