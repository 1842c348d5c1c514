"""The forecast: every action from here to settled in an order that works, with its waits, and always an end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agent.core.actions import StopVm, key_of, kind_of
from agent.core.desired import BridgeSpec, Desired, DiskSpec, NicSpec, VmSpec
from agent.core.marks import bridge_mark
from agent.core.observed import (
    Attempt,
    DiskState,
    End,
    HostState,
    Intent,
    LinkState,
    Observed,
    VmState,
)
from agent.core.planner.draft import fingerprint
from agent.core.tell.forecast import Forecast, forecast, forecast_json

BRIDGE = BridgeSpec("br0", "02:00:00:00:00:01", "net.toml")
NIC = NicSpec("lan", "br0", "02:00:00:00:00:02", "web-lan", 0)
WEB = VmSpec("web", "uuid-web", 1_900_000_000, "web.toml", nics=(NIC,))
DB = VmSpec("db", "uuid-db", 1_900_000_001, "db.toml", after=("web",))
HOST = HostState(boot_id="now", start_slots=1)
DESIRED = Desired({"br0": BRIDGE}, {"web": WEB, "db": DB})
NOTHING = Observed(host=HOST)
NOW_S = 1000.0


def steps(found: Forecast) -> list[str]:
    return [f"{kind_of(step.action)} {step.action.resource}" for step in found.steps]


def bare(name: str, **more: Any) -> VmSpec:
    return VmSpec(name, f"uuid-{name}", 1_900_000_000, f"{name}.toml", **more)


def running(spec: VmSpec, **more: Any) -> VmState:
    return VmState(spec, True, 4711, run_state="running", **more)


def test_from_nothing_every_action_has_its_place() -> None:
    found = forecast(DESIRED, NOTHING, NOW_S)
    assert steps(found) == [
        "create-bridge bridge/br0",
        "arm-tap tap/web/lan",
        "launch-vm vm/web",
        "release-vm vm/web",
        "launch-vm vm/db",
        "release-vm vm/db",
    ]
    assert (found.conditions, found.approval, found.complete) == ((), None, True)
    assert {step.after_s for step in found.steps} == {0.0}


def test_the_world_after_a_forecast_is_the_fixed_point() -> None:
    web = bare("web")
    assert forecast(Desired({}, {"web": web}), Observed(vms={"web": running(web)}, host=HOST), NOW_S) == Forecast(
        pending={}
    )


def test_a_backoff_is_waited_for_and_told() -> None:
    ends = tuple(End(NOW_S - 2 + i, 0.5, "now", "crash") for i in range(3))
    seen = replace(NOTHING, ends={"web": ends})
    found = forecast(Desired({}, {"web": bare("web")}), seen, NOW_S)
    launch, release = found.steps
    assert kind_of(launch.action) == "launch-vm"
    assert 0 < launch.after_s <= 2
    assert launch.waits_for.startswith("Backoff: next start in ")
    assert (release.after_s, release.waits_for) == (launch.after_s, "")


def test_a_failed_action_is_tried_again_when_it_is_due() -> None:
    action = forecast(Desired({"br0": BRIDGE}), NOTHING, NOW_S).steps[0].action
    attempt = Attempt(3, NOW_S + 7.5, "ActionFailed", "no buffer space", fingerprint(action))
    seen = replace(NOTHING, attempts={"create-bridge bridge/br0": attempt})
    (step,) = forecast(Desired({"br0": BRIDGE}), seen, NOW_S).steps
    assert (step.after_s, step.waits_for) == (7.5, "ActionFailed: no buffer space")


def test_waits_of_different_lengths_are_told_in_their_order() -> None:
    desired = Desired({name: BridgeSpec(name, "02:00:00:00:00:01") for name in ("br1", "br2")})
    actions = [step.action for step in forecast(desired, NOTHING, NOW_S).steps]
    attempts = {
        key_of(action): Attempt(1, NOW_S + delay_s, "ActionFailed", "x", fingerprint(action))
        for action, delay_s in zip(actions, (9.0, 4.0), strict=True)
    }
    found = forecast(desired, replace(NOTHING, attempts=attempts), NOW_S)
    assert [(step.action.resource, step.after_s) for step in found.steps] == [("bridge/br2", 4.0), ("bridge/br1", 9.0)]


def test_what_nothing_rings_for_is_no_reason_to_wait() -> None:
    disk = DiskSpec("root", "/srv/web.qcow2", "qcow2", 5)
    seen = replace(NOTHING, disks={disk.path: DiskState(False, True, True)})
    found = forecast(Desired({}, {"web": bare("web", disks=(disk,))}), seen, NOW_S)
    assert found.steps == ()
    assert [c.type for c in found.conditions] == ["DiskMissing"]


def test_what_is_under_way_is_told_as_such_and_asks_for_no_approval() -> None:
    guests = {f"g{i}": running(bare(f"g{i}", stop_timeout_s=1.0)) for i in range(3)}
    busy = {f"vm/{name}": f"stop-vm vm/{name}" for name in guests}
    seen = replace(NOTHING, vms=guests, in_flight=busy, stops_at_s=(NOW_S, NOW_S, NOW_S))
    found = forecast(Desired(), seen, NOW_S)
    assert [(kind_of(step.action), step.under_way, step.after_s) for step in found.steps] == [
        ("stop-vm", True, 0.0)
    ] * 3
    assert found.approval is None


def test_stops_beyond_the_limit_wait_for_an_answer() -> None:
    guests = {f"g{i}": running(bare(f"g{i}")) for i in range(5)}
    found = forecast(Desired(), replace(NOTHING, vms=guests), NOW_S)
    assert found.steps == ()
    assert found.approval is not None
    assert len(found.approval.guests) == 5


def test_a_stop_that_waits_for_others_to_be_forgotten_comes_when_they_are() -> None:
    seen = replace(NOTHING, vms={"web": running(bare("web"))}, stops_at_s=(NOW_S - 10,) * 3)
    (step,) = forecast(Desired(), seen, NOW_S).steps
    assert isinstance(step.action, StopVm)
    assert 50 <= step.after_s < 50.1
    assert step.waits_for.startswith("Held: its end was not asked for alone")


def test_a_stop_before_a_start_is_a_restart() -> None:
    web = bare("web")
    seen = replace(NOTHING, vms={"web": running(web)}, intents={"web": Intent(generation=1)})
    found = forecast(Desired({}, {"web": web}), seen, NOW_S)
    assert [(kind_of(step.action), str(step.disruption)) for step in found.steps] == [
        ("stop-vm", "restart"),
        ("launch-vm", "none"),
        ("release-vm", "none"),
    ]
    gone = forecast(Desired({}, {"web": replace(web, enabled=False)}), seen, NOW_S)
    assert [str(step.disruption) for step in gone.steps] == ["stop"]


def test_changes_that_wait_for_a_restart_are_told_with_their_cost_and_disrupt_nothing() -> None:
    web = bare("web")
    found = forecast(
        Desired({}, {"web": replace(web, memory_mib=1024)}), replace(NOTHING, vms={"web": running(web)}), NOW_S
    )
    answer = forecast_json(found)
    assert steps(found) == ["change-reboot vm/web/reboot"]
    assert [step.disruption for step in found.steps] == ["none"]
    outage = "restart: down until it has stopped (at most 60 s) and booted again"
    assert answer["pending"] == [
        {"vm": "web", "key": "memory", "from": "512M", "to": "1G", "effect": "restart", "outage": outage}
    ]


def test_a_link_that_nobody_owns_is_left_alone_in_a_forecast_too() -> None:
    foreign = LinkState(7, "br0", "bridge", alias="theirs")
    found = forecast(Desired({"br0": BRIDGE}), replace(NOTHING, links={"br0": foreign}), NOW_S)
    assert (steps(found), [c.type for c in found.conditions]) == ([], ["Conflict"])
    own = replace(foreign, alias=bridge_mark("br0"), up=True, mac=BRIDGE.mac)
    assert steps(forecast(Desired(), replace(NOTHING, links={"br0": own}), NOW_S)) == ["delete-link bridge/br0"]


def test_a_step_as_json() -> None:
    answer = forecast_json(forecast(Desired({"br0": BRIDGE}), NOTHING, NOW_S))
    assert answer["actions"] == [
        {
            "action": "create-bridge",
            "resource": "bridge/br0",
            "reason": "missing",
            "disruption": "none",
            "text": "make bridge br0",
            "after_s": 0.0,
            "waits_for": "",
            "under_way": False,
        }
    ]
