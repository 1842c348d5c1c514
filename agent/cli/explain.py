"""The commands that explain: what would happen, why something is as it is, and how it differs from its unit."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from agent.cli.client import AgentClient, Json, NoAgentError
from agent.cli.commands import FALSE, NO_AGENT, TRUE, USAGE, complain
from agent.cli.explanations import write_plan, write_show, write_why


def plan(arguments: argparse.Namespace) -> int:
    """`vmhost plan [FILE…]`: 1 when a file that was named has mistakes; without an agent from nothing, with 3."""
    try:
        files = _read(arguments.paths, arguments.without)
    except ValueError as error:
        complain(str(error))
        return USAGE
    try:
        found, code = AgentClient(Path(arguments.run_dir)).plan(files), TRUE
    except NoAgentError as error:
        if not error.absent:
            raise
        from agent.cli.offline_plan import plan_offline  # noqa: PLC0415 - the parser is slow to import

        found, code = plan_offline(Path(arguments.units), files), NO_AGENT
        complain(f"{error}. Planned from nothing instead: a host without links, guests and history")
    _write(arguments, found, write_plan)
    bad = any(unit["state"] != "valid" and Path(unit["file"]).name in files for unit in found["units"])
    return FALSE if bad else code


def why(arguments: argparse.Namespace) -> int:
    """`vmhost why NAME`."""
    _write(arguments, AgentClient(Path(arguments.run_dir)).why(arguments.name), write_why)
    return TRUE


def show(arguments: argparse.Namespace) -> int:
    """`vmhost show NAME`."""
    _write(arguments, AgentClient(Path(arguments.run_dir)).show(arguments.name), write_show)
    return TRUE


def _write(arguments: argparse.Namespace, found: Json, write: Callable[[TextIO, Json], None]) -> None:
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        write(sys.stdout, found)


def _read(paths: Sequence[str], without: Sequence[str]) -> Mapping[str, bytes | None]:
    """The files that were named, and those of directories, by their names; ValueError for one that is no unit.

    `without` are those that are to be gone: None in the answer.
    """
    if not paths and not without:
        return {}
    from agent.host.unitdir import UnitContent, is_unit_name, read_directory, read_unit_file  # noqa: PLC0415 - as above

    contents: list[UnitContent] = []
    for path in map(Path, paths):
        if path.is_dir():
            view = read_directory(path)
            if not view.available:
                raise ValueError(view.problem)
            contents += view.files.values()
        elif not is_unit_name(path.name):
            raise ValueError(f"{path}: no unit by its name; the agent reads what ends in .toml and is not hidden")
        else:
            contents.append(read_unit_file(path))
    found: dict[str, bytes | None] = {}
    for path in map(Path, without):
        if not is_unit_name(path.name):
            raise ValueError(f"--without {path}: no unit by its name")
        found[path.name] = None
    for content in contents:
        name = Path(content.path).name
        if content.data is None:
            raise ValueError(f"{content.path}: {content.problem}")
        if name in found:
            raise ValueError(f"{content.path}: {name} is named twice, and a directory holds one file of a name")
        found[name] = content.data
    return found
