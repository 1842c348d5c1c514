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
from agent.core.marks import (
    tap_mark,
)
from agent.core.model.devices import uses_vhost, with_devices, with_devices_at_launch, with_tuning
from agent.core.model.filters import with_filters
from agent.core.model.firewall import with_routing
from agent.core.model.ipv6 import with_ipv6
from agent.core.model.links import with_links
from agent.core.model.routes import with_routes
from agent.core.model.services import with_services
from agent.core.model.taps import with_tap
from agent.core.model.uplinks import with_uplinks
from agent.core.observed import (
    DiskState,
    End,
    Intent,
    NicBackend,
    NicState,
    Observed,
    Reach,
    VmState,
)
from agent.core.planner.fallback import with_lack
from agent.core.planner.pauses import RESUMABLE
from agent.core.planner.room import Room
from agent.core.preconditions import PreconditionError
from agent.core.preconditions import require as _require
from agent.core.reasons import Reason
from agent.core.routing.filters import ChangeFilters
from agent.core.routing.firewall_actions import ChangeFirewall, ChangeForwarding, EndConnections
from agent.core.routing.ipv6_actions import ChangeIpv6
from agent.core.routing.routes_wanted import ChangeRoutes
from agent.core.services.actions import ReloadService, StartService, StopService
from agent.core.tuning_actions import ChangeMedium, PlugCpus, TuneVm
from agent.core.vlan_actions import ChangeVlans, CreateVlan
from agent.core.vlans import nic_vlans


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
            | ChangeVlans()
            | CreateVlan()
        ):
            return with_links(observed, action)
        case ArmTap() | ReplugNic():
            return with_tap(observed, action)
        case CreateDisk() | GrowDisk():
            return _apply_to_disk(observed, action)
        case TakeOver() | PlugNic() | UnplugNic() | PlugDisk() | UnplugDisk():
            return _with_vm(observed, action.vm, with_devices(observed, action))
        case TuneVm() | PlugCpus() | ChangeMedium():
            return _with_vm(observed, action.vm, with_tuning(observed, action))
        case StartService() | ReloadService() | StopService():
            return with_services(observed, action)
        case ChangeFilters() | ChangeFirewall() | ChangeForwarding() | EndConnections() | ChangeIpv6() | ChangeRoutes():
            return _apply_to_routing(observed, action)
        case _:
            return _apply_to_vm(observed, action, now_s)


def _apply_to_routing(
    observed: Observed,
    action: ChangeFilters | ChangeFirewall | ChangeForwarding | EndConnections | ChangeIpv6 | ChangeRoutes,
) -> Observed:
    match action:
        case ChangeFilters():
            return with_filters(observed, action)
        case ChangeIpv6():
            return with_ipv6(observed, action)
        case ChangeRoutes():
            return with_routes(observed, action)
        case _:
            return with_routing(observed, action)


def _apply_to_disk(observed: Observed, action: CreateDisk | GrowDisk) -> Observed:
    path, seen = action.disk.path, observed.disks[action.disk.path]
    if isinstance(action, GrowDisk):
        return replace(observed, disks={**observed.disks, path: replace(seen, size_bytes=action.disk.size_bytes)})
    _require(not seen.exists and not seen.known, "a disk is made once")
    return replace(observed, disks={**observed.disks, path: DiskState(True, True, True)})


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
        _require(not nic.direct or nic.tap in observed.opened, f"{nic.tap} is open")
        fits = link is not None and link.multi_queue == (nic.queues > 1)
        _require(bool(nic.direct) or fits, f"{nic.tap} takes {nic.queues} descriptors")
        _require(link is None or link.vlans in (None, nic_vlans(nic)), f"{nic.tap} has its VLANs")
    _require(all(observed.disks[disk.path].exists for disk in spec.disks if disk.path), "all disks are there")
    nics: Mapping[str, NicState] = {nic.id: NicState(NicBackend.ATTACHED, nic.tap) for nic in spec.nics}
    shortage = Room({}, replace(observed, in_flight={}, short=frozenset())).shortage(spec)
    _require(shortage is None, f"the host can hold {spec.name}: {shortage}")
    pid = 1000 + len(observed.vms)
    state = VmState(spec, True, pid, action.generation, action.reset_generation, "prelaunch", nics=nics)
    state = replace(state, vhosts=frozenset(nic.id for nic in spec.nics if uses_vhost(observed, spec, nic)))
    state = replace(state, resume_generation=action.resume_generation)
    if observed.host.services:
        state = replace(state, unit=unit_name(spec.name), limits=spec.limits)
    return _with_vm(observed, spec.name, with_devices_at_launch(state))
