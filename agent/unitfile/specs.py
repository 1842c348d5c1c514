"""From the tables that run to specs, complete with every default."""

from __future__ import annotations

from collections.abc import Mapping

from agent.core.desired import (
    MAX_QUEUES,
    Apply,
    BridgeSpec,
    DhcpSpec,
    DiskSpec,
    DnsSpec,
    Limits,
    NicSpec,
    Restart,
    RouteSpec,
    SerialSpec,
    VlanSpec,
    VmSpec,
)
from agent.core.limits import QUOTA_PERCENT_US
from agent.core.marks import derived_mac, derived_tap, derived_vlan
from agent.core.routing.ipv6 import GATEWAY, NDP_PROXY, derived_ula
from agent.unitfile.fields import NIC_MODELS
from agent.unitfile.order import ready_of
from agent.unitfile.schema import BridgeTable, VlanTable, VmTable, disk_format

DEFAULT_MTU = 1500


def bridge_mac(machine_id: str, name: str) -> str:
    """The default MAC of a bridge: the same for ever on one host, and another one on the next."""
    return derived_mac("bridge", machine_id, name)


def nic_mac(uuid: str, nic: str) -> str:
    """The default MAC of a NIC."""
    return derived_mac("nic", uuid, nic)


def bridge_spec(name: str, table: BridgeTable, file: str, machine_id: str) -> BridgeSpec:
    """The spec of a bridge.

    One with `ndp-proxy` has two addresses more: the guests' gateway, and one without which dnsmasq advertises nothing,
    of a prefix that no guest hears of.
    """
    more = (GATEWAY, derived_ula(machine_id, name)) if table.ipv6 == NDP_PROXY else ()
    return BridgeSpec(
        name=name,
        mac=table.mac or bridge_mac(machine_id, name),
        file=file,
        ports=table.ports,
        addresses=tuple(dict.fromkeys((*table.addresses, *more))),
        mtu=table.mtu or DEFAULT_MTU,
        port_mtu=table.mtu,
        stp=table.stp,
        adopt=table.adopt,
        dhcp=DhcpSpec(*table.dhcp.range, table.dhcp.lease, table.dhcp.ports) if table.dhcp is not None else None,
        dns=DnsSpec(table.dns.upstream, table.dns.domain or "") if table.dns is not None else None,
        nat=table.nat,
        ipv6=table.ipv6 or "",
        uplink=table.uplink or "",
        gateway=table.gateway,
        routes=tuple(RouteSpec(one.to, one.via, one.metric) for one in table.routes),
        vlans=tuple(
            VlanSpec(vlan.name or derived_vlan(name, int(key)), name, int(key), file, vlan.addresses, on_bridge=True)
            for key, vlan in sorted(table.vlan.items(), key=lambda item: int(item[0]))
        ),
        adopt_addresses=table.adopt_addresses,
        probe=table.probe,
        probe_timeout_s=table.probe_timeout,
        confirm_s=table.confirm or 0.0,
    )


def vlan_spec(name: str, table: VlanTable, file: str) -> VlanSpec:
    """The spec of a VLAN link of the host that is of no bridge's table."""
    return VlanSpec(name, table.link, table.id, file, table.addresses)


def devices_of(table: VmTable) -> tuple[str, ...]:
    """A guest's disks and NICs by the names under which their slots are kept, in the order of the file."""
    return (*(f"disk/{name}" for name in table.disk), *(f"nic/{name}" for name in table.nic))


def vm_spec(
    name: str,
    table: VmTable,
    file: str,
    *,
    uuid: str,
    uid: int,
    slots: Mapping[str, int],
    mtus: Mapping[str, int],
    after: tuple[str, ...],
) -> VmSpec:
    """The spec of a guest; `mtus` are those of the bridges of its NICs, `after` is what is left to wait for."""
    return VmSpec(
        name=name,
        uuid=uuid,
        uid=uid,
        file=file,
        cpus=table.cpus,
        max_cpus=table.max_cpus,
        balloon_mib=table.balloon,
        memory_mib=table.memory,
        machine=table.machine,
        cpu=table.cpu,
        accel=table.accel,
        kernel=table.kernel,
        initrd=table.initrd,
        append=table.append,
        extra_args=table.extra_args,
        vnc=table.vnc,
        rng=table.rng,
        firmware=table.firmware,
        secure_boot=table.secure_boot,
        watchdog=table.watchdog,
        restart=Restart(table.restart),
        stop_timeout_s=table.stop_timeout,
        after=after,
        description=table.description,
        enabled=table.enabled,
        overcommit=table.overcommit,
        hotplug_slots=table.hotplug_slots,
        limits=_limits(table),
        ready=ready_of(table.ready, (nic.address for nic in table.nic.values())),
        ready_timeout_s=table.ready_timeout,
        apply=Apply(table.apply),
        fallback=table.fallback,
        publish=table.publish,
        disks=_disks(table, slots),
        nics=_nics(name, uuid, table, slots, mtus),
        serials=tuple(SerialSpec(id=id_, port=serial.port, to=serial.to) for id_, serial in table.serial.items()),
    )


def _limits(table: VmTable) -> Limits:
    quota_us = None if table.cpu_quota is None else table.cpu_quota * QUOTA_PERCENT_US
    return Limits(table.cpu_weight, quota_us, table.io_weight, table.tasks)


def _disks(table: VmTable, slots: Mapping[str, int]) -> tuple[DiskSpec, ...]:
    return tuple(
        DiskSpec(
            id=name,
            path=disk.path or "",
            format=disk_format(disk.path or "", disk.format) or "raw",
            slot=slots[f"disk/{name}"],
            size_bytes=disk.size,
            cache=disk.cache,
            read_only=disk.read_only or disk.media == "cdrom",
            discard=disk.discard,
            media=disk.media,
            iops=disk.iops,
            bandwidth_bytes=disk.bandwidth,
            bus=disk.bus or ("sata" if disk.media == "cdrom" else "virtio"),
        )
        for name, disk in table.disk.items()
    )


def _queues(table: VmTable) -> int:
    """How many queues "auto" is: one for each CPU that the guest may have, so plugging one changes nothing here."""
    return min(table.max_cpus or table.cpus, MAX_QUEUES)


def _vhost(value: bool | str) -> str:
    return value if isinstance(value, str) else "true" if value else "false"


def _nics(vm: str, uuid: str, table: VmTable, slots: Mapping[str, int], mtus: Mapping[str, int]) -> tuple[NicSpec, ...]:
    return tuple(
        NicSpec(
            id=name,
            bridge=nic.bridge or "",
            mac=nic.mac or nic_mac(uuid, name),
            tap=nic.tap or derived_tap(vm, name),
            slot=slots[f"nic/{name}"],
            model=NIC_MODELS[nic.model],
            mtu=nic.mtu or mtus.get(nic.bridge or "", DEFAULT_MTU),
            rate_in_bps=nic.rate_in,
            rate_out_bps=nic.rate_out,
            address=nic.address,
            link=nic.link,
            anti_spoof=nic.anti_spoof,
            serves=nic.serves,
            isolated=nic.isolated,
            allow=nic.allow,
            deny=nic.deny,
            queues=_queues(table) if nic.queues == "auto" else nic.queues,
            vhost=_vhost(nic.vhost),
            direct=nic.direct or "",
            vlan=nic.vlan,
            trunk=nic.trunk,
            native=nic.native,
        )
        for name, nic in table.nic.items()
    )
