"""Tables: what is wanted and seen, and exactly which actions and conditions follow."""

from __future__ import annotations

from dataclasses import replace

from agent.core.actions import ChangeLink, EndVm, LaunchVm, RenameVm, StopVm, kind_of
from agent.core.attempts import after_failure
from agent.core.desired import Desired, DiskSpec, Restart, VmSpec
from agent.core.device_actions import CreateDisk, ReplugNic
from agent.core.errors import PermanentError, TransientError
from agent.core.marks import GROUP, tap_mark
from agent.core.observed import (
    AddressState,
    DiskState,
    End,
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
from tests.unit.planning_world import BRIDGE, BRIDGE_LINK, DESIRED, HOST, NIC, RUNNING, SETTLED, TAP, WEB, with_vm


def kinds(decided: Plan) -> list[str]:
    return [f"{kind_of(action)} {action.resource}" for action in decided.actions]


def told(decided: Plan) -> dict[str, str]:
    return {condition.resource: condition.type for condition in decided.conditions}


def with_link(link: LinkState, **changes: object) -> Observed:
    changed = replace(link, **changes)  # type: ignore[arg-type]
    return replace(SETTLED, links={**SETTLED.links, link.name: changed})


def without_link(name: str, observed: Observed = SETTLED) -> Observed:
    return replace(observed, links={n: link for n, link in observed.links.items() if n != name})


def test_settled_is_left_alone() -> None:
    assert plan(DESIRED, SETTLED, 0.0) == Plan()


def test_from_nothing_the_bridge_and_what_does_not_need_it_come_first() -> None:
    decided = plan(DESIRED, Observed(host=HOST), 0.0)
    assert kinds(decided) == ["create-bridge bridge/br0"]
    assert told(decided) == {"vm/web": "Waiting"}


def test_a_guest_that_is_in_flight_is_not_started_twice() -> None:
    absent = replace(SETTLED, vms={})
    assert kinds(plan(DESIRED, absent, 0.0)) == ["launch-vm vm/web"]
    busy = replace(absent, in_flight={"vm/web": "launch-vm vm/web"})
    assert kinds(plan(DESIRED, busy, 0.0)) == []


def test_starts_are_limited() -> None:
    vms = {f"g{i}": VmSpec(f"g{i}", f"u{i}", 1_900_000_000 + i) for i in range(9)}
    decided = plan(Desired({}, vms), Observed(host=replace(HOST, start_slots=4)), 0.0)
    assert len([a for a in decided.actions if isinstance(a, LaunchVm)]) == 4


def test_each_fault_of_a_tap_has_its_reason() -> None:
    for changes, reason in (
        ({"master": None}, Reason.DETACHED),
        ({"up": False}, Reason.DOWN),
        ({"mtu": 9000}, Reason.MTU),
        ({"alias": ""}, Reason.UNMARKED),
    ):
        decided = plan(DESIRED, with_link(TAP, **changes), 0.0)
        assert [(kind_of(a), a.reason) for a in decided.actions] == [("change-link", reason)]


def test_each_fault_of_a_bridge_has_its_reason() -> None:
    for changes, kind, reason in (
        ({"up": False}, "change-link", Reason.DOWN),
        ({"mac": "02:00:00:00:00:99"}, "change-link", Reason.MAC),
        ({"mtu": 1400}, "change-link", Reason.MTU),
        ({"stp": True}, "change-link", Reason.SETTINGS),
        ({"addresses": ()}, "change-addresses", Reason.ADDRESS),
    ):
        decided = plan(DESIRED, with_link(BRIDGE_LINK, **changes), 0.0)
        assert [(kind_of(a), a.reason) for a in decided.actions] == [(kind, reason)]


def test_an_address_that_somebody_added_is_theirs() -> None:
    theirs = (*BRIDGE_LINK.addresses, AddressState("10.9.9.9/24"))
    assert plan(DESIRED, with_link(BRIDGE_LINK, addresses=theirs), 0.0).actions == ()


def test_an_address_that_left_the_unit_leaves_the_bridge() -> None:
    ours = (*BRIDGE_LINK.addresses, AddressState("10.9.9.9/24", own=True))
    (action,) = plan(DESIRED, with_link(BRIDGE_LINK, addresses=ours), 0.0).actions
    assert (action.add, action.remove) == ((), ("10.9.9.9/24",))  # type: ignore[union-attr]


def test_a_deleted_tap_is_rearmed_or_where_that_fails_replugged() -> None:
    dead = without_link("web-lan", with_vm(nics={"lan": NicState(NicBackend.DEAD)}))
    assert kinds(plan(DESIRED, dead, 0.0)) == ["arm-tap tap/web/lan"]
    out_of_reach = without_link("web-lan", with_vm(nics={"lan": NicState(NicBackend.UNKNOWN)}))
    (action,) = plan(DESIRED, out_of_reach, 0.0).actions
    assert isinstance(action, ReplugNic)


def test_a_renamed_tap_gets_its_name_back() -> None:
    renamed = replace(
        without_link("web-lan"),
        links={"br0": BRIDGE_LINK, "oops": replace(TAP, name="oops")},
        vms={"web": replace(RUNNING, nics={"lan": NicState(NicBackend.ATTACHED, "oops")})},
    )
    (action,) = plan(DESIRED, renamed, 0.0).actions
    assert isinstance(action, ChangeLink)
    assert (action.reason, action.link, action.change.name) == (Reason.RENAMED, "oops", "web-lan")


def test_a_tap_that_a_renamed_guest_still_has_is_told_with_that_guest_and_what_releases_it() -> None:
    # web became shop and keeps its tap web-lan until it is restarted; another guest is called web now.
    shop = replace(WEB, name="shop", nics=(replace(NIC, tap="shop-lan"),))
    web = replace(WEB, uuid="uuid-new", uid=WEB.uid + 1, nics=(replace(NIC, mac="02:00:00:00:00:07"),))
    desired = Desired({"br0": BRIDGE}, {"shop": shop, "web": web})
    runs = replace(RUNNING, spec=replace(WEB, name="shop"))
    seen = replace(with_link(TAP, alias=tap_mark("shop", "lan")), vms={"shop": runs})
    way_out = "`vmhost restart shop`, or its stop, releases it; or give the NIC another tap ="
    held = f"tap web-lan is still that of shop: {way_out}"
    decided = plan(desired, seen, 0.0)
    assert [(c.resource, c.type, c.message) for c in decided.conditions if "tap" in c.resource] == [
        ("tap/web/lan", "Conflict", held)
    ]
    # So it is for one that runs: whose tap is gone, or is called something else.
    for backend, link in ((NicBackend.DEAD, None), (NicBackend.ATTACHED, "oops")):
        second = VmState(web, True, 4712, run_state="running", nics={"lan": NicState(backend, link)})
        decided = plan(desired, replace(seen, vms={"shop": runs, "web": second}), 0.0)
        assert [c.message for c in decided.conditions if c.resource == "tap/web/lan"] == [held]


def test_a_foreign_link_of_a_wanted_name_is_a_conflict() -> None:
    foreign = with_link(BRIDGE_LINK, alias="", group=0)
    decided = plan(DESIRED, foreign, 0.0)
    assert decided.actions == ()
    assert told(decided)["bridge/br0"] == "Conflict"
    adopting = Desired({"br0": replace(BRIDGE, adopt=True)}, {"web": WEB})
    (action,) = plan(adopting, foreign, 0.0).actions
    assert (action.reason, action.expect_alias) == (Reason.UNMARKED, "")  # type: ignore[union-attr]


def test_a_bridge_whose_making_was_interrupted_is_ours() -> None:
    (action,) = plan(DESIRED, with_link(BRIDGE_LINK, alias="", group=GROUP), 0.0).actions
    assert action.reason is Reason.UNMARKED


def test_a_port_that_carries_addresses_is_never_cut() -> None:
    desired = Desired({"br0": replace(BRIDGE, ports=("eth1",))}, {})
    card = LinkState(2, "eth1", None, True, addresses=(AddressState("192.0.2.1/24"),))
    observed = Observed(links={"br0": BRIDGE_LINK, "eth1": card}, host=HOST)
    decided = plan(desired, observed, 0.0)
    assert decided.actions == ()
    assert told(decided) == {"port/eth1": "PortAddressed"}
    bare = replace(observed, links={"br0": BRIDGE_LINK, "eth1": replace(card, addresses=())})
    assert kinds(plan(desired, bare, 0.0)) == ["enslave-port port/eth1"]
    gone = replace(observed, links={"br0": BRIDGE_LINK})
    assert told(plan(desired, gone, 0.0)) == {"port/eth1": "PortMissing"}


def test_a_bridge_goes_when_nobody_needs_it() -> None:
    nobody = Desired({}, {}, retained={"br0": BRIDGE})
    assert kinds(plan(nobody, Observed(links={"br0": BRIDGE_LINK}, host=HOST), 0.0)) == ["delete-link bridge/br0"]
    still_used = Desired({}, {"web": WEB}, retained={"br0": BRIDGE})
    decided = plan(still_used, with_link(BRIDGE_LINK, up=False), 0.0)
    assert kinds(decided) == ["change-link bridge/br0"]
    assert told(decided) == {"bridge/br0": "StillNeeded"}
    stranger = LinkState(30, "veth9", "veth", True, master=10)
    observed = Observed(links={"br0": BRIDGE_LINK, "veth9": stranger}, host=HOST)
    assert plan(nobody, observed, 0.0).actions == ()


def test_each_end_is_told_apart() -> None:
    for changes, exit_reason in (
        ({"alive": False, "run_state": None, "exit_reason": "killed"}, "killed"),
        ({"alive": False, "run_state": None}, "crash"),
        ({"run_state": "shutdown"}, "guest_shutdown"),
        ({"run_state": "guest-panicked"}, "panic"),
    ):
        (action,) = plan(DESIRED, with_vm(**changes), 0.0).actions
        assert isinstance(action, EndVm)
        assert (action.exit_reason, action.asked) == (exit_reason, False)


def test_the_restart_policy_answers_ends() -> None:
    for restart, reason, runs in (
        (Restart.ON_FAILURE, "crash", True),
        (Restart.ON_FAILURE, "guest_shutdown", False),
        (Restart.ALWAYS, "guest_shutdown", True),
        (Restart.NEVER, "crash", False),
    ):
        spec = replace(WEB, restart=restart)
        for boot_id, expected in (("now", runs), ("earlier", True)):
            ended = replace(SETTLED, vms={}, ends={"web": (End(1.0, 5.0, boot_id, reason),)})
            decided = plan(Desired({"br0": BRIDGE}, {"web": spec}), ended, 2.0)
            assert bool(decided.actions) is expected, (restart, reason, boot_id)


def test_a_crash_loop_is_a_state_with_its_next_try() -> None:
    ends = tuple(End(float(i), 0.5, "now", "crash") for i in range(8))
    decided = plan(DESIRED, replace(SETTLED, vms={}, ends={"web": ends}), 7.01)
    assert {c.type for c in decided.conditions} == {"CrashLoop", "Backoff"}
    assert decided.actions == ()
    assert decided.wake_at_s is not None
    assert 7.01 < decided.wake_at_s <= 7 + 60
    assert kinds(plan(DESIRED, replace(SETTLED, vms={}, ends={"web": ends}), 70.0)) == ["launch-vm vm/web"]


def test_a_silent_qemu_is_left_alone() -> None:
    decided = plan(DESIRED, with_vm(run_state=None, unanswered_s=9.0), 0.0)
    assert decided.actions == ()
    assert told(decided) == {"vm/web": "Unresponsive"}


def test_a_removed_unit_stops_its_guest_and_an_invalid_one_does_not() -> None:
    gone = Desired({}, {}, retained={"br0": BRIDGE})
    (action,) = plan(gone, SETTLED, 0.0).actions
    assert isinstance(action, StopVm)
    assert action.unit_asked
    invalid = replace(gone, unresolved_files=frozenset({"web.toml"}))
    decided = plan(invalid, with_link(TAP, up=False), 0.0)
    assert kinds(decided) == ["change-link tap/web/lan"]
    assert told(decided)["vm/web"] == "Held"


def guests(number: int) -> dict[str, VmState]:
    specs = (VmSpec(f"g{i}", f"u{i}", 1_900_000_000 + i, f"g{i}.toml") for i in range(number))
    return {spec.name: VmState(spec, True, 100 + i, run_state="running") for i, spec in enumerate(specs)}


def test_more_stops_than_allowed_wait_for_one_approval_of_exactly_that_set() -> None:
    observed = Observed(vms=guests(8), host=HOST)
    decided = plan(Desired(), observed, 0.0)
    assert decided.actions == ()
    assert decided.approval is not None
    assert len(decided.approval.guests) == 8
    approved = replace(observed, approved=decided.approval.keys)
    assert len(plan(Desired(), approved, 0.0).actions) == 8
    one_more = replace(observed, vms=guests(9), approved=decided.approval.keys)
    assert [a.resource for a in plan(Desired(), replace(one_more, max_disruption=0), 0.0).actions] == [
        f"vm/g{i}" for i in range(8)
    ]


def test_stops_of_the_last_minute_count() -> None:
    observed = Observed(vms=guests(2), host=HOST, stops_at_s=(50.0, 55.0))
    assert plan(Desired(), observed, 60.0).actions == ()
    assert plan(Desired(), observed, 60.0).wake_at_s == 110.0
    assert len(plan(Desired(), observed, 120.0).actions) == 2


def test_a_rename_with_the_same_uuid_keeps_the_guest() -> None:
    renamed = replace(WEB, name="shop")
    (action,) = plan(Desired({"br0": BRIDGE}, {"shop": renamed}), SETTLED, 0.0).actions
    assert isinstance(action, RenameVm)
    assert (action.vm, action.new_name) == ("web", "shop")


def test_operators_are_obeyed_and_not_healed_away() -> None:
    stopped = replace(SETTLED, intents={"web": Intent(stopped=True)})
    (action,) = plan(DESIRED, stopped, 0.0).actions
    assert isinstance(action, StopVm)
    assert not action.unit_asked
    assert plan(DESIRED, replace(stopped, vms={}), 0.0).actions == ()
    restarted = replace(SETTLED, intents={"web": Intent(generation=2)})
    assert kinds(plan(DESIRED, restarted, 0.0)) == ["stop-vm vm/web"]
    assert kinds(plan(DESIRED, replace(SETTLED, intents={"web": Intent(reset_generation=1)}), 0.0)) == [
        "reset-vm vm/web"
    ]


def test_a_disk_is_created_once_and_then_only_waited_for() -> None:
    disk = DiskSpec("root", "/srv/web.qcow2", "qcow2", 1, size_bytes=1 << 30)
    desired = Desired({"br0": BRIDGE}, {"web": replace(WEB, disks=(disk,))})
    absent = replace(SETTLED, vms={})

    def seen(exists: bool, folder_exists: bool, known: bool) -> Plan:
        disks = {disk.path: DiskState(exists, folder_exists, known)}
        return plan(desired, replace(absent, disks=disks), 0.0)

    assert [type(a) for a in seen(False, True, False).actions] == [CreateDisk]
    assert told(seen(False, True, True)) == {"vm/web/disk/root": "DiskMissing"}
    assert told(seen(False, False, False)) == {"vm/web/disk/root": "DiskMissing"}
    assert [type(a) for a in seen(True, True, True).actions] == [LaunchVm]


def test_a_disk_grows_before_the_launch_and_beneath_a_running_guest() -> None:
    disk = DiskSpec("root", "/srv/web.raw", "raw", 1, size_bytes=2 << 20)
    spec = replace(WEB, disks=(disk,))
    desired = Desired({"br0": BRIDGE}, {"web": spec})
    small = {disk.path: DiskState(True, True, True, 1 << 20)}
    absent = replace(SETTLED, vms={}, disks=small)
    assert kinds(plan(desired, absent, 0.0)) == ["grow-disk vm/web/disk/root"]
    running = replace(SETTLED, vms={"web": replace(RUNNING, spec=spec)}, disks=small)
    assert kinds(plan(desired, running, 0.0)) == ["grow-disk vm/web/disk/root"]
    silent = replace(running, vms={"web": replace(RUNNING, spec=spec, run_state=None)})
    assert plan(desired, silent, 0.0).actions == ()
    large = {disk.path: DiskState(True, True, True, 4 << 20)}
    decided = plan(desired, replace(absent, disks=large), 0.0)
    assert (kinds(decided), told(decided)) == (["launch-vm vm/web"], {"vm/web/disk/root": "DiskLarger"})


def test_a_failed_action_waits_and_a_changed_world_tries_at_once() -> None:
    absent = replace(SETTLED, vms={})
    (launch,) = plan(DESIRED, absent, 0.0).actions
    attempt = after_failure(launch, TransientError("no", reason="Busy"), None, 100.0)
    assert attempt.not_before_s is not None
    failed = replace(absent, attempts={"launch-vm vm/web": attempt})
    decided = plan(DESIRED, failed, 100.0)
    assert decided.actions == ()
    assert (told(decided), decided.wake_at_s) == ({"vm/web": "Busy"}, attempt.not_before_s)
    assert plan(DESIRED, failed, attempt.not_before_s).actions == (launch,)
    edited = Desired({"br0": BRIDGE}, {"web": replace(WEB, cpus=2)})
    assert len(plan(edited, failed, 100.0).actions) == 1
    held = after_failure(launch, PermanentError("never", reason="Refused"), None, 100.0)
    assert held.not_before_s is not None
    assert held.not_before_s > 200.0
