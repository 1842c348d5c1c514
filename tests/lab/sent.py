"""The tests of a session that are sent into the virtual lab: started there in one go, results taken as they come."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.booted import Booted
from tests.lab.payload import ROOT
from tests.lab.wire import Running, WireClosedError
from tests.patience import IN_LAB

SILENCE_S = 1800.0
"""What no test inside takes: each has a timeout, which is told."""
IDS = "/run/vmhost-lab-tests"
RUN = (
    "cd {root} && exec env {in_lab}=1 PYTHONUNBUFFERED=1 .venv/bin/python -m pytest -p tests.lab.reporter "
    "--lab-results=3 -p no:cacheprovider --durations=0 --tb={tb} @{ids} 3>&1 1>&2"
)
SAID_BYTES = 4000


class Sent:
    """The tests by their node ids. The first whose result is asked for starts them all."""

    def __init__(self, config: pytest.Config, booted: Booted) -> None:
        self._config = config
        self._booted = booted
        self._ids: list[str] = []
        self._reports: dict[str, list[pytest.TestReport]] = {}
        self._finished: set[str] = set()
        self._messages: Iterator[dict[str, Any]] | None = None
        self._said = b""
        """What pytest itself says inside; the last of it."""

    def add(self, item: pytest.Item) -> None:
        """Send one more; before any result is asked for."""
        self._ids.append(item.nodeid)

    def __contains__(self, item: pytest.Item) -> bool:
        return item.nodeid in self._ids

    def reports(self, item: pytest.Item) -> list[pytest.TestReport]:
        """What became of a test, as soon as that is known: a report of each phase, as from a test that ran here."""
        try:
            if self._messages is None:
                self._messages = self._run()
            while item.nodeid not in self._finished and (message := next(self._messages, None)) is not None:
                self._take(message)
        except (OSError, RuntimeError, WireClosedError) as error:  # TimeoutError is an OSError
            return [self._failure(item, f"the virtual lab: {error}")]
        if item.nodeid not in self._finished:
            return [self._failure(item, "pytest ended in the virtual lab before this test did")]
        return self._reports.pop(item.nodeid)

    def _run(self) -> Iterator[dict[str, Any]]:
        machine = self._booted.lab()
        machine.write(IDS, "\n".join(self._ids).encode())
        command = RUN.format(in_lab=IN_LAB, root=shlex.quote(str(ROOT)), ids=IDS, tb=self._config.getoption("tbstyle"))
        return self._read(machine.start(command))

    def _read(self, running: Running) -> Iterator[dict[str, Any]]:
        rest = b""
        for stream, data in running.chunks(SILENCE_S):
            if stream == "err":
                self._said = (self._said + data)[-SAID_BYTES:]
                continue
            *lines, rest = (rest + data).split(b"\n")
            yield from map(json.loads, lines)

    def _take(self, message: dict[str, Any]) -> None:
        if "finished" in message:
            self._finished.add(message["finished"])
            return
        report = self._config.hook.pytest_report_from_serializable(config=self._config, data=message["report"])
        if isinstance(report.longrepr, list):  # of a skip: JSON has no tuples, and pytest's summary wants one
            report.longrepr = tuple(report.longrepr)
        self._reports.setdefault(report.nodeid, []).append(report)

    def _failure(self, item: pytest.Item, why: str) -> pytest.TestReport:
        said = self._said.decode(errors="replace")
        text = f"{why}\n{said}" if said else why
        return pytest.TestReport(
            item.nodeid, item.location, dict.fromkeys(item.keywords, 1), "failed", text, when="call"
        )
