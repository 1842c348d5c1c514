"""The frontier for IPv6 modes: routes to guests, proxy neighbours, and the parameters that both need.

One action brings all of it, because none of it cuts anything: what is forwarded the table `inet vmhost` decides, and
`plan_firewall` switches on. Only what carries our protocol number is ever removed, and only parameters that an agent
changed are ever given back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.core.desired import BridgeSpec, Desired, VmSpec
from agent.core.marks import bridge_resource, vm_resource
from agent.core.planner.draft import Draft
from agent.core.reasons import Reason
from agent.core.routing.ipv6 import IPV6, Ipv6State, Place, link_of
from agent.core.routing.ipv6_actions import ChangeIpv6
from agent.core.routing.ipv6_wanted import Guest6, Wanted6, guests_by_proxy, wanted_ipv6


def plan_ipv6(draft: Draft, desired: Desired, bridges: Mapping[str, BridgeSpec], vms: Mapping[str, VmSpec]) -> None:
    """Plan what the modes of these bridges need; `vms` are the guests that count, first who keeps an address."""
    state = draft.observed.ipv6
    asking = [bridge for bridge in bridges.values() if bridge.ipv6]
    if state is None:
        if asking:
            draft.wait_for_answer(IPV6)
        return
    if not asking and not (state.routes or state.proxies or state.before):
        return
    guests = guests_by_proxy(bridges, vms)
    wanted = wanted_ipv6(bridges, guests, draft.observed.links, state)
    for finding in wanted.findings:
        draft.tell(finding.resource, finding.type, finding.message, deviates=finding.deviates)
    _tell_foreign(draft, wanted, state, guests)
    if any(bridge.name not in draft.observed.links for bridge in asking):
        draft.tell_deviating(IPV6)  # also before there is anything to do: what the first time brings is no repair
    action = _change(wanted, state, destroys=desired.complete and wanted.certain)
    if action is not None:
        for name in _bridges_of(action, bridges):
            draft.tell_deviating(bridge_resource(name))
        draft.propose(action)


def _tell_foreign(draft: Draft, wanted: Wanted6, state: Ipv6State, guests: Iterable[Guest6]) -> None:
    owners = {one.address: vm_resource(one.vm) for one in guests}
    for place in sorted(wanted.routes - state.routes):
        if place.address in state.foreign_routes:
            where = state.foreign_routes[place.address]
            message = f"a route to {place.address} that is not ours leads to {where}: ip -6 route del {place.address}"
            draft.tell(owners.get(place.address, bridge_resource(place.link)), "Conflict", message)
    for place in sorted(wanted.proxies & state.foreign_proxies):
        message = (
            f"somebody else has this host answer for {place.address} on {place.link} already; "
            f"it stays when this guest goes: ip -6 neigh del proxy {place.address} dev {place.link}"
        )
        resource = owners.get(place.address, bridge_resource(place.link))
        draft.tell(resource, "Conflict", message, deviates=False)


def _change(wanted: Wanted6, state: Ipv6State, *, destroys: bool) -> ChangeIpv6 | None:
    """What leads from what is there to what is wanted; None for nothing."""
    # A parameter that is not there belongs to a link that is just going, or to one without IPv6.
    settings = tuple((n, v) for n, v in wanted.settings.items() if state.settings.get(n, v) != v)
    add_routes = _sorted(r for r in wanted.routes - state.routes if r.address not in state.foreign_routes)
    add_proxies = _sorted(wanted.proxies - state.proxies - state.foreign_proxies)
    remember = tuple(
        (n, state.settings[n]) for n, _ in settings if n not in state.before and not n.endswith("/accept_ra")
    )
    over = {name: value for name, value in state.before.items() if name not in wanted.settings} if destroys else {}
    led = {place.address for place in add_routes}  # there is no second route to one address
    action = ChangeIpv6(
        IPV6,
        Reason.MISSING if add_routes or add_proxies else Reason.SETTINGS if settings else Reason.UNWANTED,
        settings,
        add_routes,
        add_proxies,
        _sorted(place for place in state.routes - wanted.routes if destroys or place.address in led),
        _sorted(state.proxies - wanted.proxies) if destroys else (),
        remember,
        restore=tuple((name, value) for name, value in over.items() if name in state.settings),
        forget=tuple(name for name in over if name not in state.settings),
    )
    return None if action == ChangeIpv6(IPV6, Reason.UNWANTED) else action


def _sorted(places: Iterable[Place]) -> tuple[Place, ...]:
    return tuple(sorted(places))


def _bridges_of(action: ChangeIpv6, bridges: Mapping[str, BridgeSpec]) -> Iterable[str]:
    """The bridges that lack something of their mode, on themselves or on an uplink."""
    links = {place.link for place in (*action.add_routes, *action.add_proxies)}
    links |= {link_of(name) for name, _ in action.settings}
    return [name for name, bridge in bridges.items() if bridge.ipv6 and (name in links or links - bridges.keys())]
