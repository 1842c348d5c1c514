"""VLANs: sets of numbers, mistakes word for word, and what is planned of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.actions import ChangeLink, DeleteLink, EnslavePort, LaunchVm, LinkChange, kind_of
from agent.core.desired import Desired, VlanSpec
from agent.core.device_actions import ArmTap
from agent.core.marks import GROUP, tap_mark, vlan_mark
from agent.core.model.host import apply
from agent.core.observed import LinkState
from agent.core.planning import plan
from agent.core.vlan_actions import ChangeVlans
from agent.core.vlans import AWARE, PLAIN, PortVlans, VlanEntry, difference, nic_vlans, trunk_ranges, uplink_vlans
from agent.unitfile.parse import parse_unit
from tests.unit.planning_world import (
    ABSENT,
    BRIDGE,
    BRIDGE_LINK,
    CARD,
    NIC,
    RUNNING,
    SETTLED,
    TAP,
    WEB,
    types,
    with_links,
)
from tests.unit.planning_world import said as told_of
from tests.unit.unit_directory import Directory, said

TAGGED = replace(NIC, vlan=20)
WANTED = Desired({"br0": BRIDGE}, {"web": replace(WEB, nics=(TAGGED,))})
RUNS = replace(SETTLED, vms={"web": replace(RUNNING, spec=replace(WEB, nics=(TAGGED,)))})
OWN = PortVlans(untagged=((1, 1),), pvid=1)
ACCESS = PortVlans(untagged=((20, 20),), pvid=20)
HEEDS = replace(BRIDGE_LINK, bridging=AWARE, vlans=OWN, group=GROUP)


def test_only_what_differs_is_set_and_surplus_goes_first() -> None:
    seen, wanted = PortVlans(((10, 30),), ((1, 1),), 1), PortVlans(((10, 19), (21, 31)), ((20, 20),), 20)
    assert difference(seen, wanted) == (((1, 1),), (VlanEntry(20, 20, untagged=True, pvid=True), VlanEntry(31, 31)))
    assert difference(seen, seen) == ((), ())
    assert difference(PortVlans(), PortVlans(((5, 9),))) == ((), (VlanEntry(5, 9),))


def test_cards_carry_what_nics_and_the_host_have() -> None:
    trunk = replace(NIC, trunk=("10", "100-120"), native=1)
    assert nic_vlans(trunk) == PortVlans(((10, 10), (100, 120)), ((1, 1),), 1)
    assert nic_vlans(NIC) == OWN
    assert uplink_vlans([trunk, TAGGED, NIC], [30]).tagged == ((10, 10), (20, 20), (30, 30), (100, 120))
    assert trunk_ranges(("1-4094",)) == ((1, 4094),)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("vlan = 0", "u.toml:3:1: error: vlan must be a VLAN, 1 to 4094, not 0"),
        ('vlan = "20"', 'u.toml:3:1: error: vlan must be a VLAN, 1 to 4094, not "20" (write 20 without quotes)'),
        (
            "native = 20",
            "u.toml:3:1: error: native needs trunk: it is what comes without a tag beside that (write vlan = 20)",
        ),
        ("trunk = []", "trunk must be VLANs such as"),
        ('trunk = ["20-10"]', 'must have its lower VLAN first, not "20-10" (did you mean "10-20"?)'),
        ("trunk = [4095]", "trunk must have VLANs of 1 to 4094, not 4095"),
        ("trunk = 20", "not 20 (write [20])"),
        ("vlan = 20\ntrunk = [10]", "a NIC has vlan or trunk, not both"),
    ],
)
def test_mistakes_have_their_place(keys: str, problem: str) -> None:
    unit = parse_unit("u.toml", f'[vm.web.nic.lan]\nbridge = "br0"\n{keys}\n'.encode())
    assert problem in " ".join(map(str, unit.errors))


def test_a_tap_waits_until_its_bridge_heeds_vlans() -> None:
    plain = replace(BRIDGE_LINK, bridging=PLAIN)
    absent = replace(RUNS, vms={}, links={"br0": plain})
    actions = plan(WANTED, absent, 0.0).actions
    assert [a.setting for a in actions if isinstance(a, ChangeVlans)] == [AWARE]
    assert [(a.bridge_ifindex, a.vlans) for a in actions if isinstance(a, ArmTap)] == [(None, None)]
    ready = replace(absent, links={"br0": HEEDS})
    assert [(a.bridge_ifindex, a.vlans) for a in plan(WANTED, ready, 0.0).actions if isinstance(a, ArmTap)] == [
        (10, ACCESS)
    ]


def test_a_port_that_differs_is_set_alone_and_one_that_is_not_known_is_left() -> None:
    right = with_links(HEEDS, replace(TAP, vlans=ACCESS), of=RUNS)
    assert plan(WANTED, right, 0.0).actions == ()
    (action,) = plan(WANTED, with_links(HEEDS, replace(TAP, vlans=OWN), of=RUNS), 0.0).actions
    assert isinstance(action, ChangeVlans)
    assert [(port.link, port.vlans) for port in action.ports] == [("web-lan", ACCESS)]
    assert plan(WANTED, with_links(HEEDS, TAP, of=RUNS), 0.0).actions == ()


def test_where_the_kernel_knows_none_the_nic_is_taken_out_and_told() -> None:
    decided = plan(WANTED, with_links(BRIDGE_LINK, TAP, of=RUNS), 0.0)
    (action,) = decided.actions
    assert isinstance(action, ChangeLink)
    assert action.change == LinkChange(master=0)
    assert types(decided) == [("tap/web/lan", "VlanUnsupported")]


def test_a_bridge_without_vlan_keys_is_left_as_it_is() -> None:
    theirs = replace(BRIDGE_LINK, bridging=replace(AWARE, default_pvid=1))
    assert plan(Desired({"br0": BRIDGE}, {"web": WEB}), with_links(theirs, TAP), 0.0).actions == ()


def test_a_nic_is_put_on_a_vlan_link_that_a_unit_makes() -> None:
    vlan = '[vlan.wan]\nlink = "eth0"\nid = 20\n'
    guest = '[vm.web.nic.wan]\ndirect = "wan"\n'
    assert said(Directory().save(one=vlan + guest)) == []
    assert said(Directory().save(one=vlan, two=guest)) == []


def test_a_nic_is_in_a_vlan_of_a_bridge_by_its_own_key() -> None:
    """A macvtap on the host's own VLAN link would reach all but the host; a tap in that VLAN reaches both."""
    bridge, guest = "[bridge.br0]\n[bridge.br0.vlan.20]\n", '[vm.web.nic.wan]\ndirect = "br0.20"\n'
    remedy = 'in VLAN 20 of br0 the NIC is by bridge = "br0" and vlan = 20'
    assert said(Directory().save(one=bridge, two=guest)) == [
        f'one:2:18: error: vlan "br0.20" is also the link that carries [vm.web.nic.wan] in two ({remedy})',
        f'two:2:1: error: direct "br0.20" is also the VLAN link of [bridge.br0.vlan.20] in one ({remedy})',
    ]
    assert said(Directory().save(one=bridge, two='[vm.web.nic.wan]\nbridge = "br0"\nvlan = 20\n')) == []


CARRIER = LinkState(20, "wan", "vlan", True, alias=vlan_mark("wan"), group=GROUP, vlan_id=20, lower=2)


@pytest.mark.parametrize("alive", [True, False])
def test_a_vlan_link_that_no_unit_names_stays_beneath_a_guest_that_runs(alive: bool) -> None:
    nic = replace(NIC, bridge="", direct="wan")
    macvtap = replace(TAP, kind="macvtap", mac=NIC.mac, master=None, lower=20)
    spec = replace(WEB, nics=(nic,))
    runs = replace(RUNS, vms={"web": replace(RUNNING, spec=spec, alive=alive)}, opened=frozenset({"web-lan"}))
    wanted = Desired({}, {"web": replace(spec, nics=(replace(nic, direct="eth1"),))})
    decided = plan(wanted, with_links(CARD, CARRIER, macvtap, of=runs), 0.0)
    assert ("wan" in [a.link for a in decided.actions if isinstance(a, DeleteLink)]) is not alive
    assert (("vlan/wan", "StillNeeded") in types(decided)) is alive


def test_a_vlan_link_that_no_unit_names_stays_in_a_bridge_that_guests_use() -> None:
    port = replace(CARRIER, master=10)
    bridge = replace(BRIDGE, ports=("wan",))
    world = with_links(CARD, port, BRIDGE_LINK, TAP)
    wanted = Desired({}, {"web": WEB}, retained={"br0": bridge})
    assert plan(wanted, world, 0.0).actions == ()
    gone = plan(Desired({"br0": BRIDGE}, {"web": WEB}), world, 0.0)
    assert [a.link for a in gone.actions if isinstance(a, DeleteLink)] == ["wan"]


def test_the_set_of_the_second_seed_has_no_mistake() -> None:
    files = sorted(Path(__file__).parents[2].glob("units/vlan-firewall/*.toml"))
    assert len(files) == 3
    assert [error for file in files for error in parse_unit(file.name, file.read_bytes()).errors] == []


@pytest.mark.parametrize("ended", [True, False], ids=["its last launch is known", "it is not"])
def test_a_guest_is_started_once_its_tap_carries_what_its_unit_says_by_now(ended: bool) -> None:
    moved = Desired({"br0": BRIDGE}, {"web": replace(WEB, nics=(replace(NIC, vlan=30),))})
    state = replace(RUNNING, spec=replace(WEB, nics=(TAGGED,)), alive=False, nics={})
    world = with_links(HEEDS, replace(TAP, vlans=ACCESS), of=replace(RUNS, vms={"web": state} if ended else {}))
    actions = plan(moved, world, 0.0).actions
    while actions and not any(isinstance(one, LaunchVm) for one in actions):
        for action in actions:
            world = apply(world, action)
        actions = plan(moved, world, 0.0).actions
    assert actions
    assert world.links["web-lan"].vlans == PortVlans(untagged=((30, 30),), pvid=30)


def test_an_adopted_bridge_that_is_left_heeding_vlans_keeps_no_tap_in_one_of_before() -> None:
    theirs = replace(HEEDS, group=0)
    adopting = Desired({"br0": replace(BRIDGE, adopt=True)}, {"web": WEB})
    runs = replace(RUNS, vms={"web": replace(RUNNING, spec=WEB)})
    (action,) = plan(adopting, with_links(theirs, replace(TAP, vlans=ACCESS), of=runs), 0.0).actions
    assert isinstance(action, ChangeVlans)
    assert (action.setting, [(one.link, one.vlans) for one in action.ports]) == (AWARE, [("web-lan", OWN)])
    settled = plan(adopting, with_links(theirs, replace(TAP, vlans=OWN), of=runs), 0.0)
    assert (settled.actions, types(settled)) == ((), [("bridge/br0/vlans", "VlansLeft")])


def test_a_vlan_link_that_somebody_has_on_the_bridge_goes_on_when_that_begins_to_heed_vlans() -> None:
    theirs = LinkState(40, "br0.30", "vlan", True, vlan_id=30, lower=10)
    plain = replace(BRIDGE_LINK, bridging=PLAIN, group=GROUP)
    (action,) = plan(WANTED, with_links(plain, theirs, TAP, of=RUNS), 0.0).actions
    assert isinstance(action, ChangeVlans)
    assert action.ports[0].vlans == replace(OWN, tagged=((30, 30),))
    assert plan(Desired({"br0": BRIDGE}, {"web": WEB}), with_links(plain, theirs, TAP), 0.0).actions == ()


def test_a_card_enters_a_bridge_in_the_very_moment_it_ceases_to_heed_vlans() -> None:
    desired = Desired({"br0": replace(BRIDGE, ports=("eth1",))})
    world = replace(with_links(HEEDS, CARD), vms={})
    enters, ceases = sorted(plan(desired, world, 0.0).actions, key=lambda one: isinstance(one, ChangeVlans))
    assert isinstance(enters, EnslavePort)
    for actions in ((enters, ceases), (ceases, enters)):
        settled = world
        for action in actions:
            settled = apply(settled, action)
        assert settled.links["eth1"] == replace(CARD, master=10)
        assert plan(desired, settled, 0.0).actions == ()


def test_a_bridge_heeds_no_vlans_any_more_once_the_last_guest_in_one_has_ended() -> None:
    ended = replace(RUNNING, spec=replace(WEB, nics=(TAGGED,)), alive=False, exit_reason="crash")
    world = with_links(HEEDS, replace(TAP, vlans=ACCESS), of=replace(RUNS, vms={"web": ended}))
    untagged = Desired({"br0": BRIDGE}, {"web": WEB})
    (ceases,) = (one for one in plan(untagged, world, 0.0).actions if isinstance(one, ChangeVlans))
    after = apply(world, ceases)
    assert (after.links["br0"].bridging, after.links["web-lan"].vlans) == (PLAIN, None)


ON_VLAN = replace(NIC, bridge="", direct="wan")
DIRECT = replace(WEB, nics=(ON_VLAN,))
MACVTAP = replace(TAP, kind="macvtap", mac=NIC.mac, master=None, lower=20)
ON_LINK = replace(RUNS, vms={"web": replace(RUNNING, spec=DIRECT)}, opened=frozenset({"web-lan"}))
BENEATH = with_links(CARD, CARRIER, MACVTAP, of=ON_LINK)


def test_a_vlan_link_changes_its_vlan_beneath_no_guest_that_runs() -> None:
    wanted = Desired({}, {"web": DIRECT}, vlans={"wan": VlanSpec("wan", "eth1", 30)})
    decided = plan(wanted, BENEATH, 0.0)
    assert decided.actions == ()
    message = (
        "wan is to be VLAN 30 of eth1, and is VLAN 20 of eth1 beneath web, whose NIC would have to be unplugged for "
        "that: it is made anew once web is stopped; `vmhost restart web` does it"
    )
    assert ("vlan/wan", "StillNeeded", "StillNeeded", message) in told_of(decided)
    assert "vlan/wan" in decided.deviating

    both = replace(ON_LINK, vms={**ON_LINK.vms, "db": replace(RUNNING, spec=replace(DIRECT, name="db"))})
    other = replace(MACVTAP, name="db-lan", ifindex=31, alias=tap_mark("db", "lan"))
    told = plan(wanted, with_links(CARD, CARRIER, MACVTAP, other, of=both), 0.0)
    assert any("once db, web are stopped; `vmhost stop` them, then start them" in one[3] for one in told_of(told))


def test_a_guest_is_not_started_on_a_vlan_link_that_is_about_to_change() -> None:
    wanted = Desired({}, {"web": DIRECT}, vlans={"wan": VlanSpec("wan", "eth1", 30)})
    world = replace(BENEATH, vms={})
    seen = []
    while actions := plan(wanted, world, 0.0).actions:
        seen.append([kind_of(one) for one in actions])
        for action in actions:
            world = apply(world, action)
    assert seen[:4] == [["delete-link"], ["create-vlan"], ["arm-tap"], ["launch-vm"]]
    assert (world.links["wan"].vlan_id, world.links["web-lan"].lower) == (30, world.links["wan"].ifindex)


def test_a_vlan_that_a_renamed_link_holds_beneath_a_guest_is_freed_by_its_restart() -> None:
    renamed = Desired(
        {}, {"web": replace(DIRECT, nics=(replace(ON_VLAN, direct="out"),))}, vlans={"out": VlanSpec("out", "eth1", 20)}
    )
    told = told_of(plan(renamed, BENEATH, 0.0))
    message = (
        "VLAN 20 of eth1 is still wan's, beneath web; out is made once web is stopped; `vmhost restart web` does it"
    )
    assert ("vlan/out", "StillNeeded", "StillNeeded", message) in told
    assert "ip link del" not in str(told)
    stopped = with_links(CARD, CARRIER, of=replace(RUNS, vms={}))  # then it is only just being deleted
    assert [c for c in plan(renamed, stopped, 0.0).conditions if c.resource == "vlan/out"] == []


def test_a_vlan_link_on_a_slave_of_a_bond_belongs_on_the_bond() -> None:
    bond = LinkState(40, "bond0", "bond", True)
    wanted = Desired({}, {}, vlans={"wan": VlanSpec("wan", "eth1", 20)})
    (told,) = told_of(plan(wanted, with_links(replace(CARD, master=40), bond, of=replace(RUNS, vms={})), 0.0))
    assert told[3] == (
        "eth1 is a port of bond0: a VLAN link on it would take the frames of VLAN 20 before bond0 sees them; "
        'write link = "bond0" instead'
    )


def test_a_vlan_link_on_another_one_keeps_both_beneath_its_guest() -> None:
    inner = replace(CARRIER, name="inn", ifindex=21, alias=vlan_mark("inn"), vlan_id=7, lower=20)
    on_inner = replace(WEB, nics=(replace(ON_VLAN, direct="inn"),))
    runs = replace(ON_LINK, vms={"web": replace(RUNNING, spec=on_inner)})
    world = with_links(CARD, CARRIER, inner, replace(MACVTAP, lower=21), of=runs)
    inn = VlanSpec("inn", "wan", 7)
    for vlans in ({"wan": VlanSpec("wan", "eth1", 30), "inn": inn}, {"inn": inn}, {}):
        decided = plan(Desired({}, {"web": on_inner}, vlans=vlans), world, 0.0)
        assert decided.actions == ()
        assert ("vlan/wan", "StillNeeded") in types(decided)
    stopped = replace(world, vms={}, links={n: one for n, one in world.links.items() if n != "web-lan"})
    edited = Desired({}, {}, vlans={"inn": inn, "wan": VlanSpec("wan", "eth1", 30)})
    while actions := plan(edited, stopped, 0.0).actions:
        for action in actions:
            stopped = apply(stopped, action)
    assert (stopped.links["wan"].vlan_id, stopped.links["inn"].lower) == (30, stopped.links["wan"].ifindex)
    assert plan(Desired({}, {}, vlans={"inn": inn}), stopped, 0.0).actions == (), "what inn is on stays"


def test_no_guest_is_started_on_a_vlan_link_that_goes() -> None:
    actions = plan(Desired({}, {"web": DIRECT}), replace(BENEATH, vms={}), 0.0).actions
    assert [kind_of(one) for one in actions] == ["delete-link"]


def test_a_macvtap_goes_once_its_guest_has_ended_and_its_nic_is_to_be_in_a_bridge() -> None:
    """It would keep its card out of that bridge."""
    wanted = Desired({"br0": BRIDGE}, {"web": replace(WEB, enabled=False)}, vlans={"wan": VlanSpec("wan", "eth1", 20)})
    kinds = [
        kind_of(one) for one in plan(wanted, with_links(CARD, CARRIER, MACVTAP, BRIDGE_LINK, of=ABSENT), 0.0).actions
    ]
    assert kinds == ["delete-link"]
    starting = replace(ABSENT, in_flight={"vm/web": "launch-vm"})
    assert plan(wanted, with_links(CARD, CARRIER, MACVTAP, BRIDGE_LINK, of=starting), 0.0).actions == ()
