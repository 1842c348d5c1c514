"""Services: what is wanted and seen, and exactly what follows."""

from __future__ import annotations

from dataclasses import replace

from agent.core.attempts import after_failure
from agent.core.desired import Desired, DhcpSpec, DnsSpec
from agent.core.errors import PermanentError
from agent.core.observed import AddressState, End, LinkState, Observed, ServiceState
from agent.core.planner.repairs import Ledger, look, with_actions
from agent.core.planning import plan
from agent.core.reasons import Reason
from agent.core.routing.ipv6 import Ipv6State
from agent.core.services.actions import ReloadService, StartService, StopService
from agent.core.services.dnsmasq import dnsmasq_services
from agent.core.services.spec import ServiceSpec
from agent.core.tell.describe import describe
from tests.unit.planning_world import BRIDGE, BRIDGE_LINK, DESIRED, SETTLED, said, with_links

SERVED = replace(BRIDGE, dhcp=DhcpSpec("10.0.0.100", "10.0.0.150", 3600), dns=DnsSpec())
WANTED = replace(DESIRED, bridges={"br0": SERVED})
NAME, RESOURCE = "dnsmasq-br0", "service/dnsmasq-br0"
SPEC = dnsmasq_services(WANTED, SETTLED, WANTED.bridges)[NAME]
RUNS = ServiceState(SPEC, alive=True, pid=77)


def end(at_s: float, ran_s: float = 1.0) -> End:
    return End(at_s, ran_s, "now", "killed")


def with_service(state: ServiceState, of: Observed = SETTLED) -> Observed:
    return replace(of, services={NAME: state})


def dead(*ends: End, spec: ServiceSpec = SPEC) -> ServiceState:
    return ServiceState(spec, alive=False, ends=ends, ended=len(ends))


def test_it_is_started_once_its_bridge_is_up_with_all_addresses() -> None:
    start = StartService(RESOURCE, Reason.WANTED, SPEC)
    assert plan(WANTED, SETTLED, 0.0).actions == (start,)
    for link in (
        replace(BRIDGE_LINK, up=False),
        replace(BRIDGE_LINK, addresses=()),
        replace(BRIDGE_LINK, addresses=(AddressState("10.0.0.2/24", own=True),)),
        LinkState(10, "br0", "bridge", True, addresses=BRIDGE_LINK.addresses),
    ):
        seen = plan(WANTED, with_links(link, SETTLED.links["web-lan"]), 0.0)
        assert not [one for one in seen.actions if isinstance(one, StartService)]
        assert RESOURCE in seen.deviating
    assert describe(start) == "start dnsmasq-br0 (wanted)"


def test_one_that_runs_as_wanted_is_left_alone_whatever_becomes_of_its_bridge() -> None:
    assert plan(WANTED, with_service(RUNS), 0.0).actions == ()
    gone = plan(WANTED, with_service(RUNS, replace(SETTLED, links={})), 0.0)
    assert not [one for one in gone.actions if isinstance(one, StartService | StopService)]


def test_hosts_are_reloaded_and_another_range_is_a_start_anew() -> None:
    nic = replace(WANTED.vms["web"].nics[0], address=("10.0.0.9",))
    edited = replace(WANTED, vms={"web": replace(WANTED.vms["web"], nics=(nic,))})
    wanted = dnsmasq_services(edited, SETTLED, WANTED.bridges)[NAME]
    found = [one for one in plan(edited, with_service(RUNS), 0.0).actions if one.resource == RESOURCE]
    assert found == [ReloadService(RESOURCE, Reason.WANTED, wanted, 77)]
    longer = replace(SERVED, dhcp=DhcpSpec("10.0.0.100", "10.0.0.200", 3600))
    (start,) = plan(replace(WANTED, bridges={"br0": longer}), with_service(RUNS), 0.0).actions
    assert isinstance(start, StartService)
    assert (start.replaces, start.reason) == (77, Reason.WANTED)
    assert describe(start) == "start dnsmasq-br0 anew, with its new configuration"


def test_an_end_is_answered_at_once_and_then_ever_later() -> None:
    (start,) = plan(WANTED, with_service(dead(end(10.0))), 10.0).actions
    assert start == StartService(RESOURCE, Reason.EXITED, SPEC, None, 1)
    soon = plan(WANTED, with_service(dead(end(10.0), end(11.0))), 11.0)
    assert soon.actions == ()
    assert soon.wake_at_s is not None
    assert 11.0 < soon.wake_at_s <= 12.0
    assert (said(soon)[0][1], said(soon)[0][3][:13]) == ("Backoff", "next start in")
    assert plan(WANTED, with_service(dead(end(10.0), end(11.0))), soon.wake_at_s).actions
    loop = plan(WANTED, with_service(dead(*(end(10.0 + n) for n in range(5)))), 14.0)
    assert [one[:3] for one in said(loop)] == [(RESOURCE, "Backoff", "Backoff"), (RESOURCE, "CrashLoop", "killed")]


def test_without_the_program_its_package_is_named_and_what_runs_runs_on() -> None:
    bare = replace(SETTLED, host=replace(SETTLED.host, absent=frozenset({"dnsmasq"})))
    seen = plan(WANTED, bare, 0.0)
    assert seen.actions == ()
    assert said(seen) == [
        (
            RESOURCE,
            "ProgramMissing",
            "ProgramMissing",
            "dnsmasq is not installed (Debian: apt install dnsmasq-base); looked for again every 30 s",
        )
    ]
    assert said(plan(WANTED, with_service(RUNS, bare), 0.0)) == []


def test_a_refused_configuration_is_told_and_tried_again_after_another_end() -> None:
    former = dnsmasq_services(WANTED, SETTLED, {"br0": replace(SERVED, dns=None)})[NAME]
    running = with_service(ServiceState(former, alive=True, pid=77))
    (start,) = plan(WANTED, running, 0.0).actions
    refused = PermanentError("dnsmasq refuses the configuration: bad option", reason="ConfigRefused")
    attempts = {f"start-service {RESOURCE}": after_failure(start, refused, None, 0.0)}
    seen = plan(WANTED, replace(running, attempts=attempts), 1.0)
    assert seen.actions == ()
    assert said(seen) == [(RESOURCE, "ConfigRefused", "ConfigRefused", "dnsmasq refuses the configuration: bad option")]
    ended = with_service(dead(end(1.0), spec=former))
    assert plan(WANTED, replace(ended, attempts=attempts), 1.0).actions != ()


def test_what_nobody_wants_is_stopped_but_not_before_the_units_are_read() -> None:
    assert plan(DESIRED, with_service(RUNS), 0.0).actions == (StopService(RESOURCE, Reason.UNWANTED, NAME),)
    assert plan(replace(DESIRED, complete=False), with_service(RUNS), 0.0).actions == ()
    assert plan(DESIRED, with_service(dead(end(1.0))), 1.0).actions != ()


def test_a_bridge_that_guests_still_use_goes_on_serving_them() -> None:
    left = Desired({}, {}, retained={"br0": SERVED}, complete=True)
    seen = plan(left, with_service(RUNS), 0.0)
    assert not [one for one in seen.actions if isinstance(one, StopService) and one.service == NAME]


def test_an_address_that_two_have_is_told_of_the_bridge() -> None:
    web = WANTED.vms["web"]
    own = replace(web, nics=(replace(web.nics[0], address=("10.0.0.1",)),))
    told = [
        one for one in said(plan(replace(WANTED, vms={"web": own}), with_service(RUNS), 0.0)) if "Address" in one[1]
    ]
    assert told == [
        (
            "bridge/br0",
            "AddressTaken",
            "AddressTaken",
            "10.0.0.1 is the address of br0 itself and of web's lan, which is not given it; change one of them",
        )
    ]


def test_an_end_that_was_answered_is_a_repair_and_an_edit_is_none() -> None:
    ledger, _ = look(Ledger(), plan(WANTED, with_service(RUNS), 0.0), WANTED, with_service(RUNS), 0.0)
    hurt = with_service(dead(end(1.0)))
    answer = plan(WANTED, hurt, 1.0)
    ledger, repairs = look(ledger, answer, WANTED, hurt, 1.0)
    assert repairs == ()
    ledger = with_actions(ledger, answer.actions)
    back = with_service(replace(RUNS, ends=(end(1.0),), ended=1))
    ledger, repairs = look(ledger, plan(WANTED, back, 1.5), WANTED, back, 1.5)
    assert [(one.resource, one.reason) for one in repairs] == [(RESOURCE, Reason.EXITED)]


def test_a_router_that_did_not_forward_for_a_while_advertises_anew() -> None:
    advertising = replace(SERVED, addresses=("10.0.0.1/24", "fd00:a::1/64"), ipv6="routed")
    desired = replace(DESIRED, bridges={"br0": advertising})
    addresses = (*BRIDGE_LINK.addresses, AddressState("fd00:a::1/64", own=True))
    ready = with_links(replace(BRIDGE_LINK, addresses=addresses), SETTLED.links["web-lan"])
    spec = dnsmasq_services(desired, ready, desired.bridges)[NAME]

    def starts(began_s: float | None, **ipv6: float) -> list[StartService]:
        running = with_service(ServiceState(spec, alive=True, pid=77, began_s=began_s), ready)
        seen = replace(running, ipv6=Ipv6State(forwards_since_s=ipv6))
        return [one for one in plan(desired, seen, 500.0).actions if isinstance(one, StartService)]

    assert starts(100.0) == starts(None, br0=400.0) == starts(100.0, br1=400.0) == starts(100.0, br0=90.0) == []
    assert starts(100.0, br0=105.0) == []  # it advertises by itself yet
    (start,) = starts(100.0, br0=400.0)
    assert start == StartService(RESOURCE, Reason.SETTINGS, spec, 77)
    assert describe(start) == (
        "start dnsmasq-br0 anew, so that it advertises at once: its link did not forward for a while"
    )
    running = with_service(ServiceState(spec, alive=True, pid=77, began_s=100.0), ready)
    absent = replace(ready.host, absent=frozenset({"dnsmasq"}))
    seen = replace(running, ipv6=Ipv6State(forwards_since_s={"br0": 400.0}), host=absent)
    assert not [one for one in plan(desired, seen, 500.0).actions if isinstance(one, StartService)]
