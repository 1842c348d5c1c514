"""What the status page shows now, kept only while somebody looks at it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent.core.measures import GuestMeasure
from agent.core.tell.looks import GuestLook
from agent.core.tell.page import Beside, Published, Table, events_table, tables_of, title_of
from agent.core.tell.rates import GuestRates, rates
from agent.core.tell.status import StatusInputs, status
from agent.telemetry.forwards import forward_samples
from agent.telemetry.journal import Journal

STATUS_EVERY_S = 0.5
SHARE = 10
"""A status is made anew after ten times what the last one took, so that a thousand guests in turmoil cost a tenth of
a core: 50 ms each."""

EVENTS_SHOWN = 50
OLDEST_S = 60.0
"""Between two looks at a guest that make a rate: nobody wants to know the mean since the page was last open."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the agent knows: the inputs of a status, start times (Unix, s) and last measures by guest."""

    inputs: StatusInputs
    started_s: Mapping[str, float] = field(default_factory=dict)
    measures: Mapping[str, GuestMeasure] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PageSources:
    """Where the page has what it shows from. `look` is made on the loop, of what is there already.

    `signature` costs next to nothing, and is equal for as long as a look would find the same.
    """

    host: str
    journal: Journal
    look: Callable[[], Look]
    signature: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Shown:
    """One state of the page."""

    title: str = ""
    tables: Mapping[str, Table] = field(default_factory=dict)


class Board:
    """The page's state, with a version that grows with each change. Belongs to one event loop."""

    def __init__(self, sources: PageSources) -> None:
        self._sources = sources
        self._one_at_a_time = asyncio.Lock()
        self._signature: object = None
        self._looked_s, self._every_s = -STATUS_EVERY_S, STATUS_EVERY_S
        self._seq = -1
        self._before: dict[str, GuestMeasure] = {}
        self._rates: dict[str, GuestRates] = {}
        self._started_s: dict[str, float] = {}
        self._change = b""
        self._whole = b""
        self.shown = Shown()
        self.version = 0

    async def refresh(self) -> None:
        """Bring it up to date: events at once, the status at most twice a second, and only if there is news.

        All that takes long for a thousand guests is done in a thread.
        """
        async with self._one_at_a_time:
            now, now_s, seq = self.shown, time.monotonic(), self._sources.journal.last_seq
            if now_s - self._looked_s >= self._every_s and (signature := self._sources.signature()) != self._signature:
                self._looked_s = now_s
                now = await asyncio.to_thread(self._status, self._sources.look())
                self._signature = signature
            if seq != self._seq:
                events = self._sources.journal.since(max(0, seq - EVENTS_SHOWN))
                table = await asyncio.to_thread(events_table, [event.as_json() for event in events])
                now = Shown(now.title, {**now.tables, "events": table})
                self._seq = seq
            if now is not self.shown:
                change = await asyncio.to_thread(frame, self.shown, now)
                self.shown = now
                if change:
                    self._change, self._whole, self.version = change, b"", self.version + 1

    async def since(self, version: int) -> tuple[int, bytes]:
        """The present version, and the frame that leads there from another: the whole page, from any but the last."""
        async with self._one_at_a_time:
            if version == self.version - 1 and version > 0:
                return self.version, self._change
            if not self._whole:
                self._whole = await asyncio.to_thread(frame, Shown(), self.shown)
            return self.version, self._whole

    def _status(self, look: Look) -> Shown:
        began_s = time.thread_time()
        said = status(look.inputs)
        published = [Published(one.vm, one.port, one.proto, one.up) for one in forward_samples(look.inputs)]
        self._note_measures(look.measures)
        self._note_starts(look.started_s)
        tables = tables_of(said, Beside(self._started_s, self._rates, published))
        events = {"events": self.shown.tables["events"]} if "events" in self.shown.tables else {}
        shown = Shown(title_of(self._sources.host, said), {**{table.id: table for table in tables}, **events})
        self._every_s = max(STATUS_EVERY_S, SHARE * (time.thread_time() - began_s))
        return shown

    def _note_measures(self, measures: Mapping[str, GuestMeasure]) -> None:
        """Rates stand until the next look at its guest, and go with the guest's measure."""
        for name, after in measures.items():
            before = self._before.get(name)
            if before is None or after.at_s != before.at_s:
                is_near = before is not None and after.at_s - before.at_s <= OLDEST_S
                former = GuestLook(name, "", measure=before) if is_near else None
                self._rates[name] = rates(former, GuestLook(name, "", measure=after))
        self._before = dict(measures)
        self._rates = {name: one for name, one in self._rates.items() if name in measures}

    def _note_starts(self, started_s: Mapping[str, float]) -> None:
        """Start times are reckoned from two clocks, so they tremble; only a new start is news."""
        self._started_s = {
            name: before if (before := self._started_s.get(name)) is not None and abs(before - at_s) < 1 else at_s
            for name, at_s in started_s.items()
        }


def frame(before: Shown, after: Shown) -> bytes:
    """What leads from one state of the page to another, as a server-sent event (HTML, 9.2).

    Nothing where they are the same. `rows` are new or changed; `keys` is the order of a table's rows, where that is
    another one.
    """
    tables = {}
    for name, table in after.tables.items():
        had = before.tables.get(name)
        rows = [(key, row) for key, row in table.rows.items() if had is None or had.rows.get(key) != row]
        change: dict[str, object] = {"rows": rows} if rows else {}
        if had is None or list(had.rows) != list(table.rows):
            change["keys"] = list(table.rows)
        if change:
            tables[name] = change
    if not tables and before.title == after.title:
        return b""
    data = {"now": round(time.time()), "title": after.title, "tables": tables}
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode(errors="replace")
