"""What is told and counted of a guest's events."""

from __future__ import annotations

import pytest

from agent.runtime import chronicle
from agent.runtime.chronicle import RESET_ECHO_S, Chronicle
from agent.telemetry.journal import Journal
from agent.telemetry.metrics import Metrics

RESET = {"guest": True, "reason": "guest-reset"}


def test_a_reset_that_qemu_tells_of_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal()
    told = Chronicle(journal, Metrics(version="", qemu="", started_s=0.0))
    for at_s in (100.0, 100.0 + RESET_ECHO_S / 2, 200.0, 200.0, 300.0):
        monkeypatch.setattr(chronicle, "now_s", lambda now_s=at_s: now_s)
        told.heard("web", "RESET", RESET)
    told.heard("web", "RESET", {"guest": False, "reason": "host-qmp-system-reset"})
    assert [event.message for event in journal.since(0)] == ["web reset itself"] * 3
