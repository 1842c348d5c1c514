"""Exactly what is wrong is set and told, and nothing else; against mutants, as tests.unit.test_planning_guards."""

from __future__ import annotations

from dataclasses import replace

from agent.core.actions import (
    ChangeAddresses,
    ChangeLink,
    CreateBridge,
    EndVm,
    EnslavePort,
    LaunchVm,
    LinkChange,
    ReleaseVm,
    ResetVm,
    StopVm,
)
from agent.core.desired import Desired
from agent.core.device_actions import ArmTap, CreateDisk, GrowDisk, ReplugNic
from agent.core.marks import GROUP, bridge_mark
from agent.core.observed import (
    AddressState,
    DiskState,
    Intent,
    LinkState,
    NicBackend,
    NicState,
    Observed,
)
from agent.core.planner.draft import Plan
from agent.core.planning import plan
from agent.core.reasons import Reason
from tests.unit.planning_world import (
    ABSENT,
    BRIDGE,
    BRIDGE_LINK,
    CARD,
    DESIRED,
    DISK,
    HOST,
    NIC,
    RUNNING,
    SETTLED,
    TAP,
    WEB,
    said,
    types,
    with_links,
    with_vm,
)

# Exactly what is wrong, and nothing else, is set


def test_only_what_differs_of_a_bridge_is_set() -> None:
    for changes, reason, change in (
        ({"up": False}, Reason.DOWN, LinkChange(up=True)),
        ({"mac": "x"}, Reason.MAC, LinkChange(mac=BRIDGE.mac)),
        ({"mtu": 9}, Reason.MTU, LinkChange(mtu=1500)),
        ({"alias": "", "group": GROUP}, Reason.UNMARKED, LinkChange(alias=bridge_mark("br0"))),
        ({"stp": True}, Reason.SETTINGS, LinkChange(stp=False)),
        ({"snooping": True}, Reason.SETTINGS, LinkChange(snooping=False)),
        ({"group_learning": True}, Reason.SETTINGS, LinkChange(group_learning=False)),
    ):
        link = replace(BRIDGE_LINK, **changes)
        expected = ChangeLink("bridge/br0", reason, "br0", 10, link.alias, change)
        assert plan(DESIRED, with_links(link, TAP), 0.0).actions == (expected,)


def test_only_what_differs_of_a_tap_is_set() -> None:
    for changes, reason, change in (
        ({"master": None}, Reason.DETACHED, LinkChange(master=10)),
        ({"up": False}, Reason.DOWN, LinkChange(up=True)),
        ({"mtu": 9}, Reason.MTU, LinkChange(mtu=1500)),
        ({"alias": ""}, Reason.UNMARKED, LinkChange(alias=TAP.alias)),
    ):
        link = replace(TAP, **changes)
        expected = ChangeLink("tap/web/lan", reason, "web-lan", 11, link.alias, change)
        assert plan(DESIRED, with_links(BRIDGE_LINK, link), 0.0).actions == (expected,)


def test_only_what_differs_of_a_port_is_set() -> None:
    desired = Desired({"br0": replace(BRIDGE, ports=("eth1",), port_mtu=9000)})
    for changes, reason, change in (
        ({"up": False}, Reason.DOWN, LinkChange(up=True, mtu=9000)),
        ({}, Reason.MTU, LinkChange(mtu=9000)),
        ({"up": False, "mtu": 9000}, Reason.DOWN, LinkChange(up=True)),
    ):
        port = replace(CARD, master=10, **changes)
        expected = ChangeLink("port/eth1", reason, "eth1", 2, "", change)
        decided = plan(desired, with_links(BRIDGE_LINK, port, of=ABSENT), 0.0)
        assert (decided.actions, decided.conditions) == ((expected,), ())
    own_mtu = Desired({"br0": replace(BRIDGE, ports=("eth1",))})
    assert plan(own_mtu, with_links(BRIDGE_LINK, replace(CARD, master=10, mtu=9000), of=ABSENT), 0.0).actions == ()


def test_addresses_are_added_and_own_ones_removed() -> None:
    there = (AddressState("10.0.0.9/24", own=True), AddressState("10.0.0.8/24"))
    expected = ChangeAddresses("bridge/br0", Reason.ADDRESS, "br0", 10, ("10.0.0.1/24",), ("10.0.0.9/24",))
    assert plan(DESIRED, with_links(replace(BRIDGE_LINK, addresses=there), TAP), 0.0).actions == (expected,)


def test_ports_are_told_missing_and_enslaved_for_their_reason() -> None:
    desired = Desired({"br0": replace(BRIDGE, ports=("eth1",))})
    missing = (
        "port/eth1",
        "PortMissing",
        "PortMissing",
        "there is no link eth1; it is enslaved to br0 when it appears",
    )
    fresh = plan(desired, Observed(host=HOST), 0.0)
    assert (fresh.actions, said(fresh)) == (
        (CreateBridge("bridge/br0", Reason.MISSING, desired.bridges["br0"]),),
        [missing],
    )
    assert said(plan(desired, with_links(BRIDGE_LINK, of=ABSENT), 0.0)) == [missing]
    assert plan(desired, with_links(CARD, of=ABSENT), 0.0).conditions == ()
    lost = replace(with_links(BRIDGE_LINK, CARD, of=ABSENT), enslaved=frozenset({("eth1", "br0")}))
    assert plan(desired, lost, 0.0).actions == (EnslavePort("port/eth1", Reason.DETACHED, "br0", 10, "eth1", 2, None),)
    local = replace(CARD, addresses=(AddressState("fe80::1/64", link_local=True),))
    assert len(plan(desired, with_links(BRIDGE_LINK, local, of=ABSENT), 0.0).actions) == 1
    carrying = replace(CARD, addresses=(AddressState("192.0.2.1/24"), AddressState("192.0.2.2/24")))
    message = (
        "eth1 carries 192.0.2.1/24, 192.0.2.2/24: enslaving it would cut them off; move them to br0 first, "
        "or have them moved with adopt-addresses = true"
    )
    assert said(plan(desired, with_links(BRIDGE_LINK, carrying, of=ABSENT), 0.0)) == [
        ("port/eth1", "PortAddressed", "PortAddressed", message)
    ]


def test_each_conflict_of_a_bridge_is_in_words() -> None:
    for link, message in (
        (
            LinkState(10, "br0", "bridge"),
            "a bridge br0 exists that is not ours; set adopt = true to take it over, or choose another name",
        ),
        (
            LinkState(10, "br0", None),
            "a physical link br0 exists that is not ours; rename it or choose another name for the bridge",
        ),
        (
            LinkState(10, "br0", "veth"),
            "a veth link br0 exists that is not ours; rename it or choose another name for the bridge",
        ),
    ):
        decided = plan(Desired({"br0": BRIDGE}), with_links(link, of=ABSENT), 0.0)
        assert (decided.actions, said(decided)) == ((), [("bridge/br0", "Conflict", "Conflict", message)])
    adopting = Desired({"br0": replace(BRIDGE, adopt=True)})
    assert plan(adopting, with_links(LinkState(10, "br0", "veth"), of=ABSENT), 0.0).actions == ()


# A running guest


def test_the_run_states_of_a_guest_that_runs() -> None:
    release = ReleaseVm("vm/web", Reason.WANTED, "web")
    assert plan(DESIRED, with_vm(run_state="prelaunch"), 0.0).actions == (release,)
    full = "paused: no space was left for a write to a disk; it goes on by itself once there are 64 MiB free"
    for run_state, type_, message in (
        ("io-error", "PausedOnIoError", full),
        ("paused", "Paused", "somebody paused the guest over its monitor; `vmhost resume web` lets it run again"),
    ):
        decided = plan(DESIRED, with_vm(run_state=run_state), 0.0)
        assert (decided.actions, said(decided)) == ((), [("vm/web", type_, type_, message)])
    asked = replace(SETTLED, intents={"web": Intent(reset_generation=4)})
    assert plan(DESIRED, asked, 0.0).actions == (ResetVm("vm/web", Reason.RESET, "web", 4),)


def test_a_silent_qemu_is_told_at_its_fifth_second_and_woken_for_then() -> None:
    silent = with_vm(run_state=None, unanswered_s=2.0)
    assert plan(DESIRED, silent, 100.0) == Plan(awaited=frozenset({"vm/web"}), wake_at_s=103.0)
    late = plan(DESIRED, with_vm(run_state=None, unanswered_s=5.0), 100.0)
    message = "QEMU (pid 4711) has not answered for 5 s; left alone until it does"
    assert said(late) == [("vm/web", "Unresponsive", "Unresponsive", message)]


def test_ends_that_were_asked_for_are_not_counted() -> None:
    remains = with_vm(run_state="internal-error")
    crashed = EndVm("vm/web", Reason.EXITED, "web", "uuid-web", "crash", asked=False)
    asked = EndVm("vm/web", Reason.EXITED, "web", "uuid-web", "host", asked=True)
    killed = with_vm(alive=False, run_state=None, exit_reason="killed")
    for observed, wanted_end in ((remains, crashed), (killed, replace(crashed, exit_reason="killed"))):
        assert plan(DESIRED, observed, 0.0).actions == (wanted_end,)
        for intent in (Intent(stopped=True), Intent(generation=1)):
            assert plan(DESIRED, replace(observed, intents={"web": intent}), 0.0).actions == (asked,)
    off = Desired({"br0": BRIDGE}, {"web": replace(WEB, enabled=False)})
    assert plan(off, killed, 0.0).actions == (asked,)


def test_a_stop_says_why_and_keeps_its_taps_healthy() -> None:
    loose = replace(TAP, master=None)
    healed = ChangeLink("tap/web/lan", Reason.DETACHED, "web-lan", 11, TAP.alias, LinkChange(master=10))
    for intent, reason in ((Intent(stopped=True), Reason.UNWANTED), (Intent(generation=1), Reason.RESTART)):
        observed = replace(with_links(BRIDGE_LINK, loose), intents={"web": intent})
        stop = StopVm("vm/web", reason, "web", "uuid-web", WEB.stop_timeout_s, unit_asked=False)
        assert plan(DESIRED, observed, 0.0).actions == (stop, healed)
    off = Desired({"br0": BRIDGE}, {"web": replace(WEB, enabled=False, stop_timeout_s=7.0)})
    stop = StopVm("vm/web", Reason.UNWANTED, "web", "uuid-web", 7.0, unit_asked=True)
    assert plan(off, SETTLED, 0.0).actions == (stop,)


def test_a_held_guest_that_is_gone_is_not_talked_to() -> None:
    invalid = Desired({"br0": BRIDGE}, unresolved_files=frozenset({"web.toml"}))
    dead = with_vm(alive=False, run_state="prelaunch", nics={"lan": NicState(NicBackend.DEAD)})
    assert plan(invalid, with_links(BRIDGE_LINK, of=dead), 0.0).actions == ()
    outdated = replace(SETTLED, intents={"web": Intent(generation=9, reset_generation=9)})
    assert plan(invalid, outdated, 0.0).actions == ()


def test_taps_of_a_running_guest() -> None:
    away = plan(DESIRED, with_links(BRIDGE_LINK), 0.0)
    message = "web-lan is attached but not in this network namespace; move it back"
    assert (away.actions, said(away)) == ((), [("tap/web/lan", "TapElsewhere", "TapElsewhere", message)])
    dead = with_vm(nics={"lan": NicState(NicBackend.DEAD)})
    arm = ArmTap("tap/web/lan", Reason.MISSING, "web", WEB.uid, NIC, 10, running=True)
    assert plan(DESIRED, with_links(BRIDGE_LINK, of=dead), 0.0).actions == (arm,)
    assert plan(DESIRED, dead, 0.0).actions == (arm,)
    unknown = with_vm(nics={})
    replug = ReplugNic("tap/web/lan", Reason.MISSING, "web", WEB.uid, NIC, 10)
    assert plan(DESIRED, with_links(BRIDGE_LINK, of=unknown), 0.0).actions == (replug,)
    assert plan(DESIRED, unknown, 0.0).actions == ()
    down = ChangeLink("tap/web/lan", Reason.DOWN, "web-lan", 11, TAP.alias, LinkChange(up=True))
    assert plan(DESIRED, with_links(BRIDGE_LINK, replace(TAP, up=False), of=unknown), 0.0).actions == (down,)


def test_a_renamed_tap_whose_name_was_taken_is_a_conflict() -> None:
    oops = replace(TAP, name="oops")
    moved = with_vm(nics={"lan": NicState(NicBackend.ATTACHED, "oops")})
    back = ChangeLink("tap/web/lan", Reason.RENAMED, "oops", 11, TAP.alias, LinkChange(name="web-lan"))
    assert plan(DESIRED, with_links(BRIDGE_LINK, oops, of=moved), 0.0).actions == (back,)
    taken = plan(DESIRED, with_links(BRIDGE_LINK, oops, LinkState(40, "web-lan", "veth"), of=moved), 0.0)
    assert (taken.actions, types(taken)) == ((), [("tap/web/lan", "Conflict")])
    assert plan(DESIRED, with_links(BRIDGE_LINK, of=moved), 0.0).actions == ()


# Disks


def test_each_state_of_a_disk_is_told_and_looked_at_again() -> None:
    desired = Desired({"br0": BRIDGE}, {"web": replace(WEB, disks=(DISK,))})
    sizeless = Desired({"br0": BRIDGE}, {"web": replace(WEB, disks=(replace(DISK, size_bytes=None),))})
    gone = "/srv/web.raw is gone; it is waited for, a blank one is never put in its place"
    no_folder = "/srv/web.raw: its folder does not exist; make it, or mount what belongs there"
    no_size = "/srv/web.raw does not exist, and without size = it is not created"
    for wanted, state, message in (
        (desired, DiskState(False, True, True), gone),
        (desired, DiskState(False, False, False), no_folder),
        (sizeless, DiskState(False, True, False), no_size),
    ):
        decided = plan(wanted, replace(ABSENT, disks={DISK.path: state}), 50.0)
        assert (decided.actions, decided.wake_at_s) == ((), 51.0)
        assert said(decided) == [("vm/web/disk/root", "DiskMissing", "DiskMissing", message)]
    decided = plan(desired, replace(ABSENT, disks={DISK.path: DiskState(False, True, False)}), 50.0)
    assert decided.actions == (CreateDisk("vm/web/disk/root", Reason.MISSING, "web", DISK),)
    assert decided.wake_at_s == 51.0


def test_sizes_of_disks() -> None:
    spec = replace(WEB, disks=(DISK,))
    desired = Desired({"br0": BRIDGE}, {"web": spec})
    runs = replace(SETTLED, vms={"web": replace(RUNNING, spec=spec)})
    launch = LaunchVm("vm/web", Reason.WANTED, spec, 0, 0)

    def seen(size: int | None, of: Observed, wanted: Desired = desired) -> tuple[object, list[tuple[str, str]]]:
        decided = plan(wanted, replace(of, disks={DISK.path: DiskState(True, True, True, size)}), 0.0)
        return decided.actions, types(decided)

    place = "vm/web/disk/root"
    assert seen(2 << 20, ABSENT) == ((launch,), [])
    assert seen(None, ABSENT) == ((launch,), [])
    assert seen(1 << 20, ABSENT) == ((GrowDisk(place, Reason.SETTINGS, "web", DISK),), [])
    assert seen(3 << 20, ABSENT) == ((launch,), [(place, "DiskLarger")])
    assert seen(2 << 20, runs) == ((), [])
    assert seen(1 << 20, runs) == ((GrowDisk(place, Reason.SETTINGS, "web", DISK, running=True),), [])
    assert seen(3 << 20, runs) == ((), [(place, "DiskLarger")])
    read_only = replace(spec, disks=(replace(DISK, read_only=True),))
    fixed = Desired({"br0": BRIDGE}, {"web": read_only})
    assert seen(1 << 20, ABSENT, fixed) == ((LaunchVm("vm/web", Reason.WANTED, read_only, 0, 0),), [])
    free = replace(spec, disks=(replace(DISK, size_bytes=None),))
    unsized = Desired({"br0": BRIDGE}, {"web": free})
    assert seen(1 << 20, ABSENT, unsized) == ((LaunchVm("vm/web", Reason.WANTED, free, 0, 0),), [])
    absent = replace(runs, disks={DISK.path: DiskState(False, True, True, 1 << 20)})
    assert plan(desired, absent, 0.0) == Plan()
    assert plan(desired, runs, 0.0) == Plan()
