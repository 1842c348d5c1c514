"""Keeps requirements.lock honest.

check_lock.py current     pyproject.toml, resolved again with the locked versions, gives the same file
check_lock.py installed   this environment has exactly the locked versions
check_lock.py upgrade     writes the file anew with the newest versions
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
OPTIONS = [
    *("--quiet", "--generate-hashes", "--allow-unsafe", "--strip-extras", "--extra", "dev"),
    *("--no-emit-index-url", "--no-emit-trusted-host", "--no-emit-find-links"),
]


def compile_lock(out: Path, *, upgrade: bool) -> None:
    """Resolve into `out`. Versions and hashes that stand there are kept, unless it is an upgrade."""
    env = os.environ | {"CUSTOM_COMPILE_COMMAND": "make lock"}
    if upgrade:
        # Hashes must be those of the official files: a local mirror or wheel folder may hold others.
        env = {key: value for key, value in env.items() if key not in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL")}
        env["PIP_CONFIG_FILE"] = os.devnull
    options = [*OPTIONS, *(["--upgrade"] if upgrade else [])]
    command = [sys.executable, "-m", "piptools", "compile", *options, "--output-file", str(out), "pyproject.toml"]
    if subprocess.run(command, cwd=ROOT, env=env, check=False).returncode != 0:
        sys.exit(
            "check_lock: pyproject.toml cannot be resolved (see above); after changing a requirement run `make lock`"
        )


def check_current() -> list[str]:
    """What differs when the lock is made again, and lines that name a place instead of a version."""
    wanted = LOCK.read_text()
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / LOCK.name
        fresh.write_text(wanted)
        compile_lock(fresh, upgrade=False)
        again = fresh.read_text()
    diff = difflib.unified_diff(
        wanted.splitlines(), again.splitlines(), "requirements.lock", "resolved again", lineterm=""
    )
    places = [line for line in wanted.splitlines() if re.search(r"://|^-|@ ", line)]
    return [*diff, *(f"requirements.lock names a place: {line}" for line in places)]


def check_installed() -> list[str]:
    """How this environment differs from the lock; the project itself is no part of it."""
    locked = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", LOCK.read_text(), re.MULTILINE))
    found = {re.sub(r"[-_.]+", "-", dist.name).lower(): dist.version for dist in distributions()}
    found.pop("vmhost", None)
    names = sorted(locked.keys() | found.keys())
    return [
        f"{name}: locked {locked.get(name, 'not')}, installed {found.get(name, 'not')}"
        for name in names
        if locked.get(name) != found.get(name)
    ]


def main() -> int:
    match sys.argv[1:]:
        case ["current"]:
            problems = check_current()
        case ["installed"]:
            problems = check_installed()
        case ["upgrade"]:
            compile_lock(LOCK, upgrade=True)
            problems = []
        case _:
            problems = [__doc__ or ""]
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
