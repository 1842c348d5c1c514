"""The actions on VLANs: what bridges and their ports carry, and the VLAN links of the host."""

from __future__ import annotations

from dataclasses import dataclass

from agent.core.desired import VlanSpec
from agent.core.reasons import Disruption, Reason
from agent.core.vlans import BridgeVlans, PortVlans


@dataclass(frozen=True, slots=True)
class PortSetting:
    """What a port, or the bridge itself, is to carry."""

    link: str
    ifindex: int
    vlans: PortVlans


@dataclass(frozen=True, slots=True)
class ChangeVlans:
    """Set what a bridge and these ports of it carry, each only in what differs; a port that has left is left out.

    Where `setting` switches the heeding of VLANs on, all ports that are ours have theirs before; the VLANs of ports
    that somebody else put there stay as they are.
    """

    resource: str
    reason: Reason
    bridge: str
    ifindex: int
    setting: BridgeVlans
    ports: tuple[PortSetting, ...]
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class CreateVlan:
    """Make a VLAN link of the host on another link, mark it, give it its addresses, and set it up."""

    resource: str
    reason: Reason
    spec: VlanSpec
    lower_ifindex: int
    disruption: Disruption = Disruption.NONE
