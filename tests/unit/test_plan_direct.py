"""The frontier for NICs on a link of the host: their macvtaps, and what becomes of them without that link."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.actions import Action, ChangeLink, DeleteLink, LaunchVm, LinkChange
from agent.core.desired import Desired, NicSpec
from agent.core.device_actions import ArmTap, PlugNic, ReplugNic
from agent.core.marks import GROUP, tap_mark
from agent.core.model.host import apply
from agent.core.observed import LinkState, NicBackend, NicState, Observed, VmState
from agent.core.planner.direct import WHY_REPLUGGED
from agent.core.planning import plan
from agent.core.reasons import Reason
from agent.core.tell.vm_display import nic_attached
from tests.unit.planning_world import ATTACHED, BRIDGE_LINK, CARD, DESIRED, HOST, RUNNING, WEB, said, types

WAN = NicSpec("lan", "", "02:00:00:00:00:02", "web-lan", 0, direct="eth1")
SPEC = replace(WEB, nics=(WAN,))
DIRECT = Desired({}, {"web": SPEC})
ETH1 = replace(CARD, mac="02:00:00:00:00:0e")
TAP = LinkState(12, "web-lan", "macvtap", True, 1500, WAN.mac, None, tap_mark("web", "lan"), lower=2)
STATE = replace(RUNNING, spec=SPEC)
APART = ("tap/web/lan", "HostApart")
MADE = ArmTap("tap/web/lan", Reason.MISSING, "web", WEB.uid, WAN, None, running=False, lower_ifindex=2)
REPLUG = ReplugNic("tap/web/lan", Reason.MISSING, "web", WEB.uid, WAN, None, lower_ifindex=2, why=WHY_REPLUGGED)


def seen(*links: LinkState, state: VmState | None = STATE, opened: bool = True) -> Observed:
    vms = {"web": state} if state is not None else {}
    names = frozenset({"web-lan"}) if opened else frozenset()
    return Observed(links={link.name: link for link in links}, vms=vms, host=HOST, opened=names)


def changed(change: LinkChange, reason: Reason) -> ChangeLink:
    return ChangeLink("tap/web/lan", reason, "web-lan", 12, TAP.alias, change)


def test_a_guest_that_runs_as_it_should_is_told_of_what_it_cannot_reach() -> None:
    decided = plan(DIRECT, seen(ETH1, TAP), 0.0)
    assert decided.actions == ()
    message = (
        "by lan the guest and this host cannot talk, only the guest and others on eth1: the kernel hands nothing "
        "between eth1 and the macvtaps on it; where they must, give the NIC a bridge"
    )
    assert said(decided) == [("tap/web/lan", "HostApart", "HostApart", message)]
    assert decided.deviating == frozenset()


def test_it_is_made_then_the_guest_is_started() -> None:
    observed = seen(ETH1, state=None, opened=False)
    assert plan(DIRECT, observed, 0.0).actions == (MADE,)
    observed = apply(observed, MADE)
    (launch,) = plan(DIRECT, observed, 0.0).actions
    assert isinstance(launch, LaunchVm)


@pytest.mark.parametrize(
    ("link", "opened"),
    [
        (TAP, False),
        (replace(TAP, alias="", group=GROUP), True),
        (replace(TAP, lower=99), True),
        (replace(TAP, kind="tun", lower=None), True),
    ],
    ids=["of an agent that is gone", "half made", "on another link", "of the bridge that it was on"],
)
def test_one_that_cannot_be_used_is_made_anew(link: LinkState, opened: bool) -> None:
    observed = seen(ETH1, link, state=None, opened=opened)
    delete = DeleteLink("tap/web/lan", Reason.SETTINGS, "web-lan", 12, link.alias)
    assert plan(DIRECT, observed, 0.0).actions == (delete,)
    assert plan(DIRECT, apply(observed, delete), 0.0).actions == (MADE,)


def test_what_is_left_of_a_direct_nic_makes_room_for_its_tap() -> None:
    observed = Observed(links={"br0": BRIDGE_LINK, "eth1": ETH1, "web-lan": TAP}, host=HOST)
    delete = DeleteLink("tap/web/lan", Reason.SETTINGS, "web-lan", 12, TAP.alias)
    assert plan(DESIRED, observed, 0.0).actions == (delete,)
    (arm,) = plan(DESIRED, apply(observed, delete), 0.0).actions
    assert isinstance(arm, ArmTap)


def test_a_half_made_one_that_nobody_wants_is_removed() -> None:
    half = replace(TAP, alias="", group=GROUP)
    (delete,) = plan(Desired(), seen(ETH1, half, state=None), 0.0).actions
    assert delete == DeleteLink("tap/web-lan", Reason.UNWANTED, "web-lan", 12, "")
    assert plan(Desired(), seen(ETH1, replace(half, group=0), state=None), 0.0).actions == ()
    (delete,) = plan(Desired(), seen(ETH1, TAP, state=None), 0.0).actions
    assert delete == DeleteLink("tap/web/lan", Reason.UNWANTED, "web-lan", 12, TAP.alias)


def test_somebody_else_s_link_is_left_alone() -> None:
    decided = plan(DIRECT, seen(ETH1, replace(TAP, alias="mine"), state=None), 0.0)
    assert decided.actions == ()
    assert ("tap/web/lan", "Conflict") in types(decided)


def test_the_guest_waits_for_its_link() -> None:
    decided = plan(DIRECT, seen(state=None, opened=False), 0.0)
    assert decided.actions == ()
    message = "there is no link eth1; lan is put on it when it appears"
    assert ("tap/web/lan", "LinkMissing", "LinkMissing", message) in said(decided)


def test_a_port_carries_no_macvtap() -> None:
    bridge = LinkState(7, "br9", "bridge", True)
    decided = plan(DIRECT, seen(bridge, replace(ETH1, master=7), state=None, opened=False), 0.0)
    assert decided.actions == ()
    (message,) = [text for _, kind, _, text in said(decided) if kind == "Conflict"]
    assert message == (
        "eth1 is a port of br9, and the kernel puts no macvtap on a port; take it out of there, or put the NIC on br9 "
        'by bridge = "br9"'
    )


def test_the_link_s_own_mac_is_refused() -> None:
    decided = plan(DIRECT, seen(replace(ETH1, mac=WAN.mac), state=None, opened=False), 0.0)
    assert decided.actions == ()
    assert ("tap/web/lan", "MacTaken") in types(decided)


def test_the_link_is_set_up_as_a_port_is() -> None:
    down = replace(ETH1, up=False)
    up = ChangeLink("port/eth1", Reason.DOWN, "eth1", 2, "", LinkChange(up=True))
    assert plan(DIRECT, seen(down, TAP), 0.0).actions == (up,)
    assert set(plan(DIRECT, seen(down, state=None, opened=False), 0.0).actions) == {up, MADE}
    assert apply(seen(down, TAP), up).links["eth1"].up


@pytest.mark.parametrize(
    ("link", "action"),
    [
        (replace(TAP, up=False), changed(LinkChange(up=True), Reason.DOWN)),
        (replace(TAP, mac="02:00:00:00:00:99"), changed(LinkChange(mac=WAN.mac), Reason.MAC)),
        (replace(TAP, mtu=900), changed(LinkChange(mtu=1500), Reason.MTU)),
    ],
)
def test_it_is_kept_as_it_is_to_be(link: LinkState, action: Action) -> None:
    assert plan(DIRECT, seen(ETH1, link), 0.0).actions == (action,)
    assert plan(DIRECT, apply(seen(ETH1, link), action), 0.0).actions == ()


def test_a_link_with_a_smaller_mtu_is_told_and_served() -> None:
    small = replace(ETH1, mtu=1400)
    decided = plan(DIRECT, seen(small, replace(TAP, mtu=1400)), 0.0)
    assert decided.actions == ()
    assert ("tap/web/lan", "MtuTooLarge") in types(decided)


@pytest.mark.parametrize("backend", [NicBackend.DEAD, NicBackend.UNKNOWN])
def test_one_that_is_lost_is_healed_by_a_replug(backend: NicBackend) -> None:
    lost = replace(STATE, nics={"lan": NicState(backend)})
    decided = plan(DIRECT, seen(ETH1, state=lost), 0.0)
    why = WHY_REPLUGGED
    assert decided.actions == (replace(REPLUG, why=why),)
    assert types(decided) == [APART]
    healed = apply(seen(ETH1, state=lost, opened=False), REPLUG)
    assert plan(DIRECT, healed, 0.0).actions == ()


def test_without_its_link_it_waits_and_is_replugged_when_that_returns() -> None:
    lost = replace(STATE, nics={"lan": NicState(NicBackend.DEAD)})
    decided = plan(DIRECT, seen(state=lost), 0.0)
    assert decided.actions == ()
    assert types(decided) == [APART, ("tap/web/lan", "LinkMissing")]
    again = replace(ETH1, ifindex=44)
    assert plan(DIRECT, seen(again, state=lost), 0.0).actions == (replace(REPLUG, lower_ifindex=44),)


def test_a_microvm_and_a_guest_that_stands_still_cannot_be_replugged() -> None:
    lost = replace(STATE, nics={"lan": NicState(NicBackend.DEAD)})
    micro = replace(lost, spec=replace(SPEC, machine="microvm"))
    decided = plan(Desired({}, {"web": micro.spec}), seen(ETH1, state=micro), 0.0)
    assert decided.actions == ()
    message = (
        f"web-lan is gone, {WHY_REPLUGGED}, and a microvm cannot replug a NIC; `vmhost restart web` brings it back"
    )
    assert ("tap/web/lan", "TapLost", "TapLost", message) in said(decided)
    still = plan(DIRECT, seen(ETH1, state=replace(lost, run_state="paused")), 0.0)
    assert ("tap/web/lan", "TapLost") in types(still)
    assert not any(isinstance(action, ReplugNic) for action in still.actions)


def test_a_link_that_is_renamed_takes_its_macvtaps_along() -> None:
    renamed = replace(ETH1, name="wan0")
    decided = plan(DIRECT, seen(renamed, TAP), 0.0)
    assert decided.actions == ()
    (message,) = [text for _, kind, _, text in said(decided) if kind == "LinkMissing"]
    assert message == (
        "eth1 is called wan0 by now, and lan goes on on it; the guest's next start waits for eth1: `ip link set wan0 "
        'down name eth1`, or direct = "wan0", prevents that'
    )


def test_one_that_a_running_guest_lacks_is_plugged() -> None:
    bare = replace(STATE, nics={}, devices=frozenset({"slot-0"}))
    observed = seen(ETH1, state=bare, opened=False)
    assert plan(DIRECT, observed, 0.0).actions == (MADE,)
    plug = PlugNic("tap/web/lan", Reason.MISSING, "web", WEB.uid, WAN)
    assert plan(DIRECT, apply(observed, MADE), 0.0).actions == (plug,)


def test_attached_is_said_of_what_can_be_reached() -> None:
    links = {link.name: link for link in (ETH1, TAP)}
    assert nic_attached(STATE, WAN, links) is True
    assert nic_attached(STATE, WAN, {**links, "eth1": replace(ETH1, up=False)}) is False
    assert nic_attached(STATE, WAN, {**links, "web-lan": replace(TAP, lower=9)}) is False
    assert nic_attached(STATE, WAN, {"web-lan": TAP}) is False
    assert STATE.nics == ATTACHED
