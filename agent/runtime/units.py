"""From what the unit directory shows to what is wanted, with the last good versions as the net beneath."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from agent.core.desired import Desired
from agent.core.errors import UnitError
from agent.core.memory import Memory, new_names, with_new_names
from agent.core.tell.show import UnitText
from agent.core.text import printable
from agent.host.statedir import StateDirectory
from agent.host.unitdir import DirectoryView
from agent.runtime.keeper import Keeper
from agent.unitfile.heirs import heirs
from agent.unitfile.parse import ParsedUnit, parse_unit
from agent.unitfile.positions import position_of
from agent.unitfile.resolve import FileStatus, Resolution, ResolveContext, UnitSource, resolve


class Units:
    """Holds the present resolution of the unit directory.

    `problem` says why the directory cannot be read, `unsaved` why last good versions cannot be kept (which is tried
    again with each view); empty when all is well. `changed` is called as soon as something else is wanted.
    """

    def __init__(
        self, directory: Path, state: StateDirectory, keeper: Keeper, machine_id: str, changed: Callable[[], None]
    ) -> None:
        self._directory = directory
        self._state = state
        self._keeper = keeper
        self._machine_id = machine_id
        self._changed = changed
        self._number = 0
        self._parsed: dict[str, ParsedUnit] = {}
        self._good: dict[str, ParsedUnit] = {}
        self._kept: Mapping[str, bytes] = {}
        self.desired = Desired()
        self.files: tuple[FileStatus, ...] = ()
        self.problem = ""
        self.unsaved = ""
        self.loaded = False
        self._taking = asyncio.Lock()

    async def load_last_good(self) -> None:
        """Begin with the last good versions, before the directory was looked at: an agent that comes back to a missing
        directory goes on with what it knew."""
        self._kept = await asyncio.to_thread(self._state.good_units)
        self._good = {self.path(name): parse_unit(self.path(name), data) for name, data in self._kept.items()}
        if self._good:
            await self._take([UnitSource(parsed, parsed) for parsed in self._good.values()], from_directory=False)

    async def take(self, view: DirectoryView) -> bool:
        """Resolve what the directory shows, one view at a time; one that is older than the last one is passed over.

        A directory that cannot be read changes nothing. Whether it could be read. Returns when last good versions are
        kept, or `unsaved` says why not.
        """
        async with self._taking:
            if view.number >= self._number:
                self._number = view.number
                await self._take_view(view)
        return view.available

    async def _take_view(self, view: DirectoryView) -> None:
        self.problem = "" if view.available else view.problem
        if not view.available:
            return
        parsed = {
            content.path: self._parse(content.path, content.data, content.problem) for content in view.files.values()
        }
        self._parsed = parsed
        await self._take(self._sources(parsed), from_directory=True)

    def _sources(self, parsed: Mapping[str, ParsedUnit]) -> list[UnitSource]:
        """These files with their last good versions; one that is new may inherit that of one that is gone."""
        newcomers = [unit for path, unit in parsed.items() if path not in self._good]
        gone = [unit for path, unit in self._good.items() if path not in parsed]
        good = {**self._good, **heirs(newcomers, gone)} if newcomers and gone else self._good
        return [UnitSource(unit, good.get(path)) for path, unit in sorted(parsed.items())]

    def path(self, name: str) -> str:
        """Where the unit file of a name lies."""
        return str(self._directory / name)

    def what_if(self, files: Mapping[str, bytes | None]) -> Resolution:
        """What all units would want with these files in place, by their names (None: gone); nothing is taken over."""
        parsed = dict(self._parsed if self.loaded else self._good)
        for name, data in files.items():
            parsed.pop(self.path(name), None)
            if data is not None:
                parsed[self.path(name)] = parse_unit(self.path(name), data)
        return resolve(self._sources(parsed), self._context())

    def named(self) -> Sequence[str]:
        """Every resource that a file names, also in a version that cannot run."""
        return sorted({claim.resource for unit in self._versions() for claim in unit.claims if claim.kind == "name"})

    def texts(self, resource: str) -> Sequence[UnitText]:
        """The files that name a resource, as they are and as they last were good."""
        states = {status.path: status for status in self.files}
        found: dict[str, UnitText] = {}
        for unit in self._versions():
            claim = next((c for c in unit.claims if c.kind == "name" and c.resource == resource), None)
            if claim is None or unit.path in found:
                continue
            good, status = self._good.get(unit.path), states.get(unit.path)
            found[unit.path] = UnitText(
                path=unit.path,
                line=position_of(unit.data, claim.where)[0],
                state=status.state if status is not None else "held",
                text=_text(self._parsed.get(unit.path)),
                last_good=_text(good),
                errors=tuple(map(str, status.errors)) if status is not None else (),
            )
        return [found[path] for path in sorted(found)]

    def _versions(self) -> Sequence[ParsedUnit]:
        """The present version of each file before its last good one; a file that is gone counts no more."""
        return [*self._parsed.values(), *(good for path, good in self._good.items() if path in self._parsed)]

    def _parse(self, path: str, data: bytes | None, problem: str) -> ParsedUnit:
        known = self._parsed.get(path) or self._good.get(path)
        if data is None:
            return ParsedUnit(path=path, data=b"", errors=(UnitError(printable(path), 1, 1, problem),))
        if known is not None and known.data == data and not (data == b"" and known.errors):
            return known
        return parse_unit(path, data)

    async def _take(self, sources: list[UnitSource], *, from_directory: bool) -> None:
        """What is remembered is on the disk before anybody acts on it; a last good version need not be, because as long
        as it is not, the file itself is there to be read again."""
        resolution = resolve(sources, self._context())
        await self._keeper.update(_remembering(resolution))
        is_edited = self.desired != resolution.desired
        is_new = is_edited or self.loaded != from_directory
        names = new_names(self.desired.vms, resolution.desired.vms)
        if is_edited:  # else the former objects stay, which guests share
            self.desired = resolution.desired
        self.files = resolution.files
        self.loaded = from_directory
        if names:  # in the same breath: a pass in between would start or stop a guest for what was asked of another
            await self._keeper.update(lambda memory: with_new_names(memory, names))
        if is_new:
            self._changed()
            await asyncio.sleep(0)  # whoever was told goes first
        await self._keep_good(sources, resolution)

    def _context(self) -> ResolveContext:
        memory = self._keeper.memory
        return ResolveContext(
            machine_id=self._machine_id,
            seed=uuid.UUID(memory.seed),
            allocations=memory.allocations,
            incumbents=memory.incumbents,
            retained=memory.retained,
        )

    async def _keep_good(self, sources: list[UnitSource], resolution: Resolution) -> None:
        self._good = {
            source.parsed.path: version
            for source in sources
            if (version := _version(source, resolution.good.get(source.parsed.path))) is not None
        }
        good = {os.path.basename(path): data for path, data in resolution.good.items()}
        changed = {name: data for name, data in good.items() if self._kept.get(name) != data}
        gone = frozenset(self._kept.keys() - good.keys())
        if changed or gone:
            try:
                await asyncio.to_thread(self._state.save_good_units, changed, gone)
            except OSError as error:
                where = error.filename or "state directory"
                self.unsaved = f"{where}: {error.strerror}: last good versions cannot be kept; make room or mend it"
                return
            self._kept = good
        self.unsaved = ""


def _version(source: UnitSource, data: bytes | None) -> ParsedUnit | None:
    """The version of a file that these bytes are; one that could not be read has no bytes, and errors."""
    if data is None:
        return None
    return source.parsed if source.parsed.data == data and not source.parsed.errors else source.last_good


def _text(unit: ParsedUnit | None) -> str | None:
    """A version's text; None for a file that could not be read, which has mistakes and no content."""
    return None if unit is None or (unit.errors and not unit.data) else unit.data.decode(errors="replace")


def _remembering(resolution: Resolution) -> Callable[[Memory], Memory]:
    """What a resolution leaves behind: its allocations, its names, and the specs of all bridges that it knows of."""
    desired = resolution.desired
    retained = {**desired.retained, **desired.bridges}

    def change(memory: Memory) -> Memory:
        same = (
            memory.allocations == resolution.allocations
            and memory.incumbents == resolution.incumbents
            and memory.retained == retained
        )
        if same:
            return memory
        return replace(
            memory, allocations=resolution.allocations, incumbents=dict(resolution.incumbents), retained=retained
        )

    return change
