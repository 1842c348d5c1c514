"""A guest or a bridge three times over: as its unit file has it, as it last had it without mistakes, and as it runs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.core.desired import BridgeSpec, Desired, Limits, VmSpec
from agent.core.edits.digest import launched_values
from agent.core.edits.pending import as_told
from agent.core.limits import limit_values
from agent.core.marks import bridge_resource, is_own_bridge, vm_resource
from agent.core.observed import LinkState, Observed
from agent.core.planner.ports import find_ports
from agent.core.services.dnsmasq import bridge_keys, service_name


@dataclass(frozen=True, slots=True)
class UnitText:
    """One unit file that names a resource: its text now (None if it cannot be read), and its last good one.

    `line` is where the resource's table begins, `state` is `valid`, `held` or `invalid`, `errors` its mistakes.
    """

    path: str
    line: int
    state: str
    text: str | None
    last_good: str | None = None
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """One key, as the units want it and as it runs; an empty text for what is not set. `runs` None: nothing runs."""

    key: str
    unit: str
    runs: str | None

    @property
    def differs(self) -> bool:
        """Whether something runs that is not as its unit says."""
        return self.runs is not None and self.runs != self.unit


def settings_of_vm(name: str, desired: Desired, observed: Observed) -> tuple[Setting, ...]:
    """Every key of a guest that its launch depends on, and its limits; those of one that no unit wants are empty texts.

    Limits run as the service manager says; those of a guest that is no service, or was not looked at, are not set.
    """
    wanted, state = desired.vms.get(name), observed.vms.get(name)
    runs = _settings(as_told(state), state.limits or Limits()) if state is not None and state.alive else None
    return _side_by_side(_settings(wanted, wanted.limits) if wanted is not None else {}, runs)


def _settings(spec: VmSpec, limits: Limits) -> Mapping[str, str]:
    return {**launched_values(spec), **limit_values(limits), "publish": " ".join(spec.publish)}


def settings_of_bridge(name: str, desired: Desired, observed: Observed) -> tuple[Setting, ...]:
    """Every key of a bridge, and what the kernel has; a link of its name that is not ours counts as nothing."""
    wanted, link = desired.bridges.get(name), observed.links.get(name)
    runs = _seen(link, wanted, observed) if link is not None and is_own_bridge(link) else None
    return _side_by_side(_wanted(wanted) if wanted is not None else {}, runs)


def _side_by_side(unit: Mapping[str, str], runs: Mapping[str, str] | None) -> tuple[Setting, ...]:
    keys = sorted({*unit, *(runs or {})})
    return tuple(Setting(key, unit.get(key, ""), None if runs is None else runs.get(key, "")) for key in keys)


def _wanted(spec: BridgeSpec) -> Mapping[str, str]:
    return {
        "addresses": " ".join(sorted(spec.addresses)),
        "mac": spec.mac,
        "mtu": str(spec.mtu),
        "nat": _truth(spec.nat),
        **({"ipv6": spec.ipv6} if spec.ipv6 else {}),
        "ports": " ".join(sorted(spec.ports)),
        "stp": _truth(spec.stp),
        "up": _truth(True),
        **bridge_keys(spec),
    }


def _seen(link: LinkState, spec: BridgeSpec | None, observed: Observed) -> Mapping[str, str]:
    """What the kernel has, without what others added: their addresses and ports, and the guests' taps."""
    wanted = frozenset(spec.addresses if spec is not None else ())
    ports = {one.name for one in observed.links.values() if one.master == link.ifindex}
    service = observed.services.get(service_name(link.name))
    found = find_ports({spec.name: spec}, observed).links if spec is not None else {}
    entries = {one.name: entry for (_, entry), one in found.items()}
    own = {port for port, bridge in observed.enslaved if bridge == link.name} | set(entries)
    return {
        "addresses": " ".join(sorted(a.address for a in link.addresses if a.own or a.address in wanted)),
        "mac": link.mac,
        "mtu": str(link.mtu),
        "nat": _truth(observed.routing.translates(link.name)),
        "ports": " ".join(sorted(entries.get(port, port) for port in ports & own)),
        "stp": _truth(link.stp),
        "up": _truth(link.up),
        **({"ipv6": mode} if (mode := _mode(link.name, spec, observed)) else {}),
        **(dict(service.spec.shown) if service is not None and service.alive else {}),
    }


def _mode(name: str, spec: BridgeSpec | None, observed: Observed) -> str:
    """The IPv6 mode whose rules are in force, empty for none."""
    firewall = observed.routing.firewall
    if spec is None or firewall is None or not any(one.key == f'"{name}"' for one in firewall.of("inside6")):
        return ""
    return spec.ipv6


def _truth(value: bool) -> str:
    return "true" if value else "false"


def differences(unit: UnitText) -> tuple[str, ...]:
    """The lines of a unified diff from a file's last good version to what it is now; none where they are the same."""
    if unit.text is None or unit.last_good is None:
        return ()
    before, now = unit.last_good.splitlines(), unit.text.splitlines()
    return tuple(difflib.unified_diff(before, now, "last good", "now", lineterm=""))


def show_json(
    kind: str, name: str, units: Sequence[UnitText], desired: Desired, observed: Observed
) -> dict[str, object]:
    """The answer of `vmhost show --json` about one `vm` or `bridge`; its keys are a promise to scripts."""
    is_vm = kind == "vm"
    settings = (settings_of_vm if is_vm else settings_of_bridge)(name, desired, observed)
    return {
        "resource": vm_resource(name) if is_vm else bridge_resource(name),
        "units": [
            {
                "file": unit.path,
                "line": unit.line,
                "state": unit.state,
                "text": unit.text,
                "last_good": unit.last_good,
                "diff": list(differences(unit)),
                "errors": list(unit.errors),
            }
            for unit in units
        ],
        "runs": any(setting.runs is not None for setting in settings),
        "settings": [{"key": s.key, "unit": s.unit, "runs": s.runs, "differs": s.differs} for s in settings],
    }


def known_as(name: str, desired: Desired, observed: Observed, named: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """What a name may mean: pairs of kind (`vm`, `bridge`) and bare name. `named` are resources that files name.

    `vm/web` and `bridge/web` tell apart a guest and a bridge of the same name.
    """
    resources = {*named, *map(vm_resource, desired.vms), *map(vm_resource, observed.vms)}
    resources |= {bridge_resource(bridge) for bridge in (*desired.bridges, *desired.retained)}
    wanted = [name] if "/" in name else [vm_resource(name), bridge_resource(name)]
    return tuple((one.split("/", 1)[0], one.split("/", 1)[1]) for one in wanted if one in resources)


def all_names(desired: Desired, observed: Observed, named: Sequence[str]) -> tuple[str, ...]:
    """Every bare name that could have been meant, for a suggestion."""
    names = {*desired.vms, *observed.vms, *desired.bridges, *(resource.split("/", 1)[1] for resource in named)}
    return tuple(sorted(names))
