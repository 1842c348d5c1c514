"""The planner against the model host, which asserts each action's precondition."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.actions import StopVm
from agent.core.desired import Desired, NicSpec, Restart
from agent.core.marks import GROUP, bridge_mark, derived_ifb, tap_mark
from agent.core.observed import (
    HostMemory,
    Intent,
    LinkState,
    Observed,
)
from agent.core.planner.room import need_bytes
from agent.core.planning import plan
from agent.core.rates import is_shape, shape_of
from agent.core.routing.ipv6 import conf, proxy_delay
from agent.core.routing.ruleset import Element
from agent.core.services.dnsmasq import dnsmasq_services
from agent.core.vlans import AWARE, is_tagged, nic_vlans, own_vlans, uplink_vlans
from tests.property.faults import faults, inflict
from tests.property.worlds import CARD, GUESTS, PORTS, dices, hosts, settle, wishes

MEMORIES = tuple(HostMemory(mib << 20) for mib in (0, 700, 1300, 64_000))
"""A guest of these may take some 600 MiB: room for none, for one, for two, for all."""


def is_foreign(link: LinkState) -> bool:
    return not link.alias.startswith("vmhost:") and link.name not in (*PORTS, CARD)


def assert_as_wanted(desired: Desired, observed: Observed) -> None:
    for name, spec in desired.bridges.items():
        link = observed.links[name]
        if link.alias == bridge_mark(name):
            assert (link.up, link.mac, link.mtu, link.stp) == (True, spec.mac, spec.mtu, spec.stp)
            assert {a.address for a in link.addresses} >= set(spec.addresses)
    assert_carried(desired, observed)
    assert_served(desired, observed)
    assert_led(desired, observed)
    for name, state in observed.vms.items():
        assert desired.vms[name].enabled
        assert state.run_state == "running"
        assert state.limits == (desired.vms[name].limits if observed.host.services else None)
        for nic in state.spec.nics:
            tap = observed.links[nic.tap]
            assert tap.alias == tap_mark(name, nic.id)
            if nic.direct:
                lower = observed.links[nic.direct]
                assert (tap.kind, tap.lower, tap.mac, tap.up) == ("macvtap", lower.ifindex, nic.mac, True)
                assert lower.up
                assert tap.mtu == min(nic.mtu, lower.mtu)
                continue
            assert tap.multi_queue == (nic.queues > 1)
            home = observed.links[nic.bridge]
            barred = is_tagged(nic) and home.bridging is None
            assert tap.master == (None if barred else home.ifindex)
            assert tap.isolated == (nic.isolated and not barred)
            heeds = home.bridging is not None and home.bridging.filtering
            assert tap.vlans == (nic_vlans(nic) if heeds else None)
            assert_filtered(nic, desired, observed)
        present = {nic.id for nic in state.spec.nics}
        for nic in desired.vms[name].nics:
            if nic.id in present:
                assert_limited(name, replace(nic, tap=f"{name}-{nic.id}"), observed)
    used = {link.ingress.redirect for link in observed.links.values() if link.ingress is not None}
    ifbs = {link.ifindex for link in observed.links.values() if link.kind == "ifb"}
    assert ifbs <= used or not set(desired.vms) <= set(observed.vms)


def assert_carried(desired: Desired, observed: Observed) -> None:
    """Bridges heed VLANs where anything asks for one, and their cards and they themselves carry what is asked for."""
    for name, spec in desired.bridges.items():
        link = observed.links[name]
        nics = [n for s in desired.vms.values() for n in s.nics if n.bridge == name]
        nics += [n for s in observed.vms.values() for n in s.spec.nics if n.bridge == name]
        if link.alias != bridge_mark(name) or link.bridging is None:
            continue
        if not spec.vlans and not any(map(is_tagged, nics)):
            assert link.bridging != AWARE or link.group != GROUP
            continue
        assert link.bridging == AWARE
        ids = {one.id for one in spec.vlans}
        assert link.vlans == own_vlans(ids)
        for port in spec.ports:
            if port in observed.links and observed.links[port].master == link.ifindex:
                assert observed.links[port].vlans == uplink_vlans(nics, ids)
        for vlan in spec.vlans:
            made = observed.links[vlan.name]
            assert (made.kind, made.vlan_id, made.lower, made.up) == ("vlan", vlan.id, link.ifindex, True)
    wanted = {one.name for spec in desired.bridges.values() for one in spec.vlans} | set(desired.vlans)
    assert {link.name for link in observed.links.values() if link.kind == "vlan"} <= wanted


def assert_filtered(nic: NicSpec, desired: Desired, observed: Observed) -> None:
    """What a NIC is held to; word for word it is in tests/unit/test_filters.py."""
    state, tap = observed.filters.state, f'"{nic.tap}"'
    assert state is not None
    assert (Element("mac", tap) in state.elements) == nic.held
    assert (Element("macs", f"{tap} . {nic.mac}") in state.elements) == nic.held
    assert {one.key for one in state.of("own4") if one.key.startswith(tap)} == (
        {f"{tap} . {one}" for one in nic.address if ":" not in one} if nic.held else set()
    )
    bridge = desired.bridges.get(nic.bridge)
    guarded = nic.held or (bridge is not None and bool(bridge.dhcp or bridge.ipv6))
    assert (Element("ra", tap) in state.elements) == (guarded and "ra" not in nic.serves)
    assert (Element("listed", tap) in state.elements) == bool(nic.allow or nic.deny)


def assert_served(desired: Desired, observed: Observed) -> None:
    bridges = {name: spec for name, spec in {**desired.retained, **desired.bridges}.items() if name in observed.links}
    own = {name: spec for name, spec in bridges.items() if observed.links[name].alias == bridge_mark(name)}
    wanted = dnsmasq_services(desired, observed, own)
    assert {name: (state.alive, state.spec) for name, state in observed.services.items()} == {
        name: (True, spec) for name, spec in wanted.items()
    }


def assert_led(desired: Desired, observed: Observed) -> None:
    """One guest has the address that more than one may name, if its bridge is ours and the way out is known."""
    state = observed.ipv6
    assert state is not None
    own = {n: b for n, b in desired.bridges.items() if observed.links[n].alias == bridge_mark(n) and b.ipv6}
    proxying = {name for name, bridge in own.items() if bridge.ipv6 == "ndp-proxy"}
    led = [(nic.bridge, one) for spec in desired.vms.values() for nic in spec.nics for one in nic.address if ":" in one]
    asked = {place for place in led if place[0] in proxying} if state.uplink else set()
    assert {route.link for route in state.routes} <= {bridge for bridge, _ in asked} or not desired.complete
    if asked and all(spec.enabled for spec in desired.vms.values()):
        assert len(state.routes) == 1
        assert {place.address for place in state.proxies if place.link == "wan"} == {"fd00::7"}
        assert state.settings[conf("wan", "forwarding")] == state.settings[conf("wan", "proxy_ndp")] == 1
        assert state.settings[proxy_delay("wan")] == 0
    if own:
        assert state.settings[conf("wan", "accept_ra")] != 1 or not state.uplink


def assert_limited(vm: str, nic: NicSpec, observed: Observed) -> None:
    tap, ifb = observed.links[nic.tap], observed.links.get(derived_ifb(vm, nic.id))
    for rate, link in ((nic.rate_in_bps, tap), (nic.rate_out_bps, ifb)):
        assert (rate is None) == (link is None or link.root is None)
        assert rate is None or (link and link.root and is_shape(link.root.shape, shape_of(rate, nic.mtu)))
    if nic.rate_out_bps is None:  # an empty discipline whose ifb is gone may be anybody's, and does nothing
        assert tap.ingress is None or tap.ingress.redirect is None
    else:
        assert (tap.ingress and tap.ingress.redirect) == (ifb.ifindex if ifb else 0)


def has_place(nic: NicSpec, observed: Observed) -> bool:
    """Whether the bridge of a NIC is ours, or the link that it is to be on is there."""
    if nic.direct:
        return nic.direct in observed.links
    return observed.links[nic.bridge].alias == bridge_mark(nic.bridge)


def runnable(desired: Desired, observed: Observed) -> set[str]:
    """The guests that nothing foreign stands in the way of."""
    names: set[str] = set()
    for name in (name for name in GUESTS if name in desired.vms):
        spec = desired.vms[name]
        clear = all(
            has_place(nic, observed)
            and observed.links.get(nic.tap, LinkState(0, nic.tap, "tun", alias=tap_mark(name, nic.id))).alias
            == tap_mark(name, nic.id)
            for nic in spec.nics
        )
        if spec.enabled and clear and all(before.removeprefix("vm:") in names for before in spec.after):
            names.add(name)
    return names


@given(desired=wishes(), host=hosts(), dice=dices)
@settings(max_examples=150)
def test_settles_whatever_part_of_each_frontier_is_done(desired: Desired, host: Observed, dice: Random) -> None:
    settled, _ = settle(desired, host, dice)
    assert_as_wanted(desired, settled)
    assert set(settled.vms) == runnable(desired, settled)
    straight, _ = settle(desired, host)
    assert set(straight.vms) == set(settled.vms)


@given(desired=wishes(), host=hosts(), dice=dices, memory=st.sampled_from(MEMORIES))
@settings(max_examples=100)
def test_nobody_is_promised_what_is_not_there_and_everybody_runs_once_it_is(
    desired: Desired, host: Observed, dice: Random, memory: HostMemory
) -> None:
    tight, _ = settle(desired, with_memory(host, memory), dice)
    promised = sum(need_bytes(state.spec, kvm=False) for state in tight.vms.values())
    assert promised <= memory.available_bytes
    left = memory.available_bytes - promised
    told = {c.resource for c in plan(desired, tight, 1000.0).conditions if c.type == "MemoryShort"}
    for name in runnable(desired, tight) - set(tight.vms):
        waits = any(before.removeprefix("vm:") not in tight.vms for before in desired.vms[name].after)
        assert waits or (f"vm/{name}" in told and left < need_bytes(desired.vms[name], kvm=False))
    ample, _ = settle(desired, with_memory(tight, MEMORIES[-1]), dice, start_s=1000.0)
    assert set(ample.vms) == runnable(desired, ample)


def with_memory(observed: Observed, memory: HostMemory) -> Observed:
    return replace(observed, host=replace(observed.host, memory=memory))


@given(desired=wishes(), host=hosts(), dice=dices)
@settings(max_examples=100)
def test_foreign_links_stay_as_they_were(desired: Desired, host: Observed, dice: Random) -> None:
    settled, _ = settle(desired, host, dice)
    adopted = {name for name, spec in desired.bridges.items() if spec.adopt}
    for name, link in host.links.items():
        if is_foreign(link) and name not in adopted:
            assert settled.links[name] == link
        if link.addresses:
            assert settled.links[name].addresses == link.addresses
            assert settled.links[name].master is None


@given(first=wishes(), second=wishes(), host=hosts(), dice=dices)
@settings(max_examples=150)
def test_an_edit_leads_to_where_a_fresh_start_leads(
    first: Desired, second: Desired, host: Observed, dice: Random
) -> None:
    settled, _ = settle(first, host)
    second = replace(second, retained={n: s for n, s in first.bridges.items() if n not in second.bridges})
    edited, _ = settle(second, settled, dice, start_s=1000.0)
    ours = {name for name, link in edited.links.items() if link.alias.startswith("vmhost:bridge/")}
    running = {nic.bridge for state in edited.vms.values() for nic in state.spec.nics}
    assert ours <= set(second.bridges) | running
    taps = {link.name for link in edited.links.values() if link.alias.startswith("vmhost:tap/")}
    wanted = {n.tap for s in (*second.vms.values(), *(v.spec for v in edited.vms.values())) for n in s.nics}
    assert taps <= wanted
    seen = {n: s.spec for n, s in edited.vms.items()}
    limited = {derived_ifb(v, n.id) for v, s in {**second.vms, **seen}.items() for n in s.nics if n.rate_out_bps}
    idle = [link for link in edited.links.values() if link.alias.split("/")[1:2] not in ([name] for name in edited.vms)]
    kept = {link.ingress.redirect for link in idle if link.ingress is not None}  # a tap that waits for its guest
    assert {x.name for x in edited.links.values() if x.kind == "ifb" and x.ifindex not in kept} <= limited
    assert_served(second, edited)
    for name, state in edited.vms.items():
        assert second.vms[name].enabled
        assert state.alive
        assert state.limits == (second.vms[name].limits if host.host.services else None)


@given(desired=wishes(), host=hosts(), wrong=faults, dice=dices)
@settings(max_examples=100)
def test_faults_are_healed_and_running_guests_stay(
    desired: Desired, host: Observed, wrong: list[tuple[str, int]], dice: Random
) -> None:
    settled, _ = settle(desired, host)
    hurt = settled
    for kind, which in wrong:
        hurt = inflict(hurt, kind, which)
    untouched = {n for n, s in settled.vms.items() if hurt.vms[n].alive and hurt.vms[n].run_state == "running"}
    healed, done = settle(desired, hurt, dice, start_s=5000.0)
    assert not any(isinstance(action, StopVm) for action in done)
    assert_as_wanted(desired, healed)
    for name in untouched:
        assert healed.vms[name].pid == settled.vms[name].pid
    off = {n for n, ends in healed.ends.items() if desired.vms[n].restart is not Restart.ALWAYS and ends}
    assert {n for n in settled.vms if n not in off} - _behind(desired, off) <= set(healed.vms)


def _behind(desired: Desired, off: set[str]) -> set[str]:
    """The guests that may wait for one that stays off."""
    behind: set[str] = set()
    for name in GUESTS:
        if name in desired.vms and any(b.removeprefix("vm:") in off | behind for b in desired.vms[name].after):
            behind.add(name)
    return behind


@given(desired=wishes(), host=hosts())
@settings(max_examples=100)
def test_the_fixed_point_is_left_alone_and_the_order_of_inputs_is_nothing(desired: Desired, host: Observed) -> None:
    settled, _ = settle(desired, host)
    assert plan(desired, settled, 9000.0).actions == ()
    turned = replace(
        desired, vms=dict(reversed(list(desired.vms.items()))), bridges=dict(reversed(list(desired.bridges.items())))
    )
    mirrored = replace(host, links=dict(reversed(list(host.links.items()))))
    assert {repr(a) for a in plan(turned, mirrored, 0.0).actions} == {repr(a) for a in plan(desired, host, 0.0).actions}


@given(desired=wishes(), host=hosts())
@settings(max_examples=60)
def test_a_restart_is_done_once(desired: Desired, host: Observed) -> None:
    settled, _ = settle(desired, host)
    asked = replace(settled, intents={name: Intent(generation=1) for name in settled.vms})
    again, done = settle(desired, asked)
    assert sorted(a.vm for a in done if isinstance(a, StopVm)) == sorted(settled.vms)
    assert set(again.vms) == set(settled.vms)
    assert all(state.generation == 1 for state in again.vms.values())
