"""What the units want: specs, resolved across all files and complete with every default.

Sizes are in MiB or bytes and durations in seconds, as the names say. A spec never holds anything observed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

MAX_DEVICES = 24
"""NICs and disks of one guest: each takes a root port of its own, and a PCIe root bus has 32 places."""

MAX_QUEUES = 16
"""Pairs of queues of one NIC: each costs three descriptors and two interrupts, and guests use one for each CPU."""


class Restart(StrEnum):
    """What follows when a guest ends without its operator asking for it."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


class Apply(StrEnum):
    """When what a running guest cannot take over of its edited unit is applied.

    `ASK`: at its own reboot, or when its operator restarts it. `RESTART`: at once, by a restart.
    """

    ASK = "ask"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class DhcpSpec:
    """The IPv4 addresses that a bridge's DHCP server gives to whoever asks, first and last, and for how long.

    `ports`: also to whoever is behind the bridge's ports.
    """

    first: str
    last: str
    lease_s: int
    ports: bool = False


@dataclass(frozen=True, slots=True)
class DnsSpec:
    """A bridge's DNS server. `upstream` are those that it asks, None for the host's own; `domain` is its guests'."""

    upstream: tuple[str, ...] | None = None
    domain: str = ""


class RouteSpec(NamedTuple):
    """A route by a bridge: to a network, by a gateway; `metric` 0 for the kernel's default."""

    to: str
    via: str
    metric: int = 0


@dataclass(frozen=True, slots=True)
class VlanSpec:
    """A wanted VLAN link of the host, on the link `link`, with VLAN `id` (1 to 4094); `name` is the link's own.

    `on_bridge`: it is of a bridge's table, and that bridge must carry it.
    """

    name: str
    link: str
    id: int
    file: str = ""
    addresses: tuple[str, ...] = ()
    on_bridge: bool = False


@dataclass(frozen=True, slots=True)
class BridgeSpec:
    """A wanted bridge. `port_mtu` is set only where the unit names an MTU: then its ports get it as well.

    `dhcp`, `dns`: what is served there, None for not at all.
    `nat`: what comes from its own subnets and leaves by another link has the host's address there (IPv4).
    `ipv6`: how its guests reach the internet over IPv6 (`core.routing.ipv6`), empty for not at all; `uplink`: the link
    that leads there, empty for that of the default route.
    `ports` are links as units call them (`planner.ports`). `gateway`, of each IP version at most one, and `routes` are
    the host's own ways that lead by this bridge. `vlans`: the host's own links in VLANs of it.
    `adopt_addresses`: what its port carries is moved to it, provided that the port's gateways and the hosts of `probe`
    answer over it within `probe_timeout_s`, and that the operator says so within `confirm_s`, unless that is 0.
    """

    name: str
    mac: str
    file: str = ""
    ports: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    mtu: int = 1500
    port_mtu: int | None = None
    stp: bool = False
    adopt: bool = False
    dhcp: DhcpSpec | None = None
    dns: DnsSpec | None = None
    nat: bool = False
    ipv6: str = ""
    uplink: str = ""
    gateway: tuple[str, ...] = ()
    routes: tuple[RouteSpec, ...] = ()
    vlans: tuple[VlanSpec, ...] = ()
    adopt_addresses: bool = False
    probe: tuple[str, ...] = ()
    probe_timeout_s: float = 10.0
    confirm_s: float = 0.0


@dataclass(frozen=True, slots=True)
class NicSpec:
    """A guest's network card and the tap that it hangs on. `slot` is its place among the guest's PCIe root ports.

    `rate_in_bps` and `rate_out_bps` limit what goes to the guest and what comes from it; None: no limit.
    `address` holds the static addresses that the guest has there, without prefix.
    `link`: whether the guest sees its cable plugged in, "up" or "down".
    `anti_spoof`: it is held to its MAC and addresses; None: if it has any. `serves`: "dhcp", "ra", as others may not.
    `isolated`: it reaches no other isolated one on its bridge. `allow`, `deny`: what may be begun (`filter_entries`).
    `queues`: how many pairs of queues it has, each with a descriptor of the tap. `vhost`: whether the kernel carries
    its frames instead of QEMU, "true", "false", or "auto" for where guests have KVM and the host has vhost-net.
    `direct`: the link of the host that it hangs on by a macvtap, instead of a bridge; both are never named.
    `vlan`: the VLAN that it is in, without knowing of it. `trunk`: those that it gets with their tags (`core.vlans`);
    `native`: the one that it gets without.
    """

    id: str
    bridge: str
    mac: str
    tap: str
    slot: int
    model: str = "virtio-net-pci"
    mtu: int = 1500
    rate_in_bps: int | None = None
    rate_out_bps: int | None = None
    address: tuple[str, ...] = ()
    link: str = "up"
    anti_spoof: bool | None = None
    serves: tuple[str, ...] = ()
    isolated: bool = False
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    queues: int = 1
    vhost: str = "false"
    direct: str = ""
    vlan: int | None = None
    trunk: tuple[str, ...] = ()
    native: int | None = None

    @property
    def held(self) -> bool:
        """Whether it may send nothing that is not from its own MAC, and its own addresses if it has any."""
        return bool(self.address) if self.anti_spoof is None else self.anti_spoof


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """A guest's disk, or a CD-ROM drive (`media` "cdrom"). `size_bytes` None: the file must exist. `slot` as for a NIC.

    `path` is empty for a drive without medium. `bus`: how a drive is attached, "sata" or "virtio"; a disk is on virtio.
    `iops` and `bandwidth_bytes` are what it may do in a second, reads and writes together; None: no limit.
    """

    id: str
    path: str
    format: str
    slot: int
    size_bytes: int | None = None
    cache: str = "writeback"
    read_only: bool = False
    discard: bool = True
    media: str = "disk"
    bus: str = "virtio"
    iops: int | None = None
    bandwidth_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class SerialSpec:
    """A further serial port: `port` is `virtio`, or an ISA port by its Linux name; `to` is `socket` or `file`."""

    id: str
    port: str = "virtio"
    to: str = "socket"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a guest's QEMU may take of its host; None is what the service manager gives everybody.

    `cpu_quota_us`: microseconds of CPU time in each second. Weights are relative to other guests', 100 is everybody's.
    """

    cpu_weight: int | None = None
    cpu_quota_us: int | None = None
    io_weight: int | None = None
    tasks: int | None = None


@dataclass(frozen=True, slots=True)
class VmSpec:
    """A wanted guest. `uid` is the user and group that its QEMU runs as, allocated once per uuid.

    `extra_args` go onto QEMU's command line as they are. `vnc`: no display, one on a Unix socket (True), or one on
    `HOST:DISPLAY`.
    `hotplug_slots`: how many places for devices are free at its start, for those that are plugged later.
    `overcommit`: it is started also where the host has not enough memory for all that it may take.
    `watchdog` is what follows when its watchdog fires; None: it has none.
    `after` are references to what it waits for (`core.references`). `ready`: when those that wait for it may start,
    once it is "running", or once "tcp:HOST:PORT" takes connections, which is told as late after `ready_timeout_s`.
    `max_cpus`: how many CPUs it may have while it runs; None: those of its start, no room is made for more.
    `balloon_mib`: how much of its memory it is to keep; None: all of it.
    `fallback`: where QEMU refuses it as it is, it is started as it last ran.
    `publish` are ports of the host that lead to it (`core.routing.publications`).
    """

    name: str
    uuid: str
    uid: int
    file: str = ""
    cpus: int = 1
    memory_mib: int = 512
    machine: str = "q35"
    cpu: str | None = None
    accel: str = "auto"
    kernel: str | None = None
    initrd: str | None = None
    append: str = ""
    extra_args: tuple[str, ...] = ()
    vnc: bool | str = False
    restart: Restart = Restart.ON_FAILURE
    stop_timeout_s: float = 60.0
    after: tuple[str, ...] = ()
    description: str = ""
    enabled: bool = True
    disks: tuple[DiskSpec, ...] = ()
    nics: tuple[NicSpec, ...] = ()
    rng: bool = True
    firmware: str = "bios"
    secure_boot: bool = False
    watchdog: str | None = None
    serials: tuple[SerialSpec, ...] = ()
    overcommit: bool = False
    hotplug_slots: int = 2
    limits: Limits = Limits()
    ready: str = "running"
    ready_timeout_s: float = 120.0
    max_cpus: int | None = None
    balloon_mib: int | None = None
    apply: Apply = Apply.ASK
    fallback: bool = True
    publish: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Desired:
    """Everything that the units want at one moment.

    `retained` are the last specs of bridges that no unit names any more; a bridge that somebody still needs stays on
    its own. `unresolved_files` are files that exist but have no version to run: what they started is left alone.
    `unresolved_guests` gives the file by name and by uuid of each guest that a file's present text names, where that
    text cannot run: whether it is wanted will be known when it is mended.
    `complete` False: the units were not read yet, so nothing is unwanted.
    `vlans` are links of the host in VLANs, but those of bridges.
    """

    bridges: Mapping[str, BridgeSpec] = field(default_factory=dict)
    vms: Mapping[str, VmSpec] = field(default_factory=dict)
    retained: Mapping[str, BridgeSpec] = field(default_factory=dict)
    unresolved_files: frozenset[str] = frozenset()
    unresolved_guests: Mapping[str, str] = field(default_factory=dict)
    complete: bool = True
    vlans: Mapping[str, VlanSpec] = field(default_factory=dict)
