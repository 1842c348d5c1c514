"""`vmhost report`: what is needed to find a fault, in one archive that may be shown to strangers."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from agent.cli.check import check
from agent.cli.client import AgentClient, NoAgentError, RefusedError, unusable
from agent.core.tell.redact import redacted, redacted_json
from agent.host.unitdir import read_directory

TAIL_BYTES = 65_536
"""How much of each log is taken, from its end."""

PACKAGES = ("aiohttp", "pydantic", "pyroute2", "qemu.qmp", "watchfiles")
PROGRAMS = (("qemu-system-x86_64", "--version"), ("ip", "-Version"))
LOGS = ("qemu.log", "qemu.log.1")

ABOUT = """\
A report of vmhost. What looked like a secret (by its name or its shape) reads <redacted>;
have a look before you send it.

versions.txt    programs, packages, kernel
status.json     `vmhost status --json`
events.jsonl    `vmhost events --json`: the last ones that the agent keeps
no-agent.txt    instead of these two: why the agent did not answer
links.txt       `ip -details address`
check.txt       `vmhost check` of the unit directory
units/          the unit files
logs/           the end of what each guest's QEMU wrote
Not in it: disks, memory and consoles of guests, the agent's state, its log (journalctl has that).
"""


@dataclass(frozen=True, slots=True)
class Part:
    """A file of the report. `redactions`: how many secrets were taken out of it."""

    name: str
    data: bytes
    redactions: int = 0


@dataclass(frozen=True, slots=True)
class Folders:
    """The directories of the host that is reported on."""

    units: Path
    run_dir: Path


def default_path() -> Path:
    """A name of the moment, in the working directory."""
    return Path(f"vmhost-report-{datetime.now(UTC):%Y%m%d-%H%M%S}.tar.gz")


def collect(folders: Folders, say: Callable[[str], object]) -> list[Part]:
    """Everything that can be had; what cannot be says so in its place. `say` is told what is looked at.

    RefusedError for a user who may not see the guests' logs: such a report helps nobody.
    """
    parts = [Part("README.txt", ABOUT.encode())]
    gathers: Sequence[tuple[str, Callable[[], Iterator[Part]]]] = (
        ("versions", _versions),
        ("the agent", lambda: _told_by_agent(AgentClient(folders.run_dir))),
        ("links", _links),
        ("units", lambda: _units(folders.units)),
        ("logs", lambda: _logs(folders.run_dir / "vms")),
    )
    for what, gather in gathers:
        say(what)
        parts += gather()
    return parts


def write(path: Path, parts: list[Part]) -> None:
    """Write the archive, readable for its owner only. FileExistsError, and other OSError with nothing left behind."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for part in parts:
                entry = tarfile.TarInfo(f"{path.name.split('.')[0]}/{part.name}")
                entry.size, entry.mtime, entry.mode = len(part.data), int(time.time()), 0o600
                archive.addfile(entry, io.BytesIO(part.data))
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _text(name: str, text: str) -> Part:
    clean, count = redacted(text)
    return Part(name, clean.encode(), count)


def _versions() -> Iterator[Part]:
    lines = [f"vmhost {importlib.metadata.version('vmhost')}", f"Python {sys.version}", " ".join(platform.uname())]
    lines += [f"{package} {_package_version(package)}" for package in PACKAGES]
    lines += [_first_line(command) for command in PROGRAMS]
    yield _text("versions.txt", "\n".join(lines) + "\n")


def _package_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"


def _first_line(command: tuple[str, ...]) -> str:
    return next(iter(_output(command).splitlines()), f"{command[0]} says nothing")


def _output(command: tuple[str, ...]) -> str:
    """What a program says, or why it cannot be asked."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}\n"
    return done.stdout + done.stderr


def _links() -> Iterator[Part]:
    yield _text("links.txt", _output(("ip", "-details", "address")))


def _told_by_agent(client: AgentClient) -> Iterator[Part]:
    try:
        status, count = redacted_json(client.status())
        yield Part("status.json", json.dumps(status, indent=2).encode(), count)
        events = [redacted_json(event) for event in client.events(0, follow=False)]
        lines = "".join(json.dumps(event) + "\n" for event, _ in events)
        yield Part("events.jsonl", lines.encode(), sum(count for _, count in events))
    except (NoAgentError, RefusedError) as error:
        yield _text("no-agent.txt", f"{error}\n")


def _units(units: Path) -> Iterator[Part]:
    found = io.StringIO()
    check((), units, found)
    yield _text("check.txt", found.getvalue())
    for path, content in read_directory(units).files.items():
        text = f"# {content.problem}\n" if content.data is None else content.data.decode(errors="replace")
        yield _text(f"units/{Path(path).name}", text)


def _logs(guests: Path) -> Iterator[Part]:
    try:
        names = sorted(entry.name for entry in guests.iterdir())
    except FileNotFoundError:
        return
    except PermissionError as error:
        raise unusable(error) from error
    except OSError as error:
        yield _text("logs/problem.txt", f"{guests}: {error.strerror}\n")
        return
    for name in names:
        for log in LOGS:
            try:
                yield _text(f"logs/{name}/{log}", _tail(guests / name / log))
            except FileNotFoundError:
                continue
            except OSError as error:
                yield _text(f"logs/{name}/{log}", f"cannot be read: {error.strerror}\n")


def _tail(path: Path) -> str:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        return file.read(TAIL_BYTES).decode(errors="replace")
