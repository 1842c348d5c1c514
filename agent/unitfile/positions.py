"""Where in a TOML file a key stands, which tomllib does not say. Only asked for when there is an error to point at."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from functools import lru_cache

import tree_sitter
import tree_sitter_toml

KeyPath = tuple[str | int, ...]
"""Keys from the top of the file down to the one that is meant; a number is the place in an array."""

_KEYS = frozenset({"bare_key", "quoted_key", "dotted_key"})
_TABLES = frozenset({"table", "table_array_element"})


def position_of(data: bytes, path: KeyPath) -> tuple[int, int]:
    """Line and column (from 1, in characters) of a key, or of what encloses it where it is not in the file itself."""
    index = _index(data)
    while path and path not in index:
        path = path[:-1]
    row, byte_column = index.get(path, (0, 0))
    line = data.split(b"\n", row + 1)[row] if row else data
    return row + 1, len(line[:byte_column].decode(errors="replace")) + 1


@lru_cache(maxsize=32)
def _index(data: bytes) -> Mapping[KeyPath, tuple[int, int]]:
    """Every key path of a file with its row and byte column, from 0."""
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_toml.language()))
    found: dict[KeyPath, tuple[int, int]] = {}
    document = parser.parse(data).root_node
    pending: list[tuple[tree_sitter.Node, KeyPath]] = []
    for node in document.named_children:
        if node.type in _TABLES:
            header, *pairs = [child for child in node.named_children if child.type != "comment"] or [node]
            prefix = _note_key(found, header, ())
            found[prefix] = _start(_last_part(header)) if prefix else (0, 0)
            pending += [(pair, prefix) for pair in reversed(pairs)]
        else:
            pending.append((node, ()))
    while pending:
        node, prefix = pending.pop()
        pending += reversed(list(_inside(found, node, prefix)))
    return found


def _inside(
    found: dict[KeyPath, tuple[int, int]], node: tree_sitter.Node, prefix: KeyPath
) -> Iterator[tuple[tree_sitter.Node, KeyPath]]:
    """Notes a pair's key or an array's items, and gives what is inside them with its path."""
    if node.type == "pair":
        parts = [child for child in node.named_children if child.type != "comment"]
        path = _note_key(found, parts[0], prefix) if parts else prefix
        yield from ((child, path) for child in parts[1:])
    elif node.type == "array":
        for place, child in enumerate(child for child in node.named_children if child.type != "comment"):
            found.setdefault((*prefix, place), _start(child))
            yield child, (*prefix, place)
    elif node.type == "inline_table":
        yield from ((child, prefix) for child in node.named_children)


def _note_key(found: dict[KeyPath, tuple[int, int]], node: tree_sitter.Node, prefix: KeyPath) -> KeyPath:
    for part in _parts(node):
        prefix = (*prefix, _name(part))
        found.setdefault(prefix, _start(part))
    return prefix


def _parts(node: tree_sitter.Node) -> list[tree_sitter.Node]:
    """The parts of a (nested) dotted key, from left to right."""
    parts: list[tree_sitter.Node] = []
    pending = [node]
    while pending:
        current = pending.pop()
        if current.type == "dotted_key":
            pending += [child for child in current.named_children if child.type in _KEYS]
        elif current.type in _KEYS:
            parts.append(current)
    return parts[::-1]


def _last_part(node: tree_sitter.Node) -> tree_sitter.Node:
    return (_parts(node) or [node])[-1]


def _name(node: tree_sitter.Node) -> str:
    text = (node.text or b"").decode(errors="replace")
    if node.type == "bare_key":
        return text
    try:
        return next(iter(tomllib.loads(f"{text} = 0")), text)
    except tomllib.TOMLDecodeError:
        return text


def _start(node: tree_sitter.Node) -> tuple[int, int]:
    return node.start_point[0], node.start_point[1]
