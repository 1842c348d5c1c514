"""Looks at the firewall, at what the kernel forwards and at who has ports of the host; and changes the former two.

A look that comes regularly finds what no event told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import structlog

from agent.core.desired import Desired
from agent.core.errors import ObservationError
from agent.core.marks import is_own_bridge
from agent.core.memory import Memory
from agent.core.observed import LinkState, VmState
from agent.core.routing.firewall import NAT, FirewallState, ForwardingState, Opening, Routing
from agent.core.routing.firewall_actions import ChangeFirewall, ChangeForwarding, EndConnections
from agent.core.routing.firewall_wanted import VERSIONS, name_of, outer_links
from agent.core.routing.ruleset import ElementChange
from agent.core.services.spec import SERVICE_UIDS
from agent.host.connections import Strays, end_forwarded, end_strays
from agent.host.listeners import find_free, find_holders
from agent.host.sysctls import change_sysctls, look_at_forwarding, watch_forwarding
from agent.runtime.clock import now_s
from agent.runtime.keeper import Keeper
from agent.runtime.tables import Tables
from agent.runtime.threads import run_to_end

log = structlog.get_logger("vmhost.routing")

PORTS_EVERY_S = 2.0
"""How often it is looked whether a port that somebody has is free by now."""

PORTS_AT_LEAST_EVERY_S = 30.0
FEW_PORTS = 20
"""So many that are new, as by an edit, are looked for within the pass: a thread's answer would be for the next one."""

LATELY_S = 600.0
CARRIERS = frozenset({SERVICE_UIDS["haproxy"]})
"""Who listens on published ports for guests: in nobody's way."""


class RoutingLooks:
    """What is known of the host's routing."""

    def __init__(self, ring: Callable[[str], None], keeper: Keeper, boot_id: str) -> None:
        self._ring = ring
        self._keeper = keeper
        self._boot_id = boot_id
        self._tables = Tables(NAT, FirewallState, lambda: ring("firewall"))
        self._wanted = False
        self._forwarding: tuple[object, ForwardingState] | None = None
        self._holders: dict[str, str] = {}
        self._texts: frozenset[str] = frozenset()
        self._ports_asked = asyncio.Event()
        self._links: Mapping[str, LinkState] = {}
        self._switched_off: deque[tuple[float, str]] = deque(maxlen=1000)

    @property
    def switched_off(self) -> Mapping[str, int]:
        """How often somebody switched IPv4 forwarding off that we had switched on, by link, in the last ten minutes."""
        return Counter(link for at_s, link in self._switched_off if now_s() - at_s < LATELY_S)

    def look_in(self, group: asyncio.TaskGroup) -> None:
        """Look, and hear of changes, in tasks of this group from now on."""
        self._tables.look_in(group)
        group.create_task(self._hear_of_forwarding(), name="forwarding")
        group.create_task(self._follow_ports(), name="ports")

    def look(
        self,
        desired: Desired,
        vms: Mapping[str, VmState],
        links: Mapping[str, LinkState],
        uplinks: frozenset[str] = frozenset(),
    ) -> Routing:
        """What is known now, in 0.1 ms for each of a few links; of what is not known yet a look begins, which rings.

        `uplinks` lead out over IPv6, and may have no address.
        """
        texts = {text for spec in desired.vms.values() for text in spec.publish}
        texts |= {text for state in vms.values() for text in state.spec.publish}
        wanted = bool(texts) or any(bridge.nat or bridge.ipv6 for bridge in desired.bridges.values())
        table = self._tables.state
        if wanted and not self._wanted and table is None:
            self._tables.look_soon()
        self._wanted, self._links = wanted, links
        if texts != self._texts:
            had_any = bool(self._texts)
            self._texts = frozenset(texts)
            self._holders = {text: holder for text, holder in self._holders.items() if text in texts}
            new = self._texts - self._holders.keys()
            if 0 < len(new) <= FEW_PORTS:
                self._holders.update(dict.fromkeys(find_free(new, CARRIERS), ""))
            if not had_any or self._texts - self._holders.keys():
                self._ports_asked.set()
        concerned = wanted or (table is not None and table.exists)
        return Routing(
            firewall=table,
            forwarding=self._look_at_forwarding(links, uplinks) if concerned else None,
            problem=self._tables.problem,
            opened=self._opened_by_us() | frozenset(_guarded(table)),
            holders=dict(self._holders),
        )

    def look_again(self) -> None:
        """Look at everything again, soon, whether or not anything was heard of it."""
        self._forwarding = None
        self._ports_asked.set()
        if self._wanted or self._tables.state is None or self._tables.state.exists:
            self._tables.look_soon()

    async def let_go_first(self) -> None:
        """Return when the kernel has what is being changed of the firewall, also in this very pass; or soon."""
        await asyncio.sleep(0)
        await self._tables.let_go_first()

    async def change(self, action: ChangeFirewall | ChangeForwarding | EndConnections) -> None:
        """Do an action, and look at what became of it. Raises an ActionError."""
        match action:
            case ChangeFirewall():
                await self._tables.change(action.elements)
                await self._end_strays(action)
            case EndConnections(ended=ended):
                number = await run_to_end(end_forwarded, ended)
                log.info("connections of forwards that went are ended", number=number)
                await self._tables.change(ElementChange(remove=ended))
            case ChangeForwarding():
                await self._change_forwarding(action)

    async def _end_strays(self, action: ChangeFirewall) -> None:
        """What began while there was no rule for it would never follow the one that there is now."""
        published = tuple(one for one in action.add if one.set.startswith(("ports", "ranges")))
        inside = tuple(one.key.rpartition(" . ")[2] for one in action.add if one.set in {"nat4", "nat6"})
        if published or inside:
            local = frozenset(a.address.partition("/")[0] for link in self._links.values() for a in link.addresses)
            await run_to_end(end_strays, Strays(published, inside, local))

    async def _change_forwarding(self, action: ChangeForwarding) -> None:
        """Written down first: whoever comes after us must know that it was us, to undo it."""
        again = self._opened_by_us() & action.opens
        self._switched_off.extend((now_s(), one.link) for one in again if one.version == 4)
        if not action.opens <= self._opened_by_us():
            await self._remember(self._opened_by_us() | action.opens)
        try:
            await run_to_end(change_sysctls, action.settings)
        finally:
            self._forwarding = None
        if action.closes:
            await self._remember(self._opened_by_us() - action.closes)

    def _opened_by_us(self) -> frozenset[Opening]:
        """What is written down, under the names that links have by now; what was of a link that went is nobody's."""
        memory = self._keeper.memory
        if memory.opened_in != self._boot_id:
            return frozenset()
        names = {link.ifindex: link.name for link in self._links.values()}
        index = memory.opened_index
        named = ((version, names.get(index[link]) if link in index else link) for version, link in memory.opened)
        return frozenset(Opening(version, name) for version, name in named if name is not None)

    async def _remember(self, opened: frozenset[Opening]) -> None:
        plain = frozenset((one.version, one.link) for one in opened)
        index = {one.link: self._links[one.link].ifindex for one in opened if one.link in self._links}

        def changed(memory: Memory) -> Memory:
            sysctls = memory.sysctls if memory.opened_in == self._boot_id else {}
            return replace(memory, opened=plain, opened_in=self._boot_id, opened_index=index, sysctls=sysctls)

        await self._keeper.update(changed)

    async def _hear_of_forwarding(self) -> None:
        try:
            await watch_forwarding(self._forget_forwarding)
        except ObservationError as error:
            log.warning("changes of forwarding are found every half minute only", why=str(error))

    def _forget_forwarding(self) -> None:
        self._forwarding = None
        if self._wanted:
            self._ring("forwarding")

    def _look_at_forwarding(self, links: Mapping[str, LinkState], uplinks: frozenset[str]) -> ForwardingState | None:
        names = {name for version in VERSIONS for name in outer_links(links, version)}
        names |= {link.name for link in links.values() if link.kind == "bridge" and is_own_bridge(link)}
        names |= {*(one.link for one in _guarded(self._tables.state)), *uplinks} & links.keys()
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
            new = self._texts - self._holders.keys()  # an edit waits for these; the others have their time
            found = dict(await run_to_end(find_holders, new or self._texts, CARRIERS))
            known = {text: holder for text, holder in {**self._holders, **found}.items() if text in self._texts}
            if known != self._holders:
                self._holders = known
                self._ring("ports")


def _guarded(table: FirewallState | None) -> Iterator[Opening]:
    """Links that the table guards, which it does because we open them: so also who lost our notes knows it."""
    if table is None:
        return
    for version in VERSIONS:
        yield from (Opening(version, name_of(element.key)) for element in table.of(f"opened{version}"))
