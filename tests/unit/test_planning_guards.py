"""What the planner must never do: start a guest twice, touch what is foreign, delete on missing input.

Written against mutants that other tests did not notice (CONTRIBUTING.md, "Mutants").
"""

from __future__ import annotations

from dataclasses import replace

from agent.core.actions import (
    ChangeLink,
    CreateBridge,
    DeleteLink,
    EndVm,
    EnslavePort,
    LaunchVm,
    LinkChange,
    ReleasePort,
    RenameVm,
    StopVm,
)
from agent.core.desired import BridgeSpec, Desired, VmSpec
from agent.core.device_actions import ArmTap, ReplugNic
from agent.core.marks import GROUP, bridge_mark, tap_mark
from agent.core.observed import (
    DiskState,
    End,
    HostState,
    Intent,
    LinkState,
    NicBackend,
    NicState,
    Observed,
    VmState,
)
from agent.core.planner.draft import Plan
from agent.core.planning import plan
from agent.core.reasons import Reason
from tests.unit.planning_world import (
    ABSENT,
    BRIDGE,
    BRIDGE_LINK,
    CARD,
    DB,
    DB_RUNS,
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

# Never twice


def test_nothing_of_a_guest_is_begun_while_its_launch_is_under_way() -> None:
    desired = Desired({"br0": BRIDGE}, {"web": replace(WEB, disks=(DISK,))})
    busy = replace(
        ABSENT,
        links={"br0": BRIDGE_LINK},
        disks={DISK.path: DiskState(False, True, False)},
        in_flight={"vm/web": "launch-vm vm/web"},
    )
    decided = plan(desired, busy, 0.0)
    assert (decided.actions, decided.conditions) == ((), ())
    assert decided.deviating == {"vm/web"}


def test_a_guest_that_runs_under_another_name_is_neither_started_nor_stopped() -> None:
    shop = replace(WEB, name="shop")
    desired = Desired({"br0": BRIDGE}, {"shop": shop, "db": DB})
    observed = replace(SETTLED, vms={"web": RUNNING, "db": DB_RUNS})
    decided = plan(desired, observed, 0.0)
    assert decided.actions == (RenameVm("vm/web", Reason.RENAMED, "web", "uuid-web", "shop"),)
    under_way = replace(observed, in_flight={"vm/web": "rename-vm vm/web"})
    assert plan(desired, under_way, 0.0).actions == ()


def test_a_guest_is_renamed_to_a_free_name_only() -> None:
    desired = Desired({"br0": BRIDGE}, {"db": replace(WEB, name="db")})
    observed = replace(SETTLED, vms={"web": RUNNING, "db": DB_RUNS})
    decided = plan(desired, observed, 0.0)
    assert not any(isinstance(action, RenameVm | LaunchVm | StopVm) for action in decided.actions)


def test_names_that_move_on_are_freed_first_and_nobody_runs_twice() -> None:
    db = DB_RUNS.spec
    chain = Desired({"br0": BRIDGE}, {"db": replace(WEB, name="db"), "mail": replace(db, name="mail")})
    observed = replace(SETTLED, vms={"web": RUNNING, "db": DB_RUNS})
    decided = plan(chain, observed, 0.0)
    assert decided.actions == (RenameVm("vm/db", Reason.RENAMED, "db", db.uuid, "mail"),)
    (held,) = [one for one in decided.conditions if one.type == "Held"]
    assert held.message.startswith("it is to be called db, as another guest still is; ")
    freed = replace(observed, vms={"web": RUNNING, "mail": replace(DB_RUNS, spec=replace(db, name="mail"))})
    assert plan(chain, freed, 0.0).actions == (RenameVm("vm/web", Reason.RENAMED, "web", "uuid-web", "db"),)
    # What waits for an approval is not renamed; its uuid must not run a second time meanwhile.
    asked = replace(chain, vms={**chain.vms, "db": replace(WEB, name="db", enabled=False)})
    twice = plan(asked, replace(observed, vms={"db": DB_RUNS}, max_disruption=0), 0.0)
    assert not any(isinstance(action, RenameVm | LaunchVm | StopVm) for action in twice.actions)
    assert [one.resource for one in twice.conditions if one.type == "Waiting"] == ["vm/mail"]


def test_start_slots_count_those_under_way_and_those_planned() -> None:
    vms = {f"g{i}": VmSpec(f"g{i}", f"u{i}", 1_900_000_000 + i) for i in range(9)}
    flying = {"vm/g0": "launch-vm vm/g0", "vm/g1": "launch-vm vm/g1", "bridge/x": "create-bridge bridge/x"}
    decided = plan(Desired({}, vms), Observed(host=replace(HOST, start_slots=4), in_flight=flying), 0.0)
    assert [action.resource for action in decided.actions] == ["vm/g2", "vm/g3"]


def test_a_launch_waits_for_each_of_its_taps_and_disks() -> None:
    spec = replace(WEB, disks=(DISK,))
    desired = Desired({"br0": BRIDGE}, {"web": spec})
    there = {DISK.path: DiskState(True, True, True, 2 << 20)}
    ready = replace(ABSENT, disks=there)
    launch = LaunchVm("vm/web", Reason.WANTED, spec, 0, 0)
    assert plan(desired, ready, 0.0).actions == (launch,)
    for busy in ("tap/web/lan", "vm/web/disk/root"):
        assert plan(desired, replace(ready, in_flight={busy: "x"}), 0.0).actions == ()
    unknown = plan(desired, ABSENT, 0.0)
    assert unknown.actions == ()
    assert unknown.awaited == {"vm/web/disk/root"}
    arm = ArmTap("tap/web/lan", Reason.MISSING, "web", WEB.uid, NIC, 10, running=False)
    assert plan(desired, with_links(BRIDGE_LINK, of=ready), 0.0).actions == (arm,)
    off = replace(TAP, master=None, up=False)
    mended = ChangeLink("tap/web/lan", Reason.DETACHED, "web-lan", 11, TAP.alias, LinkChange(master=10, up=True))
    assert plan(desired, with_links(BRIDGE_LINK, off, of=ready), 0.0).actions == (mended,)


def test_a_launch_carries_the_generations_that_the_operator_wants() -> None:
    asked = replace(ABSENT, intents={"web": Intent(generation=3, reset_generation=2)})
    assert plan(DESIRED, asked, 0.0).actions == (LaunchVm("vm/web", Reason.WANTED, WEB, 3, 2),)


# Not without what it needs


def test_without_qemu_no_guest_is_started_and_bridges_are_served() -> None:
    bare = Observed(host=HostState("now", None, "apt install it"))
    decided = plan(DESIRED, bare, 0.0)
    assert decided.actions == (CreateBridge("bridge/br0", Reason.MISSING, BRIDGE),)
    assert said(decided) == [("vm/web", "QemuMissing", "QemuMissing", "apt install it")]


def test_a_guest_waits_for_guests_and_bridges_that_are_ready() -> None:
    spec = replace(WEB, after=("vm:db",))
    desired = Desired({"br0": BRIDGE}, {"web": spec, "db": DB})

    def waits(observed: Observed) -> list[str]:
        return [
            condition.message for condition in plan(desired, observed, 0.0).conditions if "web" in condition.resource
        ]

    assert waits(replace(ABSENT, vms={"db": replace(DB_RUNS, run_state="prelaunch")})) == ["waits for vm db to run"]
    assert waits(ABSENT) == ["waits for vm db to run"]
    ready = replace(ABSENT, vms={"db": DB_RUNS})
    assert waits(ready) == []
    for link in (
        replace(BRIDGE_LINK, up=False),
        replace(BRIDGE_LINK, alias="", group=0),
        replace(BRIDGE_LINK, kind="dummy"),
    ):
        decided = plan(desired, with_links(link, TAP, of=ready), 0.0)
        assert not any(isinstance(action, LaunchVm) for action in decided.actions)
        assert ("vm/web", "Waiting", "Waiting", "waits for bridge br0") in said(decided)


def test_backoff_is_told_with_its_end() -> None:
    ends = (End(10.0, 5.0, "now", "crash"), End(20.0, 5.0, "now", "panic"))
    observed = replace(ABSENT, ends={"web": ends})
    decided = plan(DESIRED, observed, 20.0)
    assert decided.actions == ()
    assert decided.wake_at_s is not None
    assert 20.0 < decided.wake_at_s < 21.0
    assert [c.type for c in decided.conditions] == ["Backoff"]
    assert "after panic" in decided.conditions[0].message
    assert plan(DESIRED, observed, decided.wake_at_s).actions == (LaunchVm("vm/web", Reason.WANTED, WEB, 0, 0),)


def test_a_crash_loop_names_its_last_end() -> None:
    ends = tuple(End(float(i), 0.5, "now", "crash" if i < 4 else "oom") for i in range(5))
    decided = plan(DESIRED, replace(ABSENT, ends={"web": ends}), 4.0)
    (loop,) = [condition for condition in decided.conditions if condition.type == "CrashLoop"]
    assert (loop.resource, loop.reason) == ("vm/web", "oom")
    assert loop.message == "ended 5 times, last by oom; see its qemu.log"


# Nothing is deleted on missing input


def test_units_that_were_not_read_yet_delete_and_stop_nothing() -> None:
    orphan = LinkState(12, "old-lan", "tun", True, alias=tap_mark("old", "lan"))
    spare = LinkState(13, "br9", "bridge", True, alias=bridge_mark("br9"))
    observed = with_links(BRIDGE_LINK, TAP, orphan, spare)
    unread = Desired(complete=False)
    decided = plan(unread, observed, 0.0)
    assert decided.actions == ()
    why = "the unit directory could not be read yet; the guest stays as it is until it is"
    assert said(decided) == [("vm/web", "Held", "UnitInvalid", why)]
    assert decided.deviating == frozenset()
    gone = plan(Desired(), replace(observed, vms={}), 0.0).actions
    assert {action.resource for action in gone} == {"bridge/br0", "bridge/br9", "tap/web/lan", "tap/old/lan"}
    assert DeleteLink("tap/old/lan", Reason.UNWANTED, "old-lan", 12, orphan.alias) in gone
    assert DeleteLink("bridge/br9", Reason.UNWANTED, "br9", 13, spare.alias) in gone


def test_a_guest_of_an_invalid_file_is_held_with_its_bridge_and_its_taps() -> None:
    invalid = Desired({}, {}, retained={"br0": BRIDGE}, unresolved_files=frozenset({"web.toml"}))
    decided = plan(invalid, SETTLED, 0.0)
    assert decided.actions == ()
    assert said(decided) == [
        (
            "bridge/br0",
            "StillNeeded",
            "StillNeeded",
            "no unit wants br0 any more, but guests use it; it stays on its last spec until they are gone",
        ),
        (
            "vm/web",
            "Held",
            "UnitInvalid",
            "web.toml has no valid version; mend it, the guest stays as it is until then",
        ),
    ]
    assert decided.deviating == {"bridge/br0"}


def test_what_is_left_of_a_guest_whose_unit_is_gone_is_only_forgotten() -> None:
    ended = EndVm("vm/web", Reason.EXITED, "web", "uuid-web", "host", asked=True)
    decided = plan(Desired({"br0": BRIDGE}), with_vm(alive=False, run_state=None, exit_reason="killed"), 0.0)
    assert ended in decided.actions
    stop = StopVm("vm/web", Reason.UNWANTED, "web", "uuid-web", WEB.stop_timeout_s, unit_asked=True)
    assert plan(Desired({"br0": BRIDGE}), SETTLED, 0.0).actions == (stop,)


def test_a_dead_guest_keeps_no_bridge() -> None:
    dead = replace(with_vm(alive=False, run_state=None, exit_reason="killed"), links={"br0": BRIDGE_LINK})
    decided = plan(Desired(retained={"br0": BRIDGE}), dead, 0.0)
    assert DeleteLink("bridge/br0", Reason.UNWANTED, "br0", 10, BRIDGE_LINK.alias) in decided.actions
    assert types(decided) == []


def test_a_tap_that_a_guest_hangs_on_is_not_deleted_whatever_it_is_called() -> None:
    other = LinkState(12, "x", "tun", True, alias=tap_mark("old", "lan"), master=10)
    hanging = replace(
        with_links(BRIDGE_LINK, other), vms={"web": replace(RUNNING, nics={"lan": NicState(NicBackend.ATTACHED, "x")})}
    )
    assert not any(isinstance(action, DeleteLink) for action in plan(DESIRED, hanging, 0.0).actions)


def test_an_approval_names_its_guests_and_holds_them() -> None:
    specs = [VmSpec(f"g{i}", f"u{i}", 1_900_000_000 + i, f"g{i}.toml") for i in range(4)]
    observed = Observed(vms={s.name: VmState(s, True, 100, run_state="running") for s in specs}, host=HOST)
    decided = plan(Desired(), observed, 0.0)
    assert decided.approval is not None
    assert decided.approval.guests == ("g0", "g1", "g2", "g3")
    assert decided.approval.keys == {f"g{i}/u{i}" for i in range(4)}
    message = (
        "its end was not asked for alone: 4 guests would stop at once; "
        f"`vmhost approve {decided.approval.id}` allows it"
    )
    assert said(decided) == [(f"vm/g{i}", "Held", "ApprovalNeeded", message) for i in range(4)]
    assert len(decided.approval.id) == 8
    other = plan(Desired(), replace(observed, vms=dict(list(observed.vms.items())[1:]), max_disruption=1), 0.0)
    assert other.approval is not None
    assert other.approval.id != decided.approval.id
    exactly = plan(Desired(), replace(observed, max_disruption=4), 0.0)
    assert len(exactly.actions) == 4
    assert exactly.approval is None


def test_stops_under_way_by_operators_and_of_the_dead_are_not_counted_again() -> None:
    specs = [VmSpec(f"g{i}", f"u{i}", 1_900_000_000 + i, f"g{i}.toml") for i in range(5)]
    vms = {s.name: VmState(s, True, 100, run_state="running") for s in specs}
    vms["g4"] = replace(vms["g4"], alive=False, run_state=None)
    stopping = {"vm/g3": "stop-vm vm/g3"}
    observed = Observed(vms=vms, host=HOST, in_flight=stopping, max_disruption=3)
    decided = plan(Desired(), observed, 0.0)
    assert decided.approval is None
    assert {a.resource for a in decided.actions} == {"vm/g0", "vm/g1", "vm/g2", "vm/g4"}
    off = {s.name: replace(s, enabled=False) for s in specs[:4]}
    by_operator = replace(observed, in_flight={}, intents={"g0": Intent(stopped=True)}, vms={n: vms[n] for n in off})
    decided = plan(Desired({}, off), by_operator, 0.0)
    assert decided.approval is None
    assert sorted((a.vm, a.unit_asked) for a in decided.actions if isinstance(a, StopVm)) == [
        ("g0", False),
        ("g1", True),
        ("g2", True),
        ("g3", True),
    ]
    invalid = replace(observed, in_flight={}, max_disruption=0)
    assert plan(Desired(unresolved_files=frozenset(s.file for s in specs)), invalid, 0.0).approval is None


def test_a_stop_of_a_minute_ago_is_forgotten_and_wakes_no_one() -> None:
    specs = [VmSpec(f"g{i}", f"u{i}", 1_900_000_000 + i, f"g{i}.toml") for i in range(2)]
    vms = {s.name: VmState(s, True, 100, run_state="running") for s in specs}
    observed = Observed(vms=vms, host=HOST, stops_at_s=(40.0, 90.0), max_disruption=2)
    held = plan(Desired(), observed, 99.9)
    assert (held.actions, held.wake_at_s) == ((), 100.0)
    again = plan(Desired(), observed, 100.0)
    assert (again.actions, again.wake_at_s) == ((), 150.0)
    assert len(plan(Desired(), observed, 150.0).actions) == 2
    never = plan(Desired(), replace(observed, stops_at_s=(), max_disruption=1), 0.0)
    assert (never.actions, never.wake_at_s) == ((), None)


# Foreign is foreign


def test_foreign_taps_and_bridges_stay() -> None:
    foreign = (
        LinkState(20, "tap-theirs", "tun", True, alias="theirs"),
        LinkState(21, "odd", "veth", True, alias=tap_mark("old", "lan")),
        LinkState(22, "br-theirs", "bridge", True),
        LinkState(23, "br-b", "bridge", True, alias=bridge_mark("br-a")),
        LinkState(24, "eth9", None, True, alias=bridge_mark("eth9")),
        LinkState(25, "br-group", "bridge", True, group=GROUP),
    )
    decided = plan(Desired(), Observed(links={link.name: link for link in foreign}, host=HOST), 0.0)
    assert decided == Plan()


def test_a_foreign_link_of_a_taps_name_is_a_conflict_and_stays() -> None:
    message = "a link web-lan exists that is not ours; rename it, or give the NIC another tap ="
    for theirs in (replace(TAP, alias=""), replace(TAP, kind="veth"), replace(TAP, alias=tap_mark("web", "dmz"))):
        observed = with_links(BRIDGE_LINK, replace(theirs, up=False, master=None), of=ABSENT)
        decided = plan(DESIRED, observed, 0.0)
        assert not any(isinstance(a, ChangeLink | ArmTap | LaunchVm) for a in decided.actions)
        assert ("tap/web/lan", "Conflict", "Conflict", message) in said(decided)
        for backend in (NicBackend.DEAD, NicBackend.UNKNOWN):
            hurt = replace(observed, vms={"web": replace(RUNNING, nics={"lan": NicState(backend)})})
            decided = plan(DESIRED, hurt, 0.0)
            assert not any(isinstance(a, ChangeLink | ArmTap | ReplugNic) for a in decided.actions)
            assert said(decided) == [("tap/web/lan", "Conflict", "Conflict", message)]


def test_what_a_foreign_bridge_holds_is_no_master_for_our_taps() -> None:
    theirs = replace(BRIDGE_LINK, alias="", group=0)
    gone = replace(with_links(theirs), vms={"web": replace(RUNNING, nics={"lan": NicState(NicBackend.DEAD)})})
    arm = ArmTap("tap/web/lan", Reason.MISSING, "web", WEB.uid, NIC, None, running=True)
    assert plan(DESIRED, gone, 0.0).actions == (arm,)
    loose = with_links(theirs, replace(TAP, master=None))
    assert plan(DESIRED, loose, 0.0).actions == ()


def test_a_port_of_a_foreign_bridge_is_left_there() -> None:
    desired = Desired({"br0": replace(BRIDGE, ports=("eth1",))})
    theirs = LinkState(30, "br-theirs", "bridge", True)
    decided = plan(desired, with_links(BRIDGE_LINK, theirs, replace(CARD, master=30), of=ABSENT), 0.0)
    assert decided.actions == ()
    message = "eth1 is a port of br-theirs, which is not ours; take it out of there first"
    assert said(decided) == [("port/eth1", "Conflict", "Conflict", message)]
    nowhere = plan(desired, with_links(BRIDGE_LINK, replace(CARD, master=99), of=ABSENT), 0.0)
    assert nowhere.conditions[0].message == "eth1 is a port of link 99, which is not ours; take it out of there first"


def test_a_port_moves_between_own_bridges_only_where_the_other_does_not_want_it() -> None:
    other = BridgeSpec("br1", "02:00:00:00:00:09", ports=("eth1",))
    other_link = LinkState(30, "br1", "bridge", True, 1500, other.mac, alias=bridge_mark("br1"))
    port = replace(CARD, master=30)
    observed = replace(with_links(BRIDGE_LINK, other_link, port, of=ABSENT), enslaved=frozenset({("eth1", "br1")}))
    mine = replace(BRIDGE, ports=("eth1",))
    wanted_there = plan(Desired({"br0": mine, "br1": other}), observed, 0.0)
    assert not any(isinstance(action, EnslavePort) for action in wanted_there.actions)
    moved = plan(Desired({"br0": mine, "br1": replace(other, ports=())}), observed, 0.0)
    assert moved.actions == (ReleasePort("port/eth1", Reason.UNWANTED, "br1", "eth1", 2, 30),)
    orphaned = plan(Desired({"br0": mine}), observed, 0.0)
    assert moved.actions[0] in orphaned.actions


def test_a_port_that_somebody_else_enslaved_is_not_released() -> None:
    inside = with_links(BRIDGE_LINK, replace(CARD, master=10), of=ABSENT)
    desired = Desired({"br0": BRIDGE})
    assert plan(desired, inside, 0.0).actions == ()
    ours = replace(inside, enslaved=frozenset({("eth1", "br0")}))
    released = ReleasePort("port/eth1", Reason.UNWANTED, "br0", "eth1", 2, 10)
    assert plan(desired, ours, 0.0).actions == (released,)
    assert plan(Desired({"br0": replace(BRIDGE, ports=("eth1",))}), ours, 0.0).actions == ()
    left = replace(with_links(BRIDGE_LINK, CARD, of=ABSENT), enslaved=frozenset({("eth1", "br0"), ("gone", "br0")}))
    assert plan(desired, left, 0.0).actions == ()


def test_an_unwanted_bridge_goes_with_our_ports_and_stays_with_theirs() -> None:
    nobody = Desired(retained={"br0": BRIDGE})
    delete = DeleteLink("bridge/br0", Reason.UNWANTED, "br0", 10, BRIDGE_LINK.alias)
    ours = replace(with_links(BRIDGE_LINK, replace(CARD, master=10), of=ABSENT), enslaved=frozenset({("eth1", "br0")}))
    assert plan(nobody, ours, 0.0).actions == (delete,)
    theirs = with_links(BRIDGE_LINK, replace(CARD, master=10), LinkState(3, "eth2", None, master=10), of=ABSENT)
    decided = plan(nobody, theirs, 0.0)
    assert decided.actions == ()
    message = "no unit wants br0, but eth1, eth2 is still in it; take it out to let it go"
    assert said(decided) == [("bridge/br0", "StillNeeded", "StillNeeded", message)]
