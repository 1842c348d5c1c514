"""What the agent looks at, and changes, of the host's network beside its links: one door for all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple

from agent.core.actions import Action, MoveUplink, PutBackUplink
from agent.core.desired import Desired
from agent.core.observed import LinkState, VmState
from agent.core.routing.filters import ChangeFilters, Filters
from agent.core.routing.firewall import Routing
from agent.core.routing.firewall_actions import ChangeFirewall, ChangeForwarding, EndConnections
from agent.core.routing.ipv6 import Ipv6State
from agent.core.routing.ipv6_actions import ChangeIpv6
from agent.core.routing.ipv6_wanted import uplinks6
from agent.core.routing.routes import RoutesState
from agent.core.routing.routes_wanted import ChangeRoutes
from agent.core.uplinks.moves import UplinkState
from agent.runtime.filters import FilterLooks
from agent.runtime.ipv6 import Ipv6Looks
from agent.runtime.keeper import Keeper
from agent.runtime.routes import RouteLooks
from agent.runtime.routing import RoutingLooks
from agent.runtime.uplinks import Uplinks


class NetworkState(NamedTuple):
    """What there is now, as `Observed` has it."""

    routing: Routing
    filters: Filters
    ipv6: Ipv6State | None
    routes: RoutesState | None
    uplinks: Mapping[str, UplinkState]


class Network:
    """Firewall, filters, IPv6, routes and moves of uplinks. Each rings `ring` when something of its own changed."""

    def __init__(self, ring: Callable[[str], None], keeper: Keeper, boot_id: str, uplinks: Uplinks) -> None:
        self.routing = RoutingLooks(ring, keeper, boot_id)
        self.filters = FilterLooks(ring)
        self.uplinks = uplinks
        self._ipv6 = Ipv6Looks(ring, keeper, boot_id)
        self._routes = RouteLooks(ring)

    async def look_in(self, group: asyncio.TaskGroup) -> None:
        """Look and listen for as long as the group lives; first what an agent left in the middle is put back."""
        await self.uplinks.recover()
        self.routing.look_in(group)
        self.filters.look_in(group)
        self._ipv6.look_in(group)
        self._routes.look_in(group)

    async def look_again(self) -> None:
        """Look at all of it anew, whatever was heard of it."""
        self.routing.look_again()
        self.filters.look_again()
        self._ipv6.look_again()
        self._routes.look_again()
        await self.uplinks.look_again()

    def close(self) -> None:
        """Listen no more."""
        self._ipv6.close()
        self._routes.close()

    def look(self, desired: Desired, vms: Mapping[str, VmState], links: Mapping[str, LinkState]) -> NetworkState:
        """What is known now, as far as these units and guests ask for it."""
        bridges = {**desired.retained, **desired.bridges}
        ipv6 = self._ipv6.look(desired, vms, links)
        return NetworkState(
            self.routing.look(desired, vms, links, uplinks6(bridges.values(), ipv6)),
            self.filters.look(),
            ipv6,
            self._routes.look(desired, links),
            self.uplinks.look(bridges, links),
        )

    async def execute(self, action: Action) -> None:
        """Do one action on it; raises what its executor raises."""
        match action:
            case MoveUplink():
                await self.uplinks.move(action)
            case PutBackUplink():
                await self.uplinks.put_back(action)
            case ChangeFilters():
                # After a flush both are made anew. Two transactions at once hold each other up, and connections are
                # cut until the firewall is back.
                await self.routing.let_go_first()
                await self.filters.change(action)
            case ChangeFirewall() | ChangeForwarding() | EndConnections():
                await self.routing.change(action)
            case ChangeIpv6():
                await self._ipv6.change(action)
            case ChangeRoutes():
                await self._routes.change(action)
            case _:
                raise TypeError(f"no executor for {action}")
