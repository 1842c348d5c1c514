"""Edits of a guest that its operator holds, which wait, and of one that is paused, which takes over what it can."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.actions import kind_of
from agent.core.desired import Desired, DiskSpec, Limits, NicSpec, VmSpec
from agent.core.marks import GROUP
from agent.core.model.host import apply
from agent.core.observed import DiskState, Hold, Intent, LinkState, NicBackend, NicState, Observed, VmState
from agent.core.planner.draft import Plan
from agent.core.planning import plan
from agent.core.qemu.argv import devices_at_launch, disk_node, nic_id
from tests.unit.planning_world import ATTACHED, BRIDGE, HOST, NIC, SETTLED, WEB, types

HELD = Intent(hold=Hold(1000, "2026-01-01T00:00:00+00:00"))
PAUSED = Intent(paused=True)
DMZ = NicSpec("dmz", "br0", "02:00:00:00:00:03", "web-dmz", 2)
ROOT = DiskSpec("root", "/srv/web.raw", "raw", 1, size_bytes=1 << 20)
DATA = DiskSpec("data", "/srv/data.raw", "raw", 3, size_bytes=1 << 20)
SPEC = replace(WEB, disks=(ROOT,))
WITH_BOTH = replace(SPEC, nics=(NIC, DMZ), disks=(ROOT, DATA))
RUNS = VmState(
    SPEC,
    True,
    4711,
    run_state="running",
    nics=ATTACHED,
    devices=devices_at_launch(SPEC),
    unit="vmhost-vm-web.service",
    limits=Limits(),
)
DMZ_TAP = replace(SETTLED.links["web-lan"], ifindex=12, name="web-dmz", alias="vmhost:tap/web/dmz")
LACKS_BOTH = replace(RUNS, spec=WITH_BOTH)
LOSES_BOTH = replace(
    RUNS,
    devices=(RUNS.devices or frozenset()) | {nic_id("dmz"), disk_node("data")},
    nics={**ATTACHED, "dmz": NicState(NicBackend.ATTACHED, "web-dmz")},
    leaving_nics=(DMZ,),
    leaving_disks=(DATA,),
)
GROWN = replace(SPEC, disks=(replace(ROOT, size_bytes=2 << 20),))
LIMITED = replace(SPEC, limits=Limits(cpu_weight=200))
CASES: dict[str, tuple[VmSpec, VmState, set[str]]] = {
    "take over": (WITH_BOTH, RUNS, {"take-over"}),
    "plug": (WITH_BOTH, LACKS_BOTH, {"plug-nic", "plug-disk"}),
    "unplug": (SPEC, LOSES_BOTH, {"unplug-nic", "unplug-disk"}),
    "grow": (GROWN, replace(RUNS, spec=GROWN), {"grow-disk"}),
    "limit": (LIMITED, RUNS, {"limit-vm"}),
    "rename a tap": (
        replace(SPEC, nics=(replace(NIC, tap="shop"),)),
        replace(RUNS, spec=replace(SPEC, nics=(replace(NIC, tap="shop"),))),
        {"change-link"},
    ),
}


def decide(wanted: VmSpec, state: VmState, intent: Intent) -> Plan:
    desired, observed = world(wanted, state, intent)
    return plan(desired, observed, 1.0)


def world(wanted: VmSpec, state: VmState, intent: Intent) -> tuple[Desired, Observed]:
    disks = {disk.path: DiskState(True, True, True, 1 << 20) for disk in (ROOT, DATA)}
    observed = Observed(
        {**SETTLED.links, "web-dmz": DMZ_TAP},
        vms={"web": state},
        disks=disks,
        host=replace(HOST, services=True),
        intents={"web": intent},
    )
    return Desired({"br0": BRIDGE}, {"web": wanted}), observed


def kinds(decided: Plan) -> set[str]:
    return {kind_of(action) for action in decided.actions}


@pytest.mark.parametrize("case", CASES)
def test_no_edit_reaches_a_held_guest_and_that_is_no_deviation(case: str) -> None:
    wanted, state, expected = CASES[case]
    links_only = {"delete-link"} if case in {"take over", "grow", "limit", "rename a tap"} else set[str]()
    assert kinds(decide(wanted, state, Intent())) - links_only == expected, "what a hold keeps back"
    for intent in (HELD, replace(HELD, paused=True)):
        held = decide(wanted, state, intent)
        assert (held.actions, held.deviating, held.awaited) == ((), frozenset(), frozenset())
        assert types(held) == [("vm/web", "Held")]


@pytest.mark.parametrize("case", [name for name in CASES if name != "unplug"])
def test_a_paused_guest_takes_over_what_needs_no_answer_of_its_own(case: str) -> None:
    wanted, state, expected = CASES[case]
    paused = replace(state, run_state="paused")
    links_only = {"delete-link"} if case in {"take over", "grow", "limit", "rename a tap"} else set[str]()
    assert kinds(decide(wanted, paused, PAUSED)) - links_only == expected
    # A pause that is asked for together with an edit comes right after what is taken over, which is only written down.
    desired, observed = world(wanted, state, PAUSED)
    for _ in range(2):
        for action in plan(desired, observed, 1.0).actions:
            observed = apply(observed, action)
    assert observed.vms["web"].run_state == "paused"


def test_what_a_paused_guest_is_to_let_go_of_waits_until_it_goes_on() -> None:
    desired, observed = world(SPEC, replace(LOSES_BOTH, run_state="paused"), PAUSED)
    decided = plan(desired, observed, 1.0)
    assert decided.actions == ()
    assert {(c.resource, c.type, c.message) for c in decided.conditions if c.type == "Detaching"} == {
        ("tap/web/dmz", "Detaching", "web is asked to let go of dmz; it cannot while it is paused"),
        ("vm/web/disk/data", "Detaching", "web is asked to let go of data; it cannot while it is paused"),
    }
    assert decided.deviating == {"tap/web/dmz", "vm/web/disk/data"}


def test_a_tap_that_only_a_replug_brings_back_waits_until_a_paused_guest_goes_on() -> None:
    lost = replace(RUNS, nics={"lan": NicState(NicBackend.UNKNOWN)})

    def decide_without_tap(run_state: str, intent: Intent) -> Plan:
        desired, observed = world(SPEC, replace(lost, run_state=run_state), intent)
        return plan(desired, replace(observed, links={"br0": SETTLED.links["br0"]}), 1.0)

    assert kinds(decide_without_tap("running", Intent())) == {"replug-nic"}
    decided = decide_without_tap("paused", PAUSED)
    assert decided.actions == ()
    message = "web-lan is gone, and a NIC cannot be replugged while its guest is paused; that follows once web runs"
    assert [c.message for c in decided.conditions if c.type == "TapLost"] == [message]


def test_the_ifb_of_a_held_guest_stays_though_nothing_is_led_to_it() -> None:
    ifb = LinkState(12, "ifb-web-lan", "ifb", up=True, alias="vmhost:ifb/web/lan", group=GROUP)
    links = {name: link for name, link in SETTLED.links.items() if name != "web-lan"}
    seen = replace(SETTLED, links={**links, ifb.name: ifb}, vms={}, host=HOST)
    (gone,) = plan(Desired({"br0": BRIDGE}, {}), seen, 0.0).actions
    assert kind_of(gone) == "delete-link"
    held = replace(seen, intents={"web": HELD})
    assert plan(Desired({"br0": BRIDGE}, {}), held, 0.0).actions == ()
