"""The frontier for NICs with several queues, and for those whose frames the kernel carries."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.actions import DeleteLink
from agent.core.device_actions import ArmTap, ReplugNic
from agent.core.model.host import apply
from agent.core.observed import NicBackend, NicState
from agent.core.planning import plan
from agent.core.reasons import Reason
from tests.unit.planning_world import (
    ABSENT,
    BRIDGE_LINK,
    DESIRED,
    HOST,
    NIC,
    RUNNING,
    SETTLED,
    TAP,
    WEB,
    said,
    types,
    with_links,
)

LAN = replace(NIC, queues=4)
SPEC = replace(WEB, nics=(LAN,))
QUEUES = replace(DESIRED, vms={"web": SPEC})
STATE = replace(RUNNING, spec=SPEC)
VHOST = replace(WEB, nics=(replace(NIC, vhost="true"),))
CARRIED = replace(RUNNING, spec=VHOST, vhosts=frozenset({"lan"}))
LACK = "/dev/vhost-net: No such file or directory; `modprobe vhost_net` brings it"


@pytest.mark.parametrize("several", [False, True])
def test_a_tap_that_was_made_for_another_number_is_made_anew(several: bool) -> None:
    desired, lan = (QUEUES, LAN) if several else (DESIRED, NIC)
    tap = replace(TAP, multi_queue=not several)
    observed = replace(ABSENT, links={**ABSENT.links, "web-lan": tap})
    delete = DeleteLink("tap/web/lan", Reason.SETTINGS, "web-lan", 11, TAP.alias)
    assert plan(desired, observed, 0.0).actions == (delete,)
    observed = apply(observed, delete)
    arm = ArmTap("tap/web/lan", Reason.MISSING, "web", WEB.uid, lan, 10, running=False)
    assert plan(desired, observed, 0.0).actions == (arm,)
    assert apply(observed, arm).links["web-lan"].multi_queue is several


def test_that_of_a_running_guest_is_never_touched_for_its_number() -> None:
    edited = replace(SETTLED, links={**SETTLED.links, "web-lan": replace(TAP, multi_queue=True)})
    assert plan(DESIRED, edited, 0.0).actions == ()


def test_a_deleted_one_is_re_armed_unnoticed() -> None:
    dead = replace(SETTLED, vms={"web": replace(STATE, nics={"lan": NicState(NicBackend.DEAD)})})
    arm = ArmTap("tap/web/lan", Reason.MISSING, "web", WEB.uid, LAN, 10, running=True)
    assert plan(QUEUES, with_links(BRIDGE_LINK, of=dead), 0.0).actions == (arm,)


def test_one_with_some_of_its_queues_is_finished_and_a_stranger_is_left_alone() -> None:
    unmarked = replace(TAP, alias="", multi_queue=True, master=None, up=False)
    half = replace(STATE, nics={"lan": NicState(NicBackend.DEAD, "web-lan")})
    observed = replace(with_links(BRIDGE_LINK, unmarked), vms={"web": half})
    arm = ArmTap("tap/web/lan", Reason.MISSING, "web", WEB.uid, LAN, 10, running=True)
    assert plan(QUEUES, observed, 0.0).actions == (arm,)
    strange = replace(observed, vms={"web": replace(half, nics={"lan": NicState(NicBackend.DEAD)})})
    decided = plan(QUEUES, strange, 0.0)
    assert (decided.actions, types(decided)) == ((), [("tap/web/lan", "Conflict")])


def test_what_vhost_holds_is_replugged_and_that_is_said() -> None:
    dead = replace(SETTLED, vms={"web": replace(CARRIED, nics={"lan": NicState(NicBackend.DEAD)})})
    desired = replace(DESIRED, vms={"web": VHOST})
    (replug,) = plan(desired, with_links(BRIDGE_LINK, of=dead), 0.0).actions
    assert isinstance(replug, ReplugNic)
    assert (replug.why, replug.bridge_ifindex, replug.disruption) == ("vhost-net keeps to the old one", 10, "link")
    assert plan(desired, apply(with_links(BRIDGE_LINK, of=dead), replug), 0.0).actions == ()


@pytest.mark.parametrize(
    ("problem", "running", "message"),
    [
        (LACK, False, f"lan will go without vhost-net, which is slower: {LACK}"),
        (LACK, True, f"lan goes without vhost-net, which is slower: {LACK}"),
        (
            "",
            True,
            "lan goes without vhost-net, which is slower: vhost-net is there by now: `vmhost restart web` takes it",
        ),
        ("", False, ""),
    ],
)
def test_a_guest_without_the_vhost_that_it_is_to_have_starts_and_is_told(
    problem: str, running: bool, message: str
) -> None:
    host = replace(HOST, vhost_problem=problem)
    vms = {"web": replace(CARRIED, vhosts=frozenset())} if running else {}
    decided = plan(replace(DESIRED, vms={"web": VHOST}), replace(SETTLED, vms=vms, host=host), 0.0)
    assert [text for _, kind, _, text in said(decided) if kind == "VhostMissing"] == ([message] if message else [])
    assert len(decided.actions) == (not running)


def test_auto_is_content_without() -> None:
    auto = replace(WEB, nics=(replace(NIC, vhost="auto"),))
    observed = replace(SETTLED, vms={"web": replace(RUNNING, spec=auto)}, host=replace(HOST, vhost_problem=LACK))
    decided = plan(replace(DESIRED, vms={"web": auto}), observed, 0.0)
    assert (decided.actions, types(decided)) == ((), [])
