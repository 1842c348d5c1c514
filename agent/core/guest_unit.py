"""A guest's transient service: its name, and what QEMU may there.

All this stands on top of what QEMU is anyway: a user of its own without capabilities, and a sandbox of its own
(qemu(1) -sandbox). systemd 252 knows no user by a bare number (it wants a name of every `User=`), so the service starts
as root with the three capabilities that setpriv(1) needs to become the guest's user, and QEMU has none of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.core.desired import Limits, VmSpec
from agent.core.planner.room import memory_max_bytes

Property = tuple[str, str, object]
"""Name, D-Bus signature and value (org.freedesktop.systemd1(5), Properties of units)."""

SLICE = "vmhost.slice"
GUESTS_UNIT = "vmhost-guests.service"
"""It stops before all guests' units: that is when the agent stops the guests, in order."""

STOP_TIMEOUT_S = 10
"""What systemd leaves a QEMU for its end when it stops the unit itself; guests were asked before."""

_CAPABILITIES = {"CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SETPCAP": 8}
"""capabilities(7), with their numbers."""

_RECURSIVE = 16384
"""MS_REC (mount(2)), as BindPaths= wants it."""


_LIMITS = {
    "cpu_weight": "CPUWeight",
    "cpu_quota_us": "CPUQuotaPerSecUSec",
    "io_weight": "IOWeight",
    "tasks": "TasksMax",
}
"""The property of each limit (systemd.resource-control(5)). All are numbers of 64 bits."""

LIMIT_PROPERTIES = tuple(_LIMITS.values())

UNSET = (1 << 64) - 1
"""How the manager writes "not set", and of TasksMax "infinity" (src/basic/cgroup-util.h, CGROUP_WEIGHT_INVALID)."""


@dataclass(frozen=True, slots=True)
class UnitRights:
    """What a guest's unit gets beside the bare minimum. `files` are those that QEMU reads by their path, `directory` is
    its run directory, below `run_dir`; `max_descriptors` is the limit of open files."""

    run_dir: str
    directory: str
    files: tuple[str, ...]
    kvm: bool
    max_descriptors: int


def unit_name(vm: str, number: int = 1) -> str:
    """The name of a guest's unit; another number where a renamed guest still has the first. Names of guests have no
    dot."""
    return f"vmhost-vm-{vm}.service" if number == 1 else f"vmhost-vm-{vm}.{number}.service"


def is_guest_unit(name: str) -> bool:
    """Whether a unit is one of ours, by its name."""
    return re.fullmatch(r"vmhost-vm-[A-Za-z0-9_-]+(\.[0-9]+)?\.service", name) is not None


def unit_properties(
    spec: VmSpec, launcher: Sequence[str], environment: Sequence[str], rights: UnitRights
) -> tuple[Property, ...]:
    """All properties of a guest's unit, its descriptors aside."""
    return (
        *_life(spec, launcher, environment, rights),
        *_confinement(),
        *_resources(spec, kvm=rights.kvm),
        # extra-args may name any file, device and address, so only what no QEMU needs is taken from those guests.
        *(() if spec.extra_args else _own_places(spec, rights)),
    )


def _life(
    spec: VmSpec, launcher: Sequence[str], environment: Sequence[str], rights: UnitRights
) -> tuple[Property, ...]:
    return (
        ("Description", "s", f"vmhost guest {spec.name}"),
        ("Slice", "s", SLICE),
        ("Before", "as", [GUESTS_UNIT]),
        ("Type", "s", "exec"),
        ("ExecStart", "a(sasb)", [[launcher[0], list(launcher), False]]),
        ("Environment", "as", list(environment)),
        # How QEMU ended is kept until the agent has seen it, also of one that exited with 0.
        ("RemainAfterExit", "b", True),
        ("KillMode", "s", "mixed"),
        ("TimeoutStopUSec", "t", STOP_TIMEOUT_S * 1_000_000),
        ("UMask", "u", 0o077),
        ("IgnoreSIGPIPE", "b", False),
        ("LimitNOFILE", "t", rights.max_descriptors),
    )


def _confinement() -> tuple[Property, ...]:
    """What no QEMU needs. No system call filter: QEMU installs its own, and with a second one it dies."""
    yes = (
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "ProtectHostname",
    )
    more = ("NoNewPrivileges", "LockPersonality", "RestrictRealtime", "RestrictSUIDSGID")
    return (
        *((name, "b", True) for name in (*yes, *more)),
        ("CapabilityBoundingSet", "t", sum(1 << number for number in _CAPABILITIES.values())),
        ("RestrictNamespaces", "t", 0),
        ("SystemCallArchitectures", "as", ["native"]),
        ("KeyringMode", "s", "private"),
        ("ProtectProc", "s", "invisible"),
    )


def _resources(spec: VmSpec, *, kvm: bool) -> tuple[Property, ...]:
    """What it may take of the host. What devices in extra-args take nobody knows, so those guests have no MemoryMax.

    No accounting is asked for: the manager makes a control group for each limit that is set, accounted for or not.
    """
    given = ((name, getattr(spec.limits, key)) for key, name in _LIMITS.items())
    limits: tuple[Property, ...] = tuple((name, "t", value) for name, value in given if value is not None)
    return limits if spec.extra_args else (("MemoryMax", "t", memory_max_bytes(spec, kvm=kvm)), *limits)


def limit_properties(limits: Limits, default_tasks: int) -> tuple[Property, ...]:
    """All properties that stand for a guest's limits, to be set on its running unit: also those that are not given.

    `default_tasks` is what a unit without TasksMax= has: nothing of that property's own says "as if it were not set".
    """
    unset = dict.fromkeys(LIMIT_PROPERTIES, UNSET) | {"TasksMax": default_tasks}
    values = ((name, getattr(limits, key)) for key, name in _LIMITS.items())
    return tuple((name, "t", unset[name] if value is None else value) for name, value in values)


def limits_of(properties: Mapping[str, object], default_tasks: int) -> Limits:
    """The limits that a unit's properties stand for."""
    values = {key: int(str(properties[name])) for key, name in _LIMITS.items()}
    unset = dict.fromkeys(values, UNSET) | {"tasks": default_tasks}
    return Limits(**{key: None if value == unset[key] else value for key, value in values.items()})


def _own_places(spec: VmSpec, rights: UnitRights) -> tuple[Property, ...]:
    """Files, devices and addresses: of the run directory only the guest's own folder is there; disks, taps, logs and
    firmware come as descriptors."""
    families = ["AF_UNIX", *(["AF_INET", "AF_INET6"] if isinstance(spec.vnc, str) else [])]
    devices = ["/dev/kvm"] if rights.kvm else []
    places = [rights.directory, *devices]
    readable = [[path, path, False, _RECURSIVE] for path in rights.files]
    return (
        ("ProtectSystem", "s", "strict"),
        ("ProtectHome", "s", "tmpfs"),
        ("PrivateTmp", "b", True),
        ("TemporaryFileSystem", "a(ss)", [[rights.run_dir, "ro,mode=0711"]]),
        ("BindPaths", "a(ssbt)", [[path, path, False, _RECURSIVE] for path in places]),
        # An empty list would take back those of BindPaths as well (systemd keeps both in one list).
        *((("BindReadOnlyPaths", "a(ssbt)", readable),) if readable else ()),
        ("PrivateDevices", "b", True),
        ("DevicePolicy", "s", "closed"),
        ("DeviceAllow", "a(ss)", [[path, "rw"] for path in devices]),
        ("RestrictAddressFamilies", "(bas)", [True, families]),
    )
