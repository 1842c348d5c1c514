"""Moves of uplinks: the order of journal, dead man's switch, requests and probes, and what follows when one fails.

Whatever ends in the middle, the journal on the disk says what there was and how far it is. Each look at it that
something follows from is made under its lock, because its dead man's switch may want the same move back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Protocol

import structlog

from agent.core.actions import MoveUplink, PutBackUplink
from agent.core.desired import BridgeSpec
from agent.core.errors import ActionError, ObservationError, OutcomeUnknownError, PermanentError, TransientError
from agent.core.memory import with_port, without_port
from agent.core.observed import LinkState
from agent.core.planner.ports import find_port
from agent.core.uplinks.carried import (
    LinkPicture,
    address_text,
    carried_addresses,
    carried_texts,
    gateways,
    on_link,
    refused,
)
from agent.core.uplinks.moves import ENDED, MARGIN_S, Move, MoveState, Progress, Step, UplinkState, move_state
from agent.core.vlans import PortVlans
from agent.host.dhcp_clients import find_clients
from agent.host.netlink import RatedLinks
from agent.host.netlink.moving import move_to_bridge, picture_of, rules_naming
from agent.host.statedir.moves import Journal, JournalError, Journals
from agent.host.sysctls import change_sysctls, look_at_settings
from agent.put_back import WHY_LOST, now_iso, put_back_locked
from agent.runtime.beside import Beside
from agent.runtime.clock import now_s
from agent.runtime.dead_man import DeadMan
from agent.runtime.judges import prove
from agent.runtime.keeper import Keeper
from agent.runtime.threads import run_to_end

log = structlog.get_logger("vmhost.uplinks")

CLIENTS_OLD_S = 2.0
"""How long it is believed which DHCP clients there are; to look for them takes milliseconds."""

REMADE_RETRY_S = 30.0
"""A router of a home takes some minutes to boot, and each try is a pause of the host's own connections."""


class Ways(Protocol):
    """What is needed of `Starts`."""

    def beside(self) -> Beside: ...  # noqa: D102
    def dead_man(self) -> DeadMan: ...  # noqa: D102


class Uplinks:
    """What is known of ports that are to be adopted, and of all moves."""

    def __init__(self, links: RatedLinks, journals: Journals, keeper: Keeper, ways: Ways, boot_id: str) -> None:
        self._links = links
        self._journals = journals
        self._keeper = keeper
        self._beside = ways.beside()
        self._dead_man = ways.dead_man()
        self._boot_id = boot_id
        self._known: dict[str, tuple[Move, Progress]] = {}
        self._clients: dict[int, tuple[float, tuple[str, ...]]] = {}
        self.unreadable: dict[str, str] = {}

    async def recover(self) -> None:
        """Put back what an agent left unfinished; what was proven goes on waiting for its word. Never raises.

        A move that was put back only because its agent was stopped is forgotten, so that it is tried again.
        """
        await self.look_again()
        for name, (move, progress) in list(self._known.items()):
            if (progress.step, progress.why) == (Step.PUT_BACK, ENDED) and not move.remade:
                self._forget(name)
                continue
            overdue = progress.deadline_s is not None and now_s() >= progress.deadline_s
            if progress.step in {Step.WRITTEN, Step.MOVED} or (progress.step is Step.PROVEN and overdue):
                why = WHY_LOST if progress.step is not Step.PROVEN else "nobody confirmed it in time"
                try:
                    await self._put_back(move, why)
                except ActionError as error:
                    log.error("a move could not be put back; it is tried again", bridge=name, why=str(error))

    def _forget(self, bridge: str) -> None:
        """Forget a move that was put back; one whose journal cannot be removed stays put back."""
        try:
            self._journals.of(bridge).forget()
        except OSError as error:
            log.warning("a move that was put back is not tried again", bridge=bridge, why=str(error))
        else:
            del self._known[bridge]

    async def look_again(self) -> None:
        """Read all journals: the dead man's switch may have put one back."""
        self._known, self.unreadable = await run_to_end(self._read_all)

    def _read_all(self) -> tuple[dict[str, tuple[Move, Progress]], dict[str, str]]:
        known, unreadable = {}, {}
        for journal in self._journals.all():
            try:
                found = journal.read()
            except JournalError as error:
                unreadable[journal.path.stem] = str(error)
                if journal.path.stem not in self.unreadable:
                    log.warning("a move's journal cannot be read", why=str(error))
                continue
            if found is not None:
                known[found[0].bridge] = found
        return known, unreadable

    def look(self, bridges: Mapping[str, BridgeSpec], links: Mapping[str, LinkState]) -> dict[str, UplinkState]:
        """What ports carry that are to be adopted, as of now, in half a millisecond each."""
        found: dict[str, UplinkState] = {}
        for spec in bridges.values():
            bridge = links.get(spec.name)
            for entry in spec.ports if spec.adopt_addresses else ():
                link = find_port(entry, links)
                if link is not None and not self._is_home(spec.name, link, bridge):
                    with contextlib.suppress(ObservationError):
                        picture = picture_of(link.name, link.ifindex)
                        if picture is not None:
                            found[link.name] = self._uplink(picture, spec.name)
        return found

    def _is_home(self, name: str, port: LinkState, bridge: LinkState | None) -> bool:
        """Whether a port is in its bridge, with all that was moved: the way it nearly always is."""
        if bridge is None or port.master != bridge.ifindex:
            return False
        state = self.moves().get(name)
        return state is None or {*state.addresses} <= {one.address for one in bridge.addresses}

    def _uplink(self, picture: LinkPicture, bridge: str) -> UplinkState:
        carried = carried_texts(picture)
        clients = self._clients_of(picture)
        refusal = refused(picture, clients, bridge)
        return UplinkState(
            carried,
            tuple(address_text(one) for one in carried_addresses(picture)),
            gateways(picture),
            refusal.message if refusal is not None else "",
            refusal.reason if refusal is not None else "",
            rules_naming(picture.name) if carried else (),
        )

    def _clients_of(self, picture: LinkPicture) -> tuple[str, ...]:
        at_s, clients = self._clients.get(picture.ifindex, (-CLIENTS_OLD_S, ()))
        if now_s() - at_s >= CLIENTS_OLD_S:
            clients = find_clients(picture.name, picture.ifindex)
            self._clients[picture.ifindex] = (now_s(), clients)
        return clients

    def moves(self) -> dict[str, MoveState]:
        """All moves, by bridge."""
        return {name: move_state(*found) for name, found in self._known.items()}

    def waiting(self) -> list[str]:
        """The bridges whose moves wait for a word."""
        return sorted(name for name, (_, progress) in self._known.items() if progress.step is Step.PROVEN)

    def why_not_waiting(self, bridge: str | None) -> str:
        """Why there is nothing to be confirmed, for people."""
        found = self._known.get(bridge or "")
        if bridge is None or found is None:
            return "no move waits for a word; `vmhost move` shows how moves stand"
        step, why = found[1].step, found[1].why
        return f"the move to {bridge} waits for no word: it is {step}{f' ({why})' if why else ''}"

    def moves_json(self) -> list[dict[str, object]]:
        """All moves as `vmhost move --json` shows them."""
        found: list[dict[str, object]] = []
        for name, one in sorted(self.moves().items()):
            left_s = None if one.deadline_s is None else max(0.0, round(one.deadline_s - now_s(), 1))
            row = {"bridge": name, "port": one.port, "state": str(one.step), "since": one.since, "left_s": left_s}
            found.append({**row, "why": one.why, "carried": list(one.carried)})
        for name, why in sorted(self.unreadable.items()):
            row = {"bridge": name, "port": None, "state": "unreadable", "since": None, "left_s": None}
            found.append({**row, "why": why, "carried": []})
        return found

    async def move(self, action: MoveUplink) -> None:
        """Move, prove, and keep or wait for a word; in all other cases put everything back.

        PermanentError `MovePutBack` then, TransientError for what is remade; its text says why. Nothing was changed
        after any other ActionError, or what was changed could not be put back yet, which is tried again.
        """
        move = await run_to_end(self._prepared, action)
        try:
            journal = self._journals.of(action.bridge)
            await run_to_end(self._begin, journal, move)
        except OSError as error:
            why = f"{error.filename or 'moves'}: {error.strerror}; make room or mend it, nothing was moved"
            raise TransientError(why, reason="JournalUnwritten") from error
        self._known[action.bridge] = (move, Progress(Step.WRITTEN, now_iso()))
        try:
            await self._dead_man.arm(action.bridge, journal.path, move.latest_s - now_s())
            await run_to_end(self._bring, journal, move, action.mtu, action.vlans)
            silent = await prove(
                action.bridge,
                action.bridge_ifindex,
                gateways(move.port),
                action.probe,
                max(1.0, action.probe_timeout_s),
                self._beside,
            )
            if silent:
                raise _unproven(action, f"after {action.probe_timeout_s:g} s {silent}")
            await run_to_end(self._prove, journal, move)
        except BaseException as error:
            ended = isinstance(error, asyncio.CancelledError)
            why = ENDED if ended else str(error) if isinstance(error, ActionError) else f"a bug: {error!r}"
            await asyncio.shield(self._put_back(move, why))
            raise
        if not action.confirm_s:
            await self._dead_man.disarm(action.bridge)
        place, indexes = (action.entry or action.port, action.bridge), (action.port_ifindex, action.bridge_ifindex)
        await self._keeper.update(lambda memory: with_port(memory, place, *indexes))
        await self._show()

    def _prepared(self, action: MoveUplink) -> Move:
        """Look again, and note what there is."""
        port, bridge = picture_of(action.port, action.port_ifindex), picture_of(action.bridge, action.bridge_ifindex)
        if port is None or bridge is None or port.name != action.port or bridge.name != action.bridge:
            raise TransientError(f"{action.port} or {action.bridge} is another link by now", reason="LinkChanged")
        if port.master not in {0, bridge.ifindex}:
            raise TransientError(f"{action.port} is in another bridge or bond", reason="Conflict")
        refusal = refused(port, find_clients(port.name, port.ifindex), action.bridge)
        if refusal is not None:
            raise TransientError(refusal.message, reason=refusal.reason)
        former = self._known.get(action.bridge)
        if action.again and former is not None:
            source = on_link(former[0].port, port.ifindex, port.name)
            port = replace(source, mac=port.mac, mtu=port.mtu, master=0, up=True)
        elif port.master:
            port = replace(port, master=0)  # put back, it is no port: what it carries would be cut off there
        return Move(
            action.bridge,
            action.digest,
            self._boot_id,
            now_s(),
            action.probe_timeout_s,
            action.confirm_s,
            port,
            bridge,
            action.entry or action.port,
            action.remade,
        )

    def _begin(self, journal: Journal, move: Move) -> None:
        with journal.lock():
            journal.write(move, Progress(Step.WRITTEN, now_iso()))

    def _bring(self, journal: Journal, move: Move, mtu: int | None, vlans: PortVlans | None) -> None:
        with _announcing(move.bridge), journal.lock():
            self._require(journal, move, Step.WRITTEN)
            move_to_bridge(move, mtu, vlans)
            self._note(journal, move, Progress(Step.MOVED, now_iso()))

    def _prove(self, journal: Journal, move: Move) -> None:
        with journal.lock():
            self._require(journal, move, Step.MOVED)
            if move.confirm_s:
                deadline_s = min(now_s() + move.confirm_s, move.latest_s - MARGIN_S / 2)
                self._note(journal, move, Progress(Step.PROVEN, now_iso(), deadline_s))
            else:
                self._note(journal, move, Progress(Step.KEPT, now_iso()))

    def _require(self, journal: Journal, move: Move, step: Step) -> None:
        """Of a move in the middle: its dead man's switch has not put it back meanwhile. Called under the lock."""
        found = journal.read()
        if found is not None and found[0].began_s == move.began_s and found[1].step is Step.PUT_BACK:
            raise PermanentError(f"it was put back before it was {step}: {found[1].why}", reason="MovePutBack")

    def _note(self, journal: Journal, move: Move, progress: Progress) -> None:
        """Say how far it is; a journal that takes no more words keeps nothing from going on."""
        self._known[move.bridge] = (move, progress)
        try:
            journal.note(progress)
        except OSError as error:
            log.error("a move's journal cannot be written to", path=str(journal.path), why=str(error))

    async def put_back(self, action: PutBackUplink) -> None:
        """Put a move back; with `forget` its journal goes, so that its unit may come again."""
        found = self._known.get(action.bridge)
        if found is None:
            return
        await self._put_back(found[0], action.why)
        if action.forget:
            journal = self._journals.of(action.bridge)
            try:
                journal.forget()
            except OSError as error:
                raise TransientError(f"{journal.path}: {error.strerror}") from error
            self._known.pop(action.bridge, None)

    async def _put_back(self, move: Move, why: str) -> None:
        left = await run_to_end(self._put_back_now, move, why)
        await self._dead_man.disarm(move.bridge)
        place = (move.port.name, move.bridge)
        await self._keeper.update(lambda memory: without_port(memory, move.port.ifindex, place))
        await self._show()
        log.warning("an uplink was put back", bridge=move.bridge, port=move.port.name, why=why, left=left or None)

    def _put_back_now(self, move: Move, why: str) -> str:
        journal, left = self._journals.of(move.bridge), ""
        with journal.lock():
            found = self._read(journal)
            if found is not None and found[0].began_s == move.began_s and found[1].step is Step.PUT_BACK:
                self._known[move.bridge] = found
                return ""
            try:
                left = put_back_locked(journal, move, why)
            except OSError as error:
                log.error("a move's journal cannot be written to", path=str(journal.path), why=str(error))
            self._known[move.bridge] = (move, Progress(Step.PUT_BACK, now_iso(), None, why))
        return left

    def _read(self, journal: Journal) -> tuple[Move, Progress] | None:
        try:
            return journal.read()
        except JournalError:
            return None

    async def confirm(self, bridge: str) -> None:
        """Keep a move that waits for a word, and have its dead man's switch gone."""
        move, _ = self._known[bridge]
        await run_to_end(self._confirm, move)
        await self._dead_man.disarm(bridge)

    def _confirm(self, move: Move) -> None:
        journal = self._journals.of(move.bridge)
        with journal.lock():
            found = self._read(journal)
            if found is not None and found[1].step is Step.PUT_BACK:
                self._known[move.bridge] = found
                raise OutcomeUnknownError(f"it was put back already: {found[1].why}", reason="MovePutBack")
            self._note(journal, move, Progress(Step.KEPT, now_iso()))

    async def _show(self) -> None:
        """Have the cache of links show what was done past it."""
        with contextlib.suppress(ObservationError):
            await self._links.full_look()


def _unproven(action: MoveUplink, why: str) -> ActionError:
    """What is remade worked before: who is silent may only boot later than this host."""
    if not action.remade:
        return PermanentError(why, reason="MovePutBack")
    message = f"{why}; it was kept before, so it is tried again every {REMADE_RETRY_S:g} s"
    return TransientError(message, reason="MovePutBack", retry_after_s=REMADE_RETRY_S)


@contextlib.contextmanager
def _announcing(bridge: str) -> Iterator[None]:
    """Inside, the kernel announces the bridge's addresses when its MAC is set (ip-sysctl: arp_notify, ndisc_notify)."""
    names = (f"ipv4/conf/{bridge}/arp_notify", f"ipv6/conf/{bridge}/ndisc_notify")
    before: dict[str, int] = {}
    with contextlib.suppress(ActionError, ObservationError):
        before = look_at_settings(names)
        change_sysctls([(name, "1") for name in before])
    try:
        yield
    finally:
        with contextlib.suppress(ActionError):
            change_sysctls([(name, str(value)) for name, value in before.items()])
