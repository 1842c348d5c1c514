"""No bytes break the parser, and every mistake is inside the file."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.unitfile.parse import ParsedUnit, parse_unit
from tests.every_key import EVERY_KEY


def check_positions(unit: ParsedUnit) -> None:
    lines = unit.data.decode(errors="replace").replace("\r\n", "\n").split("\n")
    for error in unit.errors:
        assert 1 <= error.line <= len(lines), error
        assert 1 <= error.column <= len(lines[error.line - 1]) + 1, error
        assert error.problem
        assert "\n" not in str(error)


@settings(max_examples=300)
@given(st.binary(max_size=400) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_taken(data: bytes) -> None:
    unit = parse_unit("u.toml", data)
    assert unit.data == data
    check_positions(unit)


WORDS = [
    b"[",
    b"]",
    b"=",
    b'"',
    b"'",
    b".",
    b"\n",
    b"{}",
    b"[[1]]",
    b"true",
    b"1e9",
    b"\0",
    b"\xff",
    b'"""',
    b"vm",
    b"#",
    b"\r",
]


@settings(max_examples=400)
@given(st.data())
def test_mutated_units_are_taken(data: st.DataObject) -> None:
    mutated = EVERY_KEY
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(mutated)))
        length = data.draw(st.integers(0, 12))
        mutated = (
            mutated[:start] + data.draw(st.sampled_from(WORDS) | st.binary(max_size=3)) + mutated[start + length :]
        )
    check_positions(parse_unit("u.toml", mutated))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["ports", "addresses", "mac", "mtu", "memory", "after", "uuid", "disk", "nic", "append", "cpus", "accel", "x"]


def as_toml(value: object) -> str:
    match value:
        case bool() | None:
            return "true" if value else "false"
        case str():
            return '"' + "".join(f"\\U{ord(c):08x}" if not 0xD800 <= ord(c) < 0xE000 else "?" for c in value) + '"'
        case dict():
            return "{" + ", ".join(f"{as_toml(str(key))} = {as_toml(inner)}" for key, inner in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(as_toml, value)) + "]"
        case _:
            return str(value)


@settings(max_examples=300)
@given(st.sampled_from(["bridge.b", "vm.w", "vm.w.disk.d", "vm.w.nic.n"]), st.dictionaries(st.sampled_from(KEYS), JSON))
def test_values_of_any_type_are_taken(header: str, values: dict[str, object]) -> None:
    text = f"[{header}]\n" + "".join(f"{key} = {as_toml(value)}\n" for key, value in values.items())
    check_positions(parse_unit("u.toml", text.encode()))
