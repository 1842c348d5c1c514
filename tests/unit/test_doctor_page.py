"""The page on the doctor is what its table says, and its findings stand in nothing's way."""

from __future__ import annotations

from pathlib import Path

from agent.core.conditions import FINDINGS, NOTICES
from agent.core.doctor.findings import KINDS
from docs import doctor

SHIPPED = Path(__file__).parents[2] / "docs" / "doctor.md"


def test_the_shipped_page_is_what_the_table_says() -> None:
    assert SHIPPED.read_text() == doctor.page(), "python -m docs.doctor > docs/doctor.md"


def test_findings_are_notices() -> None:
    assert KINDS.keys() == FINDINGS
    assert FINDINGS < NOTICES
