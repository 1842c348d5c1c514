"""Actions and repairs in a person's words: one line each, in the present tense, naming the resource and the reason."""

from __future__ import annotations

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
from agent.core.edits.tuning import in_words
from agent.core.limits import limit_values
from agent.core.rates import rate_text
from agent.core.reasons import Reason
from agent.core.routing.filters import ChangeFilters
from agent.core.routing.firewall_actions import ChangeFirewall, ChangeForwarding, EndConnections
from agent.core.routing.ipv6_actions import ChangeIpv6
from agent.core.routing.routes import route_text
from agent.core.routing.routes_wanted import ChangeRoutes
from agent.core.routing.ruleset import Element
from agent.core.services.actions import ReloadService, StartService, StopService
from agent.core.text import counted
from agent.core.tuning_actions import ChangeMedium, PlugCpus, TuneVm
from agent.core.vlan_actions import ChangeVlans, CreateVlan
from agent.core.vlans import PortVlans
from agent.core.vlans import in_words as ranges_in_words

RunningAction = ResetVm | PauseVm | ResumeVm | LimitVm | ChangeReboot
VmAction = LaunchVm | ReleaseVm | StopVm | EndVm | RenameVm | RunningAction
ELEMENTS_TOLD = 4


def describe(action: Action) -> str:
    """What an action does, as a line for `vmhost events` and `vmhost plan`."""
    match action:
        case (
            CreateBridge()
            | ChangeLink()
            | EnslavePort()
            | ReleasePort()
            | ChangeAddresses()
            | DeleteLink()
            | ChangeRate()
            | ChangeVlans()
            | CreateVlan()
        ):
            return _describe_link(action)
        case ArmTap() | ReplugNic() | MoveUplink() | PutBackUplink():
            return _describe_tap(action)
        case CreateDisk() | GrowDisk() | TakeOver() | PlugNic() | UnplugNic() | PlugDisk() | UnplugDisk():
            return _describe_plugging(action)
        case TuneVm() | PlugCpus() | ChangeMedium():
            return _describe_tuning(action)
        case StartService() | ReloadService() | StopService():
            return _describe_service(action)
        case ChangeFilters() | ChangeFirewall() | ChangeForwarding() | EndConnections():
            return _describe_routing(action)
        case ChangeIpv6() | ChangeRoutes():
            return _describe_ipv6(action) if isinstance(action, ChangeIpv6) else _describe_routes(action)
        case _:
            return _describe_vm(action)


def _describe_vlans(action: ChangeVlans | CreateVlan) -> str:
    if isinstance(action, CreateVlan):
        return f"make VLAN link {action.spec.name} on {action.spec.link}"
    heeds = "" if action.setting.filtering else f"have {action.bridge} heed no VLANs; "
    told = [f"{port.link} {_carried(port.vlans)}" for port in action.ports]
    more = f" and {len(told) - ELEMENTS_TOLD} more" if len(told) > ELEMENTS_TOLD else ""
    return f"{heeds}VLANs in {action.bridge}: {', '.join(told[:ELEMENTS_TOLD])}{more} ({action.reason})"


def _carried(vlans: PortVlans) -> str:
    tagged = f"tagged {ranges_in_words(vlans.tagged)}" if vlans.tagged else ""
    untagged = f"untagged {ranges_in_words(vlans.untagged)}" if vlans.untagged else ""
    return " ".join(filter(None, (untagged, tagged))) or "none"


def _describe_uplink(action: MoveUplink | PutBackUplink) -> str:
    match action:
        case MoveUplink(bridge=bridge, port=port, again=again):
            return f"move what {port} carri{'ed' if again else 'es'} to {bridge}, and prove that it works there"
        case PutBackUplink(bridge=bridge, port=port, why=why):
            return f"put back what {port} carried, from {bridge}: {why}"


def _describe_tap(action: ArmTap | ReplugNic | MoveUplink | PutBackUplink) -> str:
    match action:
        case MoveUplink() | PutBackUplink():
            return _describe_uplink(action)
        case ArmTap(nic=nic) if nic.direct:
            return f"make macvtap {nic.tap} on {nic.direct}"
        case ArmTap(nic=nic, running=True) if nic.queues > 1:
            return f"re-arm QEMU's {nic.queues} descriptors of {nic.id} onto a new tap {nic.tap}"
        case ArmTap(nic=nic, running=True):
            return f"re-arm QEMU's descriptor of {nic.id} onto a new tap {nic.tap}"
        case ArmTap(nic=nic):
            return f"make tap {nic.tap} in {nic.bridge}"
        case ReplugNic(nic=nic, why=why):
            return f"replug {nic.id} on a new tap {nic.tap}: {why}, the guest notices"


def _describe_service(action: StartService | ReloadService | StopService) -> str:
    match action:
        case StartService(spec=spec, replaces=None):
            return f"start {spec.name} ({action.reason})"
        case StartService(spec=spec, reason=Reason.SETTINGS):
            return f"start {spec.name} anew, so that it advertises at once: its link did not forward for a while"
        case StartService(spec=spec):
            return f"start {spec.name} anew, with its new configuration"
        case ReloadService(spec=spec):
            return f"have {spec.name} read its files again"
        case StopService(service=service):
            return f"stop {service} ({action.reason})"


def _describe_plugging(
    action: TakeOver | PlugNic | UnplugNic | PlugDisk | UnplugDisk | CreateDisk | GrowDisk,
) -> str:
    match action:
        case CreateDisk(disk=disk):
            return f"create {disk.path} ({disk.format}, {disk.size_bytes} bytes)"
        case GrowDisk(disk=disk):
            return f"grow {disk.path} to {disk.size_bytes} bytes"
        case TakeOver(vm=vm, keys=keys):
            return f"{vm} takes over {', '.join(keys) or 'where its unit is'} while it runs"
        case PlugNic(vm=vm, nic=nic):
            return f"plug {nic.id} into {vm}, on tap {nic.tap}"
        case UnplugNic(vm=vm, nic=nic):
            return f"have {vm} let go of {nic.id}, and unplug it"
        case PlugDisk(vm=vm, disk=disk):
            return f"plug {disk.id} ({disk.path or 'an empty drive'}) into {vm}"
        case UnplugDisk(vm=vm, disk=disk):
            return f"have {vm} let go of {disk.id}, and unplug it; {disk.path or 'nothing'} stays"


def _describe_tuning(action: TuneVm | PlugCpus | ChangeMedium) -> str:
    match action:
        case TuneVm(vm=vm, settings=settings):
            return f"{vm}: {', '.join(map(in_words, settings))}"
        case PlugCpus(vm=vm, cpus=cpus):
            return f"plug CPUs into {vm}, which is to have {cpus}"
        case ChangeMedium(vm=vm, disk=disk):
            return (
                f"put {disk.path} into {disk.id} of {vm}" if disk.path else f"take the medium out of {disk.id} of {vm}"
            )


def _describe_routing(action: ChangeFilters | ChangeFirewall | ChangeForwarding | EndConnections) -> str:
    match action:
        case ChangeFilters() | ChangeFirewall():
            return _describe_tables(action)
        case EndConnections(ended=ended):
            return f"end the connections of {', '.join(one.key for one in ended)}"
        case ChangeForwarding(settings=settings):
            return f"set {', '.join(f'net/{name} = {value}' for name, value in settings)}"


def _describe_tables(action: ChangeFilters | ChangeFirewall) -> str:
    tables = "tables of the filters" if isinstance(action, ChangeFilters) else "table inet vmhost"
    if action.gone:
        return f"delete the {tables}"
    if action.whole:
        return f"make the {tables}, with {counted(len(action.add), 'element')}"
    signed = [*(f"-{_element(one)}" for one in action.remove), *(f"+{_element(one)}" for one in action.add)]
    more = f" and {len(signed) - ELEMENTS_TOLD} more" if len(signed) > ELEMENTS_TOLD else ""
    return f"{tables}: {' '.join(signed[:ELEMENTS_TOLD])}{more}"


def _describe_ipv6(action: ChangeIpv6) -> str:
    told = [f"net/{name} = {value}" for name, value in (*action.settings, *action.restore)]
    for places, sign, what in (
        (action.add_routes, "+", "route"),
        (action.add_proxies, "+", "proxy"),
        (action.remove_routes, "-", "route"),
        (action.remove_proxies, "-", "proxy"),
    ):
        told += [f"{sign}{what} {place.address} dev {place.link}" for place in places]
    more = f" and {len(told) - ELEMENTS_TOLD} more" if len(told) > ELEMENTS_TOLD else ""
    return f"IPv6: {', '.join(told[:ELEMENTS_TOLD]) or 'nothing to give back'}{more}"


def _describe_routes(action: ChangeRoutes) -> str:
    told = [
        f"{sign}{route_text(route.to, route.metric, route.via)}"
        for routes, sign in ((action.add, "+"), (action.swap, "now "), (action.remove, "-"))
        for route in routes
    ]
    more = f" and {len(told) - ELEMENTS_TOLD} more" if len(told) > ELEMENTS_TOLD else ""
    return f"routes by {action.link}: {', '.join(told[:ELEMENTS_TOLD])}{more}"


def _element(one: Element) -> str:
    return f"{one.set}{{{one.key}{f' : {one.value}' if one.value else ''}}}"


def _describe_vm(action: VmAction) -> str:
    match action:
        case LaunchVm(spec=spec, instead_of=refused):
            return f"launch QEMU for {spec.name}{' as it last ran' if refused else ''}"
        case ReleaseVm(vm=vm):
            return f"let {vm} run"
        case StopVm(vm=vm, timeout_s=timeout_s):
            return f"shut {vm} down within {round(timeout_s, 1):g} s ({action.reason})"
        case EndVm(vm=vm, exit_reason=reason):
            told = "it rebooted, and is started as its unit says" if action.rebooted else reason
            return f"put away what is left of {vm} ({told})"
        case RenameVm(vm=vm, new_name=new_name):
            return f"carry {vm} over to its new name {new_name}"
        case _:
            return _describe_running(action)


def _describe_running(action: RunningAction) -> str:
    match action:
        case ResetVm(vm=vm):
            return f"reset {vm}"
        case LimitVm(vm=vm, limits=limits):
            given = [f"{key} = {value}" for key, value in limit_values(limits).items() if value]
            return f"limits of {vm}: {', '.join(given) or 'none'}"
        case ChangeReboot(vm=vm):
            what = "apply what waits for it" if action.ends else "apply nothing, because nothing waits any more"
            return f"have a reboot of {vm} {what}"
        case PauseVm() | ResumeVm():
            return _describe_pause(action)


def _describe_pause(action: PauseVm | ResumeVm) -> str:
    if isinstance(action, PauseVm):
        return f"pause {action.vm}, as its operator asked"
    asked = action.reason is Reason.RESUME
    return f"let {action.vm} go on" + (", as its operator asked" if asked else ": there is room on its disks again")


def _describe_rate(action: ChangeRate) -> str:
    rates = (("in", action.rate_in_bps), ("out", action.rate_out_bps))
    told = [f"{rate_text(bps) if bps else 'any rate'} {direction}" for direction, bps in rates if bps is not None]
    return f"let {' and '.join(told)} through {action.link} ({action.reason})"


def _describe_link(
    action: CreateBridge
    | ChangeLink
    | EnslavePort
    | ReleasePort
    | ChangeAddresses
    | DeleteLink
    | ChangeRate
    | ChangeVlans
    | CreateVlan,
) -> str:
    match action:
        case ChangeVlans() | CreateVlan():
            return _describe_vlans(action)
        case CreateBridge(spec=spec):
            return f"make bridge {spec.name}"
        case ChangeLink(link=link):
            fields = ("up", "mtu", "mac", "master", "alias", "name", "stp", "snooping", "isolated", "group_learning")
            names = [name for name in (*fields, "vlans") if getattr(action.change, name) is not None]
            return f"set {', '.join(names)} of {link} ({action.reason})"
        case EnslavePort(port=port, bridge=bridge):
            return f"put {port} into {bridge}"
        case ReleasePort(port=port, bridge=bridge):
            return f"take {port} out of {bridge}"
        case ChangeAddresses(bridge=bridge, add=add, remove=remove):
            signed = [f"+{address}" for address in add] + [f"-{address}" for address in remove]
            return f"addresses of {bridge}: {' '.join(signed)}"
        case ChangeRate():
            return _describe_rate(action)
        case DeleteLink(link=link):
            return f"delete {link}"
