"""What the planner does with several of a kind: whom it confuses with nobody, and in which order it names them."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from agent.core.actions import ChangeAddresses, ChangeLink, LinkChange, ReleasePort, RenameVm, StopVm, kind_of
from agent.core.desired import BridgeSpec, Desired, NicSpec, VmSpec
from agent.core.marks import bridge_mark, tap_mark
from agent.core.observed import AddressState, End, HostState, Intent, LinkState, NicBackend, NicState, Observed, VmState
from agent.core.planner.draft import Plan
from agent.core.planning import plan
from agent.core.reasons import Reason

HOST = HostState(boot_id="now")
BR0 = BridgeSpec("br0", "02:00:00:00:00:01")
BR1 = BridgeSpec("br1", "02:00:00:00:00:02")
NIC = NicSpec("lan", "br0", "02:00:00:00:00:12", "web-lan", 0)
WEB = VmSpec("web", "uuid-web", 1_900_000_000, "web.toml", nics=(NIC,))
BR0_LINK = LinkState(10, "br0", "bridge", True, 1500, BR0.mac, alias=bridge_mark("br0"))
BR1_LINK = LinkState(20, "br1", "bridge", True, 1500, BR1.mac, alias=bridge_mark("br1"))
TAP = LinkState(11, "web-lan", "tun", True, 1500, "x", 10, tap_mark("web", "lan"))
RUNNING = VmState(WEB, True, 4711, run_state="running", nics={"lan": NicState(NicBackend.ATTACHED, "web-lan")})


def host(*links: LinkState, **more: object) -> Observed:
    return replace(Observed(links={link.name: link for link in links}, host=HOST), **more)  # type: ignore[arg-type]


def crowd(number: int) -> tuple[dict[str, VmSpec], dict[str, VmState]]:
    specs = {f"g{i}": VmSpec(f"g{i}", f"u{i}", 1_900_000_000 + i, f"g{i}.toml", enabled=False) for i in range(number)}
    return specs, {name: VmState(spec, True, 100, run_state="running") for name, spec in specs.items()}


def test_disabled_guests_that_are_too_many_wait_and_are_not_stopped_by_another_way() -> None:
    specs, states = crowd(4)
    decided = plan(Desired({}, specs), Observed(vms=states, host=HOST), 0.0)
    assert decided.actions == ()
    assert decided.approval is not None
    turned = plan(Desired({}, specs), Observed(vms=dict(reversed(states.items())), host=HOST), 0.0)
    assert turned.approval == decided.approval
    restarted = {name: Intent(generation=0, reset_generation=3) for name in specs}
    assert plan(Desired({}, specs), Observed(vms=states, host=HOST, intents=restarted), 0.0).actions == ()


def test_guests_that_are_wanted_ask_for_nothing_however_many() -> None:
    specs, states = crowd(9)
    wanted = {name: replace(spec, enabled=True) for name, spec in specs.items()}
    running = {name: replace(state, spec=wanted[name]) for name, state in states.items()}
    assert plan(Desired({}, wanted), Observed(vms=running, host=HOST), 0.0) == Plan()


def test_the_id_of_an_approval_outlives_the_agent() -> None:
    specs, states = crowd(4)
    decided = plan(Desired({}, specs), Observed(vms=states, host=HOST), 0.0)
    assert decided.approval is not None
    named = b"g0/u0\0g1/u1\0g2/u2\0g3/u3"
    assert decided.approval.id == hashlib.sha256(named).hexdigest()[:8]


def test_approved_stops_ask_no_second_time() -> None:
    specs, states = crowd(2)
    approved = frozenset({"g0/u0", "g1/u1"})
    observed = Observed(vms=states, host=HOST, approved=approved, stops_at_s=(1.0, 1.0, 1.0, 1.0, 1.0))
    decided = plan(Desired({}, specs), observed, 2.0)
    assert decided.approval is None
    assert decided.wake_at_s is None
    assert [action.resource for action in decided.actions] == ["vm/g0", "vm/g1"]


def test_a_new_guest_is_not_taken_for_one_that_left() -> None:
    new = VmSpec("new", "uuid-new", 1_900_000_009, "new.toml")
    decided = plan(Desired({"br0": BR0}, {"new": new}), host(BR0_LINK, TAP, vms={"web": RUNNING}), 0.0)
    assert not any(isinstance(action, RenameVm) for action in decided.actions)
    assert any(isinstance(action, StopVm) and action.vm == "web" for action in decided.actions)


def test_what_is_left_of_a_guest_is_no_end_that_counts() -> None:
    dead = replace(RUNNING, alive=False, run_state=None, exit_reason="killed")
    (end,) = (a for a in plan(Desired(), host(vms={"web": dead}), 0.0).actions if a.resource == "vm/web")
    assert (end.exit_reason, end.asked) == ("host", True)  # type: ignore[union-attr]


def test_a_tap_of_a_guest_that_runs_stays_until_the_guest_has_let_go_of_its_nic() -> None:
    without = Desired({"br0": BR0}, {"web": replace(WEB, nics=())})
    for nics in ({}, {"lan": NicState(NicBackend.UNKNOWN)}, RUNNING.nics):
        observed = host(BR0_LINK, TAP, vms={"web": replace(RUNNING, nics=nics)})
        assert [action.resource for action in plan(without, observed, 0.0).actions] == ["vm/web"]
        state = replace(RUNNING, spec=replace(WEB, nics=()), leaving_nics=WEB.nics, nics=nics)
        leaving = host(BR0_LINK, TAP, vms={"web": state})
        assert [kind_of(action) for action in plan(without, leaving, 0.0).actions] == ["unplug-nic"]


def test_a_tap_that_a_wanted_guest_will_need_stays() -> None:
    ended = host(BR0_LINK, TAP, ends={"web": (End(1.0, 1.0, "now", "guest_shutdown"),)})
    assert plan(Desired({"br0": BR0}, {"web": WEB}), ended, 2.0).actions == ()


def test_a_tap_whose_bridge_is_gone_is_left_until_the_bridge_is_there() -> None:
    decided = plan(Desired({"br0": BR0}, {"web": WEB}), host(replace(TAP, master=None), vms={"web": RUNNING}), 0.0)
    assert [action.resource for action in decided.actions] == ["bridge/br0"]


def test_a_bridge_is_adopted_before_anything_in_it_is_touched() -> None:
    spec = replace(BR0, adopt=True, ports=("eth1",), addresses=("10.0.0.1/24",))
    foreign = replace(BR0_LINK, alias="", mtu=9000)
    port = LinkState(2, "eth1", None, up=False, master=10)
    observed = host(foreign, port, LinkState(3, "eth2", None, True), enslaved=frozenset({("eth2", "br0")}))
    mark = ChangeLink("bridge/br0", Reason.UNMARKED, "br0", 10, "", LinkChange(alias=bridge_mark("br0")))
    assert plan(Desired({"br0": spec}), observed, 0.0).actions == (mark,)


def test_a_port_in_a_bridge_where_we_did_not_put_it_is_not_released() -> None:
    port = LinkState(2, "eth1", None, True, master=10)
    observed = host(BR0_LINK, BR1_LINK, port, enslaved=frozenset({("eth1", "br1")}))
    assert plan(Desired({"br0": BR0, "br1": BR1}), observed, 0.0).actions == ()


def test_what_is_named_is_named_in_order() -> None:
    there = tuple(AddressState(f"10.0.0.{i}/24", own=True) for i in (9, 3, 7, 5))
    sorted_ = ("10.0.0.3/24", "10.0.0.5/24", "10.0.0.7/24", "10.0.0.9/24")
    change = ChangeAddresses("bridge/br0", Reason.ADDRESS, "br0", 10, (), sorted_)
    assert plan(Desired({"br0": BR0}), host(replace(BR0_LINK, addresses=there)), 0.0).actions == (change,)
    ports = [LinkState(30 + i, f"eth{i}", None, True, master=10) for i in (8, 2, 6, 4)]
    ours = frozenset((port.name, "br0") for port in ports)
    released = plan(Desired({"br0": BR0}), host(BR0_LINK, *ports, enslaved=ours), 0.0).actions
    assert [a.port for a in released if isinstance(a, ReleasePort)] == ["eth2", "eth4", "eth6", "eth8"]
    (told,) = plan(Desired(), host(BR0_LINK, *ports), 0.0).conditions
    assert "eth2, eth4, eth6, eth8 is still in it" in told.message
    bridges = {f"br{i}": BridgeSpec(f"br{i}", f"02:00:00:00:01:0{i}") for i in (3, 1, 2)}
    nics = tuple(NicSpec(f"n{i}", f"br{i}", f"02:00:00:00:02:0{i}", f"web-n{i}", i) for i in (3, 1, 2))
    waiting = plan(Desired(bridges, {"web": replace(WEB, nics=nics)}), host(), 0.0)
    assert [c.message for c in waiting.conditions] == [f"waits for bridge br{i}" for i in (1, 2, 3)]
    held = Observed(
        links={},
        vms={"web": replace(RUNNING, spec=replace(WEB, nics=nics))},
        host=HOST,
    )
    left = plan(Desired(retained=bridges, unresolved_files=frozenset({"web.toml"})), held, 0.0)
    assert [a.resource for a in left.actions if a.resource.startswith("bridge/")] == [
        f"bridge/br{i}" for i in (1, 2, 3)
    ]
