"""The transient services of supervised programs and of short commands: their names, and what may be done there.

As a guest's unit (agent.core.guest_unit) that of a program starts as root with what setpriv(1) needs to become the
program's user, because systemd 252 knows no user by a bare number; the program keeps the capabilities that its spec
names, no others. A command's has these from the beginning, and stays root.
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
    return (
        *_program(spec.name, command, environment),
        # Guests that shut down still need their network.
        ("Before", "as", [GUESTS_UNIT]),
        # How it ended is kept until the agent has seen it.
        ("RemainAfterExit", "b", True),
        ("KillMode", "s", "mixed"),
        ("TimeoutStopUSec", "t", STOP_TIMEOUT_S * 1_000_000),
        ("CapabilityBoundingSet", "t", _bits((*_TO_CHANGE_USER, *spec.capabilities))),
        *_confinement("tmpfs"),
        ("TemporaryFileSystem", "a(ss)", [[run_dir, "ro,mode=0711"]]),
        ("BindReadOnlyPaths", "a(ssbt)", [[directory, directory, False, _RECURSIVE]]),
    )


def task_properties(
    name: str,
    command: Sequence[str],
    environment: Sequence[str],
    run_dir: str,
    capabilities: Sequence[str],
    deadline_s: float,
) -> tuple[Property, ...]:
    """All properties of the unit of a command that soon ends, its descriptors aside; it runs as root.

    The manager keeps how it ended as long as the connection that it was started by wants to know (AddRef).
    """
    return (
        *_program(name, command, environment),
        ("AddRef", "b", True),
        ("CollectMode", "s", "inactive-or-failed"),
        ("RuntimeMaxUSec", "t", int(deadline_s * 1_000_000)),
        ("TimeoutStopUSec", "t", 1_000_000),
        # Warnings only: that it began and ended, each minute or so, is not worth a line in the journal.
        ("LogLevelMax", "i", 4),
        ("CapabilityBoundingSet", "t", _bits(capabilities)),
        # Where homes can be read, a Python that was installed in one is found.
        *_confinement("read-only", "AF_PACKET"),
        ("InaccessiblePaths", "as", [run_dir]),
    )


def timer_properties(bridge: str, after_s: float) -> tuple[Property, ...]:
    """All properties of the timer that puts a move back unless it is stopped before (systemd.timer(5))."""
    return (
        ("Description", "s", f"vmhost: puts the uplink of {bridge} back unless its move ends well"),
        ("TimersMonotonic", "a(st)", [["OnActiveSec", int(after_s * 1_000_000)]]),
        ("AccuracyUSec", "t", 100_000),
        ("RemainAfterElapse", "b", False),
        ("CollectMode", "s", "inactive-or-failed"),
    )


def put_back_properties(
    bridge: str, command: Sequence[str], environment: Sequence[str], folder: str
) -> tuple[Property, ...]:
    """All properties of the service that such a timer starts; it writes to the folder of the journals only."""
    return (
        *_program(f"put the uplink of {bridge} back", command, environment),
        ("CollectMode", "s", "inactive-or-failed"),
        ("RuntimeMaxUSec", "t", 60_000_000),
        ("CapabilityBoundingSet", "t", _bits(["net_admin"])),
        *_confinement("read-only"),
        ("ReadWritePaths", "as", [folder]),
    )


def _program(name: str, command: Sequence[str], environment: Sequence[str]) -> tuple[Property, ...]:
    return (
        ("Description", "s", f"vmhost: {name}"),
        ("Slice", "s", SLICE),
        ("Type", "s", "exec"),
        # As it stands: in ExecStart a `$` would begin a variable.
        ("ExecStartEx", "a(sasas)", [[command[0], list(command), ["no-env-expand"]]]),
        ("Environment", "as", list(environment)),
        ("UMask", "u", 0o077),
    )


def _bits(capabilities: Sequence[str]) -> int:
    return sum(1 << _CAPABILITIES[name] for name in capabilities)


def _confinement(homes: str, *families: str) -> tuple[Property, ...]:
    yes = (
        *("ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups"),
        *("ProtectHostname", "ProtectClock", "NoNewPrivileges", "LockPersonality", "RestrictRealtime"),
        *("RestrictSUIDSGID", "PrivateTmp", "PrivateDevices", "MemoryDenyWriteExecute"),
    )
    return (
        *((name, "b", True) for name in yes),
        ("ProtectSystem", "s", "strict"),
        ("ProtectHome", "s", homes),
        ("ProtectProc", "s", "invisible"),
        ("DevicePolicy", "s", "closed"),
        ("KeyringMode", "s", "private"),
        ("RestrictNamespaces", "t", 0),
        ("RestrictAddressFamilies", "(bas)", [True, ["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", *families]]),
        ("SystemCallArchitectures", "as", ["native"]),
    )
