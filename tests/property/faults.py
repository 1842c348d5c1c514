"""What may go wrong with a host that is as it was wanted: one function a fault, by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from hypothesis import strategies as st

from agent.core.desired import Limits
from agent.core.marks import GROUP, derived_ifb, ifb_mark
from agent.core.model.ipv6 import without_places
from agent.core.observed import End, IngressState, LinkState, NicBackend, NicState, Observed, VmState
from agent.core.routing.filters import Filters, FilterState

Links = dict[str, LinkState]

OF_GUESTS: Mapping[str, Callable[[VmState], VmState]] = {
    "kill": lambda state: replace(state, alive=False, exit_reason="killed", run_state=None),
    "panic": lambda state: replace(state, run_state="guest-panicked"),
    "poweroff": lambda state: replace(state, run_state="shutdown"),
    "limits": lambda state: replace(state, limits=Limits(cpu_weight=9) if state.unit else None),
}
OF_LINKS: Mapping[str, Callable[[LinkState], LinkState]] = {
    "flush": lambda bridge: replace(bridge, addresses=()),
    "mac": lambda bridge: replace(bridge, mac="02:ff:ff:ff:ff:ff"),
    "unmaster": lambda tap: replace(tap, master=None, isolated=False, vlans=None),
    "down": lambda tap: replace(tap, up=False),
    "isolation": lambda tap: replace(tap, isolated=tap.master is not None and not tap.isolated),
}
OF_BRIDGES = ("bridge", "flush", "mac")
OF_SERVICES = "service"
OF_IPV6 = ("route6", "proxy6", "setting6")
UNLIMITING = ("root", "ingress", "filter", "ifb", "ifb-half")
OF_TAPS = ("tap", "unmaster", "down", "rename", "isolation", *UNLIMITING)
OF_FILTERS: Mapping[str, Callable[[FilterState, int], FilterState]] = {
    "filters-flush": lambda _state, _which: FilterState(),
    "filters-rule": lambda state, _: replace(state, skeleton=state.skeleton | {"x"}) if state.exists else state,
    "filters-element": lambda state, which: replace(
        state, elements=state.elements - {*sorted(state.elements)[which : which + 2]}
    ),
}

faults = st.lists(
    st.tuples(
        st.sampled_from([*OF_GUESTS, *OF_BRIDGES, *OF_TAPS, *OF_FILTERS, *OF_IPV6, OF_SERVICES]), st.integers(0, 5)
    ),
    max_size=6,
)


def inflict(observed: Observed, kind: str, which: int) -> Observed:
    """The world after a fault of one of its guests, own bridges or own taps; the same if it has none."""
    if kind in OF_GUESTS:
        names = list(observed.vms)
        if not names:
            return observed
        name = names[which % len(names)]
        return replace(observed, vms={**observed.vms, name: OF_GUESTS[kind](observed.vms[name])})
    if kind in OF_FILTERS and observed.filters.state is not None:
        return replace(observed, filters=Filters(OF_FILTERS[kind](observed.filters.state, which)))
    if kind == OF_SERVICES:
        services = list(observed.services)
        return _without_service(observed, services[which % len(services)]) if services else observed
    if kind in OF_IPV6:
        return inflict_on_ipv6(observed, kind, which)
    mark = "vmhost:bridge/" if kind in OF_BRIDGES else "vmhost:tap/"
    ours = [link for link in observed.links.values() if link.alias.startswith(mark)]
    return _inflict_on_link(observed, kind, ours[which % len(ours)]) if ours else observed


def inflict_on_ipv6(observed: Observed, kind: str, which: int) -> Observed:
    """The world without one of our routes or proxy neighbours, or with another value of a parameter."""
    state = observed.ipv6
    if state is None:
        return observed
    places = sorted(state.routes if kind == "route6" else state.proxies)
    if kind == "setting6":
        names = sorted(name for name in state.before if name in state.settings)
        if not names:
            return observed
        settings = {**state.settings, names[which % len(names)]: 7}
        return replace(observed, ipv6=replace(state, settings=settings))
    if not places:
        return observed
    left = frozenset(places) - {places[which % len(places)]}
    changed = replace(state, routes=left) if kind == "route6" else replace(state, proxies=left)
    return replace(observed, ipv6=changed)


def _without_service(observed: Observed, name: str) -> Observed:
    state = observed.services[name]
    end = End(4999.0, 1.0, observed.host.boot_id, "killed")
    ended = replace(state, alive=False, pid=None, ends=(*state.ends, end), ended=state.ended + 1)
    return replace(observed, services={**observed.services, name: ended})


def _inflict_on_link(observed: Observed, kind: str, link: LinkState) -> Observed:
    links = dict(observed.links)
    if kind in OF_LINKS:
        return replace(observed, links={**links, link.name: OF_LINKS[kind](link)})
    if kind in UNLIMITING:
        return replace(observed, links=unlimit(links, link, kind))
    del links[link.name]
    if kind == "bridge":
        observed = without_places(observed, link.name)
        freed = {n: replace(o, master=None) if o.master == link.ifindex else o for n, o in links.items()}
        return replace(observed, links=freed)
    if kind == "tap":
        observed = replace(observed, opened=observed.opened - {link.name})
        return _with_backend(replace(observed, links=links), link.name, NicState(NicBackend.DEAD))
    name = f"x{link.ifindex}"
    seen = replace(observed, links={**links, name: replace(link, name=name)})
    if link.name in observed.opened:
        seen = replace(seen, opened=observed.opened - {link.name} | {name})
    return _with_backend(seen, link.name, NicState(NicBackend.ATTACHED, name))


def _with_backend(observed: Observed, tap: str, backend: NicState) -> Observed:
    """The world once every NIC that hung on a tap is known to hang elsewhere."""
    vms = {
        name: replace(state, nics={one: backend if nic.link == tap else nic for one, nic in state.nics.items()})
        for name, state in observed.vms.items()
    }
    return replace(observed, vms=vms)


def unlimit(links: Links, tap: LinkState, kind: str) -> Links:
    """What somebody may do to a limit, and every point at which the making or taking away of one may be interrupted."""
    if tap.kind == "macvtap":
        return links  # never limited
    vm, nic = tap.alias.removeprefix("vmhost:tap/").split("/")
    name = derived_ifb(vm, nic)
    ifb = links.pop(name, LinkState(500 + tap.ifindex, name, "ifb"))
    if kind == "root":
        tap = replace(tap, root=None)
    elif kind == "ingress":
        tap = replace(tap, ingress=None)
    elif kind == "filter":
        tap = replace(tap, ingress=IngressState("ingress"))
        links[name] = replace(ifb, alias=ifb_mark(vm, nic))
    elif kind == "ifb-half":
        links[name] = replace(ifb, up=False, alias="", group=GROUP, root=None)
    return {**links, tap.name: tap}
