"""The ring of events, and what becomes of each in the log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
from collections.abc import Iterator

import pytest
import structlog

from agent.telemetry.journal import Event, Journal, set_up_logging


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What is logged; afterwards logging is as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    out = io.StringIO()
    set_up_logging(out)
    yield out
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("log")
async def test_events_after_a_number() -> None:
    journal = Journal()
    for number in range(3):
        journal.record("vm/web", "launched", f"event {number}")
    assert [event.seq for event in journal.since(1)] == [2, 3]
    assert journal.since(3) == ()
    assert journal.last_seq == 3


@pytest.mark.usefixtures("log")
async def test_a_number_of_another_agent_shows_everything() -> None:
    journal = Journal()
    journal.record("vm/web", "launched", "first")
    assert [event.seq for event in journal.since(99)] == [1]


@pytest.mark.usefixtures("log")
async def test_the_ring_is_bounded_and_its_oldest_go() -> None:
    journal = Journal(size=2)
    for number in range(5):
        journal.record("", "noted", str(number))
    assert [event.message for event in journal.since(0)] == ["3", "4"]


@pytest.mark.usefixtures("log")
async def test_a_follower_gets_old_and_new_each_once() -> None:
    journal = Journal()
    journal.record("", "noted", "old")
    seen: list[Event] = []

    async def follow() -> None:
        async for event in journal.follow(0):
            seen.append(event)
            if event.message == "old":
                journal.record("", "noted", "while it looked")
            if event.message == "last":
                return

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(follow())
        await asyncio.sleep(0)
        journal.record("", "noted", "new")
        await asyncio.sleep(0)
        journal.record("", "noted", "last")
    assert [event.message for event in seen] == ["old", "while it looked", "new", "last"]


async def test_an_event_is_one_json_line_of_the_log(log: io.StringIO) -> None:
    Journal().record(
        "tap/web/lan", "repaired", "repaired tap/web/lan: deleted\n; re-armed", level="warning", seconds=0.0092
    )
    (line,) = log.getvalue().splitlines()
    written = json.loads(line)
    assert written.pop("timestamp")
    assert written == {
        "event": "repaired tap/web/lan: deleted\\n; re-armed",
        "level": "warning",
        "resource": "tap/web/lan",
        "kind": "repaired",
        "seconds": 0.0092,
    }


async def test_libraries_and_tracebacks_are_json_lines_too(log: io.StringIO) -> None:
    logging.getLogger("aiohttp.server").warning("something %s", "odd")
    try:
        raise ValueError("a bug")
    except ValueError:
        structlog.get_logger("vmhost.reconcile").exception("bug in an action")
    first, second = [json.loads(line) for line in log.getvalue().splitlines()]
    assert first["event"] == "something odd"
    assert "ValueError: a bug" in second["exception"]


@pytest.mark.usefixtures("log")
def test_no_field_of_a_line_steers_a_terminal() -> None:
    ours, theirs = os.openpty()
    with open(theirs, "w") as terminal, open(ours, "rb", buffering=0) as seen:
        set_up_logging(terminal)
        structlog.get_logger("vmhost.look").info("\x1b[2Jevent", why="\x1b[2Jfield")
        terminal.flush()
        line = seen.read(4096).decode()
    assert "\x1b[2J" not in line
    assert line.count(r"\x1b[2J") == 2
