"""Filters: what entries mean, which elements follow from a NIC, and what is planned before a tap is let in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.actions import ChangeLink, LaunchVm, key_of
from agent.core.attempts import after_failure
from agent.core.desired import BridgeSpec, Desired, DhcpSpec, NicSpec, VmSpec
from agent.core.device_actions import ArmTap, TakeOver
from agent.core.errors import PermanentError
from agent.core.model.host import apply
from agent.core.observed import LinkState, NicBackend, NicState, Observed
from agent.core.planner.draft import Plan
from agent.core.planning import plan
from agent.core.reasons import Reason
from agent.core.routing.filter_entries import Entry, entry, list_elements
from agent.core.routing.filters import FILTERING, FILTERS, ChangeFilters, Filters, FilterState
from agent.core.routing.filters_wanted import filter_wish, link_local
from agent.core.routing.ruleset import Element
from agent.core.tell.describe import describe
from agent.unitfile.filters import parse_entry
from agent.unitfile.values import BadValueError
from tests.unit.planning_world import ABSENT, BRIDGE, BRIDGE_LINK, NIC, RUNNING, SETTLED, TAP, WEB, types

HELD = replace(NIC, address=("10.0.0.7",))
EMPTY = Filters(FilterState())


@pytest.mark.parametrize(
    ("text", "canonical", "means"),
    [
        ("22/tcp", "22/tcp", Entry("from", "tcp", 22, 22)),
        ("5000-5010/udp", "5000-5010/udp", Entry("from", "udp", 5000, 5010)),
        (" 022/tcp   from 10.0.0.0/8", "22/tcp from 10.0.0.0/8", Entry("from", "tcp", 22, 22, "10.0.0.0/8")),
        ("icmp", "icmp", Entry("from", "icmp")),
        ("icmp to ::/0", "icmp to ::/0", Entry("to", "icmp", network="::/0")),
        ("from 192.168.0.0/24", "from 192.168.0.0/24", Entry("from", network="192.168.0.0/24")),
        ("to 192.0.2.7/32", "to 192.0.2.7", Entry("to", network="192.0.2.7")),
        ("25/tcp to 0.0.0.0/0", "25/tcp to 0.0.0.0/0", Entry("to", "tcp", 25, 25, "0.0.0.0/0")),
        ("from FD00::0/64", "from fd00::/64", Entry("from", network="fd00::/64")),
    ],
)
def test_entries_are_read_as_they_are_meant(text: str, canonical: str, means: Entry) -> None:
    assert parse_entry(text) == canonical
    assert entry(canonical) == means
    assert str(means) == canonical


@pytest.mark.parametrize(
    ("value", "says", "hint"),
    [
        (22, "must be such as", 'did you mean "22/tcp"?'),
        (True, "must be such as", ""),
        ("22", "a port needs /tcp or /udp", 'did you mean "22/tcp"?'),
        ("22/TCP from 10.0.0.1", "a port needs /tcp or /udp", 'did you mean "22/tcp from 10.0.0.1"?'),
        ("22/sctp", "a port needs /tcp or /udp", 'did you mean "22/tcp"?'),
        ("ping", "must be such as", 'did you mean "icmp"?'),
        ("", "must be such as", ""),
        ("22/tcp 10.0.0.0/8", 'behind what is asked for comes "from" or "to"', ""),
        ("22/tcp from", "from needs one network", "from 0.0.0.0/0 and from ::/0 are everybody"),
        ("from 10.0.0.0/8 192.168.0.0/16", "from needs one network", "one network an entry"),
        ("from example.org", "is no network", "names are not looked up"),
        ("from fe80::1%eth0", "is no network", "names are not looked up"),
        ("from 10.0.0.1/8", "bits beyond its length", 'did you mean "from 10.0.0.0/8"?'),
        ("70000/tcp", "must have ports of 1 to 65535", ""),
        ("0/tcp", "must have ports of 1 to 65535", ""),
        ("90-80/udp", "must have its lower port first", 'did you mean "80-90/udp"?'),
        ("web/tcp", "must be such as", ""),
    ],
)
def test_what_is_no_entry_says_what_is_wanted(value: object, says: str, hint: str) -> None:
    with pytest.raises(BadValueError) as caught:
        parse_entry(value)
    assert says in str(caught.value)
    assert caught.value.hint == hint


def keys(*texts: str, version: int = 4) -> set[tuple[str, str]]:
    found = list_elements("allow", texts, version, '"t"', ('"b" . A',))
    return {(one.set, one.key) for one in found if not one.set.startswith("routed_")}


def test_entries_of_one_set_never_meet() -> None:
    assert keys("20-30/tcp", "22/tcp", "25-40/tcp from 10.0.0.0/8") == {
        ("allow_from_ports4", '"t" . tcp . 20-30 . 0.0.0.0/0'),
        ("allow_from_ports4", '"t" . tcp . 31-40 . 10.0.0.0/8'),
    }
    assert keys("22/tcp from 10.0.0.0/8", "20-24/tcp from 10.1.0.0/16", "22/tcp from 192.0.2.1") == {
        ("allow_from_ports4", '"t" . tcp . 20-21 . 10.1.0.0/16'),
        ("allow_from_ports4", '"t" . tcp . 22 . 10.0.0.0/8'),
        ("allow_from_ports4", '"t" . tcp . 22 . 192.0.2.1'),
        ("allow_from_ports4", '"t" . tcp . 23-24 . 10.1.0.0/16'),
    }
    assert keys("from 10.0.0.0/9", "from 10.128.0.0/9", "from fd00::/64") == {
        ("allow_from_any4", '"t" . 10.0.0.0/8'),
    }
    assert keys("icmp", "to fd00::/64", version=6) == {
        ("allow_from_ports6", '"t" . ipv6-icmp . 0-65535 . ::/0'),
        ("allow_to_any6", '"t" . fd00::/64'),
    }
    routed = list_elements("deny", ("53/udp to 10.0.0.1",), 4, '"t"', ('"b" . 10.0.0.7',))
    assert routed[1] == Element("routed_deny_to_ports4", '"b" . 10.0.0.7 . udp . 53 . 10.0.0.1')


def wish(nic: NicSpec, bridge: BridgeSpec = BRIDGE) -> set[tuple[str, str]]:
    found = filter_wish({bridge.name: bridge}, {"web": replace(WEB, nics=(nic,))}, {}, {})
    return {(one.set, one.key.replace('"web-lan"', "T")) for one in found.elements}


GUARD = {
    ("taps", "T"),
    ("mac", "T"),
    ("macs", f"T . {NIC.mac}"),
    ("own_clients", f"T . {0x020000000002}"),
    ("dhcp", "T"),
    ("ra", "T"),
}


def test_a_nic_is_held_to_what_its_unit_says() -> None:
    local, bridge = "fe80::ff:fe00:2", "fe80::ff:fe00:1"
    assert link_local(NIC.mac) == local
    assert wish(NIC) == set()
    assert wish(replace(NIC, anti_spoof=True)) == GUARD
    assert wish(replace(HELD, anti_spoof=False)) == set()
    assert wish(replace(NIC, anti_spoof=True, serves=("ra", "dhcp"))) == GUARD - {("dhcp", "T"), ("ra", "T")}
    raw = {one: f"0x{one_raw}" for one, one_raw in (
        (local, "fe8000000000000000" + "00fffe000002".rjust(14, "0")),
        (bridge, "fe8000000000000000" + "00fffe000001".rjust(14, "0")),
        ("fe80::1", "fe80" + "1".rjust(28, "0")),
    )}  # fmt: skip
    assert wish(HELD) == GUARD | {
        ("ipv4", "T"),
        ("ipv6", "T"),
        ("own4", "T . 10.0.0.7"),
        ("own6", f"T . {local}"),
        ("own_targets", f"T . {raw[local]}"),
        *(("claimed6", one) for one in raw),
        *(("claimed_targets", one) for one in raw.values()),
    }
    routed = replace(BRIDGE, addresses=("10.0.0.1/24", "fd00::1/64", "fd01::1/80"))
    assert ("own6", "T . fd00::ff:fe00:2") in wish(HELD, routed)
    assert not any("fd01" in key for _, key in wish(HELD, routed))


def test_a_bridge_with_dhcp_guards_every_nic_and_its_ports() -> None:
    served = replace(BRIDGE, ports=("eth1",), dhcp=DhcpSpec("10.0.0.100", "10.0.0.120", 3600))
    assert wish(NIC, served) == {("taps", "T"), ("dhcp", "T"), ("ra", "T"), ("ports", '"eth1"')}
    assert served.dhcp is not None
    assert ("ports", '"eth1"') not in wish(NIC, replace(served, dhcp=replace(served.dhcp, ports=True)))


def test_a_bridge_with_ipv6_guards_every_nic() -> None:
    assert wish(NIC, replace(BRIDGE, ipv6="routed")) == {("taps", "T"), ("dhcp", "T"), ("ra", "T")}


def test_an_isolated_guest_is_not_led_to_another_by_the_host() -> None:
    found = wish(replace(HELD, isolated=True), replace(BRIDGE, addresses=("fd00::1/64",))) - wish(HELD)
    assert {one for one in found if one[0].startswith("apart")} == {
        ("apart4", '"br0" . "br0" . 10.0.0.7'),
        ("apart6", '"br0" . "br0" . fd00::ff:fe00:2'),
    }


def test_lists_know_a_guest_by_its_tap_and_where_it_is_held_by_its_address() -> None:
    listed = replace(HELD, allow=("22/tcp",))
    found = wish(listed)
    assert {("listed", "T"), ("deny", "T"), ("closed_from", "T"), ("routed4", '"br0" . 10.0.0.7')} <= found
    assert ("routed_closed_from4", '"br0" . 10.0.0.7') in found
    assert ("alone", "T") not in found
    assert ("closed_to", "T") not in found
    free = wish(replace(listed, anti_spoof=False))
    assert ("alone", "T") in free
    assert not any(name.startswith("routed") for name, _ in free)


def desired(nic: NicSpec) -> Desired:
    return Desired({"br0": BRIDGE}, {"web": replace(WEB, nics=(nic,))})


def running(nic: NicSpec, *, filters: Filters = EMPTY, tap: LinkState = TAP) -> Observed:
    vms = {"web": replace(RUNNING, spec=replace(WEB, nics=(nic,)))}
    return replace(SETTLED, vms=vms, filters=filters, links={"br0": BRIDGE_LINK, tap.name: tap})


def in_place(nic: NicSpec, **specs: VmSpec) -> Filters:
    wished = filter_wish({"br0": BRIDGE}, {"web": replace(WEB, nics=(nic,)), **specs}, {}, {})
    return Filters(FilterState(FILTERING.skeleton, wished.elements))


def actions(decided: Plan) -> set[type]:
    return {type(one) for one in decided.actions}


def test_a_tap_is_made_and_a_guest_started_once_its_filters_are_in_place() -> None:
    bare = replace(ABSENT, links={"br0": BRIDGE_LINK}, filters=EMPTY)
    first = plan(desired(HELD), bare, 0.0)
    assert actions(first) == {ChangeFilters}
    (change,) = first.actions
    assert describe(change).startswith("make the tables of the filters, with ")
    filtered = apply(bare, change)
    assert actions(plan(desired(HELD), filtered, 0.0)) == {ArmTap}
    ready = replace(ABSENT, filters=in_place(HELD))
    assert actions(plan(desired(HELD), ready, 0.0)) == {LaunchVm}
    lacking = replace(ready, filters=Filters(FilterState(FILTERING.skeleton, in_place(NIC).state.elements)))  # type: ignore[union-attr]
    assert actions(plan(desired(HELD), lacking, 0.0)) == {ChangeFilters}
    assert actions(plan(desired(NIC), replace(bare, filters=Filters()), 0.0)) == {ArmTap}
    unknown = plan(desired(HELD), replace(bare, filters=Filters()), 0.0)
    assert not unknown.actions
    assert unknown.awaited == {FILTERS}


@pytest.mark.parametrize("case", ["detached", "dead", "renamed"])
def test_a_tap_that_comes_back_waits_for_its_filters(case: str) -> None:
    tap = {"detached": replace(TAP, master=None), "renamed": replace(TAP, name="x1")}.get(case, TAP)
    observed = running(HELD, tap=tap)
    if case == "renamed":
        nics = {"lan": NicState(NicBackend.ATTACHED, "x1")}
        observed = replace(observed, vms={"web": replace(observed.vms["web"], nics=nics)})
    if case == "dead":
        nics = {"lan": NicState(NicBackend.DEAD)}
        observed = replace(observed, links={"br0": BRIDGE_LINK}, vms={"web": replace(observed.vms["web"], nics=nics)})
    first = plan(desired(HELD), observed, 0.0)
    assert actions(first) == {ChangeFilters}
    assert "tap/web/lan" in first.deviating
    after = plan(desired(HELD), apply(observed, first.actions[0]), 0.0)
    assert [one.resource for one in after.actions] == ["tap/web/lan"]


def test_a_tap_that_comes_back_waits_for_what_its_unit_says_by_now_if_that_is_other_filters() -> None:
    listed = replace(HELD, deny=("25/tcp to 0.0.0.0/0",))
    observed = replace(running(HELD, tap=replace(TAP, master=None)), filters=in_place(HELD))
    assert [one.resource for one in plan(desired(HELD), observed, 0.0).actions] == ["tap/web/lan"]
    steps = []
    while frontier := plan(desired(listed), observed, 0.0).actions:
        (action,) = frontier
        steps.append(type(action))
        observed = apply(observed, action)
    assert steps == [TakeOver, ChangeFilters, ChangeLink]
    taking = replace(
        running(HELD, tap=replace(TAP, master=None)), filters=in_place(HELD), in_flight={"vm/web": "take-over"}
    )
    assert plan(desired(listed), taking, 0.0).actions == ()


def test_a_tap_under_another_name_is_filtered_by_that_too() -> None:
    observed = running(HELD, tap=replace(TAP, name="x1"))
    nics = {"lan": NicState(NicBackend.ATTACHED, "x1")}
    observed = replace(observed, vms={"web": replace(observed.vms["web"], nics=nics)})
    found = filter_wish({"br0": BRIDGE}, {}, observed.vms, observed.links)
    assert {Element("mac", '"x1"'), Element("mac", '"web-lan"')} <= found.elements


def test_a_tap_is_filtered_for_the_bridge_that_it_is_still_in() -> None:
    """Its new one may never be there, and the guest is heard where it is."""
    listed = replace(HELD, deny=("25/tcp to 0.0.0.0/0",))
    observed = running(replace(listed, bridge="br1"))
    other = BridgeSpec("br1", "02:00:00:00:00:09")
    found = filter_wish({"br0": BRIDGE, "br1": other}, {}, observed.vms, observed.links)
    assert {Element("routed4", f'"{name}" . 10.0.0.7') for name in ("br0", "br1")} <= found.elements
    moved = {**observed.links, "br1": replace(BRIDGE_LINK, name="br1", ifindex=99), "web-lan": replace(TAP, master=99)}
    after = filter_wish({"br0": BRIDGE, "br1": other}, {}, observed.vms, moved)
    assert Element("routed4", '"br0" . 10.0.0.7') not in after.elements


def test_a_held_guest_is_none_of_its_neighbours_that_are_not_held_either() -> None:
    """One of them may be the router of the rest."""
    router = replace(NIC, mac="02:00:00:00:00:07", tap="fw-lan", anti_spoof=False)
    for other in (router, replace(router, address=("10.0.0.8",)), replace(router, allow=("22/tcp",))):
        for where, claimed in (("br0", True), ("br9", False)):
            specs = {"web": replace(WEB, nics=(HELD,)), "fw": replace(WEB, nics=(replace(other, bridge=where),))}
            found = filter_wish({"br0": BRIDGE}, specs, {}, {}).elements
            assert (Element("claimed6", link_local(router.mac)) in found) is claimed
    assert filter_wish({"br0": BRIDGE}, {"fw": replace(WEB, nics=(router,))}, {}, {}).elements == set()


def test_a_guest_with_its_gateway_s_address_is_told() -> None:
    """It would be let say that it is the gateway."""
    nic = replace(NIC, address=("10.0.0.7", "10.0.0.1"))
    told = plan(desired(nic), running(nic, filters=in_place(nic)), 0.0)
    assert types(told) == [("tap/web/lan", "AddressTaken")]
    assert told.conditions[0].message.startswith("10.0.0.1 is an address of br0 itself")
    assert not told.deviating


def test_without_nft_guests_run_and_those_that_asked_for_filters_are_told_of() -> None:
    lost = Filters(None, "there is no nft")
    implied = plan(desired(HELD), running(HELD, filters=lost), 0.0)
    assert types(implied) == [(FILTERS, "FirewallUnavailable")]
    assert not implied.deviating
    asked = replace(HELD, anti_spoof=True)
    decided = plan(desired(asked), running(asked, filters=lost), 0.0)
    assert types(decided) == [(FILTERS, "FirewallUnavailable"), ("tap/web/lan", "FirewallUnavailable")]
    assert decided.deviating == {"tap/web/lan"}
    assert actions(plan(desired(asked), replace(ABSENT, filters=lost), 0.0)) == {LaunchVm}


def test_a_kernel_that_refuses_stops_no_guest() -> None:
    observed = replace(ABSENT, filters=EMPTY)
    (change,) = plan(desired(HELD), observed, 0.0).actions
    attempt = after_failure(change, PermanentError("the kernel needs nf_tables", reason="KernelLacks"), None, 0.0)
    refused = plan(desired(HELD), replace(observed, attempts={key_of(change): attempt}), 1.0)
    assert actions(refused) == {LaunchVm}
    assert (FILTERS, "KernelLacks") in types(refused)


def test_only_what_changed_is_changed_and_nothing_without_units() -> None:
    edited = replace(HELD, address=("10.0.0.8",))
    decided = plan(desired(edited), running(edited, filters=in_place(HELD)), 0.0)
    assert decided.actions == (
        ChangeFilters(
            FILTERS,
            Reason.ELEMENT,
            (Element("own4", '"web-lan" . 10.0.0.8'),),
            (Element("own4", '"web-lan" . 10.0.0.7'),),
        ),
    )
    gone = replace(SETTLED, vms={}, links={"br0": BRIDGE_LINK}, filters=in_place(HELD))
    (change,) = plan(Desired({"br0": BRIDGE}), gone, 0.0).actions
    assert change == ChangeFilters(FILTERS, Reason.UNWANTED, gone=True)
    assert describe(change) == "delete the tables of the filters"
    assert not [one for one in plan(Desired(complete=False), gone, 0.0).actions if isinstance(one, ChangeFilters)]
    assert plan(desired(HELD), running(HELD, filters=in_place(HELD)), 0.0).actions == ()


def test_isolation_is_set_with_the_port_and_healed() -> None:
    nic = replace(NIC, isolated=True)
    for tap, master in ((TAP, None), (replace(TAP, master=None), 10)):
        (change,) = plan(desired(nic), running(nic, tap=tap), 0.0).actions
        assert change.change.isolated is True  # type: ignore[union-attr]
        assert change.change.master == master  # type: ignore[union-attr]
    (change,) = plan(desired(NIC), running(NIC, tap=replace(TAP, isolated=True)), 0.0).actions
    assert change.change.isolated is False  # type: ignore[union-attr]
    moved = replace(TAP, isolated=True, master=99)
    (change,) = plan(desired(nic), running(nic, tap=moved), 0.0).actions
    assert change.change.isolated is True  # type: ignore[union-attr]
    assert plan(desired(nic), running(nic, tap=replace(TAP, isolated=True)), 0.0).actions == ()
