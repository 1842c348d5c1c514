"""The model host: what each action makes of the world, as far as the planner can see it.

`vmhost plan` and the property tests iterate the planner over it. Every action's precondition is asserted: a planner
that would start a guest twice, touch a foreign link or delete what is used fails here, not on somebody's host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from agent.core.actions import (
    Action,
    ChangeAddresses,
    ChangeLink,
    ChangeRate,
    ChangeReboot,
    CreateBridge,
    DeleteLink,
    EndVm,
    EnslavePort,
    LaunchVm,
    LimitVm,
    MoveUplink,
    PauseVm,
    PutBackUplink,
    ReleasePort,
    ReleaseVm,
    RenameVm,
    ResetVm,
    ResumeVm,
    StopVm,
)
from agent.core.desired import NicSpec
from agent.core.device_actions import (
    ArmTap,
    CreateDisk,
    GrowDisk,
    PlugDisk,
    PlugNic,
    ReplugNic,
    TakeOver,
    UnplugDisk,
    UnplugNic,
)
from agent.core.edits.tuning import untold
from agent.core.guest_unit import unit_name
from agent.core.marks import GROUP, bridge_mark, derived_ifb, ifb_mark, is_own_bridge, is_own_ifb, tap_mark
from agent.core.model.devices import with_devices, with_devices_at_launch, with_tuning
from agent.core.model.filters import require_filters, with_filters
from agent.core.model.firewall import with_routing
from agent.core.model.ipv6 import with_ipv6, without_places
from agent.core.model.services import with_services
from agent.core.model.uplinks import with_uplinks
from agent.core.observed import (
    AddressState,
    DiskState,
    End,
    IngressState,
    Intent,
    LinkState,
    NicBackend,
    NicState,
    Observed,
    QdiscState,
    Reach,
    VmState,
)
from agent.core.planner.fallback import with_lack
from agent.core.planner.pauses import RESUMABLE
from agent.core.planner.room import Room
from agent.core.preconditions import PreconditionError
from agent.core.preconditions import require as _require
from agent.core.rates import shape_of
from agent.core.reasons import Reason
from agent.core.routing.filters import ChangeFilters
from agent.core.routing.firewall_actions import ChangeFirewall, ChangeForwarding, EndConnections
from agent.core.routing.ipv6_actions import ChangeIpv6
from agent.core.services.actions import ReloadService, StartService, StopService
from agent.core.tuning_actions import ChangeMedium, PlugCpus, TuneVm


def apply(observed: Observed, action: Action, now_s: float = 0.0) -> Observed:
    """The world after an action that succeeded; `PreconditionError` if it should never have been planned."""
    match action:
        case (
            CreateBridge()
            | ChangeAddresses()
            | EnslavePort()
            | ReleasePort()
            | ChangeLink()
            | DeleteLink()
            | ChangeRate()
        ):
            return _apply_to_links(observed, action)
        case ArmTap() | ReplugNic():
            return _apply_to_tap(observed, action)
        case CreateDisk() | GrowDisk():
            return _apply_to_disk(observed, action)
        case TakeOver() | PlugNic() | UnplugNic() | PlugDisk() | UnplugDisk():
            return _with_vm(observed, action.vm, with_devices(observed, action))
        case TuneVm() | PlugCpus() | ChangeMedium():
            return _with_vm(observed, action.vm, with_tuning(observed, action))
        case StartService() | ReloadService() | StopService():
            return with_services(observed, action)
        case ChangeFilters() | ChangeFirewall() | ChangeForwarding() | EndConnections() | ChangeIpv6():
            return _apply_to_routing(observed, action)
        case _:
            return _apply_to_vm(observed, action, now_s)


def _apply_to_routing(
    observed: Observed, action: ChangeFilters | ChangeFirewall | ChangeForwarding | EndConnections | ChangeIpv6
) -> Observed:
    match action:
        case ChangeFilters():
            return with_filters(observed, action)
        case ChangeIpv6():
            return with_ipv6(observed, action)
        case _:
            return with_routing(observed, action)


def _apply_to_disk(observed: Observed, action: CreateDisk | GrowDisk) -> Observed:
    path, seen = action.disk.path, observed.disks[action.disk.path]
    if isinstance(action, GrowDisk):
        return replace(observed, disks={**observed.disks, path: replace(seen, size_bytes=action.disk.size_bytes)})
    _require(not seen.exists and not seen.known, "a disk is made once")
    return replace(observed, disks={**observed.disks, path: DiskState(True, True, True)})


def _with_link(observed: Observed, link: LinkState) -> Observed:
    return replace(observed, links={**observed.links, link.name: link})


def _link(observed: Observed, name: str, ifindex: int) -> LinkState:
    _require(name in observed.links and observed.links[name].ifindex == ifindex, f"{name} is there as link {ifindex}")
    return observed.links[name]


def _next_ifindex(observed: Observed) -> int:
    return 1 + max((link.ifindex for link in observed.links.values()), default=0)


def _is_own(link: LinkState) -> bool:
    return link.alias.startswith("vmhost:") or is_own_bridge(link) or is_own_ifb(link)


def _apply_to_links(
    observed: Observed,
    action: CreateBridge | ChangeAddresses | EnslavePort | ReleasePort | ChangeLink | DeleteLink | ChangeRate,
) -> Observed:
    match action:
        case CreateBridge(spec=spec):
            _require(spec.name not in observed.links, f"{spec.name} does not exist yet")
            addresses = tuple(AddressState(address, own=True) for address in spec.addresses)
            mark = bridge_mark(spec.name)
            index = _next_ifindex(observed)
            return _with_link(
                observed,
                LinkState(index, spec.name, "bridge", True, spec.mtu, spec.mac, None, mark, 0, addresses, spec.stp),
            )
        case ChangeAddresses(add=add, remove=remove):
            link = _link(observed, action.bridge, action.ifindex)
            _require(is_own_bridge(link), "addresses are set on own bridges only")
            _require(all(a.own for a in link.addresses if a.address in remove), "only own addresses are removed")
            kept = tuple(a for a in link.addresses if a.address not in remove)
            return _with_link(observed, replace(link, addresses=kept + tuple(AddressState(a, own=True) for a in add)))
        case EnslavePort():
            port = _link(observed, action.port, action.port_ifindex)
            _require(not any(not a.link_local for a in port.addresses), "a port with addresses is never enslaved")
            port = replace(port, master=action.bridge_ifindex, up=True, mtu=action.mtu or port.mtu)
            return replace(_with_link(observed, port), enslaved=observed.enslaved | {(action.port, action.bridge)})
        case ReleasePort():
            port = _link(observed, action.port, action.port_ifindex)
            _require((action.port, action.bridge) in observed.enslaved, "only a port that we enslaved is released")
            return replace(
                _with_link(observed, replace(port, master=None)),
                enslaved=observed.enslaved - {(action.port, action.bridge)},
            )
        case ChangeLink():
            return _change_link(observed, action)
        case ChangeRate():
            return _change_rate(observed, action)
        case DeleteLink():
            return _delete_link(observed, action)


def _change_link(observed: Observed, action: ChangeLink) -> Observed:
    link = _link(observed, action.link, action.ifindex)
    change = action.change
    ours = _is_own(link) or link.name in {port for port, _ in observed.enslaved} or change.alias is not None
    _require(ours or _hangs_on_guest(observed, link.name), f"{link.name} is ours to change")
    values = {
        name: value
        for name in ("up", "mtu", "mac", "alias", "name", "stp", "snooping", "isolated", "group_learning")
        if (value := getattr(change, name)) is not None
    }
    if change.master is not None:
        values |= {"master": change.master or None, "isolated": change.isolated or False}
        for name, nic in _nics_of(observed, link.alias):
            require_filters(observed, name, nic)
    _require(change.name is None or change.name not in observed.links, "a link is renamed to a free name only")
    changed = replace(link, **values)
    links = {name: one for name, one in observed.links.items() if name != action.link}
    vms = {name: _renamed_nics(state, action.link, changed.name) for name, state in observed.vms.items()}
    return replace(observed, links={**links, changed.name: changed}, vms=vms)


def _renamed_nics(state: VmState, old: str, new: str) -> VmState:
    return replace(state, nics={i: replace(n, link=new) if n.link == old else n for i, n in state.nics.items()})


def _nics_of(observed: Observed, mark: str) -> list[tuple[str, NicSpec]]:
    """The NIC of a running guest whose tap has this mark."""
    nics = [(name, nic) for name, state in observed.vms.items() for nic in state.spec.nics]
    return [(name, nic) for name, nic in nics if tap_mark(name, nic.id) == mark]


def _hangs_on_guest(observed: Observed, link: str) -> bool:
    return any(nic.link == link for state in observed.vms.values() for nic in state.nics.values())


def _delete_link(observed: Observed, action: DeleteLink) -> Observed:
    link = _link(observed, action.link, action.ifindex)
    _require(_is_own(link) and link.alias == action.expect_alias, f"only an own link is deleted, {link.name} is not")
    _require(not _hangs_on_guest(observed, link.name), f"{link.name} hangs on a running guest")
    led_to = {one.ingress.redirect for one in observed.links.values() if one.ingress is not None}
    _require(link.ifindex not in led_to, f"nothing is led to {link.name} any more")
    links = {name: one for name, one in observed.links.items() if name != action.link}
    freed = {n: replace(one, master=None) if one.master == link.ifindex else one for n, one in links.items()}
    seen = without_places(observed, action.link)
    return replace(seen, links=freed, enslaved=frozenset(e for e in observed.enslaved if e[1] != action.link))


def _change_rate(observed: Observed, action: ChangeRate) -> Observed:
    tap = _link(observed, action.link, action.ifindex)
    _require(tap.alias == action.expect_alias == tap_mark(action.vm, action.nic), f"{tap.name} is the NIC's own tap")
    if action.rate_in_bps is not None:
        _require(tap.root is None or tap.root.own, f"no foreign discipline of {tap.name} is replaced")
        _require(action.rate_in_bps or tap.root is not None, f"{tap.name} has a limit to take away")
        tap = replace(tap, root=_bucket(action.rate_in_bps, action.mtu) if action.rate_in_bps else None)
    if action.rate_out_bps is not None:
        return _change_rate_out(observed, action, tap)
    return _with_link(observed, tap)


def _bucket(rate_bps: int, mtu: int) -> QdiscState:
    return QdiscState("tbf", own=True, shape=shape_of(rate_bps, mtu))


def _change_rate_out(observed: Observed, action: ChangeRate, tap: LinkState) -> Observed:
    name, ingress = derived_ifb(action.vm, action.nic), tap.ingress or IngressState("ingress")
    ifb = observed.links.get(name)
    clear = ingress.redirect is not None or (ingress.kind == "ingress" and not ingress.foreign)
    _require(clear, f"filters of {tap.name} are ours alone, or ours are among them")
    if not action.rate_out_bps:
        left = replace(ingress, redirect=None) if ingress.foreign or ingress.kind != "ingress" else None
        seen = _with_link(observed, replace(tap, ingress=left))
        gone = ifb is not None and is_own_ifb(ifb)
        return replace(seen, links={n: one for n, one in seen.links.items() if n != name}) if gone else seen
    _require(ifb is None or is_own_ifb(ifb), f"{name} is free or ours")
    ifindex = ifb.ifindex if ifb is not None else _next_ifindex(observed)
    root, mark = _bucket(action.rate_out_bps, action.mtu), ifb_mark(action.vm, action.nic)
    made = LinkState(ifindex, name, "ifb", True, alias=mark, group=GROUP, root=root)
    return _with_link(_with_link(observed, made), replace(tap, ingress=replace(ingress, redirect=ifindex)))


def _apply_to_tap(observed: Observed, action: ArmTap | ReplugNic) -> Observed:
    present = observed.links.get(action.nic.tap)
    mark = tap_mark(action.vm, action.nic.id)
    _require(present is None or present.alias == mark, f"{action.nic.tap} is free or ours")
    index = present.ifindex if present else _next_ifindex(observed)
    require_filters(observed, action.vm, action.nic)
    link = LinkState(index, action.nic.tap, "tun", True, action.nic.mtu, action.nic.mac, action.bridge_ifindex, mark)
    link = replace(link, isolated=action.nic.isolated and action.bridge_ifindex is not None)
    seen = _with_link(observed, link)
    if isinstance(action, ArmTap) and not action.running:
        return seen
    state = observed.vms[action.vm]
    _require(state.alive, "only a running guest's descriptor is re-armed")
    nics = {**state.nics, action.nic.id: NicState(NicBackend.ATTACHED, action.nic.tap)}
    return replace(seen, vms={**observed.vms, action.vm: replace(state, nics=nics)})


def _apply_to_vm(observed: Observed, action: Action, now_s: float) -> Observed:
    match action:
        case MoveUplink() | PutBackUplink():
            return with_uplinks(observed, action, now_s)
        case LaunchVm():
            return _launch(observed, action)
        case ReleaseVm() | PauseVm() | ResumeVm():
            return _apply_to_run_state(observed, action, now_s)
        case StopVm(vm=name, unit_asked=unit_asked):
            state = observed.vms[name]
            _require(
                state.alive and state.spec.uuid == action.uuid, "the guest that is stopped is the one that was seen"
            )
            stops = (*observed.stops_at_s, now_s) if unit_asked else observed.stops_at_s
            refused = with_lack(observed.refused, action.uuid, None)
            return replace(_without_vm(observed, name), stops_at_s=stops, refused=refused)
        case EndVm():
            return _end(observed, action, now_s)
        case RenameVm(vm=name, new_name=new_name):
            _require(new_name not in observed.vms, "a guest is renamed to a free name only")
            state, wish = observed.vms[name], observed.intents.get(new_name, Intent())
            renamed = replace(  # restarts asked of whoever had that name before are not for it
                state,
                spec=replace(state.spec, name=new_name),
                generation=max(state.generation, wish.generation),
                reset_generation=max(state.reset_generation, wish.reset_generation),
            )
            others = {n: s for n, s in observed.vms.items() if n != name}
            return replace(observed, vms={**others, new_name: renamed})
        case _:
            return _apply_to_running(observed, action)


def _apply_to_running(observed: Observed, action: Action) -> Observed:
    match action:
        case LimitVm(vm=name, limits=limits):
            state = observed.vms[name]
            _require(state.alive and state.unit and state.spec.uuid == action.uuid, f"{name} runs as a service")
            return _with_vm(observed, name, replace(state, limits=limits, spec=replace(state.spec, limits=limits)))
        case ResetVm(vm=name, reset_generation=generation):
            return _with_vm(observed, name, replace(observed.vms[name], reset_generation=generation))
        case ChangeReboot(vm=name, ends=ends_it):
            _require(observed.vms[name].spec.uuid == action.uuid, "the guest that was seen")
            return _with_vm(observed, name, replace(observed.vms[name], reboot_ends=ends_it))
    raise PreconditionError(f"no such action: {action}")


def _apply_to_run_state(observed: Observed, action: ReleaseVm | PauseVm | ResumeVm, now_s: float) -> Observed:
    state = observed.vms[action.vm]
    match action:
        case ReleaseVm(vm=name):
            _require(state.run_state == "prelaunch", "only a guest that QEMU holds is released")
            _require(not untold(state), f"{name} never runs without its limits")
            seen = replace(observed, refused=with_lack(observed.refused, state.spec.uuid, None))
            return _ready(_with_vm(seen, name, replace(state, run_state="running")), name, now_s)
        case PauseVm(vm=name):
            _require(state.run_state == "running", "only a guest that runs is paused")
            return _with_vm(observed, name, replace(state, run_state="paused"))
        case ResumeVm():
            return _resume(observed, action, now_s)


def _resume(observed: Observed, action: ResumeVm, now_s: float) -> Observed:
    state = observed.vms[action.vm]
    allowed = RESUMABLE if action.reason is Reason.RESUME else {"io-error"}
    _require(state.run_state in allowed, "only a guest that is paused, and may go on, is let go on")
    answered = state.resume_generation if action.resume_generation is None else action.resume_generation
    resumed = replace(state, run_state="running", resumed_s=now_s, resume_generation=answered)
    return _with_vm(observed, action.vm, resumed)


def _ready(observed: Observed, name: str, now_s: float) -> Observed:
    """The world once a guest that was let run has become what those that wait for it call ready."""
    ready = observed.vms[name].spec.ready
    if ready == "running":
        return observed
    return replace(observed, reachable={**observed.reachable, ready: Reach(True, now_s)})


def _end(observed: Observed, action: EndVm, now_s: float) -> Observed:
    name, state = action.vm, observed.vms[action.vm]
    _require(not state.alive or state.run_state != "running", "a running guest is never ended, it is stopped")
    seen = replace(_without_vm(observed, name), refused=with_lack(observed.refused, action.uuid, action.lacks))
    if action.rebooted:
        return replace(seen, ends={other: ends for other, ends in observed.ends.items() if other != name})
    if action.asked:
        return seen
    end = End(now_s, 0.0, observed.host.boot_id, action.exit_reason)
    return replace(seen, ends={**observed.ends, name: (*observed.ends.get(name, ()), end)})


def _with_vm(observed: Observed, name: str, state: VmState) -> Observed:
    return replace(observed, vms={**observed.vms, name: state})


def _without_vm(observed: Observed, name: str) -> Observed:
    """The world without a guest; what its QEMU had taken is available again."""
    seen = replace(observed, vms={n: s for n, s in observed.vms.items() if n != name})
    memory, pid = observed.host.memory, observed.vms[name].pid
    if memory is None or pid is None or pid not in memory.resident_bytes:
        return seen
    resident = {other: taken for other, taken in memory.resident_bytes.items() if other != pid}
    available = memory.available_bytes + memory.resident_bytes[pid]
    memory = replace(memory, available_bytes=available, resident_bytes=resident)
    return replace(seen, host=replace(seen.host, memory=memory))


def _launch(observed: Observed, action: LaunchVm) -> Observed:
    spec = action.spec
    _require(spec.name not in observed.vms, f"{spec.name} is not started twice")
    _require(all(s.spec.uuid != spec.uuid for s in observed.vms.values()), f"uuid {spec.uuid} is not started twice")
    for nic in spec.nics:
        link = observed.links.get(nic.tap)
        _require(link is not None and link.alias == tap_mark(spec.name, nic.id) and link.up, f"{nic.tap} is ready")
    _require(all(observed.disks[disk.path].exists for disk in spec.disks if disk.path), "all disks are there")
    nics: Mapping[str, NicState] = {nic.id: NicState(NicBackend.ATTACHED, nic.tap) for nic in spec.nics}
    shortage = Room({}, replace(observed, in_flight={}, short=frozenset())).shortage(spec)
    _require(shortage is None, f"the host can hold {spec.name}: {shortage}")
    pid = 1000 + len(observed.vms)
    state = VmState(spec, True, pid, action.generation, action.reset_generation, "prelaunch", nics=nics)
    state = replace(state, resume_generation=action.resume_generation)
    if observed.host.services:
        state = replace(state, unit=unit_name(spec.name), limits=spec.limits)
    return _with_vm(observed, spec.name, with_devices_at_launch(state))
