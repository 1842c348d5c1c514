"""Tables and lines: drawn on a terminal, plain aligned text elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from agent.core.text import printable

Row = Sequence[str]


def write_table(out: TextIO, headers: Row, rows: Sequence[Row]) -> None:
    """Write a table; nothing for no rows. No colour and no frame when `out` is no terminal."""
    if not rows:
        return
    safe = [[printable(cell) or "-" for cell in row] for row in rows]
    if out.isatty():
        _draw(out, headers, safe)
    else:
        _align(out, headers, safe)


def write_line(out: TextIO, text: str) -> None:
    """Write one line, whatever the text holds."""
    out.write(printable(text) + "\n")


def _draw(out: TextIO, headers: Row, rows: Sequence[Row]) -> None:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - its import takes longer than the rest of the command
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    Console(file=out, highlight=False).print(table)


STYLES = {
    "running": "green",
    "ok": "green",
    "crash-loop": "red",
    "failed": "red",
    "panicked": "red",
    "invalid": "red",
    "unresponsive": "red",
    "deviating": "yellow",
    "waiting": "yellow",
    "held": "yellow",
    "paused": "yellow",
}


def _align(out: TextIO, headers: Row, rows: Sequence[Row]) -> None:
    widths = [max(len(row[column]) for row in [headers, *rows]) for column in range(len(headers))]
    for row in [headers, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        out.write("  ".join(cells).rstrip() + "\n")
