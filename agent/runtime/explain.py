"""Answers `vmhost plan`, `why` and `show` from what the agent knows; it changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from agent.core.desired import Desired
from agent.core.memory import carried_intents, new_names
from agent.core.observed import DiskState, Observed
from agent.core.planner.obstacles import edited
from agent.core.tell.forecast import forecast, forecast_json
from agent.core.tell.show import UnitText, all_names, known_as, show_json
from agent.core.tell.status import StatusInputs, unit_status
from agent.core.tell.why import WhyInputs, why
from agent.host.disks import is_file, look_at_disk
from agent.runtime.clock import now_s
from agent.runtime.control import UnknownNameError
from agent.runtime.keeper import Keeper
from agent.runtime.observe import boot_files
from agent.runtime.reconcile import Pass, Reconciler
from agent.runtime.units import Units
from agent.telemetry.journal import Journal


class Explainer:
    """`inputs` gives what status is made of, as of the latest pass."""

    def __init__(
        self,
        inputs: Callable[[], StatusInputs],
        reconciler: Reconciler,
        units: Units,
        keeper: Keeper,
        journal: Journal,
    ) -> None:
        self._inputs = inputs
        self._reconciler = reconciler
        self._units = units
        self._keeper = keeper
        self._journal = journal

    async def plan(self, files: Mapping[str, bytes | None]) -> Mapping[str, object]:
        """What would be done from here to settled, with `files` in the unit directory, by their names (None: gone)."""
        seen = await self._reconciler.next_pass()
        observed = replace(seen.observed, in_flight=dict(self._reconciler.in_flight))
        desired, statuses = seen.desired, self._units.files
        if files:
            resolution = self._units.what_if(files)
            desired, statuses = replace(resolution.desired, complete=seen.desired.complete), resolution.files
            names = new_names(seen.desired.vms, desired.vms)
            observed = replace(observed, intents=carried_intents(observed.intents, names))
        asked = {self._units.path(name) for name in files}
        answer = await asyncio.to_thread(_forecast, desired, observed, self._keeper.memory.known_disks, seen.at_s)
        return {**answer, "units": [unit_status(one) for one in statuses if one.path in asked or one.state != "valid"]}

    async def why(self, name: str) -> Mapping[str, object]:
        """The chain of reasons for what a name stands for; `UnknownNameError` if for nothing."""
        seen = await self._reconciler.next_pass()
        status = self._inputs()
        events = [(event.time, event.resource, event.message) for event in self._journal.since(0)]
        found = []
        for kind, bare in self._known(name, seen):
            told = why(kind, bare, WhyInputs(status, now_s(), self._texts(f"{kind}/{bare}"), events))
            statements = [{"topic": one.topic, "text": one.text} for one in told]
            found.append({"resource": f"{kind}/{bare}", "reasons": statements})
        return {"found": found}

    async def show(self, name: str) -> Mapping[str, object]:
        """What a name stands for in its unit, last good and as it runs; `UnknownNameError` if for nothing."""
        seen = await self._reconciler.next_pass()
        return {
            "found": [
                show_json(kind, bare, self._texts(f"{kind}/{bare}"), seen.desired, seen.observed)
                for kind, bare in self._known(name, seen)
            ]
        }

    def _known(self, name: str, seen: Pass) -> Sequence[tuple[str, str]]:
        named = self._units.named()
        found = known_as(name, seen.desired, seen.observed, named)
        if not found:
            raise UnknownNameError("guest and no bridge", name, all_names(seen.desired, seen.observed, named))
        return found

    def _texts(self, resource: str) -> Sequence[UnitText]:
        return self._units.texts(resource)


def _forecast(desired: Desired, observed: Observed, known: frozenset[str], at_s: float) -> Mapping[str, object]:
    """In a thread of its own: a thousand guests take a third of a second, and disks not looked at yet may be slow."""
    unseen = {
        disk.path: look_at_disk(disk.path, disk.format)
        for spec in desired.vms.values()
        for disk in spec.disks
        if disk.path not in observed.disks
    }
    looked = {
        path: DiskState(found.exists, found.folder_exists, found.exists or path in known, found.size_bytes)
        for path, found in unseen.items()
    }
    files = {path: is_file(path) for path in boot_files(edited(desired.vms, observed.vms)) - observed.files.keys()}
    observed = replace(observed, disks={**observed.disks, **looked}, files={**observed.files, **files})
    return forecast_json(forecast(desired, observed, at_s))
