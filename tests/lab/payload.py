"""The disk with the project that the virtual lab gets: the checkout as it is now, with its .venv.

It is mounted at the path that the checkout has outside, so that paths in scripts, in byte code and in what tests say
are the same. The .venv has the Python of the lab's Debian instead of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from tests.lab.image import mke2fs

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = (3, 11)
"""That of Debian 12, which the lab is: compiled parts of packages fit no other."""
LEFT_OUT = {".git", ".venv", "build", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "node_modules"}
BUILT = ("guest/vmlinuz", "guest/initramfs.img")
NOT_FOR_TESTS = (
    "mypy*",
    "*__mypyc*",
    "pip",
    "pip-*",
    "setuptools",
    "setuptools-*",
    "ruff*",
    "grimp*",
    "ast_serialize*",
)
DISK_SIZE = "1G"
"""Sparse: it takes what is in it."""


def write_payload(folder: Path, *more: Path) -> Path:
    """Make the disk in a folder; `more` are files of `build/` that are to be there as well."""
    if sys.version_info[:2] != PYTHON:
        said, needed = (".".join(map(str, version)) for version in (sys.version_info[:2], PYTHON))
        raise RuntimeError(f"the virtual lab runs Python {needed}, and packages in .venv are for {said}: make it anew")
    stage, disk = folder / "payload", folder / "payload.disk"
    # Times are kept: byte code stays good by them, and an emulated CPU compiles slowly.
    shutil.copytree(ROOT, stage, symlinks=True, ignore=_leave_out)
    for path in (*(ROOT / "build" / name for name in BUILT), *more):
        if path.exists():
            (stage / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, stage / path.relative_to(ROOT))
    _copy_venv(stage / ".venv")
    stage.chmod(0o755)
    subprocess.run(["sh", "-c", mke2fs(stage, disk, DISK_SIZE)], check=True, capture_output=True, timeout=120)
    shutil.rmtree(stage)
    return disk


def _leave_out(folder: str, names: list[str]) -> Collection[str]:
    return LEFT_OUT.intersection(names) if Path(folder) == ROOT else ()


def _copy_venv(target: Path) -> None:
    packages = Path(sys.prefix, "lib/python3.11/site-packages")
    shutil.copytree(packages, target / packages.relative_to(sys.prefix), ignore=shutil.ignore_patterns(*NOT_FOR_TESTS))
    (target / "bin").mkdir()
    for script in Path(sys.prefix, "bin").iterdir():
        if script.is_file() and script.stat().st_size < 10_000 and not script.name.startswith("python"):
            shutil.copy2(script, target / "bin" / script.name)
    for name in ("python", "python3", "python3.11"):
        (target / "bin" / name).symlink_to("/usr/bin/python3.11")
    (target / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
