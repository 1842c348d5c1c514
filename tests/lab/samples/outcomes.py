"""Tests of every outcome, for tests/lab/test_virtual.py to send into the virtual lab: not collected by name."""

from __future__ import annotations

import os

import pytest

pytestmark = pytest.mark.kernel("8021q")


@pytest.fixture
def broken() -> None:
    raise RuntimeError("nothing to build upon")


def test_passes() -> None:
    assert os.environ["VMHOST_IN_LAB"]


@pytest.mark.parametrize("text", ["a b", "ä[1]"])
def test_passes_with(text: str) -> None:
    assert text


def test_fails() -> None:
    print("what it printed")
    assert "inside" == "out" + "side", "told in these words"


@pytest.mark.skip(reason="told as the reason")
def test_skips() -> None:
    pass


@pytest.mark.usefixtures("broken")
def test_cannot_be_set_up() -> None:
    pass


def test_ends_pytest() -> None:
    print("its last words", flush=True)
    os._exit(3)


def test_never_begins() -> None:
    pass
