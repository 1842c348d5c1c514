"""Looks at the firewall, at what the kernel forwards and at who has ports of the host; and changes the former two.

nft runs in a thread, for milliseconds each time. Its events say when to look again; a look that comes regularly finds
what no event told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import structlog

from agent.core.desired import Desired
from agent.core.errors import ActionError, ObservationError
from agent.core.firewall import TABLE, FirewallState, ForwardingState, Opening, Routing
from agent.core.firewall_actions import FIREWALL, ChangeFirewall, ChangeForwarding, EndConnections, after_change
from agent.core.firewall_wanted import VERSIONS, name_of, outer_links
from agent.core.marks import is_own_bridge
from agent.core.observed import LinkState, VmState
from agent.host.connections import Strays, end_forwarded, end_strays
from agent.host.listeners import find_holders
from agent.host.nft import MISSING, NftMissingError, change_table, forget_ended, look_at_table
from agent.host.nft_events import NftEvents
from agent.host.sysctls import change_sysctls, look_at_forwarding, watch_forwarding
from agent.runtime.keeper import Keeper
from agent.runtime.threads import run_to_end

log = structlog.get_logger("vmhost.routing")

PORTS_EVERY_S = 2.0
"""How often it is looked whether a port that somebody has is free by now."""

PORTS_AT_LEAST_EVERY_S = 30.0
AGAIN_S = 1.0
"""After a look that failed."""


class RoutingLooks:
    """What is known of the host's routing."""

    def __init__(self, ring: Callable[[str], None], keeper: Keeper, boot_id: str) -> None:
        self._ring = ring
        self._keeper = keeper
        self._boot_id = boot_id
        self._table: FirewallState | None = None
        self._problem = ""
        self._wanted = False
        self._looking = asyncio.Lock()
        self._table_changed = asyncio.Event()
        self._changing = 0
        self._changes = 0
        self._hears = False
        self._heard: set[int] = set()
        self._own: set[int] = set()
        self._forwarding: tuple[object, ForwardingState] | None = None
        self._holders: dict[str, str] = {}
        self._texts: frozenset[str] = frozenset()
        self._ports_asked = asyncio.Event()
        self._links: Mapping[str, LinkState] = {}

    def look_in(self, group: asyncio.TaskGroup) -> None:
        """Look, and hear of changes, in tasks of this group from now on."""
        self._table_changed.set()
        group.create_task(self._follow_table(), name="firewall")
        group.create_task(self._hear_of_table(), name="nftables")
        group.create_task(self._hear_of_forwarding(), name="forwarding")
        group.create_task(self._follow_ports(), name="ports")

    def look(self, desired: Desired, vms: Mapping[str, VmState], links: Mapping[str, LinkState]) -> Routing:
        """What is known now, in 0.1 ms for each of a few links; of what is not known yet a look begins, which rings."""
        texts = {text for spec in desired.vms.values() for text in spec.publish}
        texts |= {text for state in vms.values() for text in state.spec.publish}
        wanted = bool(texts) or any(bridge.nat for bridge in desired.bridges.values())
        if wanted and not self._wanted and self._table is None:
            self._table_changed.set()
        self._wanted, self._links = wanted, links
        if texts != self._texts:
            self._texts = frozenset(texts)
            self._holders = {text: holder for text, holder in self._holders.items() if text in texts}
            self._ports_asked.set()
        concerned = wanted or (self._table is not None and self._table.exists)
        return Routing(
            firewall=self._table,
            forwarding=self._look_at_forwarding(links) if concerned else None,
            problem=self._problem,
            opened=self._opened_by_us(),
            holders=dict(self._holders),
        )

    def look_again(self) -> None:
        """Look at everything again, soon, whether or not anything was heard of it."""
        self._forwarding = None
        self._ports_asked.set()
        if self._wanted or self._table is None or self._table.exists:
            self._table_changed.set()

    async def change(self, action: ChangeFirewall | ChangeForwarding | EndConnections) -> None:
        """Do an action, and look at what became of it. Raises an ActionError."""
        match action:
            case ChangeFirewall():
                await self._change_table(lambda: change_table(action), action)
                await self._end_strays(action)
            case EndConnections(ended=ended):
                number = await run_to_end(end_forwarded, ended)
                log.info("connections of forwards that went are ended", number=number)
                forgotten = ChangeFirewall(FIREWALL, action.reason, remove=ended)
                await self._change_table(lambda: forget_ended(ended), forgotten)
            case ChangeForwarding():
                await self._change_forwarding(action)

    async def _change_table(self, change: Callable[[], int], action: ChangeFirewall) -> None:
        """Run a transaction. What it did is known without a look, unless it failed or somebody else did something too:
        a look takes longer than a change of one element among hundreds."""
        self._changing += 1
        try:
            pid = await run_to_end(change)
            if self._table is not None:
                self._table = after_change(self._table, action)
            self._changes += 1
            self._own.add(pid)
        except ActionError:
            await self._look_at_table()
            raise
        finally:
            self._changing -= 1
            if not self._changing:
                if self._heard - self._own or not self._hears:
                    self._table_changed.set()
                self._heard.clear()
                self._own.clear()

    async def _end_strays(self, action: ChangeFirewall) -> None:
        """What began while there was no rule for it would never follow the one that there is now."""
        published = tuple(one for one in action.add if one.set.startswith(("ports", "ranges")))
        inside = tuple(one.key.rpartition(" . ")[2] for one in action.add if one.set == "nat4")
        if published or inside:
            local = frozenset(a.address.partition("/")[0] for link in self._links.values() for a in link.addresses)
            await run_to_end(end_strays, Strays(published, inside, local))

    async def _change_forwarding(self, action: ChangeForwarding) -> None:
        """Written down first: whoever comes after us must know that it was us, to undo it."""
        if not action.opens <= self._opened_by_us():
            await self._remember(self._opened_by_us() | action.opens)
        try:
            await run_to_end(change_sysctls, action.settings)
        finally:
            self._forwarding = None
        if action.closes:
            await self._remember(self._opened_by_us() - action.closes)

    def _opened_by_us(self) -> frozenset[Opening]:
        memory = self._keeper.memory
        return frozenset(Opening(*one) for one in memory.opened) if memory.opened_in == self._boot_id else frozenset()

    async def _remember(self, opened: frozenset[Opening]) -> None:
        plain = frozenset((one.version, one.link) for one in opened)
        await self._keeper.update(lambda memory: replace(memory, opened=plain, opened_in=self._boot_id))

    async def _follow_table(self) -> None:
        while True:
            await self._table_changed.wait()
            self._table_changed.clear()
            before = self._table, self._problem
            try:
                await self._look_at_table()
            except ObservationError as error:
                log.warning("the firewall is not known", why=str(error))
                asyncio.get_running_loop().call_later(AGAIN_S, self._table_changed.set)
            if (self._table, self._problem) != before:
                self._ring("firewall")

    async def _look_at_table(self) -> None:
        """Read the table; unknown, with the reason, where that fails. Raises ObservationError then, but not for nft
        that is not installed, which only a regular look will find."""
        async with self._looking:
            try:
                changes = self._changes
                table = await run_to_end(look_at_table)
                if changes != self._changes or self._changing:  # it may be what was before a change of ours
                    self._table_changed.set()
                    if self._table is not None:
                        return
                self._table, self._problem = table, ""
            except NftMissingError:
                self._table, self._problem = None, MISSING
            except ObservationError as error:
                self._table, self._problem = None, str(error)
                raise

    async def _hear_of_table(self) -> None:
        try:
            with NftEvents(TABLE) as events:
                self._hears = True
                self._table_changed.set()  # what happened before there was a socket
                await events.watch(self._hear)
        except ObservationError as error:
            log.warning("changes of the firewall are found every half minute only", why=str(error))

    def _hear(self, pid: int) -> None:
        if self._changing:
            self._heard.add(pid)
        else:
            self._table_changed.set()

    async def _hear_of_forwarding(self) -> None:
        try:
            await watch_forwarding(self._forget_forwarding)
        except ObservationError as error:
            log.warning("changes of forwarding are found every half minute only", why=str(error))

    def _forget_forwarding(self) -> None:
        self._forwarding = None
        if self._wanted:
            self._ring("forwarding")

    def _look_at_forwarding(self, links: Mapping[str, LinkState]) -> ForwardingState | None:
        names = {name for version in VERSIONS for name in outer_links(links, version)}
        names |= {link.name for link in links.values() if link.kind == "bridge" and is_own_bridge(link)}
        names |= set(_opened(self._table)) & links.keys()
        concerned = frozenset((name, links[name].ifindex) for name in names)
        if self._forwarding is None or self._forwarding[0] != concerned:
            try:
                self._forwarding = concerned, look_at_forwarding(sorted(names))
            except ObservationError as error:
                log.warning("what the kernel forwards is not known", why=str(error))
                return None
        return self._forwarding[1]

    async def _follow_ports(self) -> None:
        while True:
            timeout_s = PORTS_EVERY_S if any(self._holders.values()) else PORTS_AT_LEAST_EVERY_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ports_asked.wait(), timeout_s if self._texts else None)
            self._ports_asked.clear()
            texts = self._texts
            found = dict(await run_to_end(find_holders, texts)) if texts else {}
            if found != self._holders and texts == self._texts:
                self._holders = found
                self._ring("ports")


def _opened(table: FirewallState | None) -> Iterable[str]:
    if table is None:
        return ()
    return (name_of(element.key) for version in VERSIONS for element in table.of(f"opened{version}"))
