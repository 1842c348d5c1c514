"""What haproxy is to carry now: published IPv6 ports of guests with IPv4 addresses only, as far as they can be had.

It listens on addresses one by one, not on all at once: loopback stays the host's own, also a port there that somebody
has, and an address that is not there yet keeps no other port waiting.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent.core.desired import BridgeSpec, Desired
from agent.core.marks import is_own_bridge, vm_resource
from agent.core.observed import LinkState, Observed
from agent.core.planner.draft import Draft
from agent.core.planner.firewall import is_concerned, publishing_guests
from agent.core.routing.firewall_wanted import Forward, outer_links, version_of, wish_of
from agent.core.routing.publications import Publication
from agent.core.services.haproxy import NAME, RESOURCE, Listening, carries, proxy_spec, target_of
from agent.core.services.spec import ServiceSpec


@dataclass(frozen=True, slots=True)
class Proxy:
    """What is to run, None for nothing now; `kept` names it where it is to run, or must not be judged yet."""

    spec: ServiceSpec | None = None
    kept: frozenset[str] = frozenset()


def plan_proxy(draft: Draft, desired: Desired, bridges: Mapping[str, BridgeSpec], held: Collection[str]) -> Proxy:
    """The service that carries what can be carried, and a word on what cannot be."""
    if not desired.complete or not is_concerned(desired, draft.observed, bridges):
        return Proxy()
    wish = wish_of(bridges, publishing_guests(desired, draft.observed, held))
    reached = _is_reached(draft.observed, bridges)
    carried = [one for one in wish.carried if reached or one.what.listen]
    if not carried:
        return _meanwhile(draft.observed, wish.carried)
    holders = draft.observed.routing.holders
    if holders is not None and any(one.text not in holders for one in carried):
        draft.wait_for_answer(RESOURCE)
        return Proxy(kept=frozenset({NAME}))
    running = carried_now(draft.observed)
    free = tuple(one for one in carried if _is_free(draft, one, running))
    found = _remembered(free, *_addresses(draft.observed))
    for one in carried:
        if one.what.listen and carries(one) not in running:
            draft.tell_deviating(vm_resource(one.vm))
    for one in found.missing:
        _tell_missing(draft, one)
    if found.spec is None:
        return _meanwhile(draft.observed, wish.carried)
    return Proxy(found.spec, frozenset({NAME}))


def _meanwhile(observed: Observed, wanted: Iterable[Forward]) -> Proxy:
    """What is done while there is no address to listen on, as where a link was set down: its connections go on when
    the addresses are back, so what runs is left alone as long as all that it carries is wanted."""
    state = observed.services.get(NAME)
    if state is None or not state.alive:
        return Proxy()
    leads = {(carries(one), target_of(one)) for one in wanted}
    return Proxy(kept=frozenset({NAME})) if leads.issuperset(state.spec.shown) else Proxy()


def is_there(observed: Observed, forward: Forward) -> bool:
    """Whether the host has an address that a forward is to be carried from."""
    usable, every = _addresses(observed)
    return forward.what.address in usable if forward.what.address else bool(every)


def carried_now(observed: Observed) -> frozenset[str]:
    """What the haproxy that runs carries, as `core.services.haproxy.carries` writes it."""
    state = observed.services.get(NAME)
    return frozenset(key for key, _ in state.spec.shown) if state is not None and state.alive else frozenset()


def _is_reached(observed: Observed, bridges: Mapping[str, BridgeSpec]) -> bool:
    """Whether others than our guests reach this host over IPv6."""
    return any(
        not (is_own_bridge(observed.links[name]) and name in bridges and not bridges[name].ports)
        for name in outer_links(observed.links, 6)
    )


def _is_free(draft: Draft, one: Forward, running: Collection[str]) -> bool:
    """Whether nobody on the host has its port, or came later."""
    holder = (draft.observed.routing.holders or {}).get(one.text)
    if not holder or carries(one) in running:
        return True
    message = f"{one.text} is not published: {holder} has that port on this host; stop it, or publish another port"
    draft.tell(vm_resource(one.vm), "PortTaken", message)
    return False


def _tell_missing(draft: Draft, one: Forward) -> None:
    where = f"the address {one.what.address}" if one.what.address else "an IPv6 address that others can reach"
    message = f"{one.text} is not published: no link of this host has {where} yet"
    draft.tell(vm_resource(one.vm), "AddressMissing", message)


@dataclass(frozen=True, slots=True)
class _Carried:
    """What is made of forwards and addresses: the service, and those whose address is not there yet."""

    forwards: tuple[Forward, ...] = ()
    usable: tuple[str, ...] = ()
    every: tuple[str, ...] = ()
    spec: ServiceSpec | None = None
    missing: tuple[Forward, ...] = ()


_LAST = [_Carried()]
"""What was made last: a pass in which nothing changed compares hundreds of forwards, and makes nothing."""


def _remembered(forwards: tuple[Forward, ...], usable: tuple[str, ...], every: tuple[str, ...]) -> _Carried:
    last = _LAST[0]
    if (last.forwards, last.usable, last.every) != (forwards, usable, every):
        listening = _listening(forwards, usable, every)
        # Others may have its port on every address there is: then nothing is missing.
        missing = tuple(one.forward for one in listening if not one.at and (one.forward.what.address or not every))
        found = [one for one in listening if one.forward not in missing]
        spec = proxy_spec(found) if any(one.at for one in found) else None
        last = _LAST[0] = _Carried(forwards, usable, every, spec, missing)
    return last


def _listening(forwards: Sequence[Forward], usable: Collection[str], every: Collection[str]) -> Sequence[Listening]:
    """Where each of these is listened for: nowhere while its address is not there. One address goes before all."""
    single = [one.what for one in forwards if one.what.address]
    found: list[Listening] = []
    at: tuple[tuple[str, int, int], ...]
    for one in forwards:
        what = one.what
        if what.address:
            at = ((what.address, what.first, what.last),) if what.address in usable else ()
        else:
            at = tuple((address, *ports) for address in every for ports in _free_ports(what, address, single))
        found.append(Listening(one, at))
    return found


def _addresses(observed: Observed) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The addresses that can be listened on by now, and those of them that others reach."""
    outer = outer_links(observed.links, 6)
    every = _usable(link for link in observed.links.values() if link.name in outer)
    return tuple(sorted(_usable(observed.links.values()))), tuple(sorted(every))


def _usable(links: Iterable[LinkState]) -> Iterator[str]:
    """The IPv6 addresses of these links that can be listened on by now."""
    for link in links:
        for one in link.addresses:
            if version_of(one.address) == 6 and not one.link_local and not one.tentative:
                yield one.address.partition("/")[0]


def _free_ports(what: Publication, address: str, single: Sequence[Publication]) -> Iterator[tuple[int, int]]:
    """The ports of a publication on one address, from first to last, without those that others have just there."""
    first = what.first
    for other in sorted((one for one in single if one.address == address), key=lambda one: one.first):
        if other.first <= what.last and other.last >= first:
            if first < other.first:
                yield first, other.first - 1
            first = max(first, other.last + 1)
    if first <= what.last:
        yield first, what.last
