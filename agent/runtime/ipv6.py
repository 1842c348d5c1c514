"""Looks at what IPv6 modes need of the kernel, and changes it.

Routes tell when they change. Proxy neighbours and most parameters change in silence, so while a bridge has a mode they
are looked at twice a second, and whenever a link changed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import structlog

from agent.core.desired import Desired
from agent.core.errors import ObservationError
from agent.core.memory import Memory
from agent.core.observed import LinkState, VmState
from agent.core.routing.ipv6 import Ipv6State, conf, proxy_delay
from agent.core.routing.ipv6_actions import ChangeIpv6
from agent.core.routing.ipv6_wanted import guests_by_proxy, uplinks6
from agent.host.netlink import Routes6
from agent.host.netlink.routes6 import watch_routes6
from agent.host.sysctls import change_sysctls, look_at_settings
from agent.runtime.clock import now_s
from agent.runtime.keeper import Keeper
from agent.runtime.threads import run_to_end

log = structlog.get_logger("vmhost.ipv6")

SILENT_EVERY_S = 0.5
"""How often what changes in silence is looked at, in 0.3 ms."""


class Ipv6Looks:
    """What is known of the host's part in IPv6 modes."""

    def __init__(self, ring: Callable[[str], None], keeper: Keeper, boot_id: str) -> None:
        self._ring = ring
        self._keeper = keeper
        self._boot_id = boot_id
        self._routes = Routes6()
        self._closing = contextlib.ExitStack()
        self._told = ""
        self._state: Ipv6State | None = None
        self._of: tuple[object, ...] = ()
        self._links: Mapping[str, LinkState] = {}
        self._names: frozenset[str] = frozenset()
        self._wanted = False

    def look_in(self, group: asyncio.TaskGroup) -> None:
        """Hear of changes, and look at what is silent, in tasks of this group from now on. Raises ObservationError."""
        self._closing.enter_context(self._routes)
        group.create_task(self._hear(), name="IPv6 routes")
        group.create_task(self._follow_silent(), name="IPv6 neighbours")

    def close(self) -> None:
        """Close the socket."""
        self._closing.close()

    def look(self, desired: Desired, vms: Mapping[str, VmState], links: Mapping[str, LinkState]) -> Ipv6State | None:
        """What is there now, in 0.3 ms; from memory as long as nothing that it depends on was heard to change."""
        bridges = {**desired.retained, **desired.bridges}
        modes = {name: bridge for name, bridge in bridges.items() if bridge.ipv6}
        self._wanted = bool(modes)
        before = self._before()
        known = self._state
        if known is not None and not (modes or known.routes or known.proxies or before):
            if known.settings or known.before:
                self._state = replace(known, settings={}, before={})
            return self._state
        specs = {**desired.vms, **{f"{name}*": state.spec for name, state in vms.items()}}
        addresses = frozenset(guest.address for guest in guests_by_proxy(modes, specs))
        of = (links, frozenset(modes.values()), addresses, tuple(before))
        if known is not None and self._of and self._of[0] is links and self._of[1:] == of[1:]:
            return known
        try:
            seen = self._routes.look(addresses, {link.ifindex: name for name, link in links.items()})
            concerned = {*modes, *uplinks6(modes.values(), seen)} & links.keys()
            self._names = frozenset({*_settings(concerned), *before, *_heeding(links)})
            settings = look_at_settings(sorted(self._names))
            since_s = _forwards_since_s(known, settings, concerned)
            self._state = replace(seen, settings=settings, before=before, forwards_since_s=since_s)
            self._links, self._of, self._told = links, of, ""
        except ObservationError as error:
            if str(error) != self._told:
                self._told = str(error)
                log.warning("IPv6 routes and neighbours are not known", why=self._told)
            self._state, self._of = None, ()
        return self._state

    def look_again(self) -> None:
        """Look at everything again at the next pass."""
        self._of = ()

    async def change(self, action: ChangeIpv6) -> None:
        """Do an action, and look at what became of it at the next pass. Raises an ActionError.

        What is changed is written down first: whoever comes after us must know what it was.
        """
        try:
            if action.remember:
                await self._remember({**self._before(), **dict(action.remember)})
            await run_to_end(change_sysctls, [(name, str(value)) for name, value in action.settings])
            await run_to_end(_change_routes, action)
            await run_to_end(change_sysctls, [(name, str(value)) for name, value in action.restore])
            over = {*action.forget, *(name for name, _ in action.restore)}
            if over:
                await self._remember({n: value for n, value in self._before().items() if n not in over})
        finally:
            self.look_again()

    def _before(self) -> Mapping[str, int]:
        memory = self._keeper.memory
        return memory.sysctls if memory.opened_in == self._boot_id else {}

    async def _remember(self, sysctls: Mapping[str, int]) -> None:
        def changed(memory: Memory) -> Memory:
            opened = memory.opened if memory.opened_in == self._boot_id else frozenset()
            return replace(memory, sysctls=dict(sysctls), opened=opened, opened_in=self._boot_id)

        await self._keeper.update(changed)

    async def _hear(self) -> None:
        try:
            await watch_routes6(self._heard)
        except ObservationError as error:
            log.warning("changes of IPv6 routes are found every half minute only", why=str(error))

    def _heard(self) -> None:
        self._of = ()
        if self._wanted:
            self._ring("ipv6-routes")

    async def _follow_silent(self) -> None:
        while True:
            await asyncio.sleep(SILENT_EVERY_S)
            state = self._state
            if not self._wanted or state is None or not self._of:
                continue
            try:
                own, foreign = self._routes.proxies({link.ifindex: name for name, link in self._links.items()})
                settings = look_at_settings(sorted(self._names))
            except ObservationError as error:
                log.warning("proxy neighbours are not known", why=str(error))
                continue
            if (own, foreign, settings) != (state.proxies, state.foreign_proxies, state.settings):
                self._of = ()
                self._ring("ipv6-neighbours")


def _settings(links: Iterable[str]) -> Iterable[str]:
    for link in links:
        yield from (conf(link, "forwarding"), conf(link, "proxy_ndp"), proxy_delay(link))


def _forwards_since_s(known: Ipv6State | None, settings: Mapping[str, int], links: Iterable[str]) -> dict[str, float]:
    """Since when those links forward again that did not when they were looked at before."""
    if known is None:
        return {}
    names = {link: conf(link, "forwarding") for link in links}
    again = {link: now_s() for link, name in names.items() if not known.settings.get(name, 1) and settings.get(name)}
    return {link: at_s for link, at_s in {**known.forwards_since_s, **again}.items() if link in names}


def _heeding(links: Mapping[str, LinkState]) -> Iterable[str]:
    """Of every link that may take its routes from router advertisements, whether it does while it forwards."""
    for name, link in links.items():
        if link.master is None and name != "lo":
            yield conf(name, "accept_ra")


def _change_routes(action: ChangeIpv6) -> None:
    """In a thread, with a socket of its own: each neighbour joins a multicast group, which takes milliseconds."""
    with Routes6() as routes:
        routes.change(action)
