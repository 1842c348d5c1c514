"""The transient service of a supervised program: its name, and what the program may there.

As a guest's unit (agent.core.guest_unit) it starts as root with what setpriv(1) needs to become the program's user,
because systemd 252 knows no user by a bare number; the program keeps the capabilities that its spec names, no others.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.core.guest_unit import GUESTS_UNIT, SLICE, Property
from agent.core.services.spec import ServiceSpec

STOP_TIMEOUT_S = 10

_TO_CHANGE_USER = ("setgid", "setuid", "setpcap")
_CAPABILITIES = {
    "setgid": 6,
    "setuid": 7,
    "setpcap": 8,
    "net_bind_service": 10,
    "net_admin": 12,
    "net_raw": 13,
}
"""capabilities(7), with their numbers."""

_RECURSIVE = 16384
"""MS_REC (mount(2)), as BindReadOnlyPaths= wants it."""


def service_unit(name: str) -> str:
    """The name of a service's unit; names of services have letters, digits, `-`, `_` and `.` only."""
    return f"vmhost-{name}.service"


def service_properties(
    spec: ServiceSpec, command: Sequence[str], environment: Sequence[str], run_dir: str, directory: str
) -> tuple[Property, ...]:
    """All properties of a service's unit, its descriptors aside. The agent alone starts it again when it ends."""
    capabilities = sum(1 << _CAPABILITIES[name] for name in (*_TO_CHANGE_USER, *spec.capabilities))
    return (
        ("Description", "s", f"vmhost: {spec.name}"),
        ("Slice", "s", SLICE),
        # Guests that shut down still need their network.
        ("Before", "as", [GUESTS_UNIT]),
        ("Type", "s", "exec"),
        ("ExecStart", "a(sasb)", [[command[0], list(command), False]]),
        ("Environment", "as", list(environment)),
        # How it ended is kept until the agent has seen it.
        ("RemainAfterExit", "b", True),
        ("KillMode", "s", "mixed"),
        ("TimeoutStopUSec", "t", STOP_TIMEOUT_S * 1_000_000),
        ("UMask", "u", 0o077),
        ("CapabilityBoundingSet", "t", capabilities),
        *_confinement(),
        ("TemporaryFileSystem", "a(ss)", [[run_dir, "ro,mode=0711"]]),
        ("BindReadOnlyPaths", "a(ssbt)", [[directory, directory, False, _RECURSIVE]]),
    )


def _confinement() -> tuple[Property, ...]:
    yes = (
        *("ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups"),
        *("ProtectHostname", "ProtectClock", "NoNewPrivileges", "LockPersonality", "RestrictRealtime"),
        *("RestrictSUIDSGID", "PrivateTmp", "PrivateDevices", "MemoryDenyWriteExecute"),
    )
    return (
        *((name, "b", True) for name in yes),
        ("ProtectSystem", "s", "strict"),
        ("ProtectHome", "s", "tmpfs"),
        ("ProtectProc", "s", "invisible"),
        ("DevicePolicy", "s", "closed"),
        ("KeyringMode", "s", "private"),
        ("RestrictNamespaces", "t", 0),
        ("RestrictAddressFamilies", "(bas)", [True, ["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"]]),
        ("SystemCallArchitectures", "as", ["native"]),
    )
