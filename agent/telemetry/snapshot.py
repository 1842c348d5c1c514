"""The world as metrics show it: one immutable value, made after a pass, read by every scrape until the next one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from agent.core.conditions import FINDINGS
from agent.core.desired import VmSpec
from agent.core.marks import bridge_resource, tap_resource, vm_resource
from agent.core.measures import GuestMeasure
from agent.core.observed import Intent, ServiceState
from agent.core.planner.policy import wants_to_run
from agent.core.services.dnsmasq import is_served, pool_size, served_bridges, service_name
from agent.core.services.spec import ServiceSpec, service_resource
from agent.core.tell.status import StatusInputs, deviating_owners, present_bridges, wanted_in_vain
from agent.core.tell.vm_display import nic_attached, vm_display_state
from agent.telemetry.forwards import ForwardSample, forward_samples


class Traffic(Protocol):
    """What the kernel counted on a tap, in the host's sense (rtnetlink, IFLA_STATS64)."""

    @property
    def rx_bytes(self) -> int: ...  # noqa: D102 - the kernel's names
    @property
    def tx_bytes(self) -> int: ...  # noqa: D102
    @property
    def rx_packets(self) -> int: ...  # noqa: D102
    @property
    def tx_packets(self) -> int: ...  # noqa: D102
    @property
    def rx_errors(self) -> int: ...  # noqa: D102
    @property
    def tx_errors(self) -> int: ...  # noqa: D102
    @property
    def rx_dropped(self) -> int: ...  # noqa: D102
    @property
    def tx_dropped(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class VmSample:
    """A guest. `started_s` is Unix time, None while it does not run; `accel` is what it runs or would run with.

    `held`: the reason of its condition `Held`, empty without one. `disks`: its disks, CD-ROM drives not among them.
    """

    name: str
    uuid: str
    machine: str
    accel: str
    state: str
    wanted: str
    pending: int
    restarts: int
    started_s: float | None
    qmp_connected: bool
    held: str = ""
    disks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NicSample:
    """A guest's NIC; `attached` None where it could not be seen, `traffic` None where there is no tap to count on.

    `direct`: that is a macvtap, which counts in its guest's sense.
    """

    vm: str
    nic: str
    tap: str
    up: bool
    attached: bool | None
    traffic: Traffic | None
    direct: bool = False


@dataclass(frozen=True, slots=True)
class BridgeSample:
    """A bridge and how many links are enslaved to it."""

    name: str
    up: bool
    ports: int


@dataclass(frozen=True, slots=True)
class PoolSample:
    """A bridge's DHCP server: the leases that it has given, and the addresses that it can give."""

    bridge: str
    leases: int
    size: int


@dataclass(frozen=True, slots=True)
class ServiceSample:
    """A supervised program, and how often it was started again after an end that nobody asked for."""

    name: str
    up: bool
    restarts: int


@dataclass(frozen=True, slots=True)
class NetlinkTotals:
    """What the netlink sockets went through since the agent started: messages by type, overflows, errors by errno."""

    events: Mapping[str, int] = field(default_factory=dict)
    overflows: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Readings:
    """What a pass does not look at: traffic by tap name, start times (Unix, s) and live monitors by guest, netlink.

    `filtered`: packets that were dropped, by guest, NIC and reason. `measures`: the last good look at each guest that
    runs and answers.
    """

    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    started_s: Mapping[str, float] = field(default_factory=dict)
    qmp_connected: frozenset[str] = frozenset()
    netlink: NetlinkTotals = NetlinkTotals()
    kvm: bool = False
    filtered: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    measures: Mapping[str, GuestMeasure] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that gauges show. Keys: `units` by state, `resources` by kind and state, `in_sync` by kind and name.

    `conditions`: how many there are, by kind, name and type.
    """

    units: Mapping[str, int] = field(default_factory=dict)
    resources: Mapping[tuple[str, str], int] = field(default_factory=dict)
    in_sync: Mapping[tuple[str, str], bool] = field(default_factory=dict)
    vms: tuple[VmSample, ...] = ()
    nics: tuple[NicSample, ...] = ()
    bridges: tuple[BridgeSample, ...] = ()
    pools: tuple[PoolSample, ...] = ()
    services: tuple[ServiceSample, ...] = ()
    forwards: tuple[ForwardSample, ...] = ()
    actions_in_flight: int = 0
    netlink: NetlinkTotals = NetlinkTotals()
    filtered: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    findings: Mapping[tuple[str, str], int] = field(default_factory=dict)
    conditions: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    measures: Mapping[str, GuestMeasure] = field(default_factory=dict)


def snapshot_of(inputs: StatusInputs, readings: Readings) -> Snapshot:
    """The snapshot of what `vmhost status` would say at this moment, with the readings that only metrics show."""
    vms = _vm_samples(inputs, readings)
    bridges = _bridge_samples(inputs)
    in_sync = _in_sync(inputs)
    states = Counter(("vm", vm.state) for vm in vms)
    states.update((kind, "in_sync" if good else "deviating") for (kind, _), good in in_sync.items() if kind != "vm")
    return Snapshot(
        units=Counter(file.state for file in inputs.files),
        resources=states,
        in_sync=in_sync,
        vms=vms,
        nics=_nic_samples(inputs, readings),
        bridges=bridges,
        pools=_pool_samples(inputs),
        services=_service_samples(inputs),
        forwards=forward_samples(inputs),
        actions_in_flight=len(inputs.observed.in_flight),
        netlink=readings.netlink,
        filtered=readings.filtered,
        findings=Counter((c.type, c.resource) for c, _ in inputs.conditions if c.type in FINDINGS),
        conditions=_conditions(inputs, vms),
        measures=readings.measures,
    )


def with_readings(snapshot: Snapshot, readings: Readings) -> Snapshot:
    """A snapshot with newer readings of what needs no pass to change: traffic, what was dropped, netlink, measures."""
    nics = tuple(replace(nic, traffic=readings.traffic.get(nic.tap)) for nic in snapshot.nics)
    return replace(
        snapshot, nics=nics, filtered=readings.filtered, netlink=readings.netlink, measures=readings.measures
    )


def specs_of(inputs: StatusInputs) -> Mapping[str, VmSpec]:
    """What each guest is: as it was launched, or as it is wanted where it was not."""
    return {**inputs.desired.vms, **{name: state.spec for name, state in inputs.observed.vms.items()}}


def _vm_samples(inputs: StatusInputs, readings: Readings) -> tuple[VmSample, ...]:
    types: dict[str, set[str]] = {}
    held = {c.resource: c.reason for c, _ in inputs.conditions if c.type == "Held"}
    for condition, _ in inputs.conditions:
        kind, _, rest = condition.resource.partition("/")
        if kind in {"vm", "tap"}:
            types.setdefault(rest.partition("/")[0], set()).add(condition.type)
    return tuple(
        VmSample(
            name=name,
            uuid=spec.uuid,
            machine=spec.machine,
            accel=spec.accel if spec.accel != "auto" else ("kvm" if readings.kvm else "tcg"),
            state=str(vm_display_state(name, inputs.desired.vms.get(name), inputs.observed, types.get(name, ()))),
            wanted=_wanted(inputs, name),
            pending=len(inputs.pending.get(name, ())),
            restarts=inputs.restarts.get(name, 0),
            started_s=readings.started_s.get(name),
            qmp_connected=name in readings.qmp_connected,
            held=held.get(vm_resource(name), ""),
            disks=tuple(disk.id for disk in spec.disks if disk.media == "disk"),
        )
        for name, spec in sorted(specs_of(inputs).items())
    )


def _conditions(inputs: StatusInputs, vms: tuple[VmSample, ...]) -> Mapping[tuple[str, str, str], int]:
    found: Counter[tuple[str, str, str]] = Counter()
    for vm in vms:  # there at zero: an alert is drawn from it
        found["vm", vm.name, "PausedOnIoError"] = 0
    for condition, _ in inputs.conditions:
        kind, _, name = condition.resource.partition("/")
        found[kind, name, condition.type] += 1
    return found


def _wanted(inputs: StatusInputs, name: str) -> str:
    spec, observed = inputs.desired.vms.get(name), inputs.observed
    if spec is None:
        return "stopped"
    intent, ends = observed.intents.get(name, Intent()), observed.ends.get(name, ())
    return "running" if wants_to_run(spec, intent, ends, observed.host.boot_id) else "stopped"


def _nic_samples(inputs: StatusInputs, readings: Readings) -> tuple[NicSample, ...]:
    links, vms = inputs.observed.links, inputs.observed.vms
    return tuple(
        NicSample(
            vm=name,
            nic=nic.id,
            tap=nic.tap,
            up=nic.tap in links and links[nic.tap].up,
            attached=nic_attached(vms.get(name), nic, links),
            traffic=readings.traffic.get(nic.tap),
            direct=bool(nic.direct),
        )
        for name, spec in sorted(specs_of(inputs).items())
        for nic in spec.nics
    )


def _bridge_samples(inputs: StatusInputs) -> tuple[BridgeSample, ...]:
    links = inputs.observed.links
    ports = Counter(link.master for link in links.values() if link.master is not None)
    return tuple(
        BridgeSample(name, name in links and links[name].up, ports[links[name].ifindex] if name in links else 0)
        for name in sorted(present_bridges(inputs.desired, inputs.observed))
    )


def _pool_samples(inputs: StatusInputs) -> tuple[PoolSample, ...]:
    bridges = present_bridges(inputs.desired, inputs.observed)
    served = served_bridges(inputs.desired, inputs.observed, bridges)
    return tuple(
        PoolSample(name, len(inputs.observed.leases.get(name, ())), pool_size(bridges[name], found.hosts))
        for name, found in sorted(served.items())
        if bridges[name].dhcp is not None
    )


def _service_samples(inputs: StatusInputs) -> tuple[ServiceSample, ...]:
    """Services that were started, and those that are wanted and were not."""
    states = inputs.observed.services
    wanted = {
        service_name(name) for name, spec in present_bridges(inputs.desired, inputs.observed).items() if is_served(spec)
    }
    wanted |= wanted_in_vain(inputs.plan.deviating)
    never = ServiceState(ServiceSpec("", "", "", ()), alive=False)
    return tuple(
        ServiceSample(name, states.get(name, never).alive, states.get(name, never).restarts)
        for name in sorted(wanted | states.keys())
    )


def _in_sync(inputs: StatusInputs) -> Mapping[tuple[str, str], bool]:
    deviating = inputs.plan.deviating
    owners = deviating_owners(inputs.desired, inputs.observed, deviating)
    held = {condition.resource for condition, _ in inputs.conditions if condition.type == "Held"}
    found: dict[tuple[str, str], bool] = {}
    for name in present_bridges(inputs.desired, inputs.observed):
        found["bridge", name] = bridge_resource(name) not in owners
    for one in _service_samples(inputs):
        found["service", one.name] = one.up and service_resource(one.name) not in deviating
    for name, spec in specs_of(inputs).items():
        resource = vm_resource(name)
        found["vm", name] = resource not in owners and resource not in held and not inputs.pending.get(name)
        for nic in spec.nics:
            found["tap", f"{name}/{nic.id}"] = tap_resource(name, nic.id) not in deviating
    return found
