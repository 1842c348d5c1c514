"""The frontier for NAT, published ports, and what the kernel forwards.

Three resources, each one for the host. The order is safe at every point where it may be interrupted: what is not to
pass is dropped before the kernel forwards anything, and until it no longer does. A forward that is taken away leaves an
`ended` element in the same transaction, so that its connections are ended, whoever plans next.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from agent.core.desired import BridgeSpec, Desired, VmSpec
from agent.core.marks import bridge_resource, is_own_bridge, vm_resource
from agent.core.observed import Observed
from agent.core.planner.draft import Draft
from agent.core.reasons import Reason
from agent.core.routing.firewall import EVERYWHERE6, FirewallState, Opening
from agent.core.routing.firewall_actions import (
    CONNECTIONS,
    FIREWALL,
    FORWARDING,
    ChangeFirewall,
    ChangeForwarding,
    EndConnections,
)
from agent.core.routing.firewall_wanted import (
    VERSIONS,
    Forward,
    Wish,
    ended_element,
    mac_elements,
    name_of,
    opening_elements,
    same_elements,
    wanted_openings,
    wish_of,
)
from agent.core.routing.ipv6_wanted import uplinks6
from agent.core.routing.ruleset import Element


@dataclass(frozen=True, slots=True)
class _Openings:
    """Of one IP version: the links that are `wanted` open, that are `guarded` by the table as it is, and of those that
    we opened the ones that are `on` by now."""

    wanted: frozenset[str]
    guarded: frozenset[str]
    on: frozenset[str]


def plan_firewall(draft: Draft, desired: Desired, bridges: Mapping[str, BridgeSpec], vms: Mapping[str, VmSpec]) -> None:
    """Plan the table `inet vmhost`, the connections of forwards that went, and forwarding.

    `bridges` are those that stay, `vms` the guests that count (`publishing_guests`). Where the table is not known
    nothing is planned; the reason is told if anything is wanted of it.
    """
    seen = draft.observed.routing.firewall
    if not is_concerned(desired, draft.observed, bridges) and not (seen is not None and seen.exists):
        return
    wish = wish_of(bridges, vms)
    if seen is None:
        _tell_unknown(draft, wish)
        return
    _tell_lost(draft, wish)
    if not (seen.exists or wish.routed):
        return
    forwards = _free(draft, wish, seen)
    openings = {version: _openings(draft.observed, wish, seen, version) for version in VERSIONS}
    if not desired.complete:
        openings = {v: _Openings(one.wanted | one.on, one.guarded, one.on) for v, one in openings.items()}
        forwards |= {element for element in seen.ours if element.set.startswith(("ports", "ranges"))}
    elements = _elements(draft.observed, wish, seen, forwards, openings)
    if seen.is_intact and _awaits_holders(draft.observed, wish):
        draft.tell_deviating(FIREWALL)  # one transaction will do for what goes and what comes
    else:
        _plan_table(draft, seen, elements, complete=desired.complete)
    if any(one.wanted != one.on for one in openings.values()):
        draft.tell_deviating(FORWARDING)  # also before it is guarded: what the first time brings is no repair
    if seen.is_intact:
        _plan_ended(draft, seen)
        if desired.complete or wish.routed:
            _plan_forwarding(draft, wish, openings)


def is_concerned(desired: Desired, observed: Observed, bridges: Mapping[str, BridgeSpec]) -> bool:
    """Whether there is a unit, or a guest, that has to do with any of it."""
    return (
        any(bridge.nat or bridge.ipv6 for bridge in bridges.values())
        or any(spec.publish for spec in desired.vms.values())
        or any(state.spec.publish for state in observed.vms.values())
    )


def publishing_guests(desired: Desired, observed: Observed, held: Collection[str] = ()) -> Mapping[str, VmSpec]:
    """The guests whose ports count: whoever runs before who is to run, as its unit says or, without one, as it is."""
    found: dict[str, VmSpec] = {}
    for name, state in observed.vms.items():
        unit = desired.vms.get(name)
        follows = unit is not None and unit.enabled and unit.uuid == state.spec.uuid and name not in held
        found[name] = unit if unit is not None and follows else state.spec
    return {**found, **{name: spec for name, spec in desired.vms.items() if spec.enabled and name not in found}}


def _tell_unknown(draft: Draft, wish: Wish) -> None:
    if not wish.routed and not wish.forwards:
        return
    if not draft.observed.routing.problem:
        draft.wait_for_answer(FIREWALL)
        return
    draft.tell(FIREWALL, "FirewallUnavailable", draft.observed.routing.problem)
    for bridge in {*wish.nat, *wish.modes}:
        draft.tell_deviating(bridge_resource(bridge.name))
    for vm in {one.vm for one in wish.forwards}:
        draft.tell_deviating(vm_resource(vm))


def _tell_lost(draft: Draft, wish: Wish) -> None:
    """Tell each guest what is not published of it, and what is to no avail: once, also if it is of both IP versions."""
    for vm, message in dict.fromkeys(_not_published(wish)):
        draft.tell(vm_resource(vm), "PortTaken", message)
    for one in wish.unreachable:
        message = (
            f"{one.text} leads to {one.target}, which is in no subnet of {one.bridge}'s addresses; "
            f"give {one.bridge} an address beside it, or a route there"
        )
        draft.tell(vm_resource(one.vm), "NotInSubnet", message, deviates=False)
    if wish.bound:
        own = {a.address.partition("/")[0] for link in draft.observed.links.values() for a in link.addresses}
        for one in wish.bound:
            if one.what.address not in own:
                message = f"{one.text} is reached by nobody as long as no link of this host has {one.what.address}"
                draft.tell(vm_resource(one.vm), "AddressMissing", message, deviates=False)


def _not_published(wish: Wish) -> Iterator[tuple[str, str]]:
    for one, rival in wish.lost:
        yield one.vm, f"{one.text} leads to {rival.vm} already ({rival.text}); publish another port of the host"
    for one, server in wish.served:
        message = (
            f"{one.text} is not published: it would lead what is asked of {server} to {one.vm}; "
            "publish another port, or on one of the host's other addresses"
        )
        yield one.vm, message


def _awaits_holders(observed: Observed, wish: Wish) -> bool:
    """Whether somebody is just looking who has a port that is to be published."""
    holders = observed.routing.holders
    return holders is not None and any(one.text not in holders for one in wish.forwards)


def _free(draft: Draft, wish: Wish, seen: FirewallState) -> frozenset[Element]:
    """The forwards that may be there: nobody on the host has their ports, or came later."""
    holders = draft.observed.routing.holders
    if (holders is None or not any(holders.values())) and wish.published <= seen.elements:
        return wish.published
    return frozenset(one.element for one in wish.forwards if _is_free(draft, one, seen))


def _is_free(draft: Draft, one: Forward, seen: FirewallState) -> bool:
    """Whether a port may be published: nobody on the host has it, or it was published first."""
    holders = draft.observed.routing.holders
    if holders is None or (one.element in seen.elements and not holders.get(one.text)):
        return True
    resource, holder = vm_resource(one.vm), holders.get(one.text)
    if holder is None:
        draft.wait_for_answer(resource)
        return False
    if not holder:
        return True
    if one.element in seen.elements:
        message = f"{one.text} leads to {one.vm}; {holder} came later and hears nothing of it"
        draft.tell(resource, "PortTaken", message, reason="PortShared", deviates=False)
        return True
    message = f"{one.text} is not published: {holder} has that port on this host; stop it, or publish another port"
    draft.tell(resource, "PortTaken", message)
    return False


def _openings(observed: Observed, wish: Wish, seen: FirewallState, version: int) -> _Openings:
    """What is open and what is to be; where forwarding is not known all stays as it is."""
    forwarding = observed.routing.forwarding
    guarded = frozenset(name_of(element.key) for element in seen.of(f"opened{version}"))
    if forwarding is None:
        return _Openings(guarded, guarded, guarded)
    uplinks = uplinks6(wish.modes, observed.ipv6)
    wanted = wanted_openings(wish, observed.links, forwarding, observed.routing, version, uplinks)
    if version == 6 and forwarding.links6 is None:
        is_on = forwarding.all6 and EVERYWHERE6 in observed.routing.opened
        return _Openings(wanted, guarded, (wanted or guarded) if is_on else frozenset())
    ours = {one.link for one in observed.routing.opened if one.version == version and one.link in observed.links}
    links = forwarding.links4 if version == 4 else forwarding.links6 or {}
    everywhere = forwarding.all4 if version == 4 else forwarding.all6
    on = frozenset() if everywhere else frozenset(name for name in ours if links.get(name))
    return _Openings(wanted, guarded, on)


def _elements(
    observed: Observed,
    wish: Wish,
    seen: FirewallState,
    forwards: frozenset[Element],
    openings: Mapping[int, _Openings],
) -> frozenset[Element]:
    """All elements that the table is to hold now."""
    guarded = {version: one.wanted | one.on for version, one in openings.items()}
    names = {bridge.name for bridge in wish.routed}.union(*guarded.values())
    opened = {element for version in VERSIONS for element in opening_elements(guarded[version], version)}
    between = {*same_elements(names, observed.links), *mac_elements(_uplinks(wish, seen, openings), observed.links)}
    rest = frozenset({*wish.elements, *opened, *between})
    went = (ended_element(element) for element in seen.ours - forwards - rest)
    ended = {*seen.ended, *(one for one in went if one is not None)}
    return forwards | rest | (ended.difference(map(ended_element, forwards)) if ended else frozenset())


def _uplinks(wish: Wish, seen: FirewallState, openings: Mapping[int, _Openings]) -> frozenset[str]:
    """Links that are guarded, or are to be, and are no bridges with NAT: a bridge among them routes nobody back to
    where he is, until it is closed again."""
    wanted = {name for one in openings.values() for name in one.wanted}
    on = {name for one in openings.values() for name in one.on}
    inside, known = ({name_of(element.key) for element in seen.of(name)} for name in ("inside", "macs"))
    return frozenset(wanted | (on & known)) - inside - {bridge.name for bridge in wish.nat}


def _plan_table(draft: Draft, seen: FirewallState, wanted: frozenset[Element], *, complete: bool) -> None:
    if not wanted:
        if seen.exists and complete:
            draft.propose(ChangeFirewall(FIREWALL, Reason.UNWANTED, gone=True))
        return
    if not seen.is_intact:
        reason = Reason.SETTINGS if seen.exists else Reason.MISSING
        draft.propose(ChangeFirewall(FIREWALL, reason, tuple(sorted(wanted)), whole=True))
        return
    missing, surplus = wanted - seen.elements, seen.elements - wanted
    if not complete:
        keys = {(element.set, element.key) for element in seen.elements}
        missing, surplus = frozenset(e for e in missing if (e.set, e.key) not in keys), frozenset()
    if missing or surplus:
        draft.propose(ChangeFirewall(FIREWALL, Reason.ELEMENT, tuple(sorted(missing)), tuple(sorted(surplus))))


def _plan_ended(draft: Draft, seen: FirewallState) -> None:
    """End the connections of forwards that are no longer in the table."""
    if not seen.ended:
        return
    present = frozenset(map(ended_element, seen.elements))
    ended = tuple(sorted(element for element in seen.ended if element not in present))
    if ended:
        draft.propose(EndConnections(CONNECTIONS, Reason.UNWANTED, ended))


def _plan_forwarding(draft: Draft, wish: Wish, openings: Mapping[int, _Openings]) -> None:
    """Switch forwarding on where the table drops what is not for a guest of ours, and off where it is not needed."""
    forwarding = draft.observed.routing.forwarding
    if forwarding is None:
        return
    change = _Change()
    if wish.routes(4) and forwarding.all4:
        closed = sorted(bridge.name for bridge in wish.routed if forwarding.links4.get(bridge.name) is False)
        change.settings += [(f"ipv4/conf/{name}/forwarding", "1") for name in closed]
    change.switch(4, "ipv4/conf/{}/forwarding", openings[4])
    if forwarding.links6 is not None:
        change.switch(6, "ipv6/conf/{}/force_forwarding", openings[6])
    else:
        _switch_everywhere6(change, draft.observed, wish, openings[6])
    if change.settings:
        opens, closes = frozenset(change.opens), frozenset(change.closes)
        draft.propose(ChangeForwarding(FORWARDING, Reason.SETTINGS, tuple(change.settings), opens, closes))


@dataclass(slots=True)
class _Change:
    """What to set, in its order, and what that opens and closes."""

    settings: list[tuple[str, str]] = field(default_factory=list)
    opens: list[Opening] = field(default_factory=list)
    closes: list[Opening] = field(default_factory=list)

    def switch(self, version: int, name: str, openings: _Openings) -> None:
        """Links on where that is guarded by now, off where they are ours and not wanted."""
        for link in sorted((openings.wanted & openings.guarded) - openings.on):
            self.settings.append((name.format(link), "1"))
            self.opens.append(Opening(version, link))
        for link in sorted(openings.on - openings.wanted):
            self.settings.append((name.format(link), "0"))
            self.closes.append(Opening(version, link))


def _switch_everywhere6(change: _Change, observed: Observed, wish: Wish, openings: _Openings) -> None:
    """IPv6 where the kernel forwards it everywhere or nowhere.

    A host that forwards heeds router advertisements only with `accept_ra` 2: without it, it would lose its own default
    route, so that comes first.
    """
    forwarding, name = observed.routing.forwarding, "ipv6/conf/all/forwarding"
    if forwarding is None:
        return
    ours = EVERYWHERE6 in observed.routing.opened
    if not wish.routes(6):
        if ours and forwarding.all6:
            change.settings.append((name, "0"))
            change.closes.append(EVERYWHERE6)
        return
    if (forwarding.all6 and not ours) or not openings.wanted <= openings.guarded:
        return
    out = uplinks6(wish.modes, observed.ipv6) | ({observed.ipv6.uplink} if observed.ipv6 is not None else set())
    # Of our bridges, where guests could send them, only one that leads out.
    own = {name for name, link in observed.links.items() if is_own_bridge(link) and name not in out}
    heeding = sorted(link for link, value in forwarding.accept_ra.items() if value == 1 and link not in own)
    change.settings += [(f"ipv6/conf/{link}/accept_ra", "2") for link in heeding]
    if not forwarding.all6:
        change.settings.append((name, "1"))
        change.opens.append(EVERYWHERE6)
