"""What the host's control groups can apply."""

from __future__ import annotations

from pathlib import Path

from agent.core.errors import ObservationError

CONTROLLERS = "cgroup.controllers"


def look_at_controllers(cgroups: Path = Path("/sys/fs/cgroup")) -> frozenset[str]:
    """The controllers of control groups v2 (cgroups(7), cgroup.controllers); none on a host with v1, or with neither.

    What systemd makes of a limit in v1, or in a container that may not write to them, is not known. Reads no disk.
    Raises ObservationError if the kernel does not say.
    """
    try:
        return frozenset((cgroups / CONTROLLERS).read_text().split())
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise ObservationError(str(cgroups / CONTROLLERS), error.strerror or str(error)) from error
