"""What was seen: states of links, guests and disks, and what the agent remembers of its own doing.

Unknown is a value: None where something could not be observed, and nothing destructive follows from None.
Times are seconds of CLOCK_BOOTTIME, which no change of the wall clock moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agent.core.desired import DiskSpec, Limits, NicSpec, VmSpec
from agent.core.rates import Shape
from agent.core.routing.filters import Filters
from agent.core.routing.firewall import Routing
from agent.core.routing.ipv6 import Ipv6State
from agent.core.routing.routes import RoutesState
from agent.core.services.leases import Lease
from agent.core.services.spec import ServiceSpec
from agent.core.uplinks.moves import MoveState, UplinkState
from agent.core.vlans import BridgeVlans, PortVlans


@dataclass(frozen=True, slots=True)
class LinkState:
    """A link of the kernel. `kind` is rtnetlink's (`bridge`, `tun`, `veth`), None for a physical one.

    `root` is the queueing discipline that somebody gave it, None for the kernel's default; `ingress` is what is done
    to frames that come in, None for nothing. It is looked at for own taps only.
    `isolated`: a bridge's port that no other such port of it reaches (IFLA_BRPORT_ISOLATED). `group_learning`: a bridge
    that learns who is where also from frames to 802.1's groups, which no filter sees; False before Linux 5.0.
    `permanent_mac` is that of the hardware, `place` its address on the PCI bus (`0000:01:00.0`); empty if not known.
    `lower`: the ifindex of the link that this one is on, or for a veth its peer's (IFLA_LINK). `multi_queue`: a tap
    that takes several descriptors, which it must have been made for.
    `bridging`: how a bridge treats VLANs, None where its kernel knows none. `vlans`: what a port of a bridge that heeds
    them carries, or that bridge itself; None: not looked at. `vlan_id` is a VLAN link's.
    """

    ifindex: int
    name: str
    kind: str | None = None
    up: bool = False
    mtu: int = 1500
    mac: str = ""
    master: int | None = None
    alias: str = ""
    group: int = 0
    addresses: tuple[AddressState, ...] = ()
    stp: bool = False
    snooping: bool = False
    root: QdiscState | None = None
    ingress: IngressState | None = None
    isolated: bool = False
    group_learning: bool = False
    altnames: tuple[str, ...] = ()
    permanent_mac: str = ""
    place: str = ""
    lower: int | None = None
    multi_queue: bool = False
    bridging: BridgeVlans | None = None
    vlans: PortVlans | None = None
    vlan_id: int | None = None


def vlan_links_on(link: LinkState, links: Mapping[str, LinkState]) -> tuple[LinkState, ...]:
    """The VLAN links on a link, and those on these: the kernel deletes them with it."""
    found = tuple(one for one in links.values() if one.kind == "vlan" and one.lower == link.ifindex)
    return found + tuple(above for one in found for above in vlan_links_on(one, links))


@dataclass(frozen=True, slots=True)
class QdiscState:
    """A link's root queueing discipline. `own`: a `tbf` with our handle; `shape` is what that one lets through."""

    kind: str
    own: bool = False
    shape: Shape | None = None


@dataclass(frozen=True, slots=True)
class IngressState:
    """The ingress discipline of a tap: `ingress` or `clsact`.

    `redirect` is the ifindex to which our filter sends everything, None if there is no filter of ours, 0 if it is not
    as we make it. `foreign`: it holds filters that are not ours.
    """

    kind: str
    redirect: int | None = None
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class AddressState:
    """An address of a link, as `192.168.0.1/24`. `own`: it carries our address protocol number (IFA_PROTO).

    `tentative`: nobody may use it yet, or at all, because another host may have it or has it (RFC 4862, 5.4).
    """

    address: str
    own: bool = False
    link_local: bool = False
    tentative: bool = False


class NicBackend(StrEnum):
    """Where the open tap descriptor of a running guest's NIC leads."""

    ATTACHED = "attached"
    DEAD = "dead"
    UNKNOWN = "unknown"
    """No descriptor could be had: only a replug can heal it."""


@dataclass(frozen=True, slots=True)
class NicState:
    """A NIC of a running guest; `link` is the name of the tap that its descriptors are attached to.

    Of a dead one it is that of the new tap on which some of its queues are already, because a repair was interrupted.
    """

    backend: NicBackend
    link: str | None = None


@dataclass(frozen=True, slots=True)
class VmState:
    """A guest that was launched and not yet forgotten.

    `spec` is what it is to be like: as it was launched, with what it took over of its unit since.
    `run_state` is QEMU's (`query-status`: `prelaunch`, `running`, `paused`, `shutdown`, `guest-panicked`, `io-error`,
    `internal-error`, …), None while it does not answer.
    `exit_reason` is why the process ended, once it is no longer `alive`. `unanswered_s`: since it last answered.
    `stopping`: we began to end this launch, and finish that whatever is wanted by now.
    `resumed_s`: when it was last let go on after a pause for want of space.
    `devices` are the ids of what is plugged into QEMU, None while that is not known; the `leaving` ones are to be
    unplugged and not gone yet.
    `unit` is the service that its QEMU runs as, empty for a child of the agent; `limits` are those of that service,
    None if unknown; `limits_awaited`: nobody has looked at them yet.
    `tuned`: what QEMU was told last of what it cannot be asked for (core.edits.tuning). `cpus`: so many are plugged,
    None while that is not known, or cannot change. `media`: the block node in each CD-ROM drive, empty for none.
    `told_mtus`: what the guest was told of a NIC's MTU, by NIC, where that is another one by now.
    `reboot_ends`: whether a reboot of the guest ends this QEMU instead of being one; None while that is uncertain.
    `rebooted`: its end was such a reboot. `vhosts`: the NICs whose frames the kernel carries (vhost-net).
    """

    spec: VmSpec
    alive: bool
    pid: int | None = None
    generation: int = 0
    reset_generation: int = 0
    run_state: str | None = None
    exit_reason: str | None = None
    unanswered_s: float = 0.0
    stopping: bool = False
    resumed_s: float | None = None
    nics: Mapping[str, NicState] = field(default_factory=dict)
    devices: frozenset[str] | None = None
    leaving_nics: tuple[NicSpec, ...] = ()
    leaving_disks: tuple[DiskSpec, ...] = ()
    unit: str = ""
    limits: Limits | None = None
    limits_awaited: bool = False
    resume_generation: int = 0
    tuned: Mapping[str, str] = field(default_factory=dict)
    cpus: int | None = None
    media: Mapping[str, str] = field(default_factory=dict)
    told_mtus: Mapping[str, int] = field(default_factory=dict)
    reboot_ends: bool | None = False
    rebooted: bool = False
    vhosts: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class DiskState:
    """A disk's file. `known`: it was seen or made before. `size_bytes`: as a guest sees it, None if unknown.

    `free_bytes`: what its file system has left, looked at only while a guest waits for it, else None.
    """

    exists: bool
    folder_exists: bool
    known: bool
    size_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class End:
    """An end of a guest that nobody asked for. `reason` is a label of `vm_exits_total`; `ran_s`: since its launch."""

    at_s: float
    ran_s: float
    boot_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class ServiceState:
    """A service that was started and not yet stopped on purpose; `spec` is what it runs with.

    `ends` are those that nobody asked for, the latest ones; `ended` counts all of them, `restarts` the starts that
    answered one. `unit` is the systemd service that it runs as, empty for a child of the agent. `began_s`: when it was
    started, None where that is not known.
    """

    spec: ServiceSpec
    alive: bool
    pid: int | None = None
    unit: str = ""
    ends: tuple[End, ...] = ()
    ended: int = 0
    restarts: int = 0
    began_s: float | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """Who asked that a guest be left alone, since when (wall clock, ISO 8601), and why, in their own words."""

    uid: int
    since: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What QEMU would not start with: a spec's `digest`, and what it `said`. `former` is the spec that last ran.

    `times`: how often in a row; `former_refused`: it would not start with that one either.
    `missing`: it was not QEMU that refused it, but `said` is what it needs and what is not there; counts for one start.
    """

    digest: str
    said: str
    former: VmSpec
    times: int = 1
    former_refused: bool = False
    missing: bool = False


@dataclass(frozen=True, slots=True)
class Intent:
    """What the operator asked of a guest; levels, so that an interrupted one is finished and never doubled.

    `resume_generation` counts what was asked of a guest that may be paused for any reason: each is answered once.
    """

    stopped: bool = False
    generation: int = 0
    reset_generation: int = 0
    paused: bool = False
    resume_generation: int = 0
    hold: Hold | None = None


@dataclass(frozen=True, slots=True)
class Reach:
    """Whether what a guest starts after is there: None while the first look at it is under way.

    `since_s`: since when that has been so. `why` it is not, in the kernel's words, if it said anything.
    """

    ok: bool | None
    since_s: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """The last try of an action that did not succeed. `not_before_s` None: held until spec or world change."""

    failures: int
    not_before_s: float | None
    reason: str
    message: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class HostMemory:
    """The host's memory at one instant: what is available, and what each guest's QEMU, by pid, had taken by then.

    Both belong together: a guest that takes more of what it was promised afterwards changes nothing of what is left.
    `source` says of what it is available, `kvm` what `accel = "auto"` takes.
    """

    available_bytes: int
    resident_bytes: Mapping[int, int] = field(default_factory=dict)
    kvm: bool = False
    source: str = "the host's memory"


@dataclass(frozen=True, slots=True)
class HostState:
    """What the host can do. `qemu` is the path of its QEMU, None when there is none; `qemu_problem` says why.

    `memory` None: not looked at.
    `down`: an operator, or the shutdown of the host, wants no guest to run in this boot; `down_by_s`: from when on no
    guest gets any more time to shut itself down, None if each has its own.
    `bridge_vlans`: whether bridges that are made heed VLANs where that is asked for, as far as a forecast can tell.
    `services`: guests are started as services of their own. `controllers`: those of the host's control groups, None if
    not looked at. `absent` are programs of services that are not installed. `vhost_problem`: what keeps guests from
    vhost-net, empty for nothing.
    """

    boot_id: str = ""
    qemu: str | None = "qemu-system-x86_64"
    qemu_problem: str = ""
    start_slots: int = 4
    memory: HostMemory | None = None
    down: bool = False
    services: bool = False
    controllers: frozenset[str] | None = None
    down_by_s: float | None = None
    absent: frozenset[str] = frozenset()
    vhost_problem: str = ""
    bridge_vlans: bool = True


@dataclass(frozen=True, slots=True)
class Observed:
    """The world at one moment. Keys: links by name, guests by name, disks by path, attempts by action key.

    `short` are the guests that the host had no memory for when it was planned last. `refused` goes by uuid.
    `files` are those that edited guests would boot from, by path: whether each is there.
    `reachable` goes by reference, as an `after` has it (`path:/srv/disk`, `tcp:192.168.0.1:53`): what was asked for by
    the last plan, and is looked at. `services` go by name, `leases` by bridge. `ipv6` and `routes` None: not looked at
    yet. `enslaved` are links that we put into bridges, each with its bridge, by the name that it has now; `cards` the
    number of the link that an entry of a bridge's `ports` put there, also of one that is gone.
    `opened` are the taps of which the agent has a descriptor: only who made a macvtap has the key to its device.
    `uplinks` go by port, of bridges that adopt what that carries; `moves` by bridge, and `unreadable_moves` say why.
    """

    links: Mapping[str, LinkState] = field(default_factory=dict)
    vms: Mapping[str, VmState] = field(default_factory=dict)
    disks: Mapping[str, DiskState] = field(default_factory=dict)
    host: HostState = HostState()
    intents: Mapping[str, Intent] = field(default_factory=dict)
    ends: Mapping[str, tuple[End, ...]] = field(default_factory=dict)
    enslaved: frozenset[tuple[str, str]] = frozenset()
    cards: Mapping[tuple[str, str], int] = field(default_factory=dict)
    attempts: Mapping[str, Attempt] = field(default_factory=dict)
    in_flight: Mapping[str, str] = field(default_factory=dict)
    stops_at_s: tuple[float, ...] = ()
    approved: frozenset[str] = frozenset()
    short: frozenset[str] = frozenset()
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    max_disruption: int = 3
    reachable: Mapping[str, Reach] = field(default_factory=dict)
    files: Mapping[str, bool] = field(default_factory=dict)
    services: Mapping[str, ServiceState] = field(default_factory=dict)
    leases: Mapping[str, tuple[Lease, ...]] = field(default_factory=dict)
    routing: Routing = field(default_factory=Routing)
    filters: Filters = field(default_factory=Filters)
    ipv6: Ipv6State | None = None
    routes: RoutesState | None = None
    opened: frozenset[str] = frozenset()
    uplinks: Mapping[str, UplinkState] = field(default_factory=dict)
    moves: Mapping[str, MoveState] = field(default_factory=dict)
    unreadable_moves: Mapping[str, str] = field(default_factory=dict)
