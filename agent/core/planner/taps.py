"""The frontier for the taps of guests."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from agent.core.actions import Action, ChangeLink, DeleteLink, LinkChange
from agent.core.desired import NicSpec, VmSpec
from agent.core.device_actions import ArmTap, PlugNic, ReplugNic, UnplugNic
from agent.core.marks import guest_of, is_own_macvtap, tap_mark, tap_resource, vm_resource
from agent.core.observed import LinkState, NicBackend, NicState, VmState
from agent.core.planner.direct import (
    WHY_REPLUGGED,
    find_lower,
    plan_macvtap_before_launch,
    plan_running_macvtap,
    tell_apart,
)
from agent.core.planner.disks import asks_to_let_go
from agent.core.planner.draft import Draft
from agent.core.planner.pauses import STILL
from agent.core.planner.rates import plan_rate
from agent.core.planner.vlans import carries_its_own, place_of
from agent.core.qemu.argv import nic_id
from agent.core.qemu.platform import MICROVM
from agent.core.reasons import Reason

UNSEEN = NicState(NicBackend.UNKNOWN)
"""A NIC of which nothing is known."""


def plan_running_taps(draft: Draft, name: str, state: VmState) -> None:
    """Heal the taps of a running guest, plug the NICs that it lacks, and take away those that are leaving."""
    for nic in state.spec.nics:
        if state.devices is None or nic_id(nic.id) in state.devices:
            _plan_running_tap(draft, name, state, nic)
        elif _plan_tap_before_launch(draft, state.spec, nic):
            draft.propose(PlugNic(tap_resource(name, nic.id), Reason.MISSING, name, state.spec.uid, nic))
    for nic in state.leaving_nics:
        resource = tap_resource(name, nic.id)
        is_gone = state.devices is not None and nic_id(nic.id) not in state.devices
        if is_gone or asks_to_let_go(draft, resource, state, nic.id):
            draft.propose(UnplugNic(resource, Reason.UNWANTED, name, nic))


def _plan_running_tap(draft: Draft, name: str, state: VmState, nic: NicSpec) -> None:
    resource = tap_resource(name, nic.id)
    backend = state.nics.get(nic.id, UNSEEN)
    link = draft.observed.links.get(nic.tap)
    if nic.direct:
        tell_apart(draft, name, nic)
    if nic.vhost == "true":
        _tell_without_vhost(draft, name, nic, state)
    if backend.backend is NicBackend.ATTACHED and backend.link != nic.tap:
        _plan_renamed_tap(draft, name, backend.link or "", nic)
    elif backend.backend is NicBackend.ATTACHED:
        if link is None:
            draft.tell(
                resource, "TapElsewhere", f"{nic.tap} is attached but not in this network namespace; move it back"
            )
        else:
            _maintain(draft, name, nic, link)
    elif link is not None and not (_is_own_tap(link, name, nic) or _is_half_armed(backend, nic)):
        draft.tell(resource, "Conflict", _conflict_message(draft, nic))
    elif backend.backend is NicBackend.DEAD and not (nic.direct or nic.id in state.vhosts):
        at = place_of(draft, nic)
        action = ArmTap(resource, Reason.MISSING, name, state.spec.uid, nic, at.bridge, running=True, vlans=at.vlans)
        _propose_behind_gate(draft, name, nic, action)
    elif link is None or backend.backend is NicBackend.DEAD:
        _plan_replug(draft, name, state, nic)
    else:
        _maintain(draft, name, nic, link)


def _is_half_armed(backend: NicState, nic: NicSpec) -> bool:
    """Whether a tap has some of the guest's own queues already: a repair was interrupted before it was marked."""
    return backend.backend is NicBackend.DEAD and backend.link == nic.tap


def _plan_replug(draft: Draft, name: str, state: VmState, nic: NicSpec) -> None:
    """Plan to plug a NIC anew whose tap is gone and cannot be re-armed; the guest notices, and it is said why."""
    resource, why = tap_resource(name, nic.id), _why_replugged(state, nic)
    if state.spec.machine == MICROVM:
        message = f"{nic.tap} is gone, {why}, and a microvm cannot replug a NIC"
        draft.tell(resource, "TapLost", f"{message}; `vmhost restart {name}` brings it back")
        return
    if state.run_state in STILL:
        message = f"{nic.tap} is gone, and a NIC cannot be replugged while its guest is {state.run_state}"
        draft.tell(resource, "TapLost", f"{message}; that follows once {name} runs")
        return
    lower = find_lower(draft, name, nic) if nic.direct else None
    if nic.direct and lower is None:
        return
    at = place_of(draft, nic)
    action = ReplugNic(
        resource,
        Reason.MISSING,
        name,
        state.spec.uid,
        nic,
        at.bridge,
        at.vlans,
        lower_ifindex=lower.ifindex if lower is not None else None,
        why=why,
    )
    _propose_behind_gate(draft, name, nic, action)


def _why_replugged(state: VmState, nic: NicSpec) -> str:
    if nic.direct:
        return WHY_REPLUGGED
    if nic.id in state.vhosts:
        return "vhost-net keeps to the old one"
    return "no descriptor of it can be had"


def _tell_without_vhost(draft: Draft, name: str, nic: NicSpec, state: VmState | None) -> None:
    """Tell of a NIC that is to have vhost-net and goes without, slower: a guest without it is better than none."""
    problem = draft.observed.host.vhost_problem
    resource = tap_resource(name, nic.id)
    if state is not None and nic.id not in state.vhosts:
        then = problem or f"vhost-net is there by now: `vmhost restart {name}` takes it"
        draft.tell(resource, "VhostMissing", f"{nic.id} goes without vhost-net, which is slower: {then}")
    elif state is None and problem:
        draft.tell(resource, "VhostMissing", f"{nic.id} will go without vhost-net, which is slower: {problem}")


def _maintain(draft: Draft, name: str, nic: NicSpec, link: LinkState) -> None:
    """Keep the tap of a running guest as it is to be."""
    if nic.direct:
        plan_running_macvtap(draft, name, nic, link)
        return
    _maintain_tap(draft, name, nic, link)
    plan_rate(draft, name, nic, link)


def _propose_behind_gate(draft: Draft, name: str, nic: NicSpec, action: Action) -> None:
    """Propose an action that lets frames of a NIC pass, once its filters are in place."""
    if draft.is_gated(name, nic.id):
        draft.tell_deviating(action.resource)
    else:
        draft.propose(action)


def _plan_renamed_tap(draft: Draft, name: str, present: str, nic: NicSpec) -> None:
    resource, link = tap_resource(name, nic.id), draft.observed.links.get(present)
    if nic.tap in draft.observed.links:
        draft.tell(resource, "Conflict", _conflict_message(draft, nic))
    elif link is not None:
        change = LinkChange(name=nic.tap)
        _propose_behind_gate(
            draft, name, nic, ChangeLink(resource, Reason.RENAMED, present, link.ifindex, link.alias, change)
        )


def plan_taps_before_launch(draft: Draft, spec: VmSpec) -> bool:
    """Make the taps of a guest that is about to start; whether all are there and right."""
    ready = [_plan_tap_before_launch(draft, spec, nic) for nic in spec.nics]
    return all(ready)


def _plan_tap_before_launch(draft: Draft, spec: VmSpec, nic: NicSpec) -> bool:
    resource = tap_resource(spec.name, nic.id)
    link = draft.observed.links.get(nic.tap)
    if nic.vhost == "true":
        _tell_without_vhost(draft, spec.name, nic, None)
    if nic.direct:
        return plan_macvtap_before_launch(draft, spec.name, spec.uid, nic)
    if link is None:
        at = place_of(draft, nic)
        action = ArmTap(resource, Reason.MISSING, spec.name, spec.uid, nic, at.bridge, running=False, vlans=at.vlans)
        _propose_behind_gate(draft, spec.name, nic, action)
        return False
    is_former = link.kind == "macvtap" and link.alias == tap_mark(spec.name, nic.id)
    if not (is_former or _is_own_tap(link, spec.name, nic)):
        draft.tell(resource, "Conflict", _conflict_message(draft, nic))
        return False
    if is_former or link.multi_queue != (nic.queues > 1):
        # It was direct until now; or the kernel attaches descriptors only to a tap that was made for as many.
        draft.propose(DeleteLink(resource, Reason.SETTINGS, link.name, link.ifindex, link.alias))
        return False
    right, limited = _maintain_tap(draft, spec.name, nic, link), plan_rate(draft, spec.name, nic, link)
    if draft.is_gated(spec.name, nic.id) or not carries_its_own(place_of(draft, nic), link):
        draft.tell_deviating(resource)
        return False
    return right and limited and resource not in draft.observed.in_flight


def _conflict_message(draft: Draft, nic: NicSpec) -> str:
    """Who has the name that a tap is to have: a guest that was renamed keeps its taps' old names until its restart."""
    attached = NicState(NicBackend.ATTACHED, nic.tap)
    holder = next((name for name, state in draft.observed.vms.items() if attached in state.nics.values()), None)
    if holder is None:
        return f"a link {nic.tap} exists that is not ours; rename it, or give the NIC another tap ="
    way_out = f"`vmhost restart {holder}`, or its stop, releases it; or give the NIC another tap ="
    return f"tap {nic.tap} is still that of {holder}: {way_out}"


def _is_own_tap(link: LinkState, name: str, nic: NicSpec) -> bool:
    kind = "macvtap" if nic.direct else "tun"
    return link.kind == kind and link.alias == tap_mark(name, nic.id)


def _maintain_tap(draft: Draft, name: str, nic: NicSpec, link: LinkState) -> bool:
    """Put a tap back into its bridge, up, with its MTU and mark; whether nothing was to be done.

    One that is in its bridge while that does not heed VLANs yet stays there; one that is barred leaves.
    """
    place = place_of(draft, nic)
    bridge = place.bridge
    mark = tap_mark(name, nic.id)
    if (
        link.up
        and link.master == bridge
        and link.mtu == nic.mtu
        and link.alias == mark
        and link.isolated is (nic.isolated and bridge is not None)
    ):
        # Nearly always, for a thousand guests in each pass: nothing is built that nobody will look at.
        return bridge is not None or place.barred
    moves = bridge is not None and link.master != bridge
    if moves and draft.is_gated(name, nic.id):
        draft.tell_deviating(tap_resource(name, nic.id))
        return False
    change = LinkChange(
        master=bridge if moves else 0 if place.barred and link.master is not None else None,
        isolated=_isolation(nic, link, bridge, moves=moves),
        up=None if link.up else True,
        mtu=None if link.mtu == nic.mtu else nic.mtu,
        alias=None if link.alias == mark else mark,
        vlans=place.vlans if moves else None,
    )
    reasons = (
        (change.master, Reason.DETACHED),
        (change.up, Reason.DOWN),
        (change.mtu, Reason.MTU),
        (change.alias, Reason.UNMARKED),
        (change.isolated, Reason.SETTINGS),
    )
    reason = next((reason for value, reason in reasons if value is not None), None)
    if reason is None:
        return bridge is not None or place.barred
    draft.propose(ChangeLink(tap_resource(name, nic.id), reason, link.name, link.ifindex, link.alias, change))
    return False


def _isolation(nic: NicSpec, link: LinkState, bridge: int | None, *, moves: bool) -> bool | None:
    """What to set of a tap's isolation; a port that is put into a bridge begins without."""
    if bridge is None:
        return None
    present = link.isolated and not moves
    return None if present == nic.isolated else nic.isolated


def plan_unwanted_taps(draft: Draft, wanted: Sequence[Mapping[str, VmSpec]], held: Collection[str] = ()) -> None:
    """Delete own taps that belong to no wanted NIC and hang on no running guest, nor belong to one that is held.

    A macvtap belongs to a direct NIC only: it keeps the link that it is on from everything else.
    """
    vms = draft.observed.vms
    used = {nic.link for state in vms.values() for nic in state.nics.values() if nic.backend is NicBackend.ATTACHED}
    ours = [
        link
        for link in draft.observed.links.values()
        if link.name not in used
        and ((link.kind == "tun" and link.alias.startswith("vmhost:tap/")) or is_own_macvtap(link))
    ]
    if not ours:
        return
    specs = [
        *(item for specs in wanted for item in specs.items()),
        *((name, state.spec) for name, state in vms.items()),
    ]
    keep = {(nic.tap, tap_mark(name, nic.id)) for name, spec in specs for nic in spec.nics}
    direct = {(nic.tap, tap_mark(name, nic.id)) for name, spec in specs for nic in spec.nics if nic.direct}
    for link in ours:
        starting = vm_resource(guest_of(link.alias)) in draft.observed.in_flight
        is_kept = (link.name, link.alias) in (direct if link.kind == "macvtap" and not starting else keep)
        if is_kept or guest_of(link.alias) in held:
            continue
        if not link.alias and any(link.name == tap for tap, _ in keep):
            continue  # that of a NIC, which sees to it
        resource = link.alias.removeprefix("vmhost:") or f"tap/{link.name}"
        draft.propose(DeleteLink(resource, Reason.UNWANTED, link.name, link.ifindex, link.alias))
