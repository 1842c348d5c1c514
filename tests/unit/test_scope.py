"""Which pass and which resource a line of the log names."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from agent.telemetry.journal import Journal, set_up_logging
from agent.telemetry.scope import scope

log = structlog.get_logger("vmhost.test")


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    found = io.StringIO()
    set_up_logging(found)
    yield found
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(out: io.StringIO) -> list[tuple[str, str, int | None]]:
    """Event, resource and pass of each line."""
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    return [(one["event"], one["resource"], one.get("pass_id")) for one in found]


async def test_lines_of_passes_and_of_their_actions(out: io.StringIO) -> None:
    async def act(resource: str) -> None:
        with scope(7, resource):
            await asyncio.sleep(0)
            log.warning(f"acts on {resource}")
            await asyncio.to_thread(log.warning, "in a thread")

    log.warning("before")
    with scope(7):
        log.warning("passes")
        Journal().record("vm/web", "noted", "an event of the pass")
        actions = [asyncio.create_task(act(f"vm/{name}")) for name in ("a", "b")]
    log.warning("after")
    await actions[0]
    await actions[1]
    found = lines(out)
    assert found[:4] == [
        ("before", "agent", None),
        ("passes", "agent", 7),
        ("an event of the pass", "vm/web", 7),
        ("after", "agent", None),
    ]
    assert sorted(found[4:]) == [
        ("acts on vm/a", "vm/a", 7),
        ("acts on vm/b", "vm/b", 7),
        ("in a thread", "vm/a", 7),
        ("in a thread", "vm/b", 7),
    ]


async def test_what_an_action_leaves_behind_is_no_part_of_its_pass(out: io.StringIO) -> None:
    over = asyncio.Event()

    async def stay() -> None:
        await over.wait()
        log.warning("much later", vm="web")

    with scope(7, "vm/web"):
        left = asyncio.create_task(stay())
        await asyncio.sleep(0)
    over.set()
    await left
    assert lines(out) == [("much later", "vm/web", None)]


@pytest.mark.parametrize(
    ("fields", "resource"),
    [
        ({"vm": "web"}, "vm/web"),
        ({"service": "dns"}, "service/dns"),
        ({"resource": "tap/web/lan", "vm": "x"}, "tap/web/lan"),
    ],
)
def test_a_field_that_names_something_is_the_resource(out: io.StringIO, fields: dict[str, str], resource: str) -> None:
    with scope(3, "bridge/br"):
        log.warning("odd", **fields)
    assert lines(out) == [("odd", resource, 3)]
