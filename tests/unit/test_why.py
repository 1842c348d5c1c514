"""`vmhost why`: the whole chain of reasons, word for word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agent.core.actions import StopVm
from agent.core.attempts import after_failure
from agent.core.conditions import Condition
from agent.core.desired import BridgeSpec, Desired, NicSpec, Restart, VmSpec
from agent.core.edits.digest import PendingChange
from agent.core.errors import TransientError
from agent.core.marks import bridge_mark, tap_mark
from agent.core.observed import (
    End,
    HostState,
    Intent,
    LinkState,
    NicBackend,
    NicState,
    Observed,
    VmState,
)
from agent.core.planning import plan
from agent.core.reasons import Reason
from agent.core.tell.show import UnitText
from agent.core.tell.status import AgentFacts, StatusInputs
from agent.core.tell.why import WhyInputs, why

NOW_S = 1000.0
BRIDGE = BridgeSpec("br0", "02:00:00:00:00:01", "/u/net.toml", addresses=("10.0.0.1/24",))
NIC = NicSpec("lan", "br0", "02:00:00:00:00:02", "web-lan", 0)
WEB = VmSpec("web", "uuid-web", 1_900_000_000, "/u/web.toml", nics=(NIC,))
DB = VmSpec("db", "uuid-db", 1_900_000_001, "/u/db.toml", after=("web",))
LINKS = {
    "br0": LinkState(10, "br0", "bridge", True, 1500, BRIDGE.mac, None, bridge_mark("br0")),
    "web-lan": LinkState(11, "web-lan", "tun", True, 1500, "", 10, tap_mark("web", "lan")),
}
RUNNING = VmState(WEB, True, 4711, run_state="running", nics={"lan": NicState(NicBackend.ATTACHED, "web-lan")})
SEEN = Observed(links=LINKS, vms={"web": RUNNING}, host=HostState(boot_id="now"))
DESIRED = Desired({"br0": replace(BRIDGE, addresses=())}, {"web": WEB, "db": DB})
VALID = UnitText("/u/web.toml", 3, "valid", "")


def chain(
    name: str,
    observed: Observed,
    *units: UnitText,
    desired: Desired = DESIRED,
    kind: str = "vm",
    events: Sequence[tuple[str, str, str]] = (),
    pending: Sequence[PendingChange] = (),
) -> list[str]:
    decided = plan(desired, observed, NOW_S)
    status = StatusInputs(
        AgentFacts("0", 1, "", settled=True),
        desired=desired,
        observed=observed,
        plan=decided,
        conditions=[(condition, "12:00") for condition in decided.conditions],
        pending={name: pending},
    )
    told = why(kind, name, WhyInputs(status, NOW_S, units, events))
    return [f"{one.topic}: {one.text}" for one in told]


def crashed(times: int, last_s: float = NOW_S - 0.5) -> Observed:
    ends = tuple(End(last_s - 2.0 * (times - 1 - i), 1.5, "now", "crash") for i in range(times))
    return replace(SEEN, vms={}, ends={"web": ends})


def test_all_is_well() -> None:
    assert chain("web", SEEN, VALID, events=[("11:59", "tap/web/lan", "repaired"), ("12:00", "vm/db", "x")]) == [
        "unit: /u/web.toml:3 defines it",
        'wanted: it is to run; restart = "on-failure" says what follows an end',
        "now: running: QEMU runs as pid 4711 and says running",
        "event: 11:59 tap/web/lan: repaired",
        "next: nothing: it is as its unit says",
    ]


def test_a_crash_loop() -> None:
    assert chain("web", crashed(6), VALID) == [
        "unit: /u/web.toml:3 defines it",
        'wanted: restart = "on-failure" answers its end by "crash", so it is to run again',
        "now: crash-loop: no QEMU of it is there",
        (
            "end: it ended 6 times without a stable run in between: crash after 1.5 s (8.5 s ago), "
            "crash after 1.5 s (6.5 s ago), crash after 1.5 s (4.5 s ago), "
            "crash after 1.5 s (2.5 s ago), crash after 1.5 s (0.5 s ago)"
        ),
        "condition: Backoff: next start in 10 s after crash (since 12:00)",
        "condition: CrashLoop: ended 6 times, last by crash; see its qemu.log (since 12:00)",
        "next: it is started again in 9.7 s; `vmhost start web` does it now",
    ]


def test_a_guest_that_stays_off() -> None:
    off = replace(SEEN, vms={}, ends={"web": (End(NOW_S - 300, 9000, "now", "guest_shutdown"),)})
    assert chain("web", off, VALID)[1:] == [
        'wanted: restart = "on-failure" does not answer an end by "guest_shutdown", so it stays off',
        "now: off: no QEMU of it is there",
        "end: it ended once: guest_shutdown after 2 h (5 min ago)",
        "next: `vmhost start web` starts it",
    ]
    disabled = Desired({}, {"web": replace(WEB, enabled=False, nics=())})
    assert chain("web", replace(off, ends={}), VALID, desired=disabled)[1:] == [
        "wanted: enabled = false, so it is to be off",
        "now: stopped: no QEMU of it is there",
        "next: set enabled = true in its unit",
    ]
    stopped = replace(off, ends={}, intents={"web": Intent(stopped=True)})
    assert chain("web", stopped, VALID)[-1] == "next: `vmhost start web` starts it"


def test_one_that_waits_for_another_one_tells_of_that_too() -> None:
    assert chain("db", crashed(5), UnitText("/u/db.toml", 1, "valid", "")) == [
        "unit: /u/db.toml:1 defines it",
        'wanted: it is to run, after web; restart = "on-failure" says what follows an end',
        "now: waiting: no QEMU of it is there",
        "condition: Waiting: waits for vm web to run (since 12:00)",
        "condition: vm/web in turn: Backoff: next start in 5 s after crash",
        "next: it waits for vm web to run, and starts by itself as soon as that is so",
    ]


def test_one_held_by_its_file_runs_on() -> None:
    held = UnitText("/u/web.toml", 3, "held", "", errors=("/u/web.toml:4:1: error: unknown key",))
    assert chain("web", SEEN, held) == [
        (
            "unit: /u/web.toml:3 defines it and has mistakes, so its last good version holds: "
            "/u/web.toml:4:1: error: unknown key"
        ),
        'wanted: it is to run; restart = "on-failure" says what follows an end',
        "now: running: QEMU runs as pid 4711 and says running",
        "next: mend /u/web.toml; what it says now takes effect then",
    ]


def test_one_whose_file_has_no_version_to_run() -> None:
    invalid = UnitText("/u/web.toml", 3, "invalid", "", errors=("/u/web.toml:4:1: error: unknown key",))
    nobody = Desired({}, {}, unresolved_files=frozenset({"/u/web.toml"}))
    assert chain("web", SEEN, invalid, desired=nobody) == [
        (
            "unit: /u/web.toml:3 defines it, but nothing of a file with mistakes begins: "
            "/u/web.toml:4:1: error: unknown key"
        ),
        "now: held: QEMU runs as pid 4711 and says running",
        "condition: Held: /u/web.toml has no valid version; mend it, the guest stays as it is until then (since 12:00)",
        "next: mend /u/web.toml; it stays as it is until then",
    ]
    assert chain("web", replace(SEEN, vms={}), invalid, desired=nobody)[-1] == (
        "next: mend /u/web.toml; it begins by itself then"
    )


def test_one_that_two_files_name() -> None:
    newcomer = UnitText("/u/x.toml", 1, "invalid", "", errors=("/u/x.toml:1:1: error: vm.web is already defined",))
    assert chain("web", SEEN, VALID, newcomer)[:2] == [
        "unit: /u/web.toml:3 defines it",
        "unit: /u/x.toml:1 names it too, in vain: /u/x.toml:1:1: error: vm.web is already defined",
    ]


def test_one_held_by_a_question() -> None:
    vms = {f"g{i}": VmState(VmSpec(f"g{i}", f"u{i}", 1, "/u/g.toml"), True, 1, run_state="running") for i in range(4)}
    told = chain("g0", replace(SEEN, vms=vms), desired=Desired())
    assert told[:2] == ["unit: no unit file names it any more", "now: held: QEMU runs as pid 1 and says running"]
    assert told[2].startswith("condition: Held: its end was not asked for alone: 4 guests would stop at once")
    assert told[3].startswith("next: `vmhost approve ")


def test_one_that_conflicts_with_a_foreign_link() -> None:
    foreign = {**LINKS, "web-lan": LinkState(11, "web-lan", "dummy")}
    told = chain("web", replace(SEEN, vms={}, links=foreign), VALID)
    message = "a link web-lan exists that is not ours; rename it, or give the NIC another tap ="
    assert told[3:] == [
        f"condition: tap/web/lan: Conflict: {message} (since 12:00)",
        f"next: it goes on by itself as soon as this is mended: {message}",
    ]


def test_a_failed_action_with_its_tries_and_the_next_one() -> None:
    stop = StopVm("vm/web", Reason.UNWANTED, "web", "uuid-web", 60.0, True)
    desired = Desired({}, {"web": replace(WEB, enabled=False)})
    attempt = replace(after_failure(stop, TransientError("QEMU is busy"), None, NOW_S), failures=3, not_before_s=1012.0)
    observed = replace(SEEN, attempts={"stop-vm vm/web": attempt})
    told = chain("web", observed, VALID, desired=desired)
    assert told[3:] == [
        "condition: ActionFailed: QEMU is busy (since 12:00)",
        "attempt: stop-vm of vm/web failed 3 times in a row, last: QEMU is busy",
        "next: another try in 12 s, or at once when its unit or what it depends on changes",
    ]


def test_a_try_that_nothing_speaks_of_any_more_is_over() -> None:
    stop = StopVm("vm/web", Reason.UNWANTED, "web", "uuid-web", 60.0, True)
    attempt = after_failure(stop, TransientError("QEMU is busy"), None, NOW_S)
    assert chain("web", replace(SEEN, attempts={"stop-vm vm/web": attempt}), VALID) == chain("web", SEEN, VALID)


def test_only_the_last_events_are_told() -> None:
    told = chain("web", SEEN, VALID, events=[(f"12:{i:02}", "vm/web", "x") for i in range(20)])
    assert [one for one in told if one.startswith("event")] == [f"event: 12:{i:02} x" for i in range(8, 20)]


def test_what_is_under_way_and_what_waits_for_a_restart() -> None:
    busy = replace(SEEN, vms={}, in_flight={"vm/web": "launch-vm vm/web"})
    assert chain("web", busy, VALID)[2:] == [
        "now: starting: no QEMU of it is there",
        "now: launch-vm of vm/web is under way",
        "next: the end of launch-vm of vm/web, then another look",
    ]
    changed = PendingChange("memory", "512M", "1G")
    assert chain("web", SEEN, VALID, pending=[changed])[-1] == (
        'next: its own reboot, or `vmhost restart web`, applies what waits for it: memory is "512M", its unit says "1G"'
    )


def test_a_guest_whose_end_its_policy_answers_always() -> None:
    always = Desired(DESIRED.bridges, {"web": replace(WEB, restart=Restart.ALWAYS)})
    ended = replace(SEEN, vms={}, ends={"web": (End(NOW_S - 1, 30, "now", "guest_shutdown"),)})
    assert chain("web", ended, VALID, desired=always)[1] == (
        'wanted: restart = "always" answers its end by "guest_shutdown", so it is to run again'
    )


def test_a_bridge() -> None:
    unit = UnitText("/u/net.toml", 1, "valid", "")
    assert chain("br0", SEEN, unit, kind="bridge") == [
        "unit: /u/net.toml:1 defines it",
        "wanted: a bridge with no ports, no addresses, mtu 1500",
        "now: link 10 is up, with web-lan in it",
        "next: nothing: it is as its unit says",
    ]
    ports = Desired({"br0": replace(BRIDGE, addresses=(), ports=("eth1",))}, {"web": WEB})
    message = "there is no link eth1; it is enslaved to br0 when it appears"
    assert chain("br0", SEEN, unit, kind="bridge", desired=ports)[1:] == [
        "wanted: a bridge with ports eth1, no addresses, mtu 1500",
        "now: link 10 is up, with web-lan in it",
        f"condition: port/eth1: PortMissing: {message} (since 12:00)",
        f"next: it goes on by itself as soon as this is mended: {message}",
    ]
    foreign = replace(SEEN, vms={}, links={"br0": LinkState(3, "br0", "bridge", alias="theirs")})
    assert chain("br0", foreign, unit, kind="bridge")[2] == "now: link 3 of this name is there, and it is not ours"


def test_other_people_s_conditions_are_not_told() -> None:
    strange = Condition("vm/other", "Held", "Held", "x")
    status = StatusInputs(
        AgentFacts("0", 1, "", settled=True), desired=DESIRED, observed=SEEN, conditions=[(strange, "")]
    )
    assert all(one.topic != "condition" for one in why("vm", "web", WhyInputs(status, NOW_S, (VALID,))))
