"""VLANs of bridges and their ports, and VLAN links, as the agent changes them."""

from __future__ import annotations

import errno

from agent.core import marks
from agent.core.actions import LinkChange
from agent.core.desired import VlanSpec
from agent.core.errors import OutcomeUnknownError, PermanentError, TransientError
from agent.core.netlink import NLM_F_ACK
from agent.core.observed import LinkState
from agent.core.vlan_actions import ChangeVlans
from agent.core.vlans import BridgeVlans, PortVlans
from agent.host.netlink import messages as said
from agent.host.netlink import requests as asked
from agent.host.netlink.rates import RatedLinks
from agent.host.netlink.wire import NLM_F_CREATE, NLM_F_EXCL, Ignoring, KernelRefusedError

NO_BRIDGE_VLANS = "this kernel's bridges know no VLANs (CONFIG_BRIDGE_VLAN_FILTERING); run one that has them"
NO_VLAN_LINKS = "this kernel has no VLAN links (CONFIG_VLAN_8021Q, module 8021q); run one that has them"


class VlanLinks(RatedLinks):
    """The links of a network namespace, with VLANs."""

    async def change_vlans(self, action: ChangeVlans) -> None:
        """Set what a bridge and its ports carry, all of it without a pause in between (`wire`).

        The bridge gone or another one: TransientError. A kernel without: PermanentError with reason VlanUnsupported.
        """
        with self._doing(f"change VLANs of {action.bridge}", action.ifindex):
            bridge = self._get(action.ifindex)
            if bridge.name != action.bridge or not marks.is_own_bridge(bridge):
                raise TransientError(f"link {action.ifindex} is no longer {action.bridge}", reason="LinkChanged")
            if bridge.bridging is None:
                raise PermanentError(NO_BRIDGE_VLANS, reason="VlanUnsupported")
            try:
                self._change_vlans(action, bridge.bridging)
            finally:
                self.catch_up()
                for port in action.ports:
                    self._read_vlans(port.ifindex)

    def _change_vlans(self, action: ChangeVlans, seen: BridgeVlans) -> None:
        wanted, bridge = action.setting, action.ifindex
        strangers: dict[int, PortVlans] = {}
        if seen.default_pvid != wanted.default_pvid:  # the kernel changes ports beside, also those of others
            ours = {port.ifindex for port in action.ports}
            others = [one.ifindex for one in self.snapshot.values() if one.master == bridge and one.ifindex not in ours]
            strangers = {one: vlans for one in others if (vlans := self._look_at_vlans(one)) is not None}
        if seen.filtering and not wanted.filtering:
            self._ask(said.RTM_NEWLINK, asked.bridging_setting(bridge, BridgeVlans(False, 0, wanted.protocol)))
            seen = BridgeVlans(False, 0, wanted.protocol)
        given = BridgeVlans(seen.filtering, wanted.default_pvid, wanted.protocol)
        if given != seen:
            self._ask(said.RTM_NEWLINK, asked.bridging_setting(bridge, given))
        for port in action.ports:
            self._set_vlans(port.ifindex, bridge, port.vlans)
        for ifindex, vlans in strangers.items():
            self._set_vlans(ifindex, bridge, vlans)
        if wanted.filtering and not seen.filtering:
            self._ask(said.RTM_NEWLINK, asked.bridging_setting(bridge, wanted))

    def _set_vlans(self, ifindex: int, bridge: int, wanted: PortVlans) -> None:
        """Of one that is no port of the bridge any more there is nothing to set."""
        link = self._find(ifindex)
        if ifindex == bridge or (link is not None and link.master == bridge):
            self._lead_vlans(ifindex, wanted, is_bridge=ifindex == bridge)

    async def create_vlan(self, spec: VlanSpec, lower_ifindex: int) -> None:
        """Make a VLAN link, mark it, set it up, give it its addresses; one on a link that is down stays down.

        One that was interrupted is known by its group (`marks.is_own_vlan`). The name, or the VLAN on that link, is
        taken: TransientError with reason Conflict. A kernel without: PermanentError with reason VlanUnsupported.
        """
        with self._doing(f"create VLAN link {spec.name}"):
            try:
                setting = asked.new_vlan(spec, lower_ifindex)
                await self._elsewhere(said.RTM_NEWLINK, setting, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
            except KernelRefusedError as e:
                if e.number == errno.EOPNOTSUPP:
                    raise PermanentError(NO_VLAN_LINKS, reason="VlanUnsupported") from e
                raise
            self.catch_up()
            made: LinkState | None = self.snapshot.get(spec.name)
            if made is None:
                raise OutcomeUnknownError(f"create VLAN link {spec.name}: it is gone again", reason="LinkGone")
            self._ask(said.RTM_NEWLINK, asked.link_setting(made.ifindex, LinkChange(alias=marks.vlan_mark(spec.name))))
            with Ignoring(errno.ENETDOWN):
                self._ask(said.RTM_NEWLINK, asked.link_setting(made.ifindex, LinkChange(up=True)))
            self._add_addresses(made.ifindex, [said.normal_address(address) for address in spec.addresses])
            self._show_addresses(made.ifindex)
            self._read_back(made.ifindex)
