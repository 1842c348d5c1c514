"""What is told of ports that are not published, or to no avail."""

from __future__ import annotations

from dataclasses import replace

from agent.core.desired import Desired, DnsSpec
from agent.core.observed import AddressState
from agent.core.planner.draft import Plan
from agent.core.planning import plan
from agent.core.routing.firewall import FirewallState, ForwardingState, Routing
from tests.unit.planning_world import BRIDGE, CARD, NIC, SETTLED, WEB, said, with_links

SERVING = replace(BRIDGE, addresses=("10.0.0.1/24", "fd00::1/64"), dns=DnsSpec((), "lan"))
GUEST = replace(WEB, nics=(replace(NIC, address=("10.0.0.10", "fd00::10")),))
KNOWN = Routing(FirewallState(), ForwardingState())


def planned(*publish: str, addresses: tuple[str, ...] = ()) -> Plan:
    card = replace(CARD, addresses=tuple(map(AddressState, addresses)))
    observed = replace(with_links(*SETTLED.links.values(), card), routing=KNOWN)
    return plan(Desired({"br0": SERVING}, {"web": replace(GUEST, publish=publish)}), observed, 0.0)


def test_a_port_on_which_a_bridge_answers_is_told_once() -> None:
    (told,) = [one for one in said(planned("53/udp")) if one[1] == "PortTaken"]
    assert told == (
        "vm/web",
        "PortTaken",
        "PortTaken",
        (
            "53/udp is not published: it would lead what is asked of br0's dns to web; "
            "publish another port, or on one of the host's other addresses"
        ),
    )


def test_an_address_that_the_host_does_not_have_is_told_until_it_has_it() -> None:
    def told(*addresses: str) -> list[str]:
        plan_ = planned("192.0.2.1:80/tcp", "[2001:db8::1]:80/tcp", addresses=addresses)
        return [message for _, type_, _, message in said(plan_) if type_ == "AddressMissing"]

    assert told("192.0.2.2/24") == [
        "192.0.2.1:80/tcp is reached by nobody as long as no link of this host has 192.0.2.1",
        "[2001:db8::1]:80/tcp is reached by nobody as long as no link of this host has 2001:db8::1",
    ]
    assert told("192.0.2.1/24", "2001:db8::1/64") == []
