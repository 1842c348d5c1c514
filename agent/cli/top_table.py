"""What `vmhost top` shows, as lines of text: pure, so that tests read frames without a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from agent.cli.tables import STYLES
from agent.core.measures import LATENCY_BOUNDS_S
from agent.core.tell.rates import GuestRates
from agent.core.text import counted, printable

Number = float | None

GAP = "  "
KEYS_LINE = "c cpu  m memory  i iops  l latency  d disk  n network  N name  r reverse  q quit"
COLOURS = {"green": "32", "red": "31", "yellow": "33"}
"""SGR parameters (ECMA-48) of the styles that tables have."""

MAX_NAME = 24
"""A longer name is cut, and so is one that takes more than a quarter of a line."""


def _added(*numbers: Number) -> Number:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _worst(guest: GuestRates) -> Number:
    return max((p for p in (guest.read_p99_s, guest.write_p99_s, guest.flush_p99_s) if p is not None), default=None)


SORTS: dict[str, Callable[[GuestRates], Number]] = {
    "cpu": lambda guest: guest.cpu_ratio,
    "memory": lambda guest: guest.memory_bytes,
    "iops": lambda guest: _added(guest.reads_per_s, guest.writes_per_s),
    "latency": _worst,
    "disk": lambda guest: _added(guest.read_bytes_per_s, guest.written_bytes_per_s),
    "network": lambda guest: _added(guest.received_bytes_per_s, guest.sent_bytes_per_s),
}
"""What guests are sorted by, the greatest first; besides by `name`."""

SORT_KEYS = {
    "c": "cpu",
    "m": "memory",
    "i": "iops",
    "l": "latency",
    "d": "disk",
    "n": "network",
    "N": "name",
}


def per_cent(ratio: Number) -> str:
    """A share of one CPU."""
    return "-" if ratio is None else f"{ratio * 100:.1f}" if ratio < 9.9995 else f"{ratio * 100:.0f}"


def amount(number: Number, base: int = 1000) -> str:
    """A number in at most five characters: 0, 0.5, 12, 1.2k, 340M; powers of 1024 with `base` 1024."""
    if number is None:
        return "-"
    if number < 9.95:
        return f"{number:.1f}".removesuffix(".0")
    size, suffixes = float(number), iter("kMGTPE")
    suffix = ""
    while round(size) >= base:
        size, suffix = size / base, next(suffixes)
    return f"{size:.1f}{suffix}" if suffix and size < 9.95 else f"{size:.0f}{suffix}"


def size(number: Number) -> str:
    """Bytes, in powers of 1024."""
    return amount(number, 1024)


def duration(seconds: Number) -> str:
    """A latency with its unit; the last bound of all bins is written as what it is, a lower limit."""
    if seconds is None:
        return "-"
    if seconds >= LATENCY_BOUNDS_S[-1]:
        return f">{LATENCY_BOUNDS_S[-1]:g}s"
    if seconds >= 0.9995:
        return f"{seconds:.1f}s"
    if seconds >= 0.0009995:
        return f"{seconds * 1e3:.1f}ms" if seconds < 0.00995 else f"{seconds * 1e3:.0f}ms"
    return f"{seconds * 1e6:.0f}us"


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its least width, what it says of a guest, and when it goes where the terminal is narrow (9 first)."""

    title: str
    width: int
    text: Callable[[GuestRates], str]
    goes: int
    sort: str = ""
    left: bool = False


COLUMNS = (
    Column("NAME", 8, lambda guest: printable(guest.name), 0, "name", left=True),
    Column("STATE", 12, lambda guest: printable(guest.state), 4, left=True),
    Column("CPU%", 5, lambda guest: per_cent(guest.cpu_ratio), 1, "cpu"),
    Column("MEMORY", 6, lambda guest: size(guest.memory_bytes), 8, "memory"),
    Column("READ/S", 6, lambda guest: amount(guest.reads_per_s), 3, "iops"),
    Column("WRITE/S", 7, lambda guest: amount(guest.writes_per_s), 3, "iops"),
    Column("R-P99", 6, lambda guest: duration(guest.read_p99_s), 2, "latency"),
    Column("W-P99", 6, lambda guest: duration(guest.write_p99_s), 2, "latency"),
    Column("F-P99", 6, lambda guest: duration(guest.flush_p99_s), 7, "latency"),
    Column("DISK-R", 6, lambda guest: size(guest.read_bytes_per_s), 5, "disk"),
    Column("DISK-W", 6, lambda guest: size(guest.written_bytes_per_s), 5, "disk"),
    Column("NET-IN", 6, lambda guest: size(guest.received_bytes_per_s), 6, "network"),
    Column("NET-OUT", 7, lambda guest: size(guest.sent_bytes_per_s), 6, "network"),
)


@dataclass(frozen=True, slots=True)
class View:
    """How somebody looks: order, first line that is shown, size of the terminal, whether it knows colours."""

    sort: str = "cpu"
    reverse: bool = False
    offset: int = 0
    columns: int = 80
    lines: int = 24
    colour: bool = False

    @property
    def room(self) -> int:
        """How many guests fit: beside the two lines of the head, the titles, and the keys where there is room."""
        return max(1, self.lines - (4 if self.lines > 6 else 3))

    def moved(self, by: int, guests: int) -> View:
        """The view further down or up; it ends where the last guest is on the last line."""
        return replace(self, offset=max(0, min(self.offset + by, guests - self.room)))


def ordered(guests: Sequence[GuestRates], sort: str, *, reverse: bool = False) -> list[GuestRates]:
    """The guests in this order: the greatest first, names from a to z; who has no value comes last in any case."""
    if sort == "name":
        return sorted(guests, key=lambda guest: guest.name, reverse=reverse)
    value = SORTS[sort]
    by_name = sorted(guests, key=lambda guest: guest.name)
    known = [(number, guest) for guest in by_name if (number := value(guest)) is not None]
    known.sort(key=lambda one: one[0] if reverse else -one[0])
    return [*(guest for _, guest in known), *(guest for guest in by_name if value(guest) is None)]


def rows(guests: Sequence[GuestRates]) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of all columns, for a plain table."""
    return [column.title for column in COLUMNS], [[column.text(guest) for column in COLUMNS] for guest in guests]


def frame(guests: Sequence[GuestRates], view: View, head: str) -> list[str]:
    """The lines of a screen, as many as it has at most, none longer than it is wide. `head` says when and how often."""
    everybody = ordered(guests, view.sort, reverse=view.reverse)
    first = view.moved(0, len(everybody)).offset
    shown = everybody[first : first + view.room]
    columns = _fitting(everybody, view)
    widths = [_width(column, everybody, view) for column in columns]
    titles = GAP.join(_placed(column.title, width, column) for column, width in zip(columns, widths, strict=True))
    bar = _painted(_cut(titles, view).ljust(view.columns), "7", view).rstrip()
    lines = [_cut(head, view), _cut(summary(everybody), view), bar]
    lines += [_line(guest, columns, widths, view) for guest in shown]
    if view.lines > 6:
        more = f"{first + 1}-{first + len(shown)} of {len(everybody)}  " if len(shown) < len(everybody) else ""
        lines += [""] * (view.lines - 1 - len(lines))
        lines.append(_cut(more + KEYS_LINE, view))
    return lines[: view.lines]


def summary(guests: Sequence[GuestRates]) -> str:
    """All guests in one line."""
    running = sum(guest.state == "running" for guest in guests)
    cpu = _added(*(guest.cpu_ratio for guest in guests))
    operations, disk, network = (
        _added(*(SORTS[what](guest) for guest in guests)) for what in ("iops", "disk", "network")
    )
    return (
        f"{counted(len(guests), 'guest')}, {running} running   cpu {per_cent(cpu)}%   iops {amount(operations)}   "
        f"disk {size(disk)}B/s   network {size(network)}B/s"
    )


def _fitting(guests: Sequence[GuestRates], view: View) -> list[Column]:
    """The columns that fit: the least needed go first, two that belong together go together, the sorted ones stay."""
    columns = list(COLUMNS)
    for rank in range(9, 0, -1):
        if sum(_width(column, guests, view) + len(GAP) for column in columns) - len(GAP) <= view.columns:
            break
        columns = [column for column in columns if column.goes != rank or column.sort == view.sort]
    return columns


def _width(column: Column, guests: Sequence[GuestRates], view: View) -> int:
    longest = max((len(column.text(guest)) for guest in guests), default=0)
    return max(column.width, min(longest, MAX_NAME, view.columns // 4) if column.left else longest)


def _placed(text: str, width: int, column: Column) -> str:
    if not column.left:
        return text.rjust(width)
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "~"


def _line(guest: GuestRates, columns: Sequence[Column], widths: Sequence[int], view: View) -> str:
    line, used = "", 0
    for column, width in zip(columns, widths, strict=True):
        cell = (GAP if used else "") + _placed(column.text(guest), width, column)
        cell = cell[: max(0, view.columns - used)]
        used += len(cell)
        style = STYLES.get(guest.state, "") if column.title == "STATE" else ""
        line += _painted(cell, COLOURS[style], view) if style else cell
    return line.rstrip()


def _cut(text: str, view: View) -> str:
    return printable(text)[: view.columns]


def _painted(text: str, sgr: str, view: View) -> str:
    return f"\x1b[{sgr}m{text}\x1b[0m" if view.colour else text
