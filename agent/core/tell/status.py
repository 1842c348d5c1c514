"""The answer to `vmhost status`: plain data for JSON, built from what was wanted, what was seen and what was found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agent.core.conditions import Condition
from agent.core.desired import BridgeSpec, Desired, DiskSpec, NicSpec, VlanSpec
from agent.core.edits.digest import digest
from agent.core.edits.pending import PendingLike, as_told, pending_json
from agent.core.errors import UnitError
from agent.core.marks import bridge_resource, is_own_bridge, vlan_resource, vm_resource
from agent.core.observed import Observed, ServiceState
from agent.core.planner.draft import Plan
from agent.core.planner.ports import find_ports
from agent.core.routing.ipv6_wanted import uplinks6
from agent.core.services.dnsmasq import is_served, pool_size, served_bridges, service_name
from agent.core.services.leases import Lease
from agent.core.services.spec import service_resource
from agent.core.tell.vm_display import nic_attached, rates_in_force, vm_display_state

Json = Mapping[str, object]


class FileLike(Protocol):
    """What became of one unit file (`agent.unitfile.resolve.FileStatus`)."""

    @property
    def path(self) -> str:
        """The file."""

    @property
    def state(self) -> str:
        """`valid`, `invalid` or `held`."""

    @property
    def errors(self) -> tuple[UnitError, ...]:
        """Its mistakes."""


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """What the agent says of itself. `started` is wall-clock time, ISO 8601; `settled` as of the latest pass."""

    version: str
    pid: int
    started: str
    settled: bool
    units_dir: str = ""
    listen: str = ""


@dataclass(frozen=True, slots=True)
class StatusInputs:
    """Everything that a status is made of. `since` are ISO times by condition; `pending` and `restarts` go by guest."""

    agent: AgentFacts
    files: Sequence[FileLike] = ()
    desired: Desired = Desired()
    observed: Observed = Observed()
    plan: Plan = field(default_factory=Plan)
    conditions: Sequence[tuple[Condition, str]] = ()
    pending: Mapping[str, Sequence[PendingLike]] = field(default_factory=dict)
    restarts: Mapping[str, int] = field(default_factory=dict)


def status(inputs: StatusInputs) -> dict[str, object]:
    """The status of everything, in a fixed order; its keys are a promise to scripts.

    A condition that belongs to no guest and no bridge stands under `agent`, so that none is ever lost.
    """
    found = _found(inputs)
    names = sorted(inputs.desired.vms.keys() | inputs.observed.vms.keys())
    leased = {(bridge, one.mac): one for bridge, leases in inputs.observed.leases.items() for one in leases}
    bridges = sorted(present_bridges(inputs.desired, inputs.observed).items())
    return {
        "agent": _agent_status(inputs, found.conditions.get("", ())),
        "units": [unit_status(file) for file in sorted(inputs.files, key=lambda file: file.path)],
        "bridges": [_bridge_status(inputs, bridge, found) for _, bridge in bridges],
        "vlans": [_vlan_status(inputs, spec, found) for _, spec in sorted(inputs.desired.vlans.items())],
        "vms": [_vm_status(inputs, name, found, leased) for name in names],
    }


def present_bridges(desired: Desired, observed: Observed) -> Mapping[str, BridgeSpec]:
    """The wanted bridges, and the retained ones that are still there."""
    links = observed.links
    kept = {n: b for n, b in desired.retained.items() if n in links and is_own_bridge(links[n])}
    return {**kept, **desired.bridges}


class Owners:
    """Tells under which guest or bridge a resource is shown: `vm/web` for `tap/web/lan`, empty for none."""

    def __init__(self, desired: Desired, observed: Observed) -> None:
        bridges = present_bridges(desired, observed)
        self._names = {vm_resource(name) for name in desired.vms.keys() | observed.vms.keys()}
        self._names |= {bridge_resource(name) for name in bridges}
        self._names |= {vlan_resource(name) for name in desired.vlans}
        self._services = {service_resource(service_name(name)): bridge_resource(name) for name in bridges}
        self._ports = {port: bridge_resource(bridge.name) for bridge in bridges.values() for port in bridge.ports}
        found = find_ports({n: b for n, b in bridges.items() if b.ports}, observed)
        self._ports |= {link.name: bridge_resource(bridge) for (bridge, _), link in found.links.items()}

    def of(self, resource: str) -> str:
        """The owner's resource name."""
        kind, _, rest = resource.partition("/")
        if kind == "port":
            return self._ports.get(rest, "")
        if kind == "service":
            return self._services.get(resource, "")
        owner = f"{'vm' if kind == 'tap' else kind}/{rest.partition('/')[0]}"
        return owner if owner in self._names else ""


def deviating_owners(desired: Desired, observed: Observed, deviating: frozenset[str]) -> frozenset[str]:
    """The guests and bridges of which something deviates: themselves, a tap, a disk or a port."""
    owners = Owners(desired, observed)
    return frozenset(owners.of(resource) for resource in deviating)


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found, by the guest or bridge that it belongs to."""

    conditions: Mapping[str, Sequence[tuple[Condition, str]]]
    deviating: frozenset[str]


def _found(inputs: StatusInputs) -> _Found:
    owners = Owners(inputs.desired, inputs.observed)
    conditions: dict[str, list[tuple[Condition, str]]] = {}
    for condition, since in inputs.conditions:
        conditions.setdefault(owners.of(condition.resource), []).append((condition, since))
    return _Found(conditions, frozenset(owners.of(resource) for resource in inputs.plan.deviating))


def _agent_status(inputs: StatusInputs, conditions: Sequence[tuple[Condition, str]]) -> Json:
    facts, approval = inputs.agent, inputs.plan.approval
    why = "their units want these guests stopped or restarted, more at once than is allowed unasked" if approval else ""
    return {
        "settled": facts.settled,
        "version": facts.version,
        "pid": facts.pid,
        "started": facts.started,
        "units_dir": facts.units_dir,
        "listen": facts.listen,
        "approvals": [{"id": approval.id, "guests": list(approval.guests), "why": why}] if approval else [],
        "in_flight": [
            {"resource": resource, "action": key.partition(" ")[0]}
            for resource, key in sorted(inputs.observed.in_flight.items())
        ],
        "services": [_service_status(one) for one in _host_services(inputs)],
        "conditions": _conditions(conditions),
    }


def _host_services(inputs: StatusInputs) -> Sequence[tuple[str, ServiceState | None]]:
    """The services that belong to no bridge, also those that are wanted and were never started."""
    owners, states = Owners(inputs.desired, inputs.observed), inputs.observed.services
    names = {*states, *wanted_in_vain(inputs.plan.deviating)}
    return [(name, states.get(name)) for name in sorted(names) if not owners.of(service_resource(name))]


def wanted_in_vain(deviating: Collection[str]) -> frozenset[str]:
    """The services that are not as they are wanted."""
    kind = service_resource("")
    return frozenset(one.removeprefix(kind) for one in deviating if one.startswith(kind))


def unit_status(file: FileLike) -> Json:
    """What became of one unit file, as plain data."""
    errors = [{"line": e.line, "column": e.column, "problem": e.problem, "hint": e.hint} for e in file.errors]
    return {"file": file.path, "state": file.state, "errors": errors}


def _conditions(conditions: Sequence[tuple[Condition, str]]) -> list[Json]:
    return [
        {"type": c.type, "reason": c.reason, "message": c.message, "since": since, "resource": c.resource}
        for c, since in conditions
    ]


def _bridge_status(inputs: StatusInputs, spec: BridgeSpec, found: _Found) -> Json:
    link = inputs.observed.links.get(spec.name)
    ports = sorted(p.name for p in inputs.observed.links.values() if link is not None and p.master == link.ifindex)
    return {
        "name": spec.name,
        "up": link is not None and link.up,
        "mtu": link.mtu if link is not None else None,
        "mac": spec.mac,
        "addresses": list(spec.addresses),
        "ports": ports,
        "dhcp": _dhcp_status(inputs, spec),
        "ipv6": _ipv6_status(inputs, spec),
        "services": [_service_status(one) for one in _services_of(inputs, spec)],
        "in_sync": bridge_resource(spec.name) not in found.deviating,
        "file": spec.file,
        "conditions": _conditions(found.conditions.get(bridge_resource(spec.name), ())),
    }


def _vlan_status(inputs: StatusInputs, spec: VlanSpec, found: _Found) -> Json:
    link, resource = inputs.observed.links.get(spec.name), vlan_resource(spec.name)
    return {
        "name": spec.name,
        "link": spec.link,
        "id": spec.id,
        "up": link is not None and link.up,
        "addresses": list(spec.addresses),
        "in_sync": resource not in found.deviating,
        "file": spec.file,
        "conditions": _conditions(found.conditions.get(resource, ())),
    }


def _dhcp_status(inputs: StatusInputs, spec: BridgeSpec) -> Json | None:
    if spec.dhcp is None:
        return None
    leases = inputs.observed.leases.get(spec.name, ())
    hosts = served_bridges(inputs.desired, inputs.observed, {spec.name: spec})[spec.name].hosts
    return {
        "range": [spec.dhcp.first, spec.dhcp.last],
        "lease_s": spec.dhcp.lease_s,
        "pool_size": pool_size(spec, hosts),
        "leases": [
            {"mac": one.mac, "address": one.address, "name": one.name or None, "expires_s": one.expires_s or None}
            for one in leases
        ],
    }


def _ipv6_status(inputs: StatusInputs, spec: BridgeSpec) -> Json | None:
    """How guests reach the internet, by which link, and with ndp-proxy the addresses that are led to the bridge now."""
    if not spec.ipv6:
        return None
    state = inputs.observed.ipv6
    return {
        "mode": spec.ipv6,
        "uplink": min(uplinks6([spec], state), default=None),
        "led": sorted(route.address for route in state.routes if route.link == spec.name) if state is not None else [],
    }


def _services_of(inputs: StatusInputs, spec: BridgeSpec) -> Sequence[tuple[str, ServiceState | None]]:
    """The services of a bridge, also one that is wanted and was never started."""
    name = service_name(spec.name)
    state = inputs.observed.services.get(name)
    return [(name, state)] if state is not None or is_served(spec) else []


def _service_status(named: tuple[str, ServiceState | None]) -> Json:
    name, state = named
    return {
        "name": name,
        "running": state is not None and state.alive,
        "pid": state.pid if state is not None else None,
        "unit": state.unit or None if state is not None else None,
        "restarts": state.restarts if state is not None else 0,
    }


def _vm_status(inputs: StatusInputs, name: str, found: _Found, leased: Mapping[tuple[str, str], Lease]) -> Json:
    state, wanted = inputs.observed.vms.get(name), inputs.desired.vms.get(name)
    spec = state.spec if state is not None else wanted
    if spec is None:
        raise KeyError(name)
    conditions = found.conditions.get(vm_resource(name), ())
    types = frozenset(condition.type for condition, _ in conditions)
    pending = inputs.pending.get(name, ())
    return {
        "name": name,
        "uuid": spec.uuid,
        "state": str(vm_display_state(name, wanted, inputs.observed, types)),
        "pid": state.pid if state is not None and state.alive else None,
        "restarts": inputs.restarts.get(name, 0),
        "in_sync": not pending and "Held" not in types and vm_resource(name) not in found.deviating,
        "pending": pending_json(pending, spec.stop_timeout_s),
        "digest": digest(as_told(state)) if state is not None and state.alive else None,
        "digest_wanted": digest(wanted) if wanted is not None else None,
        "nics": [_nic_status(inputs, name, nic, leased.get((nic.bridge, nic.mac))) for nic in spec.nics],
        "disks": [_disk_status(disk) for disk in spec.disks],
        "file": spec.file,
        "description": (wanted or spec).description,
        "conditions": _conditions(conditions),
    }


def _nic_status(inputs: StatusInputs, name: str, nic: NicSpec, lease: Lease | None) -> Json:
    """A NIC. Its address is the static one that its unit names, else the one that it was given."""
    leased = lease.address if lease is not None else None
    state = inputs.observed.vms.get(name)
    rate_in, rate_out = rates_in_force(name, nic, inputs.observed.links)
    return {
        "name": nic.id,
        "tap": nic.tap,
        "bridge": nic.bridge or None,
        "direct": nic.direct or None,
        "queues": nic.queues,
        "vhost": state is not None and nic.id in state.vhosts,
        "mac": nic.mac,
        "address": nic.address[0] if nic.address else leased,
        "addresses": list(nic.address),
        "leased": leased,
        "attached": nic_attached(state, nic, inputs.observed.links),
        "rate_in": rate_in,
        "rate_out": rate_out,
    }


def _disk_status(disk: DiskSpec) -> Json:
    return {
        "name": disk.id,
        "path": disk.path or None,
        "media": disk.media,
        "format": disk.format,
        "size_bytes": disk.size_bytes,
        "read_only": disk.read_only,
    }
