"""A plugin for the pytest that runs inside the virtual lab: tells the one outside what becomes of each test.

It writes lines of JSON to the descriptor given by --lab-results: {"report": …} for each phase of a test as pytest
itself serialises it, {"finished": NODE_ID} after its last.
"""

from __future__ import annotations

import json
import os
from typing import IO, Any

import pytest

from tests.patience import SLOWER

LEAST_TIMEOUT_S = 900


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lab-results", type=int, required=True, help="the descriptor that results are written to")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Reporter(config), "lab-reporter")


def pytest_itemcollected(item: pytest.Item) -> None:
    own = item.get_closest_marker("timeout")
    seconds = float(own.args[0]) if own is not None and own.args else 0.0
    item.add_marker(pytest.mark.timeout(max(LEAST_TIMEOUT_S, seconds * SLOWER)), append=False)


class _Reporter:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        descriptor: int = config.getoption("--lab-results")
        os.set_inheritable(descriptor, False)  # what a test leaves running must not keep it open
        self._results: IO[str] = os.fdopen(descriptor, "w", buffering=1)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data: Any = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._tell({"report": data})

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._tell({"finished": nodeid})

    def _tell(self, message: dict[str, Any]) -> None:
        self._results.write(json.dumps(message, default=str) + "\n")
