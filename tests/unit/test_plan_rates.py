"""The limits of NICs: what is wanted and seen, and exactly which actions and conditions follow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.actions import Action, ChangeLink, ChangeRate, DeleteLink, LaunchVm
from agent.core.attempts import after_failure
from agent.core.desired import Desired, NicSpec
from agent.core.device_actions import ArmTap, TakeOver
from agent.core.errors import TransientError
from agent.core.marks import GROUP, derived_ifb, tap_mark
from agent.core.model.host import apply
from agent.core.observed import IngressState, LinkState, NicBackend, NicState, Observed, QdiscState
from agent.core.planner.draft import Plan
from agent.core.planner.repairs import Ledger, look
from agent.core.planning import plan
from agent.core.rates import Shape, is_shape, rate_text, shape_of
from agent.core.reasons import Reason
from agent.core.tell.describe import describe
from tests.unit.planning_world import ABSENT, BRIDGE, BRIDGE_LINK, NIC, RUNNING, SETTLED, TAP, WEB, said

IN_BPS, OUT_BPS = 10_000_000, 5_000_000
LIMITED = replace(NIC, rate_in_bps=IN_BPS, rate_out_bps=OUT_BPS)
BUCKET = QdiscState("tbf", own=True, shape=shape_of(IN_BPS, 1500))
IFB = LinkState(
    12, "ifb-web-lan", "ifb", True, 1500, alias="vmhost:ifb/web/lan", group=GROUP,
    root=QdiscState("tbf", own=True, shape=shape_of(OUT_BPS, 1500)),
)  # fmt: skip
LED = IngressState("ingress", redirect=12)
LIMITED_TAP = replace(TAP, root=BUCKET, ingress=LED)


def desired(nic: NicSpec = LIMITED) -> Desired:
    return Desired({"br0": BRIDGE}, {"web": replace(WEB, nics=(nic,))})


def seen(*links: LinkState, of: Observed = SETTLED) -> Observed:
    return replace(of, links={link.name: link for link in (BRIDGE_LINK, *links)})


def decide(observed: Observed, nic: NicSpec = LIMITED) -> Plan:
    """The plan for a guest that has taken over these limits already."""
    vms = {name: replace(state, spec=replace(WEB, nics=(nic,))) for name, state in observed.vms.items()}
    return plan(desired(nic), replace(observed, vms=vms), 0.0)


def change(rate_in: int | None, rate_out: int | None) -> ChangeRate:
    return ChangeRate(
        "tap/web/lan", Reason.RATE, "web", "lan", "web-lan", 11, tap_mark("web", "lan"), 1500, rate_in, rate_out
    )


OTHER_IN = replace(BUCKET, shape=shape_of(20_000_000, 1500))
OTHER_OUT = replace(BUCKET, shape=shape_of(OUT_BPS * 2, 1500))


@pytest.mark.parametrize(
    ("tap", "ifb", "expected"),
    [
        (LIMITED_TAP, IFB, None),
        (TAP, None, change(IN_BPS, OUT_BPS)),
        (replace(LIMITED_TAP, root=None), IFB, change(IN_BPS, None)),
        (replace(LIMITED_TAP, root=OTHER_IN), IFB, change(IN_BPS, None)),
        (replace(LIMITED_TAP, root=replace(BUCKET, shape=None)), IFB, change(IN_BPS, None)),
        (replace(LIMITED_TAP, ingress=None), IFB, change(None, OUT_BPS)),
        (replace(LIMITED_TAP, ingress=IngressState("ingress")), IFB, change(None, OUT_BPS)),
        (replace(LIMITED_TAP, ingress=IngressState("ingress", 0)), IFB, change(None, OUT_BPS)),
        (replace(LIMITED_TAP, ingress=IngressState("ingress", 99)), IFB, change(None, OUT_BPS)),
        (replace(LIMITED_TAP, ingress=IngressState("ingress", 99, foreign=True)), IFB, change(None, OUT_BPS)),
        (replace(LIMITED_TAP, ingress=IngressState("ingress", 12, foreign=True)), IFB, None),
        (LIMITED_TAP, None, change(None, OUT_BPS)),
        (LIMITED_TAP, replace(IFB, up=False), change(None, OUT_BPS)),
        (LIMITED_TAP, replace(IFB, alias=""), change(None, OUT_BPS)),
        (LIMITED_TAP, replace(IFB, root=None), change(None, OUT_BPS)),
        (LIMITED_TAP, replace(IFB, root=OTHER_OUT), change(None, OUT_BPS)),
        (LIMITED_TAP, replace(IFB, root=QdiscState("tbf")), change(None, OUT_BPS)),
    ],
)
def test_limits_are_set_and_healed(tap: LinkState, ifb: LinkState | None, expected: ChangeRate | None) -> None:
    observed = seen(tap, *([ifb] if ifb else []))
    decided = decide(observed)
    assert decided.actions == ((expected,) if expected else ())
    assert decided.conditions == ()
    if expected is not None:
        assert decide(apply(observed, expected)).actions == ()


@pytest.mark.parametrize(
    ("tap", "ifb", "expected"),
    [
        (LIMITED_TAP, IFB, change(0, 0)),
        (replace(LIMITED_TAP, ingress=None), None, change(0, None)),
        (replace(LIMITED_TAP, root=None), IFB, change(None, 0)),
        (replace(TAP, ingress=IngressState("ingress")), IFB, change(None, 0)),
        (replace(TAP, ingress=IngressState("ingress", 12, foreign=True)), IFB, change(None, 0)),
        (TAP, IFB, DeleteLink("tap/web/lan", Reason.UNWANTED, "ifb-web-lan", 12, "vmhost:ifb/web/lan")),
        (TAP, replace(IFB, alias=""), DeleteLink("ifb/ifb-web-lan", Reason.UNWANTED, "ifb-web-lan", 12, "")),
        (TAP, None, None),
    ],
)
def test_limits_that_left_the_unit_leave_nothing(
    tap: LinkState, ifb: LinkState | None, expected: Action | None
) -> None:
    observed = seen(tap, *([ifb] if ifb else []))
    assert decide(observed, NIC).actions == ((expected,) if expected is not None else ())
    for _ in range(3):
        for action in decide(observed, NIC).actions:
            observed = apply(observed, action)
    left = observed.links["web-lan"]
    assert "ifb-web-lan" not in observed.links
    assert (left.root, left.ingress) in [(None, None), (None, IngressState("ingress", None, foreign=True))]


@pytest.mark.parametrize(
    ("root", "ingress"),
    [
        (QdiscState("fq_codel"), None),
        (QdiscState("tbf"), None),
        (None, IngressState("clsact")),
        (None, IngressState("clsact", foreign=True)),
        (None, IngressState("ingress")),
        (None, IngressState("ingress", foreign=True)),
    ],
)
def test_what_an_operator_put_on_a_tap_is_left_alone(root: QdiscState | None, ingress: IngressState | None) -> None:
    decided = decide(seen(replace(TAP, root=root, ingress=ingress)), NIC)
    assert decided == Plan()


def test_what_stands_in_the_way_of_a_limit_is_told() -> None:
    tap = replace(TAP, root=QdiscState("fq_codel"), ingress=IngressState("clsact"))
    decided = decide(seen(tap))
    assert decided.actions == ()
    remedy = "`tc qdisc del dev web-lan clsact` makes room"
    end = "that is not ours stands in the way of"
    assert said(decided) == [
        (
            "tap/web/lan", "Conflict", "Conflict",
            f"a fq_codel on web-lan {end} rate-in; it is left alone, `tc qdisc del dev web-lan root` makes room",
        ),
        (
            "tap/web/lan", "Conflict", "Conflict",
            f"filters at the clsact of web-lan {end} rate-out; it is left alone, {remedy}",
        ),
    ]  # fmt: skip
    (told,) = decide(seen(replace(LIMITED_TAP, ingress=None), LinkState(12, "ifb-web-lan", "ifb"))).conditions
    assert told.message == (
        f"a link ifb-web-lan {end} rate-out; it is left alone, `ip link set ifb-web-lan down name another-name` "
        "makes room"
    )


def test_a_guest_starts_limited_but_not_for_want_of_a_limit() -> None:
    absent = seen(TAP, of=ABSENT)
    (action,) = decide(absent).actions
    assert action == change(IN_BPS, OUT_BPS)
    busy = replace(absent, in_flight={"tap/web/lan": "change-rate tap/web/lan"})
    assert decide(busy).actions == ()
    (launch,) = decide(apply(absent, action)).actions
    assert isinstance(launch, LaunchVm)
    attempt = after_failure(action, TransientError("no ifb", reason="KernelLacks"), None, 0.0)
    refused = decide(replace(absent, attempts={"change-rate tap/web/lan": attempt}))
    assert [type(one) for one in refused.actions] == [LaunchVm]
    assert said(refused) == [("tap/web/lan", "KernelLacks", "KernelLacks", "no ifb")]
    foreign = decide(seen(replace(TAP, root=QdiscState("htb"), ingress=IngressState("clsact")), of=ABSENT))
    assert [type(one) for one in foreign.actions] == [LaunchVm]


def test_each_direction_stands_alone() -> None:
    only_in, only_out = replace(LIMITED, rate_out_bps=None), replace(LIMITED, rate_in_bps=None)
    assert decide(seen(TAP), only_in).actions == (change(IN_BPS, None),)
    assert decide(seen(TAP), only_out).actions == (change(None, OUT_BPS),)
    assert decide(seen(replace(TAP, root=BUCKET)), only_in).actions == ()
    assert decide(seen(replace(TAP, ingress=LED), IFB), only_out).actions == ()
    assert decide(seen(LIMITED_TAP, IFB), only_in).actions == (change(None, 0),)
    assert decide(seen(LIMITED_TAP, IFB), only_out).actions == (change(0, None),)


def test_a_rearmed_tap_is_limited_again() -> None:
    lost = replace(RUNNING, nics={"lan": NicState(NicBackend.DEAD)})
    observed = replace(seen(IFB), vms={"web": lost})
    (arm,) = decide(observed).actions
    assert isinstance(arm, ArmTap)
    armed = apply(observed, arm)
    tap = armed.links["web-lan"]
    (again,) = decide(armed).actions
    assert again == replace(change(IN_BPS, OUT_BPS), ifindex=tap.ifindex)
    assert decide(apply(armed, again)).actions == ()


def test_a_tap_is_limited_also_where_its_descriptor_cannot_be_had() -> None:
    unknown = replace(RUNNING, nics={"lan": NicState(NicBackend.UNKNOWN)})
    assert decide(replace(seen(TAP), vms={"web": unknown})).actions == (change(IN_BPS, OUT_BPS),)


def test_a_tap_out_of_its_bridge_is_put_back_first() -> None:
    (first,) = decide(seen(replace(TAP, master=None))).actions
    assert isinstance(first, ChangeLink)


def test_the_ifb_of_a_renamed_guest_stays_until_nothing_is_led_to_it() -> None:
    old = replace(IFB, name="ifb-old-lan", alias="vmhost:ifb/old/lan")
    (action,) = decide(seen(LIMITED_TAP, old)).actions
    assert action == change(None, OUT_BPS)
    after = apply(seen(LIMITED_TAP, old), action)
    (gone,) = decide(after).actions
    assert gone == DeleteLink("tap/old/lan", Reason.UNWANTED, "ifb-old-lan", 12, "vmhost:ifb/old/lan")


def test_a_half_made_limit_is_taken_away_with_its_ifb_whatever_its_guest_does() -> None:
    """Else an empty ingress discipline would stay, of which nobody could tell any more that it is ours."""
    half = seen(replace(TAP, ingress=IngressState("ingress")), replace(IFB, root=None), of=ABSENT)
    waiting = replace(half, in_flight={"vm/web": "end-vm vm/web"})
    assert decide(waiting, NIC).actions == ()
    assert decide(half, NIC).actions == (change(None, 0),)
    theirs = seen(replace(TAP, ingress=IngressState("ingress", foreign=True)), IFB, of=ABSENT)
    (gone,) = [one for one in decide(theirs, NIC).actions if isinstance(one, DeleteLink)]
    assert gone.link == "ifb-web-lan"


def test_a_foreign_ifb_is_left_alone() -> None:
    assert decide(seen(TAP, LinkState(12, "ifb0", "ifb")), NIC) == Plan()


def test_ifbs_outlive_units_that_were_not_read_yet() -> None:
    observed = seen(LIMITED_TAP, IFB, of=ABSENT)
    assert plan(replace(Desired(), complete=False), observed, 0.0).actions == ()
    names = {action.link for action in plan(Desired(), observed, 0.0).actions if isinstance(action, DeleteLink)}
    assert names == {"br0", "web-lan"}


def test_a_fault_is_a_repair_and_an_edit_is_none() -> None:
    runs = replace(SETTLED, vms={"web": replace(RUNNING, spec=replace(WEB, nics=(LIMITED,)))})
    right, hurt = seen(LIMITED_TAP, IFB, of=runs), seen(replace(LIMITED_TAP, root=None), IFB, of=runs)
    wanted = desired()
    ledger, _ = look(Ledger(), plan(wanted, right, 0.0), wanted, right, 0.0)
    ledger, _ = look(ledger, plan(wanted, hurt, 1.0), wanted, hurt, 1.0)
    _, repairs = look(ledger, plan(wanted, right, 2.0), wanted, right, 2.0)
    assert [(one.resource, str(one.reason)) for one in repairs] == [("tap/web/lan", "rate")]
    edited = desired(replace(LIMITED, rate_in_bps=1_000_000))
    ledger, _ = look(Ledger(), plan(wanted, right, 0.0), wanted, right, 0.0)
    ledger, _ = look(ledger, plan(edited, right, 1.0), edited, right, 1.0)
    (takeover,) = plan(edited, right, 1.0).actions
    assert isinstance(takeover, TakeOver)
    taken = apply(right, takeover)
    (action,) = plan(edited, taken, 2.0).actions
    assert action == change(1_000_000, None)
    ledger, _ = look(ledger, plan(edited, taken, 2.0), edited, taken, 2.0)
    done = apply(taken, action)
    assert look(ledger, plan(edited, done, 3.0), edited, done, 3.0)[1] == ()


def test_a_limit_is_kept_while_a_guest_lets_go_of_its_nic() -> None:
    leaving = replace(RUNNING, spec=replace(WEB, nics=()), leaving_nics=(LIMITED,), devices=None)
    observed = replace(seen(LIMITED_TAP, IFB), vms={"web": leaving})
    wanted = Desired({"br0": BRIDGE}, {"web": replace(WEB, nics=())})
    assert not any(isinstance(one, ChangeRate | DeleteLink) for one in plan(wanted, observed, 0.0).actions)


def test_filters_beside_a_half_made_ifb_are_the_operators() -> None:
    for ingress in (IngressState("ingress", foreign=True), IngressState("clsact"), None):
        (action,) = decide(seen(replace(TAP, ingress=ingress), IFB), NIC).actions
        assert isinstance(action, DeleteLink)
    decided = decide(seen(replace(TAP, root=BUCKET, ingress=IngressState("ingress", foreign=True)), IFB))
    assert decided.actions == ()
    assert "filters at the ingress of web-lan" in decided.conditions[0].message


def test_a_bucket_of_the_right_rate_that_is_not_ours_is_no_limit() -> None:
    (action,) = decide(seen(LIMITED_TAP, replace(IFB, root=replace(IFB.root, own=False)))).actions  # type: ignore[type-var]
    assert action == change(None, OUT_BPS)


def test_words() -> None:
    assert describe(change(IN_BPS, 0)) == "let 10Mbit in and any rate out through web-lan (rate)"
    assert describe(change(None, 1_500_000)) == "let 1500kbit out through web-lan (rate)"
    assert [rate_text(rate) for rate in (64_000, 10**9, 2_500_000_000)] == ["64kbit", "1Gbit", "2500Mbit"]
    assert derived_ifb("web", "lan") == "ifb-web-lan"
    assert len(derived_ifb("a-guest-with-a-long-name", "lan")) == 15


def test_bursts_and_queues() -> None:
    assert shape_of(1_000_000, 1500) == Shape(1_000_000, 16 << 10, 64 << 10)
    assert shape_of(1_000_000_000, 1500) == Shape(1_000_000_000, 1_250_000, 12_500_000)
    assert shape_of(100 * 10**9, 1500).queue_bytes == 32 << 20
    assert shape_of(1_000_000, 65535) == Shape(1_000_000, 65599, 65599)
    wanted = shape_of(1_000_000, 1500)
    assert is_shape(replace(wanted, burst_bytes=wanted.burst_bytes - 1), wanted)
    assert not is_shape(replace(wanted, burst_bytes=wanted.burst_bytes - 200), wanted)
    assert not is_shape(replace(wanted, queue_bytes=wanted.queue_bytes - 1), wanted)
    assert not is_shape(None, wanted)
