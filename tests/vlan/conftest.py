"""Tests of VLANs with real frames; they need a kernel that has VLANs, which the virtual lab's has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.conftest import agent
from tests.netns import ip, network_namespace
from tests.vlan.world import has_vlans

__all__ = ["agent"]


@pytest.fixture(scope="session")
def knows_vlans() -> bool:
    return has_vlans()


@pytest.fixture
def cable(knows_vlans: bool) -> Iterator[None]:
    """A namespace with a card `eth1`, whose other end `far` is what is plugged into it."""
    if not knows_vlans:
        pytest.skip("this kernel has no VLANs; the virtual lab's has")
    with network_namespace():
        ip("link add eth1 type veth peer name far", "link set far up")
        yield
