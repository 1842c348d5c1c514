"""What is decided of uplinks: when a port's addresses are moved, when they go back, and in which words it is told."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from agent.core.actions import CreateBridge, DeleteLink, EnslavePort, MoveUplink, PutBackUplink, key_of
from agent.core.attempts import after_failure
from agent.core.desired import BridgeSpec, Desired
from agent.core.errors import TransientError
from agent.core.model.host import apply
from agent.core.observed import AddressState, HostState, LinkState, Observed
from agent.core.planner.draft import Plan
from agent.core.planning import plan
from agent.core.reasons import Reason
from agent.core.tell.forecast import forecast
from agent.core.uplinks import attributes as a
from agent.core.uplinks.carried import (
    LinkPicture,
    address_text,
    carried_addresses,
    carried_routes,
    gateways,
    lifetime_texts,
    on_link,
    refused,
    route_text,
)
from agent.core.uplinks.moves import MoveState, Step, UplinkState, move_digest
from agent.unitfile.parse import parse_unit

SPEC = BridgeSpec("br0", "02:00:00:00:00:10", file="/u/n.toml", ports=("eth0",), adopt_addresses=True, confirm_s=0.0)
BRIDGE = LinkState(5, "br0", "bridge", up=True, mac=SPEC.mac, alias="vmhost:bridge/br0")
PORT = LinkState(2, "eth0", up=True, mac="02:00:00:00:00:02", addresses=(AddressState("192.0.2.5/24"),))
CARRIES = UplinkState(("192.0.2.5/24", "default via 192.0.2.1"), ("192.0.2.5/24",), ("192.0.2.1",))
DESIRED = Desired({"br0": SPEC})
BOOT = "this"
MOVE = MoveState("br0", "eth0", Step.KEPT, "then", None, "", move_digest(SPEC), BOOT, PORT.mac, SPEC.mac)
MOVE = replace(MOVE, carried=CARRIES.carried, addresses=CARRIES.addresses)


def world(**changes: object) -> Observed:
    seen = Observed({"br0": BRIDGE, "eth0": PORT}, uplinks={"eth0": CARRIES}, host=HostState(BOOT))
    return replace(seen, **changes)  # type: ignore[arg-type]


def told(found: Plan) -> dict[str, str]:
    return {one.type: one.message for one in found.conditions}


def moved() -> Observed:
    """The world once it was moved, with a word to come where the spec wants one."""
    (action,) = plan(DESIRED, world(), 1000.0).actions
    return apply(world(), action, 1000.0)


def test_a_port_that_carries_something_is_moved_and_not_enslaved() -> None:
    (action,) = plan(DESIRED, world(), 1000.0).actions
    assert isinstance(action, MoveUplink)
    assert (action.bridge, action.port, action.confirm_s, action.disruption) == ("br0", "eth0", 0.0, "link")
    assert plan(DESIRED, moved(), 1000.0).actions == ()


def test_without_the_key_it_is_refused_as_ever() -> None:
    found = plan(Desired({"br0": replace(SPEC, adopt_addresses=False)}), world(), 1000.0)
    assert found.actions == ()
    assert "or have them moved with adopt-addresses = true" in told(found)["PortAddressed"]


def test_a_port_that_nobody_has_looked_at_is_waited_for_and_a_bare_one_is_enslaved() -> None:
    found = plan(DESIRED, world(uplinks={}), 1000.0)
    assert found.actions == ()
    assert found.awaited == {"port/eth0"}
    bare = world(links={"br0": BRIDGE, "eth0": replace(PORT, addresses=())}, uplinks={"eth0": UplinkState()})
    assert [type(one) for one in plan(DESIRED, bare, 1000.0).actions] == [EnslavePort]


def test_a_refusal_is_told_with_its_reason() -> None:
    refusal = replace(CARRIES, refusal="eth0 has its addresses from dhclient", refusal_reason="LeasedAddress")
    found = plan(DESIRED, world(uplinks={"eth0": refusal}), 1000.0)
    assert found.actions == ()
    assert [(one.type, one.reason) for one in found.conditions] == [("PortAddressed", "LeasedAddress")]
    nothing = plan(DESIRED, world(uplinks={"eth0": replace(CARRIES, gateways=())}), 1000.0)
    assert [(one.type, one.reason) for one in nothing.conditions] == [("PortAddressed", "NothingToProve")]
    assert nothing.actions == ()


def test_one_port_for_each_bridge() -> None:
    second = LinkState(3, "eth1", up=True, addresses=(AddressState("10.0.0.1/8"),))
    other = UplinkState(("10.0.0.1/8",), ("10.0.0.1/8",), ("10.0.0.2",))
    both = {"br0": replace(SPEC, ports=("eth0", "eth1"))}
    seen = world(links={"br0": BRIDGE, "eth0": PORT, "eth1": second}, uplinks={"eth0": CARRIES, "eth1": other})
    found = plan(Desired(both), seen, 1000.0)
    assert [one.resource for one in found.actions] == ["port/eth0"]
    assert "br0 has those of eth0" in told(found)["PortAddressed"]


@pytest.mark.parametrize("step", [Step.WRITTEN, Step.MOVED])
def test_a_broken_move_is_put_back(step: Step) -> None:
    (action,) = plan(DESIRED, world(moves={"br0": replace(MOVE, step=step)}), 1000.0).actions
    assert isinstance(action, PutBackUplink)
    busy = world(moves={"br0": replace(MOVE, step=step)}, in_flight={"port/eth0": "move-uplink port/eth0"})
    assert plan(DESIRED, busy, 1000.0).actions == ()


def test_one_that_waits_for_a_word_is_put_back_at_its_deadline_not_before() -> None:
    waiting = {"br0": replace(MOVE, step=Step.PROVEN, deadline_s=1060.0)}
    there = {"br0": replace(BRIDGE, mac=PORT.mac), "eth0": PORT}
    early = plan(DESIRED, world(moves=waiting, links=there), 1059.0)
    assert (early.actions, early.wake_at_s) == ((), 1060.0)
    assert "vmhost confirm br0" in told(early)["MoveUnconfirmed"]
    (late,) = plan(DESIRED, world(moves=waiting, links=there), 1060.0).actions
    assert isinstance(late, PutBackUplink)
    another = {"br0": replace(MOVE, step=Step.PROVEN, deadline_s=1060.0, boot_id="before")}
    (booted,) = plan(DESIRED, world(moves=another, links=there), 5.0).actions
    assert isinstance(booted, PutBackUplink)
    assert "booted" in booted.why


def test_what_was_put_back_waits_for_an_edit() -> None:
    over = world(moves={"br0": replace(MOVE, step=Step.PUT_BACK, why="192.0.2.1 does not answer ARP")})
    found = plan(DESIRED, over, 1000.0)
    assert found.actions == ()
    assert "192.0.2.1 does not answer ARP" in told(found)["MovePutBack"]
    edited = Desired({"br0": replace(SPEC, probe_timeout_s=30.0)})
    assert [type(one) for one in plan(edited, over, 1000.0).actions] == [MoveUplink]


def test_after_a_boot_of_the_host_a_bare_port_waits_and_is_moved_again() -> None:
    bare = replace(PORT, addresses=())
    links = {"br0": replace(BRIDGE, mac=PORT.mac), "eth0": bare}
    seen = world(links=links, uplinks={"eth0": UplinkState()})
    seen = replace(seen, moves={"br0": replace(MOVE, boot_id="before")})
    early = plan(DESIRED, seen, 20.0)
    assert early.actions == ()
    assert "WaitingForAddresses" in told(early)
    (late,) = plan(DESIRED, seen, 90.0).actions
    assert isinstance(late, MoveUplink)
    assert (late.again, late.confirm_s) == (True, 0.0)
    (addressed,) = plan(DESIRED, replace(seen, uplinks={"eth0": CARRIES}), 20.0).actions
    assert isinstance(addressed, MoveUplink)
    assert not addressed.again


def test_a_bridge_that_goes_gives_back_first() -> None:
    seen = moved()
    (back,) = plan(Desired(), seen, 2000.0).actions
    assert isinstance(back, PutBackUplink)
    assert back.forget
    after = apply(seen, back, 2000.0)
    assert after.links["eth0"].addresses == PORT.addresses
    assert after.moves == {}
    assert [type(one) for one in plan(Desired(), after, 2000.0).actions] == [DeleteLink]
    (released,) = plan(Desired({"br0": replace(SPEC, ports=())}), seen, 2000.0).actions
    assert isinstance(released, PutBackUplink)


def test_the_forecast_follows_a_move_without_a_word() -> None:
    steps = forecast(Desired({"br0": replace(SPEC, confirm_s=60.0)}), world(), 1000.0).steps
    assert [(type(one.action), round(one.after_s)) for one in steps] == [(MoveUplink, 0), (PutBackUplink, 60)]


def test_a_new_bridge_leaves_out_what_comes_with_the_move() -> None:
    wanted = replace(SPEC, addresses=("192.0.2.5/24", "10.0.0.1/24"))
    (made,) = plan(Desired({"br0": wanted}), world(links={"eth0": PORT}), 1000.0).actions
    assert isinstance(made, CreateBridge)
    assert made.spec.addresses == ("10.0.0.1/24",)


def test_a_journal_that_cannot_be_read_keeps_hands_off() -> None:
    found = plan(DESIRED, world(unreadable_moves={"br0": "br0.move cannot be read"}), 1000.0)
    assert found.actions == ()
    assert told(found) == {"MoveUnreadable": "br0.move cannot be read"}


def test_nobody_else_sets_the_mac_while_a_move_is_under_way() -> None:
    links = {"br0": replace(BRIDGE, mac="02:00:00:00:00:99"), "eth0": PORT}
    under_way = world(moves={"br0": MOVE}, links=links, in_flight={"port/eth0": "put-back-uplink port/eth0"})
    assert plan(DESIRED, under_way, 1000.0).actions == ()


def address(text: str, *more: tuple[int, bytes], flags: int = 0x80, ifindex: int = 2) -> bytes:
    import ipaddress

    one = ipaddress.ip_interface(text)
    head = a.ADDRESS.pack(a.AF_INET if one.version == 4 else a.AF_INET6, one.network.prefixlen, flags, 0, ifindex)
    return a.join(head, [(a.IFA_ADDRESS, one.ip.packed), *more])


def route(gateway: str = "", protocol: int = 3, *more: tuple[int, bytes], table: int = 254) -> bytes:
    import ipaddress

    head = a.ROUTE.pack(a.AF_INET, 0, 0, 0, table & 255, protocol, 0, 1, 0)
    via = [(a.RTA_GATEWAY, ipaddress.ip_address(gateway).packed)] if gateway else []
    return a.join(head, [(a.RTA_TABLE, struct.pack("=I", table)), *via, (a.RTA_OIF, struct.pack("=i", 2)), *more])


def picture(addresses: tuple[bytes, ...] = (), routes: tuple[bytes, ...] = ()) -> LinkPicture:
    return LinkPicture(2, "eth0", bytes.fromhex("020000000002"), 0, True, 1500, True, addresses, routes)


def test_what_is_the_kernels_own_is_not_carried() -> None:
    own = address("fe80::ff:fe00:2/64")
    by_proto = address("fe80::1234/64", (a.IFA_PROTO, bytes([a.IFAPROT_KERNEL_LL])))
    chosen, plain = address("fe80::1/64"), address("192.0.2.5/24")
    assert carried_addresses(picture((plain, chosen, by_proto, own))) == (plain, chosen)
    connected, static = route(protocol=a.RTPROT_KERNEL), route("192.0.2.1", 4)
    assert carried_routes(picture(routes=(connected, static, route()))) == (route(), static)
    assert gateways(picture(routes=(static, static))) == ("192.0.2.1",)


def test_an_unknown_attribute_goes_along_and_labels_and_legs_are_renamed() -> None:
    leg = struct.pack("=HBBi", 8, 0, 0, 2) + struct.pack("=HBBi", 8, 0, 1, 9)
    label = (a.IFA_LABEL, b"eth0:web\0")
    there = on_link(picture((address("192.0.2.5/24", (77, b"xyz"), label),), (route("", 3, (9, leg)),)), 5, "br0")
    assert a.find(there.addresses[0], a.ADDRESS, 77) == b"xyz"
    assert a.find(there.addresses[0], a.ADDRESS, a.IFA_LABEL) == b"br0:web\0"
    hops = a.next_hops(a.find(there.routes[0], a.ROUTE, a.RTA_MULTIPATH) or b"")
    assert [(weight, ifindex) for _, weight, ifindex, _ in hops] == [(0, 5), (1, 9)]


def test_what_ends_by_itself_is_refused_by_name() -> None:
    leased = address("192.0.2.5/24", (a.IFA_CACHEINFO, struct.pack("=IIII", 600, 600, 0, 0)))
    assert lifetime_texts(picture((leased,))) == ("192.0.2.5/24",)
    found = refused(picture((leased,)), ("dhclient (pid 7)",), "br0")
    assert found is not None
    assert found.message == (
        "eth0 has its addresses from dhclient (pid 7) (192.0.2.5/24), which would go on there: have it serve br0 "
        "instead of eth0, or give eth0 static addresses"
    )
    for changed, reason in (
        (replace(picture(), carrier=False), "PortDown"),
        (replace(picture(), up=False), "PortDown"),
        (picture(routes=(route("", 3, (a.RTA_NH_ID, struct.pack("=I", 1))),)), "NextHopObjects"),
    ):
        found = refused(changed, (), "br0")
        assert found is not None
        assert found.reason == reason
    assert refused(picture((address("192.0.2.5/24"),)), (), "br0") is None


def test_texts() -> None:
    assert address_text(address("2001:db8::5/64")) == "2001:db8::5/64"
    assert route_text(route("192.0.2.1")) == "default via 192.0.2.1"
    assert route_text(route("192.0.2.1", table=1000)) == "default via 192.0.2.1 table 1000"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('probe = ["192.0.2.1"]', "probe is about moving the port's addresses"),
        ("adopt-addresses = true", "adopt-addresses takes what a port carries, and needs one"),
        ('adopt-addresses = true\nports = ["eth0"]\nmac = "02:00:00:00:00:01"', "the bridge has the MAC of its port"),
        ('adopt-addresses = true\nports = ["eth0"]\nstp = true', "a new port passes nothing for 30 s"),
        ('adopt-addresses = true\nports = ["eth0"]\nprobe = ["web"]', "must be the address of a host"),
        ('adopt-addresses = true\nports = ["eth0"]\nprobe-timeout = "0s"', 'must be "1s" to "10m"'),
    ],
)
def test_mistakes(keys: str, said: str) -> None:
    found = parse_unit("/u/n.toml", f"[bridge.br0]\n{keys}\n".encode())
    assert said in " ".join(str(error) for error in found.errors)


def renamed(seen: Observed, *others: LinkState) -> Observed:
    """The world with another name for the card, which carries what it carried."""
    card = replace(seen.links["eth0"], name="lan0")
    links = {name: link for name, link in seen.links.items() if name != "eth0"} | {"lan0": card}
    return replace(
        seen,
        links=links | {one.name: one for one in others},
        uplinks={"lan0": seen.uplinks.get("eth0", UplinkState())},
        enslaved=frozenset((("lan0" if port == "eth0" else port), bridge) for port, bridge in seen.enslaved),
    )


@pytest.mark.parametrize("others", [(), (LinkState(9, "eth0", up=True),)])
def test_a_card_that_was_renamed_still_gives_back_what_it_gave(others: tuple[LinkState, ...]) -> None:
    spec = replace(SPEC, ports=(f"mac:{PORT.mac}",), confirm_s=60.0)
    (action,) = plan(Desired({"br0": spec}), world(), 1000.0).actions
    seen = renamed(apply(world(), action, 1000.0), *others)
    (late,) = plan(Desired({"br0": spec}), seen, 1060.0).actions
    assert isinstance(late, PutBackUplink)
    (gone,) = plan(Desired({"br0": replace(spec, ports=())}), seen, 1000.0).actions
    assert isinstance(gone, PutBackUplink)
    assert gone.forget


def test_a_card_with_another_name_after_a_boot_is_moved_again_and_never_just_enslaved() -> None:
    spec = replace(SPEC, ports=(f"mac:{PORT.mac}", "mac:02:00:00:00:00:03"))
    (action,) = plan(Desired({"br0": spec}), world(), 1000.0).actions
    after = apply(world(), action, 1000.0)
    kept = {"br0": replace(after.moves["br0"], boot_id="before")}
    other = LinkState(2, "eth0", up=True, mac="02:00:00:00:00:03")  # cards come in another order
    card = replace(PORT, ifindex=3, name="eth1")
    bare = world(links={"br0": BRIDGE, "eth0": other, "eth1": replace(card, addresses=())}, moves=kept)
    bare = replace(bare, uplinks={"eth0": UplinkState(), "eth1": UplinkState()})
    early = plan(Desired({"br0": spec}), bare, 20.0)
    assert [one.resource for one in early.actions if isinstance(one, (EnslavePort, MoveUplink))] == [
        "port/mac:02:00:00:00:00:03"
    ]
    late = {one.resource: one for one in plan(Desired({"br0": spec}), bare, 90.0).actions}
    again = late["port/eth1"]
    assert isinstance(again, MoveUplink)
    assert again.again
    addressed = replace(bare, links={**bare.links, "eth1": card}, uplinks={"eth0": UplinkState(), "eth1": CARRIES})
    found = plan(Desired({"br0": spec}), addressed, 20.0)
    assert isinstance({one.resource: one for one in found.actions}["port/eth1"], MoveUplink)
    assert "PortAddressed" not in told(found)


def test_what_was_kept_before_a_boot_is_tried_again_where_its_gateway_came_later() -> None:
    seen = world(links={"br0": replace(BRIDGE, mac=PORT.mac), "eth0": PORT})
    seen = replace(seen, moves={"br0": replace(MOVE, boot_id="before")})
    (action,) = plan(DESIRED, seen, 20.0).actions
    assert isinstance(action, MoveUplink)
    after = apply(seen, action, 20.0)
    back = apply(after, PutBackUplink("port/eth0", Reason.UNWANTED, "br0", "eth0", "silent", forget=True), 30.0)
    over = replace(after.moves["br0"], step=Step.PUT_BACK, why="192.0.2.1 does not answer ARP")
    back = replace(back, moves={"br0": over}, links={**back.links, "br0": BRIDGE})
    (second,) = plan(DESIRED, back, 30.0).actions
    assert isinstance(second, MoveUplink)
    failed = after_failure(second, TransientError("silent", reason="MovePutBack", retry_after_s=60.0), None, 40.0)
    waiting = plan(DESIRED, replace(back, attempts={key_of(second): failed}), 50.0)
    assert (waiting.actions, waiting.wake_at_s, told(waiting)) == ((), 100.0, {"MovePutBack": "silent"})


def test_what_was_kept_is_not_forgotten_by_a_boot_that_ended_before_it_was_made_again() -> None:
    over = replace(MOVE, step=Step.PUT_BACK, boot_id="before", why="the agent was lost", remade=True)
    bare = {"br0": BRIDGE, "eth0": replace(PORT, addresses=())}
    (action,) = plan(DESIRED, world(moves={"br0": over}, links=bare, uplinks={"eth0": UplinkState()}), 90.0).actions
    assert isinstance(action, MoveUplink)
    assert action.again
    apply(world(moves={"br0": over}, links=bare, uplinks={"eth0": UplinkState()}), action, 90.0)


def test_a_bridge_of_another_name_gets_the_port_once_the_former_gave_back() -> None:
    for entry in ("eth0", f"mac:{PORT.mac}"):
        former = replace(SPEC, ports=(entry,))
        (action,) = plan(Desired({"br0": former}), world(), 1000.0).actions
        other = Desired({"br1": replace(former, name="br1", mac="02:00:00:00:00:11")})
        found = plan(other, apply(world(), action, 1000.0), 1000.0).actions
        assert [type(one) for one in found] == [CreateBridge, PutBackUplink]
        seen = apply(world(), action, 1000.0)
        bridge = LinkState(6, "br1", "bridge", up=True, mac="02:00:00:00:00:11", alias="vmhost:bridge/br1")
        seen = replace(seen, links={**seen.links, "br1": bridge})
        (back,) = plan(other, seen, 1000.0).actions
        assert isinstance(back, PutBackUplink)
        after = {one.resource: one for one in plan(other, apply(seen, back, 1000.0), 1000.0).actions}
        assert isinstance(after["port/eth0"], MoveUplink)
