"""Tables of nftables are followed, and changed in an order that suits who waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from agent.core.routing.firewall import NAT, FirewallState
from agent.core.routing.ruleset import Element, ElementChange
from agent.host import nft
from agent.host.nft_presence import NftPresence
from agent.runtime import tables
from agent.runtime.tables import Tables
from tests.netns import network_namespace

MANY = tuple(Element("ports4", f"tcp . {port}", "10.0.0.2 . 80") for port in range(2000, 4000))


@pytest.fixture(autouse=True)
def own_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tables, "AHEAD_S", 60.0)
    with network_namespace():
        yield


async def followed(rung: asyncio.Event) -> tuple[Tables[FirewallState], asyncio.Task[None]]:
    """Tables that are known, and whose events are heard, until the task is cancelled."""
    found = Tables(NAT, FirewallState, rung.set)

    async def follow() -> None:
        async with asyncio.TaskGroup() as group:
            found.look_in(group)

    task = asyncio.create_task(follow())
    await asyncio.wait_for(rung.wait(), 60)
    return found, task


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def test_who_lets_a_change_go_first_finds_it_done() -> None:
    async def run() -> None:
        found, following = await followed(asyncio.Event())
        changing = asyncio.create_task(found.change(ElementChange(MANY, whole=True)))
        await asyncio.sleep(0)
        with closing(NftPresence(NAT)) as presence:
            assert presence.are_absent()
            await found.let_go_first()
            assert not presence.are_absent()
        await changing
        await found.let_go_first()  # nothing is under way
        await ended(following)

    asyncio.run(run())


def test_a_flush_is_known_without_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[list[str]] = []
    original = nft._run

    def counted(arguments: list[str], text: str) -> nft._Done:
        runs.append(arguments)
        return original(arguments, text)

    monkeypatch.setattr(nft, "_run", counted)

    async def run() -> None:
        rung = asyncio.Event()
        found, following = await followed(rung)
        for _ in range(10):  # it looks again once it hears of changes, which takes no thread while there is nothing
            await asyncio.sleep(0)
        await found.change(ElementChange(whole=True))
        assert found.state is not None
        assert found.state.is_intact
        await asyncio.to_thread(nft.apply_text, "flush ruleset")
        async with asyncio.timeout(60):
            while found.state.exists:  # what rings first may be the change before
                rung.clear()
                await rung.wait()
        assert runs == [["-f", "-"]] * 2  # the change, and the flush itself
        await ended(following)

    asyncio.run(run())


def test_a_look_at_no_tables_holds_up_nobody_while_they_are_being_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on = threading.Event(), threading.Event()
    original = nft.change_tables

    def slow(*_: object) -> int:
        began.set()
        go_on.wait(60)  # also for a loop that stands still, which this test is about
        return original(NAT, ElementChange(whole=True))

    monkeypatch.setattr(tables, "change_tables", slow)

    async def run() -> bool:
        rung = asyncio.Event()
        found, following = await followed(rung)
        changing = asyncio.create_task(found.change(ElementChange(whole=True)))
        await asyncio.to_thread(began.wait)
        found.look_soon()
        for _ in range(100):
            await asyncio.sleep(0)
        held_up = go_on.is_set()
        go_on.set()
        await changing
        await ended(following)
        return held_up

    releasing = threading.Timer(20.0, go_on.set)  # a loop that stands still cannot
    releasing.start()
    try:
        assert not asyncio.run(run())
    finally:
        releasing.cancel()
