"""Supervised programs beside the guests (dnsmasq, haproxy): what one is to be, and what was seen of it.

A program that is supervised knows nothing of it. It runs in the foreground, without privilege as far as it can, finds
its configuration in a folder of its own, and is told of a change by a signal, or started anew where that is not enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

RUN_DIR = "@RUN@"
"""Stands for the service's run directory in its files and on its command line: only the runtime knows where it is."""

SERVICE_UIDS: Mapping[str, int] = {"dnsmasq": 1_899_999_900, "haproxy": 1_899_999_901}
"""The user and group of each program: below guests', in the range that systemd's table of uids leaves unused."""

PACKAGES: Mapping[str, str] = {"dnsmasq": "dnsmasq-base", "haproxy": "haproxy"}
"""Debian's package of each program."""


class FileEffect(StrEnum):
    """What a program needs to take over another text of one of its files."""

    RELOAD = "reload"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class ServiceFile:
    """A file of a service's run directory, which the program may read and nobody but the agent may write."""

    name: str
    text: str
    effect: FileEffect = FileEffect.RESTART


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A wanted service.

    `owner` is the resource that wants it (`bridge/br-lan`). `argv` and `test` are arguments after the program's name;
    `test` is how it checks its own configuration, exit code 0 for a good one, empty if it cannot. `started` is what it
    writes to its log once it serves. `kept` names a file of the state directory that it may write, and finds as its
    standard input. It can serve while `link` is up with all of `addresses`; no link: always.
    `shown` are keys of the owner's unit that it stands for, as `vmhost show` writes them.
    `reloading` is what it writes as soon as it has heard that signal, `reloaded` once it has read its files again, and
    `not_reloaded` once it could not and goes on as before; empty for one that says nothing of it. `complaint` marks the
    first line in which it says what is wrong, empty: the last one does.
    """

    name: str
    owner: str
    program: str
    argv: tuple[str, ...]
    test: tuple[str, ...] = ()
    files: tuple[ServiceFile, ...] = ()
    capabilities: tuple[str, ...] = ()
    reload_signal: str = "SIGHUP"
    started: str = ""
    kept: str = ""
    link: str = ""
    addresses: tuple[str, ...] = ()
    shown: tuple[tuple[str, str], ...] = ()
    reloading: str = ""
    reloaded: str = ""
    not_reloaded: str = ""
    complaint: str = ""


def service_resource(name: str) -> str:
    """The resource name of a service."""
    return f"service/{name}"


def needs_restart(runs: ServiceSpec, wanted: ServiceSpec) -> bool:
    """Whether a running program can become what is wanted only by a start anew."""
    return _at_start(runs) != _at_start(wanted)


def needs_reload(runs: ServiceSpec, wanted: ServiceSpec) -> bool:
    """Whether a running program has to read files again to become what is wanted."""
    return runs.files != wanted.files


def _at_start(spec: ServiceSpec) -> tuple[object, ...]:
    """All that the start of a program depends on; of what it reads again, that it is there.

    Also its addresses: it binds to those that there are then, and hears nothing on one that comes later.
    """
    files = [(one.name, one.text if one.effect is FileEffect.RESTART else None) for one in spec.files]
    return spec.program, spec.argv, files, spec.capabilities, spec.kept, spec.link, spec.addresses
