"""What happened, for people: a bounded ring of events, each of them also a line of the log."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, TextIO

import structlog

from agent.core.text import printable
from agent.telemetry.journald import JournaldHandler, is_journal
from agent.telemetry.scope import add_scope

RING_SIZE = 10_000
"""Events kept for `vmhost events`: hours of a busy host, about 5 MB at most."""

_OWN_LINES = {"exception", "stack"}
"""Fields of several lines, which are this program's own words."""

Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. `seq` grows by one; `time` is wall-clock time, ISO 8601 in UTC, for people only."""

    seq: int
    time: str
    resource: str
    kind: str
    message: str
    fields: Mapping[str, object] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """The event as plain data."""
        return {
            "seq": self.seq,
            "time": self.time,
            "resource": self.resource,
            "kind": self.kind,
            "message": self.message,
            "fields": dict(self.fields),
        }


class Journal:
    """The ring. Belongs to one event loop; recording never waits, and a slow reader misses what the ring lost."""

    def __init__(self, size: int = RING_SIZE) -> None:
        self._ring: deque[Event] = deque(maxlen=size)
        self._last = 0
        self._news = asyncio.Event()
        self._log = structlog.get_logger("vmhost")

    @property
    def last_seq(self) -> int:
        """The number of the latest event, 0 before the first."""
        return self._last

    def record(self, resource: str, kind: str, message: str, *, level: Level = "info", **fields: object) -> Event:
        """Note an event and log it. `kind` is a stable word in kebab-case; `message` one line for a person."""
        self._last += 1
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        event = Event(self._last, now, resource, kind, printable(message), fields)
        self._ring.append(event)
        news, self._news = self._news, asyncio.Event()
        news.set()
        self._log.log(
            logging.getLevelNamesMapping()[level.upper()], event.message, resource=resource, kind=kind, **fields
        )
        return event

    def since(self, seq: int) -> tuple[Event, ...]:
        """The kept events after number `seq`; one that was not given out yet counts as 0: another agent gave it."""
        after = seq if seq <= self._last else 0
        found: list[Event] = []
        for event in reversed(self._ring):
            if event.seq <= after:
                break
            found.append(event)
        return tuple(reversed(found))

    async def follow(self, seq: int) -> AsyncIterator[Event]:
        """The kept events after number `seq`, then each new one as it comes, without end."""
        while True:
            news = self._news
            for event in self.since(seq):
                yield event
                seq = event.seq
            seq = min(seq, self._last)
            await news.wait()


def set_up_logging(stream: TextIO | None = None, *, level: Level = "info") -> None:
    """Log to `stream` (stderr): entries of systemd's journal where that is what it leads to, lines for people on a
    terminal, else a JSON object each; libraries log there too. docs/logs.md has the fields.
    """
    out = stream or sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_scope,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(out)],
    )
    handler = JournaldHandler(out) if is_journal(out, os.environ) else logging.StreamHandler(out)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("vmhost").setLevel(level.upper())
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _rendering(out: TextIO) -> Iterator[structlog.typing.Processor]:
    if out.isatty():
        yield _printable_values
        yield structlog.dev.ConsoleRenderer()
    else:
        yield structlog.processors.format_exc_info
        yield structlog.processors.JSONRenderer(ensure_ascii=False, default=str)


def _printable_values(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What a QEMU says is a field as a rule, and a terminal does what it is told by escapes."""
    return {
        key: printable(value) if isinstance(value, str) and key not in _OWN_LINES else value
        for key, value in event.items()
    } | {"event": printable(str(event["event"]))}
