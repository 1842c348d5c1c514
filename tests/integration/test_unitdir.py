"""The unit directory on a real file system: what is read, when, and what is honestly said about the rest."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.host.unitdir import DirectoryView, UnitContent, UnitDirectory, read_directory, read_unit_file
from agent.host.unitdir import directory as directory_module
from agent.host.unitdir.reading import Seen, scan

LIMIT_S = 60.0
NEVER_S = 3600.0
"""What waits for this long is not what a test sees come true."""
LONG_S = 4.0
"""No moment of this machine, between two steps of a test, is as long."""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    folder = tmp_path / "vmhost.d"
    folder.mkdir()
    return folder


class Watch:
    """A watch that goes on in the background, with what it has told so far."""

    def __init__(self) -> None:
        self.told: list[DirectoryView] = []
        self._more = asyncio.Condition()

    async def follow(self, directory: UnitDirectory) -> None:
        async with aclosing(directory.watch()) as views:
            async for view in views:
                async with self._more:
                    self.told.append(view)
                    self._more.notify_all()

    async def until(self, true_of: Callable[[DirectoryView], bool]) -> DirectoryView:
        async with asyncio.timeout(LIMIT_S), self._more:
            await self._more.wait_for(lambda: self.told and true_of(self.told[-1]))
        return self.told[-1]

    async def until_files(self, **expected: bytes | None) -> DirectoryView:
        """Waits until exactly these files (without `.toml`) are told, with this content."""
        return await self.until(lambda view: view.available and contents(view) == expected)


@asynccontextmanager
async def watching(directory: UnitDirectory) -> AsyncIterator[Watch]:
    watch = Watch()
    following = asyncio.create_task(watch.follow(directory))
    try:
        yield watch
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


def contents(view: DirectoryView) -> dict[str, bytes | None]:
    return {Path(path).stem: content.data for path, content in view.files.items()}


@pytest.fixture
def only_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told is told for an event's sake, and not because all is looked at every five seconds."""
    monkeypatch.setattr(directory_module, "RESCAN_S", NEVER_S)


@pytest.fixture
async def watch(units: Path) -> AsyncIterator[Watch]:
    async with watching(UnitDirectory(units)) as following:
        yield following


async def test_a_file_is_told_edited_and_gone(units: Path, watch: Watch) -> None:
    file = units / "a.toml"
    await watch.until_files()
    file.write_bytes(b"one")
    await watch.until_files(a=b"one")
    file.write_bytes(b"two")
    await watch.until_files(a=b"two")
    file.unlink()
    await watch.until_files()
    assert len(watch.told) == 4


async def test_only_units_are_files(units: Path, watch: Watch) -> None:
    for name in (".hidden.toml", "a.toml~", "#a.toml#", ".#a.toml", ".a.toml.swp", "4913", "a.toml.bak", "README"):
        (units / name).write_bytes(b"no")
    (units / "a.toml").write_bytes(b"yes")
    await watch.until_files(a=b"yes")
    assert all(contents(view) in ({}, {"a": b"yes"}) for view in watch.told)


async def test_a_save_by_rename_is_one_change(units: Path) -> None:
    (units / "a.toml").write_bytes(b"one")
    async with watching(UnitDirectory(units, gone_after_s=NEVER_S)) as watch:
        await watch.until_files(a=b"one")
        (units / "a.toml").rename(units / "a.toml~")
        await asyncio.sleep(0.3)  # an editor's moment between two renames
        (units / "new").write_bytes(b"two")
        (units / "new").rename(units / "a.toml")
        await watch.until_files(a=b"two")
        assert [contents(view) for view in watch.told] == [{"a": b"one"}, {"a": b"two"}]


async def test_a_renamed_file_is_one_change(units: Path) -> None:
    (units / "a.toml").write_bytes(b"one")
    async with watching(UnitDirectory(units, gone_after_s=NEVER_S)) as watch:
        await watch.until_files(a=b"one")
        (units / "a.toml").rename(units / "b.toml")
        await watch.until_files(b=b"one")
        assert [contents(view) for view in watch.told] == [{"a": b"one"}, {"b": b"one"}]


async def test_a_new_file_with_a_deleted_ones_inode_is_no_rename(units: Path) -> None:
    (units / "a.toml").write_bytes(b"one")
    async with watching(UnitDirectory(units, gone_after_s=NEVER_S)) as watch:
        await watch.until_files(a=b"one")
        # File systems give a freed inode number away at once; this is the same for who looks only afterwards.
        (units / "a.toml").rename(units / "aside")
        (units / "aside").write_bytes(b"two")
        (units / "aside").rename(units / "b.toml")
        await asyncio.sleep(0.4)
        (units / "a.toml").write_bytes(b"three")
        await watch.until_files(a=b"three", b=b"two")
        assert all("a" in contents(view) for view in watch.told)


async def test_an_emptied_file_has_as_much_time_as_a_missing_one(units: Path) -> None:
    file = units / "a.toml"
    file.write_bytes(b"one")
    async with watching(UnitDirectory(units, gone_after_s=LONG_S)) as watch:
        await watch.until_files(a=b"one")
        with file.open("wb") as writing:
            await asyncio.sleep(0.4)  # whoever writes in place was not given the processor
            writing.write(b"two")
        await watch.until_files(a=b"two")
        assert {"a": b""} not in [contents(view) for view in watch.told]
        file.write_bytes(b"")
        await watch.until_files(a=b"")


async def test_a_file_is_read_when_it_is_still(units: Path) -> None:
    async with watching(UnitDirectory(units, debounce_s=LONG_S / 4)) as watch:
        await watch.until_files()
        with (units / "a.toml").open("wb", buffering=0) as file:
            for _ in range(20):
                file.write(b"x")
                await asyncio.sleep(0.01)
        await watch.until_files(a=b"x" * 20)
        assert len(watch.told) <= 3, "it told of nearly every write"


@pytest.mark.parametrize(("slow", "back"), [(2, 2), (1, 3)])
async def test_a_look_that_takes_long_gives_up_nothing_that_comes_back_in_time(
    units: Path, monkeypatch: pytest.MonkeyPatch, slow: int, back: int
) -> None:
    file, aside, looks = units / "a.toml", units / "a.toml~", 0
    file.write_bytes(b"one")
    directory = UnitDirectory(units, gone_after_s=NEVER_S)
    assert contents(await directory.reread()) == {"a": b"one"}
    file.rename(aside)

    def slow_scan(path: Path) -> dict[str, Seen]:
        """One sees what is there, and then takes longer than a missing file is waited for; after one it is back."""
        nonlocal looks
        looks, seen = looks + 1, scan(path)
        if looks == slow:
            later = {**vars(time), "monotonic": lambda: time.monotonic() + 2 * NEVER_S}
            monkeypatch.setattr(directory_module, "time", SimpleNamespace(**later))
        if looks == back:
            aside.rename(file)
        return seen

    monkeypatch.setattr(directory_module, "scan", slow_scan)
    assert contents(await directory.reread()) == {"a": b"one"}
    assert looks > back


async def test_all_files_removed_are_one_change(units: Path) -> None:
    for number in range(5):
        (units / f"{number}.toml").write_bytes(b"")
    async with watching(UnitDirectory(units, gone_after_s=LONG_S)) as watch:
        await watch.until(lambda view: len(view.files) == 5)
        told = len(watch.told)
        for number in range(5):
            (units / f"{number}.toml").unlink()
            await asyncio.sleep(0.15)
        await watch.until_files()
        assert len(watch.told) == told + 1


async def test_a_missing_directory_says_nothing_about_its_files(units: Path, watch: Watch) -> None:
    (units / "a.toml").write_bytes(b"one")
    await watch.until_files(a=b"one")
    os.rename(units, units.with_name("away"))
    view = await watch.until(lambda view: not view.available)
    assert (view.problem, contents(view)) == (f"the unit directory {units} does not exist", {"a": b"one"})
    os.rename(units.with_name("away"), units)
    await watch.until_files(a=b"one")
    (units / "b.toml").write_bytes(b"two")
    await watch.until_files(a=b"one", b=b"two")


async def test_a_directory_that_is_made_later(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    async with watching(UnitDirectory(folder)) as watch:
        await watch.until(lambda view: not view.available)
        folder.mkdir(parents=True)
        (folder / "a.toml").write_bytes(b"one")
        await watch.until_files(a=b"one")


@pytest.mark.usefixtures("only_events")
async def test_a_directory_that_is_made_anew(units: Path, watch: Watch) -> None:
    (units / "a.toml").write_bytes(b"one")
    await watch.until_files(a=b"one")
    shutil.rmtree(units)
    os.mkdir(units)
    (units / "b.toml").write_bytes(b"two")
    await watch.until_files(b=b"two")
    (units / "b.toml").write_bytes(b"three")
    await watch.until_files(b=b"three")


@pytest.mark.usefixtures("only_events")
async def test_a_directory_that_is_made_anew_with_the_same_inode_number(units: Path, watch: Watch) -> None:
    await watch.until_files()
    await asyncio.sleep(1)  # so that it is no look of the beginning that finds it
    before = os.stat(units).st_ino
    for _ in range(20):
        os.rmdir(units)
        os.mkdir(units)
        if os.stat(units).st_ino == before:
            break
    await asyncio.sleep(1)
    (units / "a.toml").write_bytes(b"one")
    await watch.until_files(a=b"one")


@pytest.mark.usefixtures("only_events")
async def test_a_configmap_flips(units: Path, watch: Watch) -> None:
    for version in ("one", "two"):
        (units / f"..{version}").mkdir()
        (units / f"..{version}" / "a.toml").write_text(version)
    (units / "..data").symlink_to("..one")
    (units / "a.toml").symlink_to("..data/a.toml")
    await watch.until_files(a=b"one")
    (units / "..tmp").symlink_to("..two")
    (units / "..tmp").rename(units / "..data")
    await watch.until_files(a=b"two")


async def test_a_symlinks_target_outside_is_found_by_looking(units: Path, tmp_path: Path, watch: Watch) -> None:
    target = tmp_path / "elsewhere"
    target.write_bytes(b"one")
    (units / "a.toml").symlink_to(target)
    await watch.until_files(a=b"one")
    await asyncio.sleep(1)  # so that it is no look of the beginning that finds it
    target.write_bytes(b"two")
    await watch.until_files(a=b"two")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "fifo": (make_fifo, "cannot be read: it is a FIFO, not a file"),
    "socket": (make_socket, "cannot be read: it is a socket, not a file"),
    "directory": (Path.mkdir, "cannot be read: it is a directory, not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "cannot be read: it is a device, not a file"),
    "huge": (lambda path: path.write_bytes(b"#" * (12 << 20)), "the file is larger than 1 MiB"),
    "loop": (lambda path: path.symlink_to(path.name), "cannot be read: its symlinks lead in a circle"),
    "dangling": (
        lambda path: path.symlink_to("/no\nwhere"),
        "cannot be read: it is a symlink to /no\\nwhere, which does not exist",
    ),
}


async def test_what_cannot_be_read_is_told_and_all_others_are_served(units: Path, watch: Watch) -> None:
    (units / "good.toml").write_bytes(b"good")
    for name, (make, _) in BAD.items():
        make(units / f"{name}.toml")
    view = await watch.until(lambda view: len(view.files) == len(BAD) + 1)
    assert {Path(path).stem: content.problem for path, content in view.files.items() if content.data is None} == {
        name: problem for name, (_, problem) in BAD.items()
    }
    assert view.files[str(units / "good.toml")].data == b"good"
    (units / "fifo.toml").unlink()
    (units / "fifo.toml").write_bytes(b"mended")
    await watch.until(lambda view: view.files[str(units / "fifo.toml")].data == b"mended")


NAMES = ["a b.toml", "a,b.toml", "a\nb.toml", "x" * 200 + ".toml", "\udcff.toml", "ä.toml", '".toml', ".x.toml"]


async def test_names_of_any_kind(units: Path, watch: Watch) -> None:
    for name in NAMES:
        (units / name).write_bytes(b"")
    view = await watch.until(lambda view: len(view.files) == len(NAMES) - 1)
    assert set(view.files) == {str(units / name) for name in NAMES if not name.startswith(".")}


AS_NOBODY = """
import os, sys
from pathlib import Path
from agent.host.unitdir import read_directory
os.setgroups([]); os.setgid(65534); os.setuid(65534)
view = read_directory(Path(sys.argv[1]))
print(view.available, view.problem, *(content.problem or content.data for content in view.files.values()), sep="|")
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A unit directory that every user may reach, which a folder of pytest is not."""
    folder = Path(f"/tmp/vmhost-test-units-{os.getpid()}")
    folder.mkdir(mode=0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def test_without_the_right_to_read(open_folder: Path) -> None:
    def seen() -> str:
        ran = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, open_folder], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()

    (open_folder / "a.toml").write_bytes(b"")
    (open_folder / "a.toml").chmod(0o600)
    (open_folder / "b.toml").write_bytes(b"fine")
    assert seen() == "True||cannot be read: permission denied|b'fine'"
    open_folder.chmod(0o700)
    assert seen() == f"False|the unit directory {open_folder} cannot be read: permission denied"


async def test_a_permission_that_is_given_is_noticed(units: Path, watch: Watch) -> None:
    (units / "a.toml").write_bytes(b"one")
    before = await watch.until_files(a=b"one")
    os.utime(units / "a.toml", ns=(0, 0))
    (units / "a.toml").write_bytes(b"two")
    os.utime(units / "a.toml", ns=(0, 0))
    assert before is not await watch.until_files(a=b"two")


async def test_reread_waits_for_what_is_not_still(units: Path) -> None:
    directory = UnitDirectory(units, gone_after_s=0.3)
    (units / "a.toml").write_bytes(b"one")
    assert contents(await directory.reread()) == {"a": b"one"}
    (units / "a.toml").unlink()
    (units / "b.toml").write_bytes(b"two")
    assert contents(await directory.reread()) == {"b": b"two"}
    (units / "b.toml").write_bytes(b"three")
    assert contents(await directory.reread()) == {"b": b"three"}
    shutil.rmtree(units)
    view = await directory.reread()
    assert (view.available, contents(view)) == (False, {"b": b"three"})


async def test_a_file_that_is_never_still_keeps_nobody_waiting_for_long(units: Path) -> None:
    (units / "good.toml").write_bytes(b"good")

    async def scribble() -> None:
        with (units / "busy.toml").open("ab", buffering=0) as file:
            while True:
                file.write(b"#")
                await asyncio.sleep(0.01)

    scribbler = asyncio.create_task(scribble())
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(LIMIT_S):
            view = await UnitDirectory(units, debounce_s=LONG_S / 4).reread()
    finally:
        scribbler.cancel()
    busy = UnitContent(str(units / "busy.toml"), None, "cannot be read: it is being written to all the time")
    assert list(view.files.values()) == [busy, UnitContent(str(units / "good.toml"), b"good")]


@pytest.mark.usefixtures("only_events")
async def test_what_a_reread_finds_is_told_by_the_watch(units: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_bytes(b"one")
    (units / "a.toml").symlink_to(target)
    directory = UnitDirectory(units)
    async with watching(directory) as watch:
        await watch.until_files(a=b"one")
        await asyncio.sleep(1)
        target.write_bytes(b"two")  # of which no event tells
        reread = await directory.reread()
        assert await watch.until_files(a=b"two") == reread


async def test_ten_thousand_files(units: Path) -> None:
    for number in range(10_000):
        (units / f"{number}.toml").write_bytes(b"# one")
    directory = UnitDirectory(units)
    assert len((await directory.reread()).files) == 10_000
    (units / "77.toml").write_bytes(b"# two")
    view = await directory.reread()
    assert view.files[str(units / "77.toml")].data == b"# two"


def test_reading_without_a_watch(units: Path, tmp_path: Path) -> None:
    (units / "a.toml").write_bytes(b"one")
    assert contents(read_directory(units)) == {"a": b"one"}
    missing = read_unit_file(tmp_path / "none.toml")
    assert (missing.data, missing.problem) == (None, "cannot be read: it does not exist")
    assert read_directory(units / "a.toml").problem == f"the unit directory {units / 'a.toml'} is not a directory"
