"""The layout of the state file: TOML, put together from parts of which only those that changed are written out anew.

With a thousand guests the whole text takes tens of milliseconds to make, and most changes touch one small part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import tomli_w

Part = tuple[str, ...]
"""The keys that lead to a table; empty for what stands before all tables."""


class StateText:
    """Remembers the text of each part as it was written last."""

    def __init__(self) -> None:
        self._known: dict[Part, tuple[Mapping[str, object], str]] = {}

    def of(self, plain: Mapping[str, object]) -> str:
        """The TOML of a state, given as plain data."""
        known = {}
        for part, content in _parts(plain):
            before = self._known.get(part)
            known[part] = before if before is not None and before[0] == content else (content, tomli_w.dumps(content))
        self._known = known
        return "\n".join(text for _, text in known.values())


def _parts(plain: Mapping[str, object]) -> Iterator[tuple[Part, dict[str, object]]]:
    """What stands before all tables, then each table of a table, then what is left of each table by itself."""
    yield (), {key: value for key, value in plain.items() if not isinstance(value, dict)}
    for key, table in plain.items():
        if not isinstance(table, dict):
            continue
        inner = {name: value for name, value in table.items() if isinstance(value, dict)}
        yield (key,), {key: {name: value for name, value in table.items() if name not in inner}}
        for name, value in inner.items():
            yield (key, name), {key: {name: value}}
