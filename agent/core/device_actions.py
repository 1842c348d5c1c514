"""The actions on what a guest is made of: its taps and NICs, and its disks."""

from __future__ import annotations

from dataclasses import dataclass

from agent.core.desired import DiskSpec, NicSpec
from agent.core.edits.live import Edit
from agent.core.reasons import Disruption, Reason
from agent.core.vlans import PortVlans


@dataclass(frozen=True, slots=True)
class ArmTap:
    """Make a NIC's tap and attach the NIC's descriptor to it.

    For a guest that is not running the descriptor is a new one; for a running one it is QEMU's own, re-armed, which
    the guest does not notice. `bridge_ifindex` None leaves the tap without master; `vlans` are what it carries there.
    `lower_ifindex`: of a NIC that is direct, the link that its macvtap is to be on.
    """

    resource: str
    reason: Reason
    vm: str
    uid: int
    nic: NicSpec
    bridge_ifindex: int | None
    running: bool
    vlans: PortVlans | None = None
    disruption: Disruption = Disruption.NONE
    lower_ifindex: int | None = None


@dataclass(frozen=True, slots=True)
class ReplugNic:
    """Unplug a running guest's NIC and plug it again on a new tap: the last resort, which the guest notices.

    `why` says what keeps its descriptors from being re-armed. `lower_ifindex` as for `ArmTap`.
    """

    resource: str
    reason: Reason
    vm: str
    uid: int
    nic: NicSpec
    bridge_ifindex: int | None
    vlans: PortVlans | None = None
    disruption: Disruption = Disruption.LINK
    lower_ifindex: int | None = None
    why: str = "no descriptor of it can be had"


@dataclass(frozen=True, slots=True)
class CreateDisk:
    """Create a disk that never existed, of `disk.size_bytes`; never replaces anything."""

    resource: str
    reason: Reason
    vm: str
    disk: DiskSpec
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class GrowDisk:
    """Grow a disk to `disk.size_bytes`, beneath the guest if that is `running`; it is never shrunk."""

    resource: str
    reason: Reason
    vm: str
    disk: DiskSpec
    running: bool = False
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Write down what a running guest takes over of its edited unit; what follows from it follows in later passes.

    `keys` are those that change, as `nic.lan.bridge`, or whole devices, as `disk.data`.
    """

    resource: str
    reason: Reason
    vm: str
    uuid: str
    edit: Edit
    keys: tuple[str, ...] = ()
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class PlugNic:
    """Plug a NIC that a running guest lacks, on its tap, which is there."""

    resource: str
    reason: Reason
    vm: str
    uid: int
    nic: NicSpec
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class UnplugNic:
    """Have a running guest let go of a NIC that is leaving, and forget it."""

    resource: str
    reason: Reason
    vm: str
    nic: NicSpec
    disruption: Disruption = Disruption.LINK


@dataclass(frozen=True, slots=True)
class PlugDisk:
    """Plug a disk that a running guest lacks; its file is there."""

    resource: str
    reason: Reason
    vm: str
    disk: DiskSpec
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class UnplugDisk:
    """Have a running guest let go of a disk that is leaving, and forget it; its file stays."""

    resource: str
    reason: Reason
    vm: str
    disk: DiskSpec
    disruption: Disruption = Disruption.NONE
