"""What an action on IPv6 makes of the model host."""

from __future__ import annotations

from dataclasses import replace

from agent.core.observed import Observed
from agent.core.preconditions import require
from agent.core.routing.ipv6 import Ipv6State, conf, link_of
from agent.core.routing.ipv6_actions import ChangeIpv6


def with_ipv6(observed: Observed, action: ChangeIpv6) -> Observed:
    """The world after an action."""
    state = observed.ipv6
    require(state is not None, "it is known before it is changed")
    state = state or Ipv6State()
    before = {**state.before, **dict(action.remember)}
    settings = dict(state.settings)
    for name, value in action.settings:
        require(name in settings, f"{name} is there")
        require(name in before or name.endswith("/accept_ra"), f"{name} is written down before it is changed")
        if name == conf(link_of(name), "forwarding"):
            heeding = [one for one, seen in settings.items() if one.endswith("/accept_ra") and seen == 1]
            ours = {name for name, link in observed.links.items() if link.alias.startswith("vmhost:bridge/")}
            lost = [one for one in heeding if link_of(one) not in ours]
            require(not lost, "no link loses its router advertisements")
        settings[name] = value
    for name, value in action.restore:
        require(before.get(name) == value, f"{name} becomes what it was")
        settings[name] = value
    for name in (*(name for name, _ in action.restore), *action.forget):
        before.pop(name, None)
    for place in (*action.add_routes, *action.add_proxies):
        require(place.link in observed.links, f"{place.link} is there")
    require(not state.foreign_routes.keys() & {one.address for one in action.add_routes}, "no route is doubled")
    require(not state.foreign_proxies.intersection(action.add_proxies), "no foreign proxy neighbour is taken over")
    for places, own in ((action.remove_routes, state.routes), (action.remove_proxies, state.proxies)):
        left = {place for place in places if place.link in observed.links}  # what was on others went with them
        require(own.issuperset(left), "only what is ours is removed")
    after = replace(
        state,
        routes=(state.routes | {*action.add_routes}) - {*action.remove_routes},
        proxies=(state.proxies | {*action.add_proxies}) - {*action.remove_proxies},
        settings=settings,
        before=before,
    )
    return replace(observed, ipv6=after)


def without_places(observed: Observed, link: str) -> Observed:
    """The world once a link is gone, and with it what was on it."""
    state = observed.ipv6
    if state is None:
        return observed
    routes = frozenset(place for place in state.routes if place.link != link)
    proxies = frozenset(place for place in state.proxies if place.link != link)
    settings = {name: value for name, value in state.settings.items() if link_of(name) != link}
    return replace(observed, ipv6=replace(state, routes=routes, proxies=proxies, settings=settings))
