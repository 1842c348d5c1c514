"""MACs of guests that a bridge would not forward to, and what is said of them."""

from __future__ import annotations

from dataclasses import replace

from agent.core.desired import Desired, NicSpec
from agent.core.planner.draft import Plan
from agent.core.planning import plan
from tests.unit.planning_world import (
    ABSENT,
    BRIDGE,
    BRIDGE_LINK,
    CARD,
    DB,
    DESIRED,
    NIC,
    RUNNING,
    SETTLED,
    TAP,
    WEB,
    with_links,
)

UPLINK = replace(CARD, mac=NIC.mac, master=10)


def taken(decided: Plan) -> list[tuple[str, str]]:
    return [(c.resource, c.message) for c in decided.conditions if c.type == "MacTaken"]


def test_the_mac_of_a_port_is_told_with_both_remedies() -> None:
    desired = Desired({"br0": replace(BRIDGE, ports=("eth1",))}, {"web": WEB})
    ((resource, message),) = taken(plan(desired, with_links(BRIDGE_LINK, TAP, UPLINK), 0.0))
    assert resource == "tap/web/lan"
    assert message == (
        "02:00:00:00:00:02 is the MAC of eth1, a port of br0: br0 keeps what is sent to it for the host, and forwards "
        "none of it to web; if the guest must have the card's MAC (a provider that knows it), give the card another "
        "one: ip link set dev eth1 address 06:00:00:00:00:02, and MACAddress=06:00:00:00:00:02 in its systemd .link "
        "file; else give lan another mac"
    )
    other = replace(UPLINK, mac="06:00:00:00:00:02", permanent_mac=NIC.mac)
    assert taken(plan(desired, with_links(BRIDGE_LINK, TAP, other), 0.0)) == []


def test_a_port_that_is_still_to_come_in_counts_and_a_card_elsewhere_does_not() -> None:
    desired = Desired({"br0": replace(BRIDGE, ports=("eth1",))}, {"web": WEB})
    assert len(taken(plan(desired, with_links(BRIDGE_LINK, replace(UPLINK, master=None), of=ABSENT), 0.0))) == 1
    assert taken(plan(DESIRED, with_links(BRIDGE_LINK, TAP, replace(UPLINK, master=None)), 0.0)) == []
    assert len(taken(plan(DESIRED, with_links(BRIDGE_LINK, TAP, UPLINK), 0.0))) == 1  # somebody else put it there


def test_the_mac_of_the_bridge_itself_is_told() -> None:
    nic = replace(NIC, mac=BRIDGE.mac)
    seen = replace(SETTLED, vms={"web": replace(RUNNING, spec=replace(WEB, nics=(nic,)))})
    ((_, message),) = taken(plan(Desired({"br0": BRIDGE}, {"web": replace(WEB, nics=(nic,))}), seen, 0.0))
    assert "is the MAC of br0 itself" in message
    assert "[bridge.br0]" in message


def test_two_nics_of_one_bridge_with_one_mac_are_told_and_of_two_bridges_are_not() -> None:
    other = NicSpec("dmz", "br0", NIC.mac, "db-dmz", 0)
    desired = Desired({"br0": BRIDGE}, {"web": WEB, "db": replace(DB, nics=(other,))})
    found = taken(plan(desired, SETTLED, 0.0))
    assert len(found) == 1
    assert "is also the MAC of" in found[0][1]
    elsewhere = replace(other, bridge="br1")
    bridges = {"br0": BRIDGE, "br1": replace(BRIDGE, name="br1", mac="02:00:00:00:00:09")}
    assert taken(plan(Desired(bridges, {"web": WEB, "db": replace(DB, nics=(elsewhere,))}), SETTLED, 0.0)) == []
    assert taken(plan(DESIRED, SETTLED, 0.0)) == []
