"""The actions that a plan consists of: what to do to which resource, and why.

An action names everything that its executor needs, also to look again before it destroys: an ifindex with its mark,
a pid with its uuid. `key` says which action it is (for retries), `resource` what it works on: one in flight for each.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.core.desired import BridgeSpec, Limits, VmSpec
from agent.core.device_actions import (
    ArmTap,
    CreateDisk,
    GrowDisk,
    PlugDisk,
    PlugNic,
    ReplugNic,
    TakeOver,
    UnplugDisk,
    UnplugNic,
)
from agent.core.observed import Refusal
from agent.core.reasons import Disruption, Reason
from agent.core.routing.filters import ChangeFilters
from agent.core.routing.firewall_actions import ChangeFirewall, ChangeForwarding, EndConnections
from agent.core.routing.ipv6_actions import ChangeIpv6
from agent.core.routing.routes_wanted import ChangeRoutes
from agent.core.services.actions import ReloadService, StartService, StopService
from agent.core.tuning_actions import ChangeMedium, PlugCpus, TuneVm
from agent.core.vlan_actions import ChangeVlans, CreateVlan
from agent.core.vlans import PortVlans


@dataclass(frozen=True, slots=True)
class LinkChange:
    """Fields to set on a link; None leaves a field alone. `master` 0 takes the link out of its bridge.

    `isolated` and `vlans` are of a port, and set once it is in its bridge, before it goes up. With `vlans` that bridge
    must heed them, and give a new port none by itself.
    """

    up: bool | None = None
    mtu: int | None = None
    mac: str | None = None
    master: int | None = None
    alias: str | None = None
    name: str | None = None
    stp: bool | None = None
    snooping: bool | None = None
    isolated: bool | None = None
    group_learning: bool | None = None
    vlans: PortVlans | None = None


@dataclass(frozen=True, slots=True)
class CreateBridge:
    """Make a bridge, mark it, give it MAC, MTU and addresses, and set it up.

    `vlans`: it heeds VLANs from its first moment on, and carries these itself.
    """

    resource: str
    reason: Reason
    spec: BridgeSpec
    vlans: PortVlans | None = None
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class ChangeLink:
    """Set fields of an existing link. `expect_alias` is checked with the ifindex before anything is set."""

    resource: str
    reason: Reason
    link: str
    ifindex: int
    expect_alias: str
    change: LinkChange
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class EnslavePort:
    """Put a host link into a bridge, up; refused with `PortAddressed` when it carries addresses or routes by then.

    `entry` is what the unit calls it, empty where that is its name.
    """

    resource: str
    reason: Reason
    bridge: str
    bridge_ifindex: int
    port: str
    port_ifindex: int
    mtu: int | None = None
    entry: str = ""
    vlans: PortVlans | None = None
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class MoveUplink:
    """Bring what a port carries to its bridge, prove that it works there, or put everything back.

    `again`: what it carried before this boot of the host, or before the bridge was lost, is brought there once more;
    a move that was kept is `remade` so, or with what the port carries, and needs no word (`confirm_s` 0). `entry` and
    `vlans` are as those of `EnslavePort`.
    """

    resource: str
    reason: Reason
    bridge: str
    bridge_ifindex: int
    port: str
    port_ifindex: int
    digest: str
    probe: tuple[str, ...] = ()
    probe_timeout_s: float = 10.0
    confirm_s: float = 0.0
    mtu: int | None = None
    again: bool = False
    entry: str = ""
    vlans: PortVlans | None = None
    remade: bool = False
    disruption: Disruption = Disruption.LINK


@dataclass(frozen=True, slots=True)
class PutBackUplink:
    """Have a port and its bridge be as they were before a move. `forget`: the unit wants no such bridge any more."""

    resource: str
    reason: Reason
    bridge: str
    port: str
    why: str
    forget: bool = False
    disruption: Disruption = Disruption.LINK


@dataclass(frozen=True, slots=True)
class ReleasePort:
    """Take a host link that we once enslaved out of a bridge; it stays up and keeps everything else."""

    resource: str
    reason: Reason
    bridge: str
    port: str
    port_ifindex: int
    bridge_ifindex: int
    disruption: Disruption = Disruption.LINK


@dataclass(frozen=True, slots=True)
class ChangeAddresses:
    """Add and remove addresses of an own bridge; additions go first, so that a renumbering never leaves it bare."""

    resource: str
    reason: Reason
    bridge: str
    ifindex: int
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class ChangeRate:
    """Limit what passes a NIC's tap, in bits per second: `rate_in_bps` towards the guest, `rate_out_bps` from it.

    None leaves a direction alone, 0 takes its limit away. Ifindex and mark of the tap are checked before.
    """

    resource: str
    reason: Reason
    vm: str
    nic: str
    link: str
    ifindex: int
    expect_alias: str
    mtu: int
    rate_in_bps: int | None = None
    rate_out_bps: int | None = None
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class DeleteLink:
    """Delete an own link; the ifindex and the mark are checked immediately before."""

    resource: str
    reason: Reason
    link: str
    ifindex: int
    expect_alias: str
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class LaunchVm:
    """Start a guest's QEMU, paused (`-S`), with its taps and disks as open descriptors; then let go of it.

    `instead_of`: the digest of the wanted spec that QEMU refused, where `spec` is the one that last ran.
    """

    resource: str
    reason: Reason
    spec: VmSpec
    generation: int
    reset_generation: int
    instead_of: str = ""
    disruption: Disruption = Disruption.NONE
    resume_generation: int = 0


@dataclass(frozen=True, slots=True)
class ReleaseVm:
    """Let a guest run that QEMU holds at its first instruction (`cont`)."""

    resource: str
    reason: Reason
    vm: str
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class StopVm:
    """End a running guest: ACPI power button, at the deadline `quit`, then a kill. Done when its process is gone.

    `unit_asked`: a removed or disabled unit wants it, which counts towards the disruption limit.
    `timeout_s` is no part of what is done: a budget that runs out makes it shorter in each pass, and that is no reason
    to try a stop again at once that could not be done (`draft.fingerprint`).
    """

    resource: str
    reason: Reason
    vm: str
    uuid: str
    timeout_s: float = field(repr=False)
    unit_asked: bool = False
    disruption: Disruption = Disruption.STOP


@dataclass(frozen=True, slots=True)
class EndVm:
    """Record why a guest ended, then quit the QEMU that still holds its remains, and forget its launch.

    `asked`: its operator or its unit wanted that end, so it does not count as one that the restart policy answers.
    `rebooted`: it was no end but a reboot of the guest, which is to be started again whatever its restart policy.
    `lacks`: its edited unit could not be started now, so that it is started as it ran.
    """

    resource: str
    reason: Reason
    vm: str
    uuid: str
    exit_reason: str
    asked: bool
    rebooted: bool = False
    lacks: Refusal | None = None
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class RenameVm:
    """Carry a running guest over to the name that its unit has now, which has the same uuid; QEMU is not touched."""

    resource: str
    reason: Reason
    vm: str
    uuid: str
    new_name: str
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class ResetVm:
    """Press a guest's reset button and record the generation that this answers."""

    resource: str
    reason: Reason
    vm: str
    reset_generation: int
    disruption: Disruption = Disruption.RESTART


@dataclass(frozen=True, slots=True)
class PauseVm:
    """Have QEMU stop a guest's processors (`stop`), as its operator asked."""

    resource: str
    reason: Reason
    vm: str
    disruption: Disruption = Disruption.STOP


@dataclass(frozen=True, slots=True)
class ChangeReboot:
    """Have QEMU end when its guest reboots (`ends`), so that the guest comes back as its unit says by then, or not."""

    resource: str
    reason: Reason
    vm: str
    uuid: str
    ends: bool
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class ResumeVm:
    """Let a guest go on: one that QEMU paused because its disk's file system was full (`io-error`), now that it is not,
    or one whose operator asked for it. `resume_generation`: which wish that answers, None if none."""

    resource: str
    reason: Reason
    vm: str
    resume_generation: int | None = None
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class LimitVm:
    """Set all limits of the service that a running guest's QEMU runs as; QEMU is not touched."""

    resource: str
    reason: Reason
    vm: str
    uuid: str
    limits: Limits
    disruption: Disruption = Disruption.NONE


Action = (
    CreateBridge
    | ChangeLink
    | EnslavePort
    | ReleasePort
    | MoveUplink
    | PutBackUplink
    | ChangeAddresses
    | DeleteLink
    | ChangeRate
    | ArmTap
    | ReplugNic
    | CreateDisk
    | GrowDisk
    | TakeOver
    | PlugNic
    | UnplugNic
    | PlugDisk
    | UnplugDisk
    | TuneVm
    | PlugCpus
    | ChangeMedium
    | LaunchVm
    | ReleaseVm
    | StopVm
    | EndVm
    | RenameVm
    | ResetVm
    | PauseVm
    | ResumeVm
    | LimitVm
    | ChangeReboot
    | StartService
    | ReloadService
    | StopService
    | ChangeFilters
    | ChangeFirewall
    | ChangeForwarding
    | EndConnections
    | ChangeIpv6
    | ChangeRoutes
    | ChangeVlans
    | CreateVlan
)


def kind_of(action: Action) -> str:
    """The action's kind as it is written in metrics and events: `CreateBridge` is `create-bridge`."""
    return kind_name(type(action))


def kind_name(kind: type) -> str:
    """How a kind of action is written."""
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in kind.__name__).lstrip("-")


def key_of(action: Action) -> str:
    """Which action on which resource: the key under which its attempts are remembered."""
    return f"{kind_of(action)} {action.resource}"
