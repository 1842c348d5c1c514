"""Carries out the actions on bridges, ports and taps."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from agent.core.actions import (
    ChangeAddresses,
    ChangeLink,
    ChangeRate,
    CreateBridge,
    DeleteLink,
    EnslavePort,
    LinkChange,
    ReleasePort,
)
from agent.core.device_actions import ArmTap
from agent.core.errors import ActionError, TransientError
from agent.core.marks import tap_mark
from agent.core.memory import Memory, with_port, without_port, without_ports_of
from agent.core.routing.ipv6 import conf
from agent.core.vlan_actions import ChangeVlans, CreateVlan
from agent.host.netlink import VlanLinks
from agent.host.sysctls import change_sysctls
from agent.host.tap import Births, TapSettings, keep, open_macvtap, open_tap, rearm
from agent.runtime.descriptors import Descriptors
from agent.runtime.keeper import Keeper

AskSettings = Callable[[ArmTap], Awaitable[TapSettings]]
LinkAction = (
    CreateBridge
    | ChangeLink
    | EnslavePort
    | ReleasePort
    | ChangeAddresses
    | DeleteLink
    | ChangeRate
    | ChangeVlans
    | CreateVlan
)


class LinkExecutor:
    """Each method does one action and returns when the links' cache shows it, or raises an ActionError."""

    def __init__(self, links: VlanLinks, descriptors: Descriptors, keeper: Keeper, folder: Path) -> None:
        """`folder` is one of the agent's own, for device nodes that are there for a moment."""
        self._links = links
        self._folder = folder
        self._descriptors = descriptors
        self._keeper = keeper

    async def change(self, action: LinkAction) -> None:
        """Do an action on a bridge, a port, or an existing tap."""
        match action:
            case CreateBridge(spec=spec, vlans=vlans):
                await self._links.create_bridge(spec, vlans)
            case CreateVlan(spec=vlan, lower_ifindex=lower):
                await self._links.create_vlan(vlan, lower)
            case ChangeVlans():
                await self._links.change_vlans(action)
            case ChangeLink(link=link, ifindex=ifindex, expect_alias=alias, change=change):
                await self._links.change(link, ifindex, alias, change)
            case ChangeRate():
                await self._links.change_rate(action)
            case ChangeAddresses(ifindex=ifindex, add=add, remove=remove):
                await self._links.change_addresses(ifindex, add, remove)
            case DeleteLink(link=link, ifindex=ifindex, expect_alias=alias):
                await self._links.delete(link, ifindex, alias)
                await self._keeper.update(lambda memory: _without_bridge(memory, link))
            case EnslavePort(port=port, bridge=bridge):
                await self._links.enslave(action.port_ifindex, action.bridge_ifindex, action.mtu, action.vlans)
                place, indexes = (action.entry or port, bridge), (action.port_ifindex, action.bridge_ifindex)
                await self._keeper.update(lambda memory: with_port(memory, place, *indexes))
            case ReleasePort(port=port, bridge=bridge):
                await self._links.release(action.port_ifindex, action.bridge_ifindex)
                await self._keeper.update(lambda memory: without_port(memory, action.port_ifindex, (port, bridge)))

    async def arm(self, action: ArmTap, ask_settings: AskSettings) -> None:
        """Make a NIC's tap: on QEMU's own open file when it runs, else on a new one that its QEMU will be given.

        `ask_settings` asks the guest for what nobody could read, of a tap that was lost before this agent began.
        The tap persists only once it is marked: an agent that is killed in between leaves nothing that nobody owns.
        """
        if action.nic.direct:
            await self._make_macvtap(action)
            return
        held = self._descriptors.find(action.vm, action.nic.id)
        if action.running:
            if held is None:
                raise TransientError(f"no descriptor of {action.nic.tap} is at hand", reason="NoDescriptor")
            fds = held.fds
            held.settings = held.settings or await ask_settings(action)
            rearm(held.fds, action.nic.tap, action.uid, held.settings, held.detached)
        else:
            fds = open_tap(action.nic.tap, action.uid, action.nic.queues)
            self._descriptors.put(action.vm, action.nic, fds)
        _bar_ipv6(action.nic.tap)
        await self.set_up_tap(action)
        keep(fds[0])

    async def _make_macvtap(self, action: ArmTap) -> None:
        """Make a direct NIC's macvtap and open it; it is marked only then, so that a half made one is known as such."""
        nic = action.nic
        if action.lower_ifindex is None:
            raise TransientError(f"the link that {nic.tap} is to be on is not known", reason="LinkGone")
        with Births() as births:
            made = await self._links.create_macvtap(nic.tap, action.lower_ifindex, nic.mac, nic.queues)
            device = births.device_of(made.ifindex)
        fds = open_macvtap(nic.tap, made.ifindex, device, nic.queues, self._folder)
        self._descriptors.put(action.vm, nic, fds)
        _bar_ipv6(nic.tap)
        change = LinkChange(up=True, alias=tap_mark(action.vm, nic.id))
        await self._links.change(made.name, made.ifindex, made.alias, change)

    def descriptors(self, vm: str, nic: str) -> tuple[int, ...]:
        """The descriptors of a NIC's tap that `arm` made."""
        held = self._descriptors.find(vm, nic)
        if held is None:
            raise TransientError(f"no descriptor of {vm}'s {nic} is at hand", reason="NoDescriptor")
        return held.fds

    async def set_up_tap(self, action: ArmTap) -> None:
        """Mark a fresh tap, enslave it and set it up, in one request; in two where it is isolated before it is up."""
        self._links.catch_up()
        link = self._links.snapshot.get(action.nic.tap)
        if link is None:
            raise TransientError(f"{action.nic.tap} did not appear in this network namespace", reason="TapElsewhere")
        change = LinkChange(
            up=True,
            mtu=action.nic.mtu,
            master=action.bridge_ifindex,
            alias=tap_mark(action.vm, action.nic.id),
            isolated=True if action.nic.isolated and action.bridge_ifindex is not None else None,
            vlans=action.vlans,
        )
        await self._links.change(link.name, link.ifindex, link.alias, change)


def _bar_ipv6(tap: str) -> None:
    """A tap is a port and no more. What a guest sends to 802.1's own groups comes to the host by the tap itself, past
    the bridge: with IPv6 there the host would heed its router advertisements. Best effort: there may be no IPv6."""
    with contextlib.suppress(ActionError):
        change_sysctls([(conf(tap, "disable_ipv6"), "1")])


def _without_bridge(memory: Memory, name: str) -> Memory:
    """Forget a bridge that we deleted, with its ports: nobody can need it any more."""
    left = without_ports_of(memory, name)
    if name not in left.retained:
        return left
    return replace(left, retained={known: spec for known, spec in left.retained.items() if known != name})
