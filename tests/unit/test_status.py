"""The status, word for word, and the one word for each guest."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from agent.core.conditions import Condition
from agent.core.desired import BridgeSpec, Desired, DiskSpec, NicSpec, Restart, VmSpec
from agent.core.edits.digest import digest
from agent.core.errors import UnitError
from agent.core.observed import (
    Attempt,
    End,
    HostState,
    IngressState,
    Intent,
    LinkState,
    NicBackend,
    NicState,
    Observed,
    QdiscState,
    VmState,
)
from agent.core.planner.approval import Approval
from agent.core.planner.draft import Plan
from agent.core.rates import shape_of
from agent.core.tell.status import AgentFacts, StatusInputs, status
from agent.core.tell.vm_display import is_running_as_asked, nic_attached, rates_in_force, vm_display_state

NIC = NicSpec("lan", "br-lan", "02:00:00:00:00:01", "web-lan", 0)
WEB = VmSpec(
    "web", "u-web", 1900000000, file="/u/web.toml", nics=(NIC,), disks=(DiskSpec("root", "/d/web.qcow2", "qcow2", 1),)
)
BRIDGE = BridgeSpec("br-lan", "02:00:00:00:00:02", file="/u/net.toml", ports=("eth1",), addresses=("192.168.0.1/24",))
BRIDGE_LINK = LinkState(2, "br-lan", "bridge", up=True, alias="vmhost:bridge/br-lan")
TAP_LINK = LinkState(3, "web-lan", "tun", up=True, master=2, alias="vmhost:tap/web/lan")
ATTACHED = {"lan": NicState(NicBackend.ATTACHED, "web-lan")}
RUNNING = VmState(WEB, alive=True, pid=42, run_state="running", nics=ATTACHED)
LINKS = {"br-lan": BRIDGE_LINK, "web-lan": TAP_LINK}
AGENT = AgentFacts(version="0.1.0", pid=7, started="2026-01-01T00:00:00Z", settled=True)
SINCE = "2026-01-01T00:00:05Z"


@dataclass(frozen=True)
class File:
    path: str
    state: str
    errors: tuple[UnitError, ...] = ()


@dataclass(frozen=True)
class Change:
    key: str
    before: object
    after: object


def condition(resource: str, type_: str, message: str) -> dict[str, str]:
    return {"type": type_, "reason": type_, "message": message, "since": SINCE, "resource": resource}


PROMISED = {
    "agent": {
        "settled": True,
        "version": "0.1.0",
        "pid": 7,
        "started": "2026-01-01T00:00:00Z",
        "units_dir": "",
        "listen": "",
        "approvals": [],
        "in_flight": [{"resource": "port/eth1", "action": "enslave-port"}],
        "services": [],
        "conditions": [condition("units", "UnitsMissing", "/u cannot be read")],
    },
    "units": [
        {"file": "/u/net.toml", "state": "valid", "errors": []},
        {
            "file": "/u/web.toml",
            "state": "held",
            "errors": [{"line": 3, "column": 5, "problem": 'unknown key "memry"', "hint": 'did you mean "memory"?'}],
        },
    ],
    "bridges": [
        {
            "name": "br-lan",
            "up": True,
            "mtu": 1500,
            "mac": "02:00:00:00:00:02",
            "addresses": ["192.168.0.1/24"],
            "ports": ["web-lan"],
            "dhcp": None,
            "ipv6": None,
            "services": [],
            "in_sync": False,
            "file": "/u/net.toml",
            "conditions": [condition("port/eth1", "PortMissing", "eth1 does not exist")],
        }
    ],
    "vlans": [],
    "vms": [
        {
            "name": "web",
            "uuid": "u-web",
            "state": "running",
            "pid": 42,
            "restarts": 2,
            "in_sync": False,
            "pending": [
                {
                    "key": "memory",
                    "from": "512M",
                    "to": "1G",
                    "effect": "restart",
                    "outage": "restart: down until it has stopped (at most 60 s) and booted again",
                }
            ],
            "digest": digest(WEB),
            "digest_wanted": digest(WEB),
            "nics": [
                {
                    "name": "lan",
                    "tap": "web-lan",
                    "bridge": "br-lan",
                    "direct": None,
                    "queues": 1,
                    "vhost": False,
                    "mac": "02:00:00:00:00:01",
                    "address": None,
                    "addresses": [],
                    "leased": None,
                    "attached": True,
                    "rate_in": None,
                    "rate_out": None,
                }
            ],
            "disks": [
                {
                    "name": "root",
                    "path": "/d/web.qcow2",
                    "media": "disk",
                    "format": "qcow2",
                    "size_bytes": None,
                    "read_only": False,
                }
            ],
            "file": "/u/web.toml",
            "description": "",
            "conditions": [condition("tap/web/lan", "Conflict", "a link web-lan exists")],
        }
    ],
}


def test_status_has_the_promised_shape() -> None:
    error = UnitError("/u/web.toml", 3, 5, 'unknown key "memry"', 'did you mean "memory"?')
    inputs = StatusInputs(
        agent=AGENT,
        files=[File("/u/web.toml", "held", (error,)), File("/u/net.toml", "valid")],
        desired=Desired({"br-lan": BRIDGE}, {"web": WEB}),
        observed=Observed(links=LINKS, vms={"web": RUNNING}, in_flight={"port/eth1": "enslave-port port/eth1"}),
        plan=Plan(deviating=frozenset({"port/eth1"})),
        conditions=[
            (Condition("port/eth1", "PortMissing", "PortMissing", "eth1 does not exist"), SINCE),
            (Condition("tap/web/lan", "Conflict", "Conflict", "a link web-lan exists"), SINCE),
            (Condition("units", "UnitsMissing", "UnitsMissing", "/u cannot be read"), SINCE),
        ],
        pending={"web": [Change("memory", "512M", "1G")]},
        restarts={"web": 2},
    )
    assert status(inputs) == PROMISED


def test_an_approval_names_its_guests() -> None:
    approval = Approval("ab12", ("db", "web"), frozenset())
    found = status(StatusInputs(AGENT, plan=Plan(approval=approval)))["agent"]
    assert isinstance(found, dict)
    why = "their units want these guests stopped or restarted, more at once than is allowed unasked"
    assert found["approvals"] == [{"id": "ab12", "guests": ["db", "web"], "why": why}]


@pytest.mark.parametrize(("deviating", "in_sync"), [((), True), (("tap/web/lan",), False), (("tap/webby/lan",), True)])
def test_a_guest_is_in_sync_with_all_of_its_parts(deviating: tuple[str, ...], in_sync: bool) -> None:
    other = replace(WEB, name="webby", uuid="u-webby")
    observed = Observed(vms={"web": RUNNING})
    inputs = StatusInputs(
        AGENT,
        desired=Desired(vms={"web": WEB, "webby": other}),
        observed=observed,
        plan=Plan(deviating=frozenset(deviating)),
    )
    vms = status(inputs)["vms"]
    assert isinstance(vms, list)
    assert vms[0]["in_sync"] is in_sync


def test_a_held_guest_shows_with_its_pid_and_is_not_in_sync() -> None:
    conditions = [(Condition("vm/web", "Held", "UnitInvalid", "mend it"), SINCE)]
    vms = status(StatusInputs(AGENT, observed=Observed(vms={"web": RUNNING}), conditions=conditions))["vms"]
    assert isinstance(vms, list)
    assert (vms[0]["state"], vms[0]["pid"], vms[0]["in_sync"]) == ("held", 42, False)


HOST = HostState(boot_id="boot")


def ended(reason: str) -> Observed:
    return Observed(host=HOST, ends={"web": (End(1.0, 1.0, "boot", reason),)})


def with_state(run_state: str | None) -> Observed:
    return Observed(host=HOST, vms={"web": replace(RUNNING, run_state=run_state)})


def test_the_limits_of_a_nic_are_those_in_force() -> None:
    bucket = QdiscState("tbf", own=True, shape=shape_of(10_000_000, 1500))
    ifb = LinkState(9, "ifb-web-lan", "ifb", up=True, alias="vmhost:ifb/web/lan", root=bucket)
    for root, redirect, expected in (
        (bucket, 9, ("10Mbit", "10Mbit")),
        (bucket, 0, ("10Mbit", None)),
        (QdiscState("tbf"), 9, (None, "10Mbit")),
        (None, None, (None, None)),
    ):
        tap = replace(TAP_LINK, root=root, ingress=IngressState("ingress", redirect))
        assert rates_in_force("web", NIC, {**LINKS, "web-lan": tap, "ifb-web-lan": ifb}) == expected
    assert rates_in_force("web", NIC, {}) == (None, None)


@pytest.mark.parametrize(
    ("expected", "spec", "observed", "conditions"),
    [
        ("running", WEB, with_state("running"), ()),
        ("running", WEB, with_state(None), ()),
        ("starting", WEB, with_state("prelaunch"), ()),
        ("paused", WEB, with_state("io-error"), ("PausedOnIoError",)),
        ("paused", WEB, with_state("paused"), ("Paused",)),
        ("panicked", WEB, with_state("guest-panicked"), ()),
        ("failed", WEB, with_state("internal-error"), ()),
        ("stopping", WEB, with_state("shutdown"), ()),
        ("unresponsive", WEB, with_state(None), ("Unresponsive",)),
        ("held", None, with_state("running"), ("Held",)),
        ("stopping", None, with_state("running"), ()),
        ("stopping", replace(WEB, enabled=False), with_state("running"), ()),
        ("stopping", WEB, replace(with_state("running"), intents={"web": Intent(stopped=True)}), ()),
        ("stopping", WEB, replace(with_state("running"), in_flight={"vm/web": "stop-vm vm/web"}), ()),
        ("starting", WEB, Observed(in_flight={"vm/web": "launch-vm vm/web"}), ()),
        ("starting", WEB, Observed(), ()),
        ("waiting", WEB, Observed(), ("DiskMissing",)),
        ("stopped", WEB, Observed(intents={"web": Intent(stopped=True)}), ()),
        ("stopped", replace(WEB, enabled=False), Observed(), ()),
        ("stopped", None, Observed(), ()),
        ("off", WEB, ended("guest_shutdown"), ()),
        ("waiting", WEB, ended("crash"), ("Backoff",)),
        ("crash-loop", WEB, ended("crash"), ("Backoff", "CrashLoop")),
        ("failed", replace(WEB, restart=Restart.NEVER), ended("crash"), ()),
        ("off", replace(WEB, restart=Restart.NEVER), ended("guest_shutdown"), ()),
        (
            "failed",
            WEB,
            Observed(attempts={"launch-vm vm/web": Attempt(1, 9.0, "FileMissing", "no kernel", "f")}),
            ("FileMissing",),
        ),
    ],
)
def test_the_word_for_a_guest(
    expected: str, spec: VmSpec | None, observed: Observed, conditions: tuple[str, ...]
) -> None:
    assert vm_display_state("web", spec, observed, conditions) == expected


@pytest.mark.parametrize(
    ("expected", "state", "links"),
    [
        (True, RUNNING, LINKS),
        (False, None, LINKS),
        (False, replace(RUNNING, alive=False), LINKS),
        (False, RUNNING, {"br-lan": BRIDGE_LINK}),
        (False, RUNNING, {**LINKS, "web-lan": replace(TAP_LINK, master=None)}),
        (False, RUNNING, {**LINKS, "web-lan": replace(TAP_LINK, up=False)}),
        (False, replace(RUNNING, nics={"lan": NicState(NicBackend.DEAD)}), LINKS),
        (None, replace(RUNNING, nics={}), LINKS),
    ],
)
def test_attached_means_that_frames_can_pass(
    expected: bool | None, state: VmState | None, links: dict[str, LinkState]
) -> None:
    assert nic_attached(state, NIC, links) is expected


@pytest.mark.parametrize(
    ("expected", "state", "intent"),
    [
        (True, RUNNING, Intent()),
        (False, None, Intent()),
        (False, replace(RUNNING, run_state="prelaunch"), Intent()),
        (False, RUNNING, Intent(generation=1)),
        (False, RUNNING, Intent(reset_generation=1)),
        (True, replace(RUNNING, generation=1), Intent(generation=1)),
    ],
)
def test_running_as_asked_answers_the_latest_restart(expected: bool, state: VmState | None, intent: Intent) -> None:
    assert is_running_as_asked(state, intent) is expected
