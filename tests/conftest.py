"""Fixtures that every test folder shares."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ("tests.lab.dispatch",)

GUEST_DIR = Path(__file__).resolve().parent.parent / "build" / "guest"

# How long an example takes says something of the machine, and nothing of the code. A run of the tests has the same
# examples each time, so that it tells of the change and not of the dice; `make hunt` throws them.
settings.register_profile("hunt", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("vmhost", settings.get_profile("hunt"), derandomize=True)
settings.load_profile("vmhost")

# A shell ignores it for what it runs in the background; whatever a test starts would inherit that and hear no Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _built(name: str) -> Path:
    path = GUEST_DIR / name
    if not path.exists():
        pytest.fail(f"{path} is missing: run `make guest` first", pytrace=False)
    return path


@pytest.fixture(scope="session")
def guest_kernel() -> Path:
    """The kernel that test guests boot; tests/guest/README.md says what the guest does."""
    return _built("vmlinuz")


@pytest.fixture(scope="session")
def guest_initrd() -> Path:
    return _built("initramfs.img")
