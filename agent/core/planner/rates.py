"""The frontier for the limits of NICs.

What goes to a guest leaves the host by its tap, so a token bucket there limits it. What a guest sends comes in by its
tap, where nothing can wait: a filter leads it through an own ifb link, whose bucket limits it, and then on its way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from agent.core.actions import ChangeRate, DeleteLink
from agent.core.desired import NicSpec, VmSpec
from agent.core.marks import derived_ifb, guest_of, ifb_mark, is_own_ifb, tap_resource
from agent.core.observed import IngressState, LinkState
from agent.core.planner.draft import Draft
from agent.core.rates import is_shape, shape_of
from agent.core.reasons import Reason


def plan_rate(draft: Draft, vm: str, nic: NicSpec, link: LinkState) -> bool:
    """Plan the limits of a NIC on its tap, which is ours; whether they need not be waited for.

    Those that cannot be had, because something foreign is in the way or the kernel refuses, are told and not waited
    for: a guest without its limit is better than none.
    """
    if nic.rate_in_bps is None and nic.rate_out_bps is None and link.root is None and link.ingress is None:
        return True
    rate_in_bps, rate_out_bps = _change_in(draft, vm, nic, link), _change_out(draft, vm, nic, link)
    if rate_in_bps is None and rate_out_bps is None:
        return True
    resource = tap_resource(vm, nic.id)
    change = ChangeRate(
        resource, Reason.RATE, vm, nic.id, link.name, link.ifindex, link.alias, link.mtu, rate_in_bps, rate_out_bps
    )
    return not draft.propose(change)


def _change_in(draft: Draft, vm: str, nic: NicSpec, link: LinkState) -> int | None:
    """The rate towards the guest that is to be set, 0 to take the limit away, None to leave it."""
    root = link.root
    if nic.rate_in_bps is None:
        return 0 if root is not None and root.own else None
    if root is None or (root.own and not is_shape(root.shape, shape_of(nic.rate_in_bps, link.mtu))):
        return nic.rate_in_bps
    if not root.own:
        _tell_conflict(draft, vm, nic, f"a {root.kind} on {link.name}", "rate-in", f"tc qdisc del dev {link.name} root")
    return None


def _change_out(draft: Draft, vm: str, nic: NicSpec, link: LinkState) -> int | None:
    """The rate from the guest that is to be set, 0 to take the limit away, None to leave it."""
    ingress, name = link.ingress, derived_ifb(vm, nic.id)
    ifb = draft.observed.links.get(name)
    is_ours = ifb is not None and is_own_ifb(ifb)
    is_half_made = is_ours and _may_be_half_made(ingress)
    if nic.rate_out_bps is None:
        return 0 if ingress is not None and (ingress.redirect is not None or is_half_made) else None
    if ifb is not None and not is_ours:
        _tell_conflict(draft, vm, nic, f"a link {name}", "rate-out", f"ip link set {name} down name another-name")
        return None
    if ifb is not None and ingress is not None and ingress.redirect == ifb.ifindex and _is_right(ifb, vm, nic, link):
        return None
    if ingress is not None and ingress.redirect is None and (ingress.kind != "ingress" or ingress.foreign):
        what = f"filters at the {ingress.kind} of {link.name}"
        _tell_conflict(draft, vm, nic, what, "rate-out", f"tc qdisc del dev {link.name} {ingress.kind}")
        return None
    return nic.rate_out_bps


def _may_be_half_made(ingress: IngressState | None) -> bool:
    """Whether nothing of anybody else's is in an ingress discipline: if there is an ifb of ours, it is ours too."""
    return ingress is not None and ingress.kind == "ingress" and not ingress.foreign


def _ifb_of(tap: LinkState) -> str:
    vm, _, nic = tap.alias.removeprefix("vmhost:tap/").partition("/")
    return derived_ifb(vm, nic)


def _is_right(ifb: LinkState, vm: str, nic: NicSpec, link: LinkState) -> bool:
    return (
        ifb.up
        and ifb.alias == ifb_mark(vm, nic.id)
        and ifb.root is not None
        and ifb.root.own
        and is_shape(ifb.root.shape, shape_of(nic.rate_out_bps or 0, link.mtu))
    )


def _tell_conflict(draft: Draft, vm: str, nic: NicSpec, what: str, key: str, command: str) -> None:
    message = f"{what} that is not ours stands in the way of {key}; it is left alone, `{command}` makes room"
    draft.tell(tap_resource(vm, nic.id), "Conflict", message)


def plan_unwanted_ifbs(draft: Draft, wanted: Mapping[str, VmSpec], held: Collection[str] = ()) -> None:
    """Delete own ifbs that no limit needs, once no tap leads to them: what a tap sent there would be lost.

    Those of guests that are held stay. One that was left half made or half taken away stays as long as its tap, because
    it tells whose the tap's empty ingress discipline is; both go together.
    """
    links = draft.observed.links
    ours = [link for link in links.values() if link.kind == "ifb" and is_own_ifb(link)]
    ours = [link for link in ours if guest_of(link.alias) not in held]
    if not ours:
        return
    needed = {derived_ifb(vm, nic.id) for vm, nic in _nics(draft, wanted) if nic.rate_out_bps is not None}
    with_ingress = [link for link in links.values() if link.ingress is not None]
    led_to = {link.ingress.redirect for link in with_ingress if link.ingress is not None}
    needed |= {_ifb_of(link) for link in with_ingress if _may_be_half_made(link.ingress)}
    for ifb in ours:
        if ifb.name not in needed and ifb.ifindex not in led_to:
            resource = f"tap/{ifb.alias.removeprefix('vmhost:ifb/')}" if ifb.alias else f"ifb/{ifb.name}"
            draft.propose(DeleteLink(resource, Reason.UNWANTED, ifb.name, ifb.ifindex, ifb.alias))


def _nics(draft: Draft, wanted: Mapping[str, VmSpec]) -> Iterator[tuple[str, NicSpec]]:
    """Every NIC whose limits count: of guests as they run, and of those to come."""
    running = {name: state.spec for name, state in draft.observed.vms.items()}
    for name, spec in {**wanted, **running}.items():
        yield from ((name, nic) for nic in spec.nics)
