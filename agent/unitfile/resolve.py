"""From all unit files to what is wanted: which version of each file runs, and every error between files.

A file's new version runs if it has no error, else its last good one (`held`), else none (`invalid`). Because a file
that falls back takes its earlier claims again, and may drop what others name, this is a fixpoint, whatever the order.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from agent.core.allocation import Allocations
from agent.core.desired import BridgeSpec, Desired, VmSpec
from agent.core.errors import UnitError
from agent.core.marks import bridge_resource, derived_tap, derived_vlan, vlan_resource, vm_resource
from agent.core.references import GUEST, guests_of
from agent.unitfile.claims import Claim
from agent.unitfile.conflicts import Finding, Side, find_conflicts
from agent.unitfile.identities import Assigner, Uuids
from agent.unitfile.parse import MAX_ERRORS, ParsedUnit
from agent.unitfile.references import find_dangling, find_loops, in_loops
from agent.unitfile.specs import bridge_mac, bridge_spec, devices_of, nic_mac, vlan_spec, vm_spec


@dataclass(frozen=True, slots=True)
class UnitSource:
    """A file as it is now, and the last version of it that had no error."""

    parsed: ParsedUnit
    last_good: ParsedUnit | None = None


@dataclass(frozen=True, slots=True)
class ResolveContext:
    """What is remembered: who holds which name (`vm/web`: path of the file), and the last specs of earlier bridges."""

    machine_id: str
    seed: uuid.UUID
    allocations: Allocations
    incumbents: Mapping[str, str]
    retained: Mapping[str, BridgeSpec]


@dataclass(frozen=True, slots=True)
class FileStatus:
    """What became of one file."""

    path: str
    state: Literal["valid", "invalid", "held"]
    errors: tuple[UnitError, ...] = ()


@dataclass(frozen=True, slots=True)
class Resolution:
    """What all files together want. `good` has the bytes to keep as the last good version of each path."""

    files: tuple[FileStatus, ...]
    desired: Desired
    allocations: Allocations
    incumbents: Mapping[str, str]
    good: Mapping[str, bytes]


def resolve(sources: Sequence[UnitSource], context: ResolveContext) -> Resolution:
    """Chooses the version of each file that runs, and makes specs of it; says everything that is wrong."""
    sides = [_side(source) for source in sorted(sources, key=lambda source: source.parsed.path)]
    uuids = Uuids(context.seed, context.allocations.uuids, _uuid_claims(sides))
    for side in sides:
        side.claims = _completed(side.new, uuids, context.machine_id)
        if side.good is not None:
            same = side.good is side.new
            side.good_claims = side.claims if same else _completed(side.good, uuids, context.machine_id)
    findings = _settled(sides, context.incumbents)
    desired, allocations = _desired(sides, context, uuids)
    return Resolution(
        files=tuple(_status(side, findings.get(side.path, [])) for side in sides),
        desired=desired,
        allocations=allocations,
        incumbents=_incumbents(context.incumbents, desired),
        good={side.path: side.chosen.data for side in sides if side.chosen is not None},
    )


def _side(source: UnitSource) -> Side:
    good = source.last_good if source.last_good is not None and not source.last_good.errors else None
    return Side(source.parsed.path, source.parsed, good, chosen=source.parsed)


def _uuid_claims(sides: Sequence[Side]) -> list[Claim]:
    versions = [side.new for side in sides]
    versions += [side.good for side in sides if side.good is not None and side.good is not side.new]
    return [claim for version in versions for claim in version.claims if claim.kind == "uuid"]


def _completed(unit: ParsedUnit, uuids: Uuids, machine_id: str) -> tuple[Claim, ...]:
    """A version's claims with the defaults that depend on more than the file."""
    explicit = {claim.resource: claim.key for claim in unit.claims if claim.kind == "uuid"}
    depends = (machine_id, [uuids.of(name.removeprefix("vm/"), key) for name, key in explicit.items()])
    if unit.memo.claims is None or unit.memo.claims[0] != depends:
        completed = tuple(
            claim if claim.key is not None else _with_default(claim, explicit.get(claim.resource), uuids, machine_id)
            for claim in unit.claims
        )
        unit.memo.claims = depends, completed
    return unit.memo.claims[1]


def _with_default(claim: Claim, explicit: str | None, uuids: Uuids, machine_id: str) -> Claim:
    kind, name = claim.resource.split("/", 1)
    if claim.kind == "link" and claim.role == "vlan":
        key = derived_vlan(name, int(claim.device.removeprefix("vlan/")))
    elif kind == "bridge":
        key = bridge_mac(machine_id, name)
    elif claim.kind == "uuid":
        key = uuids.of(name, None)
    elif claim.kind == "mac":
        key = nic_mac(uuids.of(name, explicit), claim.device.removeprefix("nic/"))
    else:
        key = derived_tap(name, claim.device.removeprefix("nic/"))
    return Claim(claim.kind, key, claim.resource, claim.device, claim.where, claim.role)


def _settled(sides: Sequence[Side], incumbents: Mapping[str, str]) -> dict[str, list[Finding]]:
    """Chooses versions until nothing changes any more; returns what is wrong in each file then.

    A file that was turned down for something that another file's falling back has mended gets a second chance, one.
    """
    loops: dict[tuple[str, str], Finding] = {}
    while True:
        findings = _reject_until_stable(sides, incumbents, loops)
        mended = next(
            (
                side
                for side in sides
                if side.chosen is not side.new and not (side.retried or side.new.errors or findings.get(side.path))
            ),
            None,
        )
        if mended is None:
            return findings
        mended.chosen, mended.retried = mended.new, True


def _reject_until_stable(
    sides: Sequence[Side], incumbents: Mapping[str, str], loops: dict[tuple[str, str], Finding]
) -> dict[str, list[Finding]]:
    while True:
        findings: dict[str, list[Finding]] = defaultdict(list)
        for finding in find_loops(sides):
            loops[finding.side.path, finding.problem] = finding
        for finding in (*find_conflicts(sides, incumbents), *find_dangling(sides), *loops.values()):
            findings[finding.side.path].append(finding)
        rejected = [side for side in sides if _reject(side, findings.get(side.path, []))]
        if not rejected:
            return findings


def _reject(side: Side, findings: list[Finding]) -> bool:
    """Falls back to an earlier version where the chosen one cannot run; whether it did."""
    if side.chosen is side.new and (findings or side.new.errors):
        side.why = findings
        # An unchanged file is its own last good version: it is held, as another object with the same content.
        side.chosen = _held_version(side)
        return True
    if side.runs_last_good and any(finding.spoils_good for finding in findings):
        side.chosen = None
        return True
    return False


def _held_version(side: Side) -> ParsedUnit | None:
    if side.good is not side.new or side.good is None:
        return side.good
    good = side.good
    return replace(good, errors=())


def _status(side: Side, findings: Sequence[Finding]) -> FileStatus:
    if side.chosen is side.new:
        return FileStatus(side.path, "valid")
    if not (findings or side.new.errors):
        findings = side.why
    if side.new.errors or any(not found.follows for found in findings):
        findings = [found for found in findings if not found.follows]
    between = [side.new.error_at(found.where, found.problem, found.hint) for found in findings[:MAX_ERRORS]]
    errors = sorted((*side.new.errors, *between), key=lambda error: (error.line, error.column, error.problem))
    return FileStatus(side.path, "invalid" if side.chosen is None else "held", tuple(errors))


def _desired(sides: Sequence[Side], context: ResolveContext, uuids: Uuids) -> tuple[Desired, Allocations]:
    running = [(side.path, side.chosen) for side in sides if side.chosen is not None]
    bridges = {
        name: bridge_spec(name, table, path, context.machine_id)
        for path, unit in running
        for name, table in unit.bridges.items()
    }
    retained = {name: spec for name, spec in sorted(context.retained.items()) if name not in bridges}
    assigner = Assigner(context.allocations)
    vms = _vms(running, {**retained, **bridges}, uuids, assigner)
    desired = Desired(
        bridges=dict(sorted(bridges.items())),
        vms=vms,
        retained=retained,
        unresolved_files=frozenset(side.path for side in sides if side.chosen is None),
        unresolved_guests=_unresolved_guests(sides, vms),
        vlans={name: vlan_spec(name, table, path) for path, unit in running for name, table in unit.vlans.items()},
    )
    return desired, assigner.result()


def _unresolved_guests(sides: Sequence[Side], vms: Mapping[str, VmSpec]) -> dict[str, str]:
    """The file of each guest that only a text names which cannot run, by name and by uuid: it may have moved there."""
    claims = [(side.path, claim) for side in sides if side.chosen is not side.new for claim in side.claims]
    by_uuid = {claim.key: path for path, claim in claims if claim.kind == "uuid" and claim.key}
    prefix = vm_resource("")
    by_name = {
        claim.resource.removeprefix(prefix): path
        for path, claim in claims
        if claim.kind == "name" and claim.resource.startswith(prefix)
    }
    wanted = {*vms, *(spec.uuid for spec in vms.values())}
    return {key: path for key, path in {**by_uuid, **by_name}.items() if key not in wanted}


def _vms(
    running: Sequence[tuple[str, ParsedUnit]],
    bridges: Mapping[str, BridgeSpec],
    uuids: Uuids,
    assigner: Assigner,
) -> dict[str, VmSpec]:
    units = {name: unit for _, unit in running for name in unit.vms}
    tables = {name: units[name].vms[name] for name in sorted(units)}
    ids = {name: uuids.of(name, table.uuid) for name, table in tables.items()}
    assigner.keep_uuids(ids)
    after = {
        name: [target for target in guests_of(table.after) if target in tables]
        for name, table in tables.items()
        if table.after
    }
    looping = in_loops(after) if after else frozenset()
    specs: dict[str, VmSpec] = {}
    for name, table in tables.items():
        uuid, unit = ids[name], units[name]
        uid, slots = assigner.uid(uuid), assigner.slots(uuid, devices_of(table))
        gone = {one for one in guests_of(table.after) if one not in tables or (name, one) in looping}
        waits = tuple(one for one in table.after if one.removeprefix(GUEST) not in gone)
        used = {nic.bridge for nic in table.nic.values() if nic.bridge is not None}
        mtus = {bridge: bridges[bridge].mtu for bridge in sorted(used) if bridge in bridges}
        depends = (uuid, uid, slots, mtus, waits)
        if name not in unit.memo.vms or unit.memo.vms[name][0] != depends:
            made = vm_spec(name, table, unit.path, uuid=uuid, uid=uid, slots=slots, mtus=mtus, after=waits)
            unit.memo.vms[name] = depends, made
        specs[name] = unit.memo.vms[name][1]
    return specs


def _incumbents(before: Mapping[str, str], desired: Desired) -> dict[str, str]:
    """Who holds which name now; a file that exists but cannot run keeps the names that nobody else has."""
    unresolved = desired.unresolved_files
    kept = {name: path for name, path in before.items() if path in unresolved} if unresolved else {}
    held = {bridge_resource(name): spec.file for name, spec in desired.bridges.items()}
    held |= {vlan_resource(name): spec.file for name, spec in desired.vlans.items()}
    return {**kept, **held, **{vm_resource(name): spec.file for name, spec in desired.vms.items()}}
