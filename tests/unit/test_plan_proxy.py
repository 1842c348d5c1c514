"""What haproxy carries: what is published and seen, and exactly what it listens on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.desired import Desired, NicSpec
from agent.core.marks import bridge_mark
from agent.core.observed import AddressState, LinkState, Observed, ServiceState
from agent.core.planner.draft import Plan
from agent.core.planner.proxy import is_there
from agent.core.planning import plan
from agent.core.reasons import Reason
from agent.core.routing.firewall import FirewallState, ForwardingState, Routing
from agent.core.routing.firewall_wanted import wish_of
from agent.core.routing.ruleset import Element
from agent.core.services.actions import ReloadService, StartService, StopService
from agent.core.services.spec import ServiceSpec, needs_restart
from tests.unit.planning_world import BRIDGE, BRIDGE_LINK, DB, DESIRED, SETTLED, WEB, said

RESOURCE = "service/haproxy"
HOST6, SECOND6 = "2001:db8::1", "2001:db8::2"
UPLINK = LinkState(2, "eth0", None, True, addresses=(AddressState("192.0.2.1/24"), AddressState(f"{HOST6}/64")))
NIC = replace(WEB.nics[0], address=("10.0.0.10",))


def wants(*publish: str, address: tuple[str, ...] = ("10.0.0.10",), more: Desired = DESIRED) -> Desired:
    web = replace(WEB, nics=(replace(NIC, address=address),), publish=publish)
    return replace(more, vms={**more.vms, "web": web})


def host(*links: LinkState, running: ServiceSpec | None = None, holders: dict[str, str] | None = None) -> Observed:
    """A host without guests, on which nothing is published yet."""
    routing = Routing(FirewallState(), ForwardingState(), holders=holders)
    services = {"haproxy": ServiceState(running, alive=True, pid=77)} if running is not None else {}
    seen = {link.name: link for link in (BRIDGE_LINK, *(links or (UPLINK,)))}
    return replace(SETTLED, vms={}, links=seen, routing=routing, services=services)


def spec_of(decided: Plan) -> ServiceSpec:
    (found,) = [one for one in decided.actions if isinstance(one, StartService | ReloadService)]
    return found.spec


def carried(decided: Plan) -> list[str]:
    """The lines of what is to be carried; empty if haproxy is neither started nor reloaded."""
    found = [one for one in decided.actions if isinstance(one, StartService | ReloadService)]
    lines = found[0].spec.files[0].text.splitlines() if found else []
    first = next((place for place, line in enumerate(lines) if line.startswith("listen")), len(lines))
    return [" ".join(line.split()) for line in lines[first:]]


def test_a_port_without_an_address_is_carried_where_the_host_is_reached_over_ipv6() -> None:
    decided = plan(wants("80:8080/tcp"), host(), 0.0)
    bind = f"bind ipv6@[{HOST6}]:80 v6only"
    assert carried(decided) == ["listen web:80", bind, "server guest 10.0.0.10:8080"]
    inner = replace(BRIDGE_LINK, addresses=(*BRIDGE_LINK.addresses, AddressState("fd00::1/64", own=True)))
    only4 = replace(UPLINK, addresses=UPLINK.addresses[:1])
    bridges = {"br0": replace(BRIDGE, addresses=("10.0.0.1/24", "fd00::1/64"))}
    desired = replace(wants("80/tcp"), bridges=bridges)
    assert carried(plan(desired, host(only4, inner), 0.0)) == []  # only guests are there
    with_port = replace(desired, bridges={"br0": replace(bridges["br0"], ports=("eth1",))})
    assert carried(plan(with_port, host(only4, inner), 0.0))[1] == "bind ipv6@[fd00::1]:80 v6only"
    assert said(plan(desired, host(only4, inner), 0.0)) == []


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("80/udp", ("10.0.0.10",)),
        ("0.0.0.0:80/tcp", ("10.0.0.10",)),
        ("80/tcp", ("10.0.0.10", "fd00::10")),
        ("80/tcp", ("fd00::10",)),
        ("1000-2000/tcp", ("10.0.0.10",)),
    ],
)
def test_what_packets_reach_or_no_program_can_carry_is_not_carried(text: str, address: tuple[str, ...]) -> None:
    assert carried(plan(wants(text, address=address), host(), 0.0)) == []


def test_it_listens_on_what_is_there_and_waits_for_the_rest_by_name() -> None:
    desired = wants("[::]:80/tcp", f"[{SECOND6}]:443/tcp", "[::]:1000-1999/tcp")
    decided = plan(desired, host(), 0.0)
    assert carried(decided) == [
        "listen web:80",
        f"bind ipv6@[{HOST6}]:80 v6only",
        "server guest 10.0.0.10:80",
        "listen web:1000-1999",
        f"bind ipv6@[{HOST6}]:1000-1999 v6only",
        "server guest 10.0.0.10",
    ]
    message = f"[{SECOND6}]:443/tcp is not published: no link of this host has the address {SECOND6} yet"
    assert ("vm/web", "AddressMissing", "AddressMissing", message) in said(decided)
    for state in (AddressState(f"{SECOND6}/64", tentative=True), AddressState("fe80::2/64", link_local=True)):
        link = replace(UPLINK, addresses=(*UPLINK.addresses, state))
        assert carried(plan(desired, host(link), 0.0)) == carried(decided)
    there = replace(UPLINK, addresses=(*UPLINK.addresses, AddressState(f"{SECOND6}/64")))
    assert f"bind ipv6@[{SECOND6}]:443 v6only" in carried(plan(desired, host(there), 0.0))
    nowhere = plan(wants("[::]:80/tcp"), host(replace(UPLINK, addresses=())), 0.0)
    assert carried(nowhere) == []
    assert "has an IPv6 address that others can reach yet" in said(nowhere)[0][3]


def test_one_address_goes_before_all_of_them_also_within_a_range() -> None:
    db = replace(DB, nics=(NicSpec("lan", "br0", "02:00:00:00:00:03", "db-lan", 0, address=("10.0.0.11",)),))
    db = replace(db, publish=(f"[{HOST6}]:81/tcp", f"[{HOST6}]:83-84/tcp"))
    found = carried(plan(replace(wants("[::]:80-85/tcp"), vms={**wants("[::]:80-85/tcp").vms, "db": db}), host(), 0.0))
    web = found[found.index("listen web:80-85") :]
    assert web[1:4] == [f"bind ipv6@[{HOST6}]:{ports} v6only" for ports in ("80", "82", "85")]
    assert f"bind ipv6@[{HOST6}]:83-84 v6only" in found[: found.index("listen web:80-85")]


def test_a_port_that_others_have_on_each_address_misses_none() -> None:
    desired = wants(f"[{HOST6}]:80:8080/tcp", "[::]:80/tcp")
    decided = plan(desired, host(), 0.0)
    assert [line for line in carried(decided) if line.startswith("listen")] == [f"listen web:80:{HOST6}"]
    assert "AddressMissing" not in [one[1] for one in said(decided)]
    assert dict(spec_of(decided).shown).keys() == {f"web {text}" for text in desired.vms["web"].publish}


def test_a_guest_with_ipv6_leaves_one_address_to_a_guest_without() -> None:
    db = replace(
        DB, nics=(NicSpec("lan", "br0", "02:00:00:00:00:03", "db-lan", 0, address=("fd00::11",)),), publish=("80/tcp",)
    )
    web = wants(f"[{HOST6}]:80:8080/tcp").vms["web"]
    wish = wish_of({"br0": BRIDGE}, {"web": web, "db": db})
    assert Element("ports6_at", f"{HOST6} . tcp . 80", f"{HOST6} . 80") in wish.elements
    assert [(one.vm, one.version) for one in (*wish.forwards, *wish.carried)] == [("db", 6), ("web", 6)]
    assert not any(one.set == "ports6_at" for one in wish_of({"br0": BRIDGE}, {"web": web}).elements)


def test_two_guests_do_not_get_one_port() -> None:
    db = replace(DB, nics=(NicSpec("lan", "br0", "02:00:00:00:00:03", "db-lan", 0, address=("10.0.0.11",)),))
    desired = wants("[::]:80/tcp")
    both = replace(desired, vms={**desired.vms, "db": replace(db, publish=("[::]:80:81/tcp",))})
    decided = plan(both, host(), 0.0)
    assert sum(line.startswith("listen") for line in carried(decided)) == 1
    assert ("vm/db", "PortTaken") in [one[:2] for one in said(decided)]


def test_an_edit_is_a_reload_and_the_end_of_all_a_stop() -> None:
    running = spec_of(plan(wants("80/tcp"), host(), 0.0))
    assert RESOURCE not in plan(wants("80/tcp"), host(running=running), 0.0).deviating
    decided = plan(wants("80/tcp", "[::]:81/tcp"), host(running=running), 0.0)
    (reload_,) = [one for one in decided.actions if one.resource == RESOURCE]
    assert isinstance(reload_, ReloadService)
    assert not needs_restart(running, reload_.spec)
    assert "vm/web" in decided.deviating
    gone = plan(wants("0.0.0.0:80/tcp"), host(running=running), 0.0)
    assert StopService(RESOURCE, Reason.UNWANTED, "haproxy") in gone.actions
    unread = plan(replace(wants("[::]:99/tcp"), complete=False), host(running=running), 0.0)
    assert not [one for one in unread.actions if one.resource == RESOURCE]


def test_a_port_that_somebody_has_is_left_to_him_and_he_who_came_later_hears_nothing() -> None:
    desired = wants("[::]:80/tcp", "[::]:81/tcp")
    asked = plan(desired, host(holders={}), 0.0)
    assert carried(asked) == []
    assert RESOURCE in asked.awaited
    taken = {"[::]:80/tcp": "nginx (pid 7)", "[::]:81/tcp": ""}
    decided = plan(desired, host(holders=taken), 0.0)
    assert [line for line in carried(decided) if line.startswith("listen")] == ["listen web:81"]
    message = "[::]:80/tcp is not published: nginx (pid 7) has that port on this host; stop it, or publish another port"
    assert ("vm/web", "PortTaken", "PortTaken", message) in said(decided)
    running = spec_of(plan(desired, host(), 0.0))
    assert carried(plan(desired, host(running=running, holders=taken), 0.0)) == []  # as it is
    unsure = plan(wants("[::]:82/tcp"), host(running=running, holders={}), 0.0)
    assert not [one for one in unsure.actions if one.resource == RESOURCE]


def test_without_the_program_its_package_is_named() -> None:
    seen = host()
    bare = replace(seen, host=replace(seen.host, absent=frozenset({"haproxy"})))
    decided = plan(wants("80/tcp"), bare, 0.0)
    text = "haproxy is not installed (Debian: apt install haproxy); looked for again every 30 s"
    assert (RESOURCE, "ProgramMissing", "ProgramMissing", text) in said(decided)
    assert not [one for one in decided.actions if one.resource == RESOURCE]
    assert [one for one in decided.actions if one.resource == "firewall"]


def test_a_foreign_bridge_of_a_wanted_name_is_no_reason_to_believe_that_only_guests_are_there() -> None:
    only4 = replace(UPLINK, addresses=UPLINK.addresses[:1])
    foreign = LinkState(10, "br0", "bridge", True, addresses=(AddressState("2001:db8:5::1/64"),))
    assert bridge_mark("br0") != foreign.alias
    assert carried(plan(wants("80/tcp"), host(only4, foreign), 0.0))[0] == "listen web:80"


def of_haproxy(decided: Plan) -> list[object]:
    return [one for one in decided.actions if one.resource == RESOURCE]


@pytest.mark.parametrize("text", ["80/tcp", "[::]:80/tcp", f"[{HOST6}]:80/tcp"])
def test_while_no_address_is_there_connections_go_on(text: str) -> None:
    """The kernel takes a link's IPv6 addresses away when it is set down."""
    desired = wants(text)
    running = spec_of(plan(desired, host(), 0.0))
    lost = host(replace(UPLINK, addresses=UPLINK.addresses[:1]), running=running)
    assert of_haproxy(plan(desired, lost, 0.0)) == []
    assert of_haproxy(plan(desired, host(running=running), 0.0)) == []
    for other in (wants("0.0.0.0:80/tcp"), wants("[::]:81/tcp"), wants(text, address=("10.0.0.11",))):
        assert of_haproxy(plan(other, lost, 0.0)) == [StopService(RESOURCE, Reason.UNWANTED, "haproxy")]
    dead = replace(lost, services={"haproxy": replace(lost.services["haproxy"], alive=False)})
    assert of_haproxy(plan(desired, dead, 0.0)) == [StopService(RESOURCE, Reason.UNWANTED, "haproxy")]
    (forward,) = [one for one in wish_of({"br0": BRIDGE}, desired.vms).carried if one.version == 6]
    assert (is_there(host(), forward), is_there(lost, forward)) == (True, False)
