"""What VLAN tests build on: a VLAN-aware bridge of this kernel carries a tagged frame to those who carry its VLAN."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.frames import BROADCAST
from tests.netns import ip, network_namespace
from tests.vlan.cable import Cable

pytestmark = pytest.mark.kernel("8021q", "bridge-vlan")

KIND = 0x88B5  # for local experiments (IEEE 802)
SOURCE = "02:00:00:00:00:01"
ARRIVES_S = 30.0
VLANS = {"sender": "20", "trunk": "20", "access": "20 pvid untagged", "other": "30 pvid untagged"}


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    with network_namespace():
        yield


@pytest.fixture
def cables() -> Iterator[dict[str, Cable]]:
    """A VLAN-aware bridge with a cable in each port; what each port carries is in VLANS."""
    ip("link add br0 type bridge vlan_filtering 1 vlan_default_pvid 0", "link set br0 up")
    with ExitStack() as stack:
        found = {}
        for name, vlans in VLANS.items():
            ip(
                f"link add {name} type veth peer name p-{name}",
                f"link set p-{name} master br0 up",
                f"link set {name} up",
            )
            subprocess.run(["bridge", "vlan", "add", "dev", f"p-{name}", "vid", *vlans.split()], check=True)
            found[name] = stack.enter_context(Cable(name))
        yield found


def test_a_tagged_frame_reaches_those_who_carry_its_vlan(cables: dict[str, Cable]) -> None:
    cables["sender"].send(SOURCE, BROADCAST, KIND, b"twenty", vlan=20)
    for name, vlan in {"trunk": 20, "access": None}.items():
        frame = cables[name].receive(KIND, ARRIVES_S)
        assert frame is not None, name
        assert (frame.source, frame.vlan, frame.body[:6]) == (SOURCE, vlan, b"twenty")
    # The bridge floods a broadcast to all ports in one go, so what was to come has come.
    assert cables["other"].receive(KIND, 0) is None


def test_a_frame_without_a_tag_is_dropped_where_a_port_has_no_native_vlan(cables: dict[str, Cable]) -> None:
    cables["sender"].send(SOURCE, BROADCAST, KIND, b"untagged")
    cables["sender"].send(SOURCE, BROADCAST, KIND, b"twenty", vlan=20)
    frame = cables["access"].receive(KIND, ARRIVES_S)
    assert frame is not None
    assert frame.body[:6] == b"twenty"
    assert cables["other"].receive(KIND, 0) is None
