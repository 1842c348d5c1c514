"""The unit directory: its files once they are still, and honest about what cannot be read.

Events only wake; what counts is the look that follows, at least every five seconds: inotify loses events, and knows
nothing of a directory that was made anew or of the targets of symlinks.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from watchfiles import Change, awatch
from watchfiles.main import FileChange

from agent.host.unitdir.reading import DirectoryView, Seen, Stamp, UnitContent, directory_problem, read, scan

RESCAN_S = 5.0
WATCH_STEP_MS = 25
"""How often the watching thread wakes. It tells of a change after one or two steps, which is within the debounce."""
WATCH_TIMEOUT_S = 1.0
BLIND_RESCAN_S = 0.5
"""How often it looks where nothing can wake it: the directory is missing, or inotify is used up."""
BUSY_S = 2.0
"""A file that is written to for longer than this no longer keeps the others waiting."""


@dataclass(slots=True)
class _Waiting:
    """An entry that changed: its newest stamp, when that will have been still long enough, and since when it is not
    read."""

    stamp: Stamp
    due_s: float
    since_s: float


class UnitDirectory:
    """Follows a directory of unit files. One `watch` at a time; `reread` at any time, also without one."""

    def __init__(self, path: Path, *, debounce_s: float = 0.05, gone_after_s: float = 1.0) -> None:
        self._path = path
        self._absolute = path.absolute()
        self._debounce_s = debounce_s
        self._gone_after_s = gone_after_s
        self._stamps: dict[str, Stamp] = {}
        self._files: dict[str, UnitContent] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._missing: set[str] = set()
        self._gone_at_s = 0.0
        self._view: DirectoryView | None = None
        self._looking = asyncio.Lock()
        self._ring = asyncio.Event()
        self.watch_problem = ""
        """Why changes are only found by looking every half second; empty while the kernel tells of them."""
        self.looked_s: float | None = None
        """When the directory was last looked at (CLOCK_BOOTTIME), None while it could not be."""

    async def watch(self) -> AsyncGenerator[DirectoryView, None]:
        """The directory as soon as its files are still, and again whenever what is still differs. Never ends."""
        waker = asyncio.create_task(self._wake())
        told: DirectoryView | None = None
        try:
            while True:
                self._ring.clear()
                view, next_s = await self._look()
                if view is not None and view is not told:
                    told = view
                    yield view
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(next_s):
                        await self._ring.wait()
                if waker.done():
                    waker.result()  # a bug there must not go unnoticed
        finally:
            waker.cancel()
            with suppress(asyncio.CancelledError):
                await waker

    async def reread(self) -> DirectoryView:
        """The directory as it is, once every change and every disappearance that is seen now was waited for.

        A file that is written to all the time is waited for two seconds.
        """
        while True:
            view, next_s = await self._look()
            if view is not None and not self._missing and (not self._waiting or self._only_busy()):
                return view
            await asyncio.sleep(min(next_s, self._debounce_s))

    def _only_busy(self) -> bool:
        now_s = time.monotonic()
        return all(now_s - waiting.since_s > BUSY_S for waiting in self._waiting.values())

    async def _look(self) -> tuple[DirectoryView | None, float]:
        """The view that is still (None before there is one), and after how many seconds to look again."""
        async with self._looking:
            began_s = time.monotonic()
            try:
                entries = await asyncio.to_thread(scan, self._path)
            except OSError as error:
                self._missing.clear()
                self._waiting.clear()
                self._publish(DirectoryView(False, directory_problem(self._path, error), self._by_path()))
                return self._view, BLIND_RESCAN_S
            self.looked_s = time.clock_gettime(time.CLOCK_BOOTTIME)
            now_s = time.monotonic()
            self._note_missing(entries, began_s, now_s)
            still = self._note_changes(entries, now_s)
            await asyncio.to_thread(self._take, {name: entries[name] for name in still})
            if not self._waiting or self._only_busy():
                self._give_up_on_new(entries)
                self._publish(DirectoryView(True, "", self._by_path()))
            return self._view, self._next_look_s(now_s)

    def _note_missing(self, entries: Mapping[str, Seen], began_s: float, now_s: float) -> None:
        """A file that is missing is gone when nothing else has gone missing for a while: `rm *.toml` is one change.

        The while begins after the look that misses it, and is over before the look that confirms it: a look may take
        long, and what comes back meanwhile was not missing for as long.
        """
        missing = {name for name in self._files if name not in entries}
        for name in self._renamed(missing, entries):
            self._forget(name)
            missing.discard(name)
        if missing - self._missing:
            self._gone_at_s = now_s + self._gone_after_s
        self._missing = missing
        if missing and began_s >= self._gone_at_s:
            for name in missing:
                self._forget(name)
            self._missing = set()

    def _renamed(self, missing: set[str], entries: Mapping[str, Seen]) -> list[str]:
        """Those of the missing that are there under a name that is new: they are one change, and at once.

        Unchanged, for a file that is written anew may get the inode number of one that was just deleted.
        """
        if not missing:
            return []
        arrived = {seen.stamp[:4] for name, seen in entries.items() if name not in self._files}
        return [name for name in missing if name in self._stamps and self._stamps[name][:4] in arrived]

    def _forget(self, name: str) -> None:
        del self._files[name]
        self._stamps.pop(name, None)

    def _note_changes(self, entries: Mapping[str, Seen], now_s: float) -> list[str]:
        """Remembers what differs from what was read, and gives what of it has been still for the debounce."""
        self._waiting = {name: waiting for name, waiting in self._waiting.items() if name in entries}
        still: list[str] = []
        for name, seen in entries.items():
            if self._stamps.get(name) == seen.stamp:
                self._waiting.pop(name, None)
                continue
            waiting = self._waiting.get(name)
            if waiting is None:
                self._waiting[name] = waiting = _Waiting(seen.stamp, self._due_s(name, seen.stamp, now_s), now_s)
            elif waiting.stamp != seen.stamp:
                waiting.stamp, waiting.due_s = seen.stamp, self._due_s(name, seen.stamp, now_s)
            if now_s >= waiting.due_s:
                still.append(name)
        return still

    def _due_s(self, name: str, stamp: Stamp, now_s: float) -> float:
        """When a file may be read. One that was emptied says what a missing one says, and is given as much time: who
        writes a file in place empties it first."""
        emptied = stamp.size == 0 and name in self._files and bool(self._files[name].data)
        return self._still_since_s(stamp, now_s) + (self._gone_after_s if emptied else self._debounce_s)

    def _still_since_s(self, stamp: Stamp, now_s: float) -> float:
        """Since its last change, as its change time tells: what was slow to be noticed need not be awaited once more.

        One that seems old although it was just noticed has a time that is not of this clock: it is watched in full,
        unless it was there before the first look.
        """
        age_s = time.time() - stamp.ctime_ns / 1e9
        if age_s > 2 * self._debounce_s:
            return now_s - self._debounce_s if self._view is None else now_s
        return now_s - max(0.0, age_s)

    def _take(self, still: Mapping[str, Seen]) -> None:
        for name, seen in still.items():
            content, unmoved = read(self._path / name, seen)
            if unmoved:
                self._files[name], self._stamps[name] = content, seen.stamp
                del self._waiting[name]

    def _give_up_on_new(self, entries: Mapping[str, Seen]) -> None:
        """A file that was there from the start but is never still must not look as if it did not exist."""
        if self._view is None:
            for name in self._waiting.keys() & entries.keys() - self._files.keys():
                problem = "cannot be read: it is being written to all the time"
                self._files[name] = UnitContent(str(self._path / name), None, problem)

    def _by_path(self) -> Mapping[str, UnitContent]:
        return {content.path: content for _, content in sorted(self._files.items())}

    def _publish(self, view: DirectoryView) -> None:
        if view != self._view:
            number = self._view.number + 1 if self._view is not None else 1
            self._view = replace(view, number=number)
            self._ring.set()  # it may be a reread that found it

    def _next_look_s(self, now_s: float) -> float:
        waits = [BLIND_RESCAN_S if self.watch_problem else RESCAN_S]
        waits += [waiting.due_s - now_s for waiting in self._waiting.values()]
        if self._missing:
            waits.append(self._gone_at_s - now_s)
        return max(min(waits), 0.005)

    async def _wake(self) -> None:
        """Rings whenever the kernel tells of a change, at what stands at the path now."""
        while True:
            watched = _identity(self._path)
            paths = [path for path in (self._absolute, _existing_parent(self._absolute)) if path.is_dir()]
            try:
                async with aclosing(self._changes(paths)) as changes:
                    await self._follow(changes, watched)
            except* (OSError, RuntimeError) as errors:  # inotify's limits; a name that is no UTF-8
                self.watch_problem = f"cannot watch {self._path}: {errors.exceptions[0]}"
                self._ring.set()
                await asyncio.sleep(BLIND_RESCAN_S)
            self._ring.set()

    async def _follow(self, changes: AsyncIterator[set[FileChange]], watched: tuple[int, int] | None) -> None:
        """Rings for every change, until another directory is at the path.

        The first timeout rings as well: what happened before the watch was there is only found by looking. Any event of
        the directory itself ends the watch, because one that is made anew may even have the same inode number.
        """
        rung = False
        async for changed in changes:
            self.watch_problem = ""
            if changed or not rung:
                self._ring.set()
            rung = rung or not changed
            replaced = any(path == str(self._absolute) for _, path in changed)
            if replaced or _identity(self._path) != watched:
                return

    def _changes(self, paths: list[Path]) -> AsyncGenerator[set[FileChange], None]:
        own = str(self._absolute)

        def concerns_us(_: Change, path: str) -> bool:
            return path == own or os.path.dirname(path) == own

        return awatch(
            *paths,
            watch_filter=concerns_us,
            recursive=False,
            debounce=100,
            step=WATCH_STEP_MS,
            rust_timeout=int(WATCH_TIMEOUT_S * 1000),
            yield_on_timeout=True,
        )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _existing_parent(path: Path) -> Path:
    return next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
