"""A guest whose launch record is lost runs on: its record is made again, from its process, its unit and its taps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from agent.core.desired import NicSpec, VmSpec
from agent.core.edits.digest import digest
from agent.core.observed import LinkState
from agent.host.launches import Launches, LaunchRecord
from agent.host.processes import find_process_with, launched_as
from agent.host.tap import find_descriptor_numbers
from agent.runtime.starts import unit_of


def rebuilt_record(
    name: str, unit: VmSpec | None, links: Mapping[str, LinkState], launches: Launches
) -> LaunchRecord | None:
    """The record of a running guest that has none, None if its process cannot be found.

    The last good spec of its unit is taken for what it was launched as, without any better knowledge; identity and user
    are those of the process. Without a unit only its taps are known, by their marks.
    """
    process = find_process_with(launches.lock_path(name))
    if process is None:
        return None
    uid, argv = launched_as(process.pid)
    found = re.search(r"\0-uuid\0([0-9a-f-]{36})\0", argv)
    uuid = found[1] if found else ""
    spec = unit or VmSpec(name, uuid, uid, nics=_nics_by_marks(name, links))
    spec = replace(spec, uuid=uuid or spec.uuid, uid=uid)
    numbers = {nic.id: find_descriptor_numbers(process.pid, nic.tap) for nic in spec.nics}
    return LaunchRecord(
        spec,
        digest=digest(spec),
        nic_fds={nic: found for nic, found in numbers.items() if found},
        pid=process.pid,
        start_time=process.start_time,
        unit=unit_of(process),
    )


def _nics_by_marks(name: str, links: Mapping[str, LinkState]) -> tuple[NicSpec, ...]:
    mark = f"vmhost:tap/{name}/"
    bridges = {link.ifindex: link.name for link in links.values()}
    return tuple(
        NicSpec(link.alias.removeprefix(mark), bridges.get(link.master or 0, ""), link.mac, link.name, slot)
        for slot, link in enumerate(sorted(links.values(), key=lambda link: link.name))
        if link.alias.startswith(mark)
    )
