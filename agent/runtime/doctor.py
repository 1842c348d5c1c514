"""Looks beyond our own state: at other people's rules, parameters and servers, and tells what will break guests.

It changes nothing and is in nobody's way: it looks in a thread, each minute and after changes, never in a pass. What it
finds is told once a second look has found it, too: while links are being made, much is wrong for an instant.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import structlog

from agent.core.conditions import Condition
from agent.core.doctor.diagnosis import UNREAD, Diagnosis, Judged, Told, told_after
from agent.core.doctor.kernel import OFTEN, route_questions
from agent.core.doctor.scene import Offer, Scene, wanted_sysctls
from agent.core.errors import ObservationError
from agent.core.planner.proxy import carried_now
from agent.core.routing.filters import FILTERING
from agent.core.routing.firewall import NAT, Routing
from agent.core.routing.firewall_wanted import wish_of
from agent.core.routing.ruleset import Ruleset
from agent.core.tell.status import present_bridges
from agent.host.netlink.routes import ask_routes, find_ports, find_uplinks
from agent.host.nft_events import NftEvents
from agent.host.ruleset import list_rules
from agent.host.sysctl_files import find_setters
from agent.host.sysctls import read_parameters
from agent.runtime.beside import Beside
from agent.runtime.clock import now_s
from agent.runtime.raw_looks import ask_servers, save_legacy
from agent.runtime.reconcile import Reconciler
from agent.runtime.threads import run_to_end
from agent.telemetry.journal import Journal

log = structlog.get_logger("vmhost.doctor")

LOOK_EVERY_S = 60.0
LOOK_AT_MOST_EVERY_S = 5.0
"""Some hosts change their rules all the time."""

AGAIN_S = 1.0
"""After which what was found is looked at again before it is told."""

PROBE_EVERY_S = 3600.0
PROBE_AT_MOST_EVERY_S = 10.0
"""However often it is asked, no server is asked more often."""

FIRST_PROBE_S = 5.0
"""After the start, when bridges are up."""


REST_PER_LOOK = 4.0
"""Between two looks it rests so many times as long as the former took, whoever asks: a member of the group may ask all
the time, and a host with 20,000 rules is slow to list them."""

REST_UNASKED = 20.0
"""The same where nobody asks: some hosts have many rules, and change them all the time."""

OF_RULES = ("ForeignDrop", "BridgeFiltered")
"""The findings that need all rules."""

OWN_TABLES = Ruleset((*NAT.tables, *FILTERING.tables))


@dataclass(slots=True)
class _Offers:
    """What the last probe heard, by bridge; `problem`: why there was none."""

    by_bridge: dict[str, tuple[Offer, ...]] = field(default_factory=dict)
    problem: str = ""
    at_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Look:
    """What a look found, when it began, how long one took, and until when there is no other one."""

    found: Diagnosis
    began_s: float
    took_s: float
    rest_until_s: float


class Doctor:
    """What was found last, and looks on demand. `switched_off` says how often forwarding went, by link."""

    def __init__(
        self,
        reconciler: Reconciler,
        journal: Journal,
        ring: Callable[[str], None],
        switched_off: Callable[[], Mapping[str, int]],
        beside: Beside,
    ) -> None:
        self._reconciler = reconciler
        self._journal = journal
        self._ring = ring
        self._switched_off = switched_off
        self._beside = beside
        self._looking = asyncio.Lock()
        self._probing = asyncio.Lock()
        self._changed = asyncio.Event()
        self._offers = _Offers()
        self._judged = Judged()
        self._latest: _Look | None = None
        self._told: Told = {}
        self._unexamined: Mapping[str, str] = {}

    def look_in(self, group: asyncio.TaskGroup) -> None:
        """Look, and hear of changes, in tasks of this group from now on."""
        group.create_task(self._look_regularly(), name="doctor")
        group.create_task(self._hear_of_rules(), name="doctor's nftables")
        group.create_task(self._hear_of_passes(), name="doctor's passes")
        group.create_task(self._probe_regularly(), name="doctor's probes")

    def conditions(self) -> Sequence[tuple[Condition, str]]:
        """What was found last, each with the wall-clock time since when."""
        return [(finding.condition, since) for finding, since in self._told.values()]

    async def examine(self) -> Mapping[str, object]:
        """Look at everything now, also by asking for other DHCP servers; returns what `vmhost doctor` shows."""
        await self._probe(PROBE_AT_MOST_EVERY_S)
        return (await self._look()).as_json()

    async def _look_regularly(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), LOOK_EVERY_S)
            self._changed.clear()
            await self._look()
            took_s = self._latest.took_s if self._latest is not None else 0.0
            await asyncio.sleep(max(LOOK_AT_MOST_EVERY_S, REST_UNASKED * took_s))

    async def _look(self) -> Diagnosis:
        """Look, and once more if anything is found that was not told; what both looks found is told.

        Who asks while others wait for a look gets theirs.
        """
        asked_s = now_s()
        async with self._looking:
            if self._latest is not None and self._latest.began_s >= asked_s:
                return self._latest.found
            if self._latest is not None:
                await asyncio.sleep(self._latest.rest_until_s - now_s())
            began_s = now_s()
            found = await self._diagnose()
            took_s = now_s() - began_s
            rest_until_s = now_s() + min(REST_PER_LOOK * took_s, LOOK_AT_MOST_EVERY_S)
            first = {one.key for one in found.findings}
            if not first <= self._told.keys():
                await asyncio.sleep(AGAIN_S)
                again = await self._diagnose()
                found = replace(again, findings=tuple(one for one in again.findings if one.key in first))
            self._tell(found)
            self._latest = _Look(found, began_s, took_s, rest_until_s)
            return found

    async def _diagnose(self) -> Diagnosis:
        seen = self._reconciler.last
        if not seen.desired.complete:
            return UNREAD
        bridges = present_bridges(seen.desired, seen.observed)
        vms = {**seen.desired.vms, **{name: state.spec for name, state in seen.observed.vms.items() if state.alive}}
        scene = Scene(
            bridges=bridges,
            vms=vms,
            links=seen.observed.links,
            wish=wish_of(bridges, vms),
            offers=dict(self._offers.by_bridge),
            switched_off=self._switched_off(),
            carried=carried_now(seen.observed),
            unexamined={**self._unprobed(), **_unguarded(seen.observed.routing)},
        )
        if not bridges:
            return Diagnosis()
        saved: Mapping[str, str] | None = None
        try:
            saved = await save_legacy(self._beside)
        except ObservationError as error:
            scene = replace(scene, unexamined={**scene.unexamined, **dict.fromkeys(OF_RULES, str(error))})
        return await run_to_end(_diagnose, scene, saved, self._judged)

    def _unprobed(self) -> Mapping[str, str]:
        return {"SecondDhcpServer": self._offers.problem} if self._offers.problem else {}

    def _tell(self, found: Diagnosis) -> None:
        before = self._told
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._told = told_after(before, found, now)
        for one in found.findings:
            if one.key not in before:
                message = f"{one.name}: {one.condition.message}"
                self._journal.record(one.resource, "finding", message, level="warning")
        for key, (one, _) in before.items():
            if key not in self._told:
                self._journal.record(one.resource, "finding-cleared", f"{one.name} is over: {one.what}")
        for name, why in dict(found.unexamined).items():
            if self._unexamined.get(name) != why:
                log.warning("not looked at", finding=name, why=why)
        self._unexamined = dict(found.unexamined)
        if self._told != before:
            self._ring("doctor")

    async def _hear_of_rules(self) -> None:
        try:
            with NftEvents(OWN_TABLES, others=True) as events:
                await events.watch(lambda _: self._changed.set())
        except ObservationError as error:
            log.warning("changes of other people's rules are found each minute only", why=str(error))

    async def _hear_of_passes(self) -> None:
        """Links and units are the same objects as long as nothing changed in them."""
        known: tuple[object, ...] = ()
        while True:
            seen = await self._reconciler.following_pass()
            now = (seen.observed.links, seen.desired.bridges, seen.desired.vms)
            if len(known) != len(now) or any(one is not other for one, other in zip(known, now, strict=True)):
                known = now
                self._changed.set()

    async def _probe_regularly(self) -> None:
        await asyncio.sleep(FIRST_PROBE_S)
        while True:
            await self._probe(PROBE_AT_MOST_EVERY_S)
            self._changed.set()
            await asyncio.sleep(PROBE_EVERY_S)

    async def _probe(self, at_most_every_s: float) -> None:
        """Ask for other DHCP servers on each bridge that has one, all at the same time."""
        async with self._probing:
            seen = self._reconciler.last
            links = seen.observed.links
            served = [n for n, b in seen.desired.bridges.items() if b.dhcp is not None and n in links and links[n].up]
            late = self._offers.at_s is None or now_s() - self._offers.at_s >= at_most_every_s
            late |= bool(self._offers.problem)  # then nobody was asked: its bridge had just gone, for one
            if not served or not (late or set(served) - self._offers.by_bridge.keys()):
                return
            offers = _Offers(dict.fromkeys(served, ()), at_s=now_s())
            try:
                answers = await ask_servers(self._beside, served)
                ports = await run_to_end(find_ports, {one.mac for answer in answers for one in answer.offers})
            except ObservationError as error:
                answers, ports, offers.problem = (), {}, str(error)
            for answer in answers:
                found = tuple(replace(one, port=ports.get(one.mac, "")) for one in answer.offers)
                offers.by_bridge[answer.bridge] = found
                offers.problem = offers.problem or answer.problem
            self._offers = offers


def _unguarded(routing: Routing) -> Mapping[str, str]:
    """Without its own table the agent switches no forwarding on, and nobody should: the host would route for all."""
    return {"ForwardingOff": routing.problem} if routing.firewall is None and routing.problem else {}


def _diagnose(scene: Scene, saved: Mapping[str, str] | None, judged: Judged) -> Diagnosis:
    """Look at the host, and draw the conclusions; both take their time. `saved`: by iptables-legacy, None
    if not all rules can be known."""
    unexamined = dict(scene.unexamined)
    try:
        uplinks = find_uplinks()
    except ObservationError as error:
        uplinks = {}
        unexamined.update(dict.fromkeys(("ForwardingOff", "RpFilter"), str(error)))
    try:
        if saved is not None:
            listing = list_rules(saved)
            scene = replace(scene, rules=listing.rules, tools=listing.tools)
    except ObservationError as error:
        unexamined.update(dict.fromkeys(OF_RULES, str(error)))
    outer = {link for links in uplinks.values() for link in links}
    names = wanted_sysctls(scene.bridges, sorted(outer))
    scene = replace(scene, uplinks=uplinks, sysctls=read_parameters(names))
    try:
        scene = replace(scene, routes=ask_routes(route_questions(scene)))
    except ObservationError as error:
        unexamined["RpFilter"] = str(error)
    scene = replace(scene, unexamined=unexamined)
    found = judged.diagnose(scene)
    known = any(one.name in {"ForwardingOff", "RpFilter"} for one in found.findings)
    if known or any(number >= OFTEN for number in scene.switched_off.values()):
        names = (*names, "ipv4/conf/default/rp_filter")
        found = judged.diagnose(replace(scene, setters=find_setters(names)))
    return found
