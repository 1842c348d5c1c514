"""Who takes over the last good version of a unit file that is gone: a file that was renamed, or taken apart, and broken
in the same stroke has none of its own, and what the old one started would be unwanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.unitfile.parse import ParsedUnit, parse_unit


def heirs(newcomers: Iterable[ParsedUnit], gone: Iterable[ParsedUnit]) -> Mapping[str, ParsedUnit]:
    """The last good version that each newcomer inherits, by its path: what those that are gone said, if it names one
    of their resources, even where it cannot be read otherwise. Each is inherited once, by the first path that does."""
    left = {unit.path: unit for unit in gone}
    found: dict[str, ParsedUnit] = {}
    for newcomer in sorted(newcomers, key=lambda unit: unit.path):
        named = _names(newcomer)
        inherited = [unit for _, unit in sorted(left.items()) if named & _names(unit)]
        if inherited:
            found[newcomer.path] = parse_unit(newcomer.path, b"\n".join(unit.data for unit in inherited))
            for unit in inherited:
                del left[unit.path]
    return found


def _names(unit: ParsedUnit) -> frozenset[str]:
    return frozenset(claim.resource for claim in unit.claims if claim.kind == "name")
