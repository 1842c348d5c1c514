"""A snapshot as metric families, in Prometheus' terms; one function for each part of the world."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from agent.core.tell.vm_display import DisplayState
from agent.telemetry.snapshot import NetlinkTotals, NicSample, Snapshot, VmSample

UNIT_STATES = ("valid", "invalid", "held")

NIC_COUNTERS = (
    ("receive", "bytes", "tx_bytes"),
    ("receive", "packets", "tx_packets"),
    ("receive", "errors", "tx_errors"),
    ("receive", "drops", "tx_dropped"),
    ("transmit", "bytes", "rx_bytes"),
    ("transmit", "packets", "rx_packets"),
    ("transmit", "errors", "rx_errors"),
    ("transmit", "drops", "rx_dropped"),
)
"""The guest's sense and the tap's: what the tap sends, its guest receives."""


def world_families(snapshot: Snapshot) -> Iterator[Metric]:
    """All families that are drawn from a snapshot."""
    yield from _resource_families(snapshot)
    yield from _vm_families(snapshot.vms)
    yield from _nic_families(snapshot.nics, snapshot.filtered)
    yield from _bridge_families(snapshot)
    yield from _service_families(snapshot)
    yield _forward_family(snapshot)
    yield from _finding_families(snapshot)
    yield from _netlink_families(snapshot.netlink)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"vmhost_{name}", text, labels=labels)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"vmhost_{name}", text, labels=labels)


def _resource_families(snapshot: Snapshot) -> Iterator[Metric]:
    units = _gauge("units", "Unit files by state.", "state")
    for state in UNIT_STATES:
        units.add_metric([state], snapshot.units.get(state, 0))
    resources = _gauge("resources", "Resources by kind and state.", "kind", "state")
    for (kind, state), count in sorted(snapshot.resources.items()):
        resources.add_metric([kind, state], count)
    in_sync = _gauge("resource_in_sync", "Whether a resource is as its unit says.", "kind", "name")
    for (kind, name), good in sorted(snapshot.in_sync.items()):
        in_sync.add_metric([kind, name], int(good))
    in_flight = _gauge("actions_in_flight", "Actions under way.")
    in_flight.add_metric([], snapshot.actions_in_flight)
    yield from (units, resources, in_sync, in_flight)


def _vm_families(vms: tuple[VmSample, ...]) -> Iterator[Metric]:
    info = _gauge("vm_info", "A guest: always 1.", "vm", "uuid", "machine", "accel")
    state = _gauge("vm_state", "The state of a guest: 1 for the present one.", "vm", "state")
    wanted = _gauge("vm_desired_state", "What a guest is to be: 1 for that state.", "vm", "state")
    pending = _gauge("vm_pending_changes", "Changes that wait for a restart of the guest.", "vm")
    started = _gauge("vm_start_time_seconds", "When a guest was launched, Unix time.", "vm")
    restarts = _counter("vm_restarts", "Launches that answered an end of the guest.", "vm")
    held = _gauge(
        "vm_held", "A guest that is left as it is: 1, with the reason; without a series it is not.", "vm", "reason"
    )
    connected = _gauge("qmp_connected", "Whether the agent is connected to a guest's monitor.", "vm")
    for vm in vms:
        info.add_metric([vm.name, vm.uuid, vm.machine, vm.accel], 1)
        for name in DisplayState:
            state.add_metric([vm.name, name.value], int(vm.state == name.value))
        for word in ("running", "stopped"):
            wanted.add_metric([vm.name, word], int(vm.wanted == word))
        pending.add_metric([vm.name], vm.pending)
        restarts.add_metric([vm.name], vm.restarts)
        connected.add_metric([vm.name], int(vm.qmp_connected))
        if vm.held:
            held.add_metric([vm.name, vm.held], 1)
        if vm.started_s is not None:
            started.add_metric([vm.name], vm.started_s)
    yield from (info, state, wanted, pending, started, restarts, held, connected)


def _nic_families(nics: tuple[NicSample, ...], filtered: Mapping[tuple[str, str, str], int]) -> Iterator[Metric]:
    up = _gauge("nic_up", "Whether a NIC's tap is up.", "vm", "nic")
    attached = _gauge("nic_attached", "Whether frames can pass between a NIC and its bridge.", "vm", "nic")
    for nic in nics:
        up.add_metric([nic.vm, nic.nic], int(nic.up))
        if nic.attached is not None:
            attached.add_metric([nic.vm, nic.nic], int(nic.attached))
    yield from (up, attached)
    for direction, what, field in NIC_COUNTERS:
        verb = "received" if direction == "receive" else "sent"
        family = _counter(f"nic_{direction}_{what}", f"{what.capitalize()} that the guest {verb}.", "vm", "nic")
        for nic in nics:
            if nic.traffic is not None:
                family.add_metric([nic.vm, nic.nic], getattr(nic.traffic, field))
        yield family
    dropped = _counter("filtered_packets", "Packets of a NIC, or for it, that filters dropped.", "vm", "nic", "reason")
    for (vm, name, reason), count in sorted(filtered.items()):
        dropped.add_metric([vm, name, reason], count)
    yield dropped


def _bridge_families(snapshot: Snapshot) -> Iterator[Metric]:
    up = _gauge("bridge_up", "Whether a bridge is up.", "bridge")
    ports = _gauge("bridge_ports", "Links that are enslaved to a bridge.", "bridge")
    for bridge in snapshot.bridges:
        up.add_metric([bridge.name], int(bridge.up))
        ports.add_metric([bridge.name], bridge.ports)
    yield from (up, ports)


def _service_families(snapshot: Snapshot) -> Iterator[Metric]:
    leases = _gauge("dhcp_leases", "Leases that a bridge's DHCP server has given.", "bridge")
    size = _gauge(
        "dhcp_pool_size", "Addresses that a bridge's DHCP server has to give, static ones included.", "bridge"
    )
    for pool in snapshot.pools:
        leases.add_metric([pool.bridge], pool.leases)
        size.add_metric([pool.bridge], pool.size)
    up = _gauge("service_up", "Whether a supervised program runs.", "service")
    restarts = _counter("service_restarts", "Starts that answered an end of a supervised program.", "service")
    for service in snapshot.services:
        up.add_metric([service.name], int(service.up))
        restarts.add_metric([service.name], service.restarts)
    yield from (leases, size, up, restarts)


def _forward_family(snapshot: Snapshot) -> Metric:
    up = _gauge("forward_up", "Whether a published port leads to its guest.", "vm", "port", "proto")
    for one in snapshot.forwards:
        up.add_metric([one.vm, one.port, one.proto], int(one.up))
    return up


def _finding_families(snapshot: Snapshot) -> Iterator[Metric]:
    found = _gauge("findings", "What was found to break guests though our state is right.", "finding", "resource")
    for (finding, resource), count in sorted(snapshot.findings.items()):
        found.add_metric([finding, resource], count)
    yield found


def _netlink_families(totals: NetlinkTotals) -> Iterator[Metric]:
    events = _counter("netlink_events", "Messages that the kernel sent unasked.", "type")
    for name, count in sorted(totals.events.items()):
        events.add_metric([name], count)
    overflows = _counter("netlink_overflows", "Times that such messages were lost.")
    overflows.add_metric([], totals.overflows)
    errors = _counter("netlink_errors", "Requests that the kernel refused.", "errno")
    for name, count in sorted(totals.errors.items()):
        errors.add_metric([name], count)
    yield from (events, overflows, errors)
