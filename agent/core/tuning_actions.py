"""The actions on a running guest that plug no device into a place: limits, cables, balloon, CPUs, and media."""

from __future__ import annotations

from dataclasses import dataclass

from agent.core.desired import DiskSpec
from agent.core.reasons import Disruption, Reason


@dataclass(frozen=True, slots=True)
class TuneVm:
    """Tell QEMU what it is to know of a guest's cables, limits and balloon (core.edits.tuning), and write that down."""

    resource: str
    reason: Reason
    vm: str
    uuid: str
    settings: tuple[tuple[str, str], ...]
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class PlugCpus:
    """Plug CPUs into a running guest until it has `cpus`."""

    resource: str
    reason: Reason
    vm: str
    cpus: int
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class ChangeMedium:
    """Have what `disk` says in a running guest's CD-ROM drive: another medium, whose file is there, or none."""

    resource: str
    reason: Reason
    vm: str
    disk: DiskSpec
    disruption: Disruption = Disruption.NONE
