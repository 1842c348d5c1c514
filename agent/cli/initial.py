"""`vmhost init`: a unit file to begin with, which is correct beside the others before it is written."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

from agent.cli.client import RefusedError, unusable
from agent.cli.history import write_whole
from agent.core.allocation import Allocations
from agent.core.errors import UnitError
from agent.host.unitdir import read_directory
from agent.unitfile.parse import parse_unit
from agent.unitfile.resolve import ResolveContext, UnitSource, resolve
from agent.unitfile.template import UnitWish, unit_text

SCHEMA_NAME = "schema.json"
"""`vmhost schema > /etc/vmhost.d/schema.json` puts the schema where the units there can name it."""


def compose(wish: UnitWish, units: Path) -> tuple[Path, str]:
    """The path of the new unit file and its text; RefusedError with the mistakes if it would not pass `check`."""
    path = units / f"{wish.name}.toml"
    others = [
        parse_unit(name, content.data)
        for name, content in read_directory(units).files.items()
        if content.data is not None and name != str(path)
    ]
    names = {claim.key for unit in others for claim in unit.claims if claim.resource.startswith("bridge/")}
    text = unit_text(
        replace(
            wish,
            own_bridge=wish.bridge not in names,
            schema=f"./{SCHEMA_NAME}" if (units / SCHEMA_NAME).exists() else None,
        )
    )
    errors = _errors([UnitSource(parse_unit(str(path), text.encode())), *map(UnitSource, others)], path)
    if errors:
        raise RefusedError(
            "; ".join(f"{error.problem}" + (f" ({error.hint})" if error.hint else "") for error in errors)
        )
    return path, text


def write(path: Path, text: str) -> None:
    """Write the unit in one step. RefusedError if a file of that name is there, or it cannot be written."""
    try:
        write_whole(path, text.encode(), new=True)
    except FileExistsError:
        raise RefusedError(f"{path} is there already; it is left as it is") from None
    except OSError as error:
        raise unusable(error, path) from error


def _errors(sources: list[UnitSource], path: Path) -> tuple[UnitError, ...]:
    context = ResolveContext("", uuid.UUID(int=0), Allocations(), {}, {})
    return next(status.errors for status in resolve(sources, context).files if status.path == str(path))
