"""Which link an entry of a bridge's ports means, and what follows when cards are renamed, go, return, or are two."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.actions import EnslavePort, ReleasePort
from agent.core.desired import BridgeSpec, Desired, DhcpSpec
from agent.core.memory import (
    Memory,
    cards_of,
    enslaved_links,
    with_boot,
    with_port,
    with_port_numbers,
    without_port,
    without_ports_of,
)
from agent.core.model.host import apply
from agent.core.observed import AddressState, LinkState, Observed
from agent.core.planner.ports import find_port
from agent.core.planning import plan
from agent.core.reasons import Reason
from agent.core.routing.filters import FILTERS, Filters, FilterState
from agent.unitfile.values import BadValueError, parse_port
from tests.unit.planning_world import ABSENT, BRIDGE, BRIDGE_LINK, said, with_links

MAC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02"
CARD = LinkState(2, "eth1", None, True, mac=MAC, permanent_mac=MAC, place="0000:01:00.0", altnames=("wan", "enp1s0"))
VLAN = LinkState(7, "eth1.20", "vlan", True, mac=MAC, permanent_mac=MAC)
BY_MAC = f"mac:{MAC}"


def wanting(*entries: str) -> Desired:
    return Desired({"br0": replace(BRIDGE, ports=entries)})


def host(*links: LinkState, cards: dict[tuple[str, str], int] | None = None, **more: object) -> Observed:
    cards = cards or {}
    names = {link.ifindex: link.name for link in links}
    enslaved = frozenset((names[index], bridge) for (_, bridge), index in cards.items() if index in names)
    seen = with_links(BRIDGE_LINK, *links, of=ABSENT)
    return replace(seen, cards=cards, enslaved=enslaved, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("entry", ["eth1", "wan", "enp1s0", BY_MAC, "pci:0000:01:00.0"])
def test_a_card_is_found_by_each_of_its_names(entry: str) -> None:
    links = {link.name: link for link in (CARD, VLAN, replace(BRIDGE_LINK, mac=MAC))}
    assert find_port(entry, links) == CARD
    (action,) = plan(wanting(entry), host(CARD, VLAN), 0.0).actions
    named = "" if entry == "eth1" else entry
    assert action == EnslavePort(f"port/{entry}", Reason.WANTED, "br0", 10, "eth1", 2, None, named)


def test_the_hardware_s_own_mac_counts_and_not_one_that_it_was_given() -> None:
    given = replace(CARD, mac=OTHER)
    links = {"eth1": given}
    assert find_port(BY_MAC, links) == given
    assert find_port(f"mac:{OTHER}", links) is None
    assert find_port(f"mac:{OTHER}", {"eth1": replace(given, permanent_mac="")}) is not None
    (told,) = plan(wanting(f"mac:{OTHER}"), host(given), 0.0).conditions
    assert told.type == "PortMissing"
    assert f"eth1 has that address now, but its own is {MAC}" in told.message


def test_an_entry_that_finds_two_cards_takes_neither_and_keeps_what_it_has() -> None:
    twin = replace(CARD, ifindex=3, name="eth2", altnames=())
    decided = plan(wanting(BY_MAC), host(CARD, twin), 0.0)
    assert decided.actions == ()
    assert said(decided) == [
        (
            f"port/{BY_MAC}",
            "PortAmbiguous",
            "PortAmbiguous",
            f"{BY_MAC} is eth1 and eth2, so none is put into br0; name it by its place, pci:…, or by a name",
        )
    ]
    kept = plan(wanting(BY_MAC), host(replace(CARD, master=10), twin, cards={(BY_MAC, "br0"): 2}), 0.0)
    assert kept.actions == ()
    assert "eth1 stays in br0" in kept.conditions[0].message


def test_two_entries_for_one_card_are_one_port_and_told() -> None:
    decided = plan(wanting("eth1", BY_MAC), host(CARD), 0.0)
    assert [action.resource for action in decided.actions] == ["port/eth1"]
    message = f"{BY_MAC} is eth1, which is eth1 of br0 already; take one of the two out"
    assert said(decided) == [(f"port/{BY_MAC}", "Conflict", "Conflict", message)]


def test_a_card_that_two_bridges_want_is_of_the_one_that_has_it() -> None:
    other = BridgeSpec("br1", "02:00:00:00:00:09", ports=(BY_MAC,))
    other_link = replace(BRIDGE_LINK, ifindex=30, name="br1", mac=other.mac, alias="vmhost:bridge/br1", addresses=())
    desired = Desired({"br0": replace(BRIDGE, ports=("eth1",)), "br1": other})
    seen = host(replace(CARD, master=30), other_link, cards={(BY_MAC, "br1"): 2})
    decided = plan(desired, seen, 0.0)
    assert decided.actions == ()
    assert [c.resource for c in decided.conditions] == ["port/eth1"]


def test_a_link_that_is_renamed_keeps_its_place() -> None:
    renamed = replace(CARD, name="wan0", altnames=(), master=10)
    seen = host(renamed, cards={("eth1", "br0"): 2})
    assert plan(wanting("eth1"), seen, 0.0).actions == ()
    assert plan(wanting("eth1"), seen, 0.0).conditions == ()
    named_anew = plan(wanting("wan0"), seen, 0.0).actions
    assert named_anew == (EnslavePort("port/wan0", Reason.WANTED, "br0", 10, "wan0", 2, None),)
    gone = plan(wanting(), seen, 0.0).actions
    assert gone == (ReleasePort("port/eth1", Reason.UNWANTED, "br0", "wan0", 2, 10),)


def test_a_port_that_somebody_gave_an_address_is_known_by_its_new_name_too() -> None:
    addressed = replace(CARD, name="wan0", altnames=(), master=10, addresses=(AddressState("192.0.2.7/24"),))
    seen = host(addressed, cards={("eth1", "br0"): 2})
    (action,) = plan(wanting("wan0"), seen, 0.0).actions
    assert apply(seen, action).links["wan0"] == addressed
    assert apply(seen, action).cards == {("wan0", "br0"): 2}


def test_a_card_that_returns_is_enslaved_again_whatever_it_is_called() -> None:
    back = replace(CARD, ifindex=40, name="eth7", altnames=())
    (action,) = plan(wanting(BY_MAC), host(back, cards={(BY_MAC, "br0"): 2}), 0.0).actions
    assert action == EnslavePort(f"port/{BY_MAC}", Reason.DETACHED, "br0", 10, "eth7", 40, None, BY_MAC)


def test_a_card_that_replaces_another_in_its_place_is_taken() -> None:
    entry, new = "pci:0000:01:00.0", replace(CARD, ifindex=41, mac=OTHER, permanent_mac=OTHER)
    (action,) = plan(wanting(entry), host(new, cards={(entry, "br0"): 2}), 0.0).actions
    assert (action.resource, action.reason) == (f"port/{entry}", Reason.DETACHED)


def test_a_foreign_link_with_a_former_port_s_name_is_left_alone() -> None:
    stranger = LinkState(50, "eth1", None, True, master=10)
    memory = with_port(Memory("seed", boot_id="now"), ("eth1", "br0"), 2, 10)
    links = {"br0": BRIDGE_LINK, "eth1": stranger}
    seen = replace(host(stranger), enslaved=enslaved_links(memory, links), cards=cards_of(memory))
    assert plan(wanting(), seen, 0.0).actions == ()
    ours = {"br0": BRIDGE_LINK, "eth1": replace(stranger, ifindex=2)}
    assert enslaved_links(memory, ours) == {("eth1", "br0")}
    assert enslaved_links(with_boot(memory, "later"), ours) == frozenset()
    assert enslaved_links(memory, {**ours, "br0": replace(BRIDGE_LINK, ifindex=11)}) == frozenset()


def test_memory_of_ports_is_of_one_link_each() -> None:
    memory = with_port(Memory("seed"), ("eth1", "br0"), 2, 10)
    moved = with_port(memory, (BY_MAC, "br1"), 2, 30)
    assert moved.enslaved == {(BY_MAC, "br1")}
    assert cards_of(moved) == {(BY_MAC, "br1"): 2}
    assert without_port(moved, 2, ("eth1", "br1")).enslaved == frozenset()
    assert without_ports_of(moved, "br1").enslaved_index == {}
    earlier = Memory("seed", enslaved=frozenset({("eth1", "br0"), ("eth2", "br0")}))
    links = {"br0": BRIDGE_LINK, "eth1": replace(CARD, master=10), "eth2": replace(CARD, name="eth2", ifindex=3)}
    assert cards_of(with_port_numbers(earlier, links)) == {("eth1", "br0"): 2}


def test_a_card_waits_for_what_keeps_dhcp_from_passing_it() -> None:
    spec = replace(BRIDGE, ports=(BY_MAC,), dhcp=DhcpSpec("10.0.0.100", "10.0.0.120", 60))
    desired = Desired({"br0": spec})
    fresh = plan(desired, host(CARD, filters=Filters(FilterState())), 0.0)
    actions = {action.resource for action in fresh.actions}
    assert FILTERS in actions
    assert f"port/{BY_MAC}" not in actions
    assert f"port/{BY_MAC}" in fresh.deviating
    unknown = plan(desired, host(CARD, filters=Filters(None)), 0.0)
    assert f"port/{BY_MAC}" not in {action.resource for action in unknown.actions}
    without_nft = plan(desired, host(CARD, filters=Filters(None, "no nft")), 0.0)
    assert f"port/{BY_MAC}" in {action.resource for action in without_nft.actions}


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("eth1", "eth1"),
        ("enx0123456789abcdef", "enx0123456789abcdef"),
        ("mac:52:54:00:AA:00:01", "mac:52:54:00:aa:00:01"),
        ("PCI:0000:0A:00.1", "pci:0000:0a:00.1"),
    ],
)
def test_entries_are_written_in_one_way(written: str, kept: str) -> None:
    assert parse_port(written) == kept


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("52:54:00:aa:00:01", 'did you mean "mac:52:54:00:aa:00:01"?'),
        ("mac:01:00:5e:00:00:01", 'did you mean "02:00:5e:00:00:01"?'),
        ("pci:01:00.0", 'did you mean "pci:0000:01:00.0"?'),
        ("0000:01:00.0", 'did you mean "pci:0000:01:00.0"?'),
        ("usb:1", ""),
        ("x" * 128, ""),
        ("a/b", ""),
    ],
)
def test_what_is_no_entry_is_told_with_what_was_meant(written: str, hint: str) -> None:
    with pytest.raises(BadValueError) as told:
        parse_port(written)
    assert told.value.hint == hint
