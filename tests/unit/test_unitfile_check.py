"""`vmhost check`: errors in the order of files and lines, one a line, and a last line that sums up."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from agent.cli.check import check

SHIPPED = Path(__file__).resolve().parents[2] / "units"
BRIDGE = "[bridge.br0]\n"
GUEST = '[vm.web]\n[vm.web.nic.lan]\nbridge = "br0"\n'


@pytest.fixture
def units(tmp_path: Path) -> Path:
    folder = tmp_path / "units"
    folder.mkdir()
    return folder


def checked(units: Path, *paths: Path | str) -> tuple[int, list[str]]:
    out = io.StringIO()
    code = check([str(path) for path in paths], units, out)
    return code, out.getvalue().splitlines()


@pytest.mark.parametrize("folder", sorted(one for one in SHIPPED.iterdir() if one.is_dir()), ids=lambda one: one.name)
def test_each_set_that_is_shipped_is_right_by_itself(folder: Path) -> None:
    number = len(list(folder.glob("*.toml")))
    assert checked(folder) == (0, [f"{number} files, 0 errors"])
    assert f"units/{folder.name}" in (SHIPPED.parent / "README.md").read_text()


def test_all_is_well(units: Path) -> None:
    (units / "a.toml").write_text(BRIDGE)
    (units / "b.toml").write_text(GUEST)
    assert checked(units) == (0, ["2 files, 0 errors"])


def test_all_errors_of_all_files_in_order(units: Path) -> None:
    (units / "b.toml").write_text('[vm.web]\ncpus = 0\nmemory = 1\n[vm.web.nic.lan]\nbridge = "br1"\n')
    (units / "a.toml").write_text(BRIDGE + "x = 1\n")
    (units / "c.toml").write_text("[vm.x\n")
    assert checked(units) == (
        1,
        [
            f'{units}/a.toml:2:1: error: unknown key "x" in [bridge.br0]',
            f"{units}/b.toml:2:1: error: cpus must be a whole number, 1 to 288, not 0",
            f'{units}/b.toml:3:1: error: memory must be a size such as "512M" or "32G", not 1 (did you mean "1M"?)',
            f'{units}/b.toml:5:1: error: bridge "br1" is not defined in any file (did you mean "br0"?)',
            f'{units}/c.toml:1:6: error: not TOML: expected "]" at the end of the table\'s name',
            "3 files, 5 errors",
        ],
    )


def test_named_files_are_checked_together(units: Path, tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text(BRIDGE)
    (tmp_path / "b.toml").write_text(GUEST)
    assert checked(units, tmp_path / "a.conf", tmp_path / "b.toml") == (0, ["2 files, 0 errors"])
    alone = [f'{tmp_path}/b.toml:3:1: error: bridge "br0" is not defined in any file', "1 file, 1 error"]
    assert checked(units, tmp_path / "b.toml") == (1, alone)


def test_a_unit_is_seen_beside_the_others_of_the_unit_directory(units: Path) -> None:
    (units / "a.toml").write_text(BRIDGE)
    (units / "b.toml").write_text(GUEST)
    (units / "c.toml").write_text("x = 1")
    assert checked(units, units / "b.toml") == (0, ["1 file, 0 errors"])


def test_a_missing_directory_and_a_missing_file(units: Path) -> None:
    units.rmdir()
    missing = units / "a.toml"
    problem = "cannot be read: it does not exist"
    assert checked(units, missing) == (1, [f"{missing}:1:1: error: {problem}", "1 file, 1 error"])
    assert checked(units) == (1, [f"error: the unit directory {units} does not exist", "0 files, 1 error"])


def test_whatever_is_in_the_directory(units: Path) -> None:
    os.mkfifo(units / "fifo.toml")
    (units / "dir.toml").mkdir()
    (units / "loop.toml").symlink_to("loop.toml")
    (units / "new\nline.toml").write_bytes(b"\0")
    (units / ("x" * 200 + ".toml")).write_bytes(b"\xff")
    (units / "good, really.toml").write_text(BRIDGE)
    code, lines = checked(units)
    assert code == 1
    assert lines == [
        f"{units}/dir.toml:1:1: error: cannot be read: it is a directory, not a file",
        f"{units}/fifo.toml:1:1: error: cannot be read: it is a FIFO, not a file",
        f"{units}/loop.toml:1:1: error: cannot be read: its symlinks lead in a circle",
        f"{units}/new\\nline.toml:1:1: error: a NUL byte: this is not a text file",
        f"{units}/{'x' * 200}.toml:1:1: error: bytes that are not UTF-8 (save it as UTF-8)",
        "6 files, 5 errors",
    ]
