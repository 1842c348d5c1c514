"""`vmhost plan` where no agent runs: what an agent would do on a host that has nothing yet."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

from agent.cli.client import Json
from agent.core.allocation import Allocations
from agent.core.errors import UnitError
from agent.core.observed import DiskState, HostState, Observed
from agent.core.routing.filters import Filters, FilterState
from agent.core.routing.firewall import FirewallState, ForwardingState, Routing
from agent.core.routing.ipv6 import Ipv6State
from agent.core.routing.routes import RoutesState
from agent.core.tell.forecast import forecast, forecast_json
from agent.core.tell.status import unit_status
from agent.core.text import printable
from agent.host.disks import look_at_disk
from agent.host.unitdir import read_directory
from agent.unitfile.parse import ParsedUnit, parse_unit
from agent.unitfile.resolve import ResolveContext, UnitSource, resolve


def plan_offline(units: Path, files: Mapping[str, bytes | None]) -> Json:
    """The agent's answer to a plan, from nothing but the unit directory with `files` (None: gone), and the disks."""
    parsed: dict[str, ParsedUnit] = {}
    for content in read_directory(units).files.values():
        if content.data is None:
            error = UnitError(printable(content.path), 1, 1, content.problem)
            parsed[content.path] = ParsedUnit(content.path, b"", (error,))
        else:
            parsed[content.path] = parse_unit(content.path, content.data)
    for path, data in ((str(units / name), data) for name, data in files.items()):
        parsed.pop(path, None)
        if data is not None:
            parsed[path] = parse_unit(path, data)
    context = ResolveContext("", uuid.UUID(int=0), Allocations(), {}, {})
    resolution = resolve([UnitSource(unit) for unit in parsed.values()], context)
    disks = {disk.path: disk.format for spec in resolution.desired.vms.values() for disk in spec.disks if disk.path}
    looks = {path: look_at_disk(path, image_format) for path, image_format in disks.items()}
    observed = Observed(
        disks={p: DiskState(one.exists, one.folder_exists, one.exists, one.size_bytes) for p, one in looks.items()},
        host=HostState(),
        routing=Routing(FirewallState(), ForwardingState()),
        filters=Filters(FilterState()),
        ipv6=Ipv6State(),
        routes=RoutesState(),
    )
    return {
        **forecast_json(forecast(resolution.desired, observed, 0.0)),
        "units": [
            unit_status(file) for file in resolution.files if file.state != "valid" or Path(file.path).name in files
        ],
    }
