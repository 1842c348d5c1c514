"""A guest that QEMU will not start as its unit was edited is started as it last ran.

QEMU's own refusal counts. It is asked twice, because what it refused may have been of the moment, as the lock of an
image that another program was just letting go of. What an edit needs and is not there (`agent.core.planner.obstacles`)
counts for one that ran until just now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from agent.core.desired import DiskSpec, NicSpec, VmSpec
from agent.core.edits.digest import NOT_LAUNCHED, digest
from agent.core.observed import Refusal

REFUSED_TIMES = 2
"""How often QEMU is asked before it is believed."""

_UNSEEN = tuple(one.name for one in fields(VmSpec) if one.name in NOT_LAUNCHED - {"nics", "disks", "serials"})

Refusals = Mapping[str, Refusal]
"""By uuid."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a guest is started as; `instead_of` is the digest of the refused spec, empty if it is what is wanted."""

    spec: VmSpec
    instead_of: str = ""


def refusal_of(wanted: VmSpec, refused: Refusals) -> Refusal | None:
    """The refusal because of which a guest is not started as it is wanted now; None if it is tried."""
    refusal = refused.get(wanted.uuid)
    if refusal is None or not wanted.fallback or refusal.times < REFUSED_TIMES or refusal.former_refused:
        return None
    return refusal if refusal.digest == digest(wanted) else None


def start_of(wanted: VmSpec, refused: Refusals) -> Start:
    """What to start a guest as; of a refused spec only that is taken over which QEMU does not see."""
    refusal = refusal_of(wanted, refused)
    return Start(wanted) if refusal is None else Start(_as_it_ran(refusal.former, wanted), refusal.digest)


def _as_it_ran(former: VmSpec, wanted: VmSpec) -> VmSpec:
    nics, disks = {nic.id: nic for nic in wanted.nics}, {disk.id: disk for disk in wanted.disks}
    return replace(
        former,
        **{name: getattr(wanted, name) for name in _UNSEEN},
        nics=tuple(_plugged_as(nic, nics.get(nic.id, nic)) for nic in former.nics),
        disks=tuple(_sized_as(disk, disks.get(disk.id, disk)) for disk in former.disks),
    )


def _plugged_as(nic: NicSpec, wanted: NicSpec) -> NicSpec:
    if nic.direct != wanted.direct:
        return nic  # what belongs to a bridge goes with it
    plugged = replace(nic, bridge=wanted.bridge, tap=wanted.tap)
    return replace(plugged, rate_in_bps=wanted.rate_in_bps, rate_out_bps=wanted.rate_out_bps)


def _sized_as(disk: DiskSpec, wanted: DiskSpec) -> DiskSpec:
    return replace(disk, size_bytes=wanted.size_bytes) if disk.path == wanted.path else disk


def with_lack(refused: Refusals, uuid: str, lack: Refusal | None) -> Refusals:
    """Refusals before a guest's next start: with what is not there for it; None: that counts no longer."""
    known = refused.get(uuid)
    if lack is not None:
        return {**refused, uuid: lack}
    if known is None or not known.missing:
        return refused
    return {other: one for other, one in refused.items() if other != uuid}


def starts_of(wanted: Mapping[str, VmSpec], refused: Refusals) -> Mapping[str, VmSpec]:
    """What all guests are started as; the very same specs where nothing was refused, which is nearly always."""
    if not refused:
        return wanted
    return {name: start_of(spec, refused).spec for name, spec in wanted.items()}


def fell_back_message(name: str, refusal: Refusal) -> str:
    """What became of an edit, in QEMU's words, and what to do."""
    if refusal.missing:
        return f"its edited unit could not be started: {refusal.said}; it is started as it last ran, and its edit waits"
    return (
        f"QEMU refuses its edited unit: {refusal.said}; it runs as it last ran. Mend the unit, or "
        f"`vmhost restart {name}` tries it again"
    )
