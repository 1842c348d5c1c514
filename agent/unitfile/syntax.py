"""TOML as tomllib reads it, and what tomllib says when it cannot, in plain words and with a position for everything."""

from __future__ import annotations

import re
import tomllib

from agent.unitfile.values import MAX_FILE_BYTES

Failure = tuple[int, int, str, str]
"""Line, column, problem, hint."""

_AT = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)
_NESTED = re.compile(r"(?:[\[{]\s*){40}")
_LONG_KEY = re.compile(r"(?:^|[\[{,])[ \t]*(?:[\w\"'-]+[ \t]*\.[ \t]*){64}", re.MULTILINE)
"""Keys of so many parts are no unit's, and tomllib takes quadratic time over them."""
_LONG_NUMBER = re.compile(r"\d[\d_]{4000}")
_IN_WORDS = {
    "Invalid value": "a value is missing or not written as TOML",
    "Invalid statement": "this line is no table, key or comment",
    "Cannot overwrite a value": "a key is set a second time",
    "Cannot mutate immutable namespace": "an inline table cannot be added to",
    "Expected '=' after a key in a key/value pair": 'expected "=" after the key',
    "Expected newline or end of document after a statement": "expected the end of the line after the value",
    "Expected ']' at the end of a table declaration": 'expected "]" at the end of the table\'s name',
    "Illegal character '\\n'": "the line ends before its quoted text does",
    "Illegal character '\\x00'": "a NUL byte",
    "Unclosed array": 'an array is not closed: expected "]"',
    "Unclosed inline table": 'an inline table is not closed: expected "}"',
    "Unterminated string": "a quoted text is not closed",
    "Invalid initial character for a key part": "a key is missing, or it needs quotes",
}


def read_toml(data: bytes) -> dict[str, object] | Failure:
    """The top table of a file, or where and why it is not TOML. Total: it never raises."""
    text = _text(data)
    if isinstance(text, tuple):
        return text
    try:
        return tomllib.loads(text)
    except RecursionError:
        return *_first(_NESTED, text), "arrays or tables are nested too deeply", ""
    except tomllib.TOMLDecodeError as error:
        return _failure(text, str(error))
    except ValueError:
        return *_first(_LONG_NUMBER, text), "a number with thousands of digits", ""


def _text(data: bytes) -> str | Failure:
    """A file's text, if it is one that tomllib can be let loose on."""
    if len(data) > MAX_FILE_BYTES:
        return 1, 1, f"the file is larger than {MAX_FILE_BYTES >> 20} MiB", ""
    if (nul := data.find(b"\0")) >= 0:
        return *_place(data[:nul].decode(errors="replace")), "a NUL byte: this is not a text file", ""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return *_place(data[: error.start].decode(errors="replace")), "bytes that are not UTF-8", "save it as UTF-8"
    if text.startswith("\ufeff"):
        return 1, 1, "the file begins with a byte order mark", "save it as UTF-8 without BOM"
    if long_key := _LONG_KEY.search(text):
        return *_place(text[: long_key.start()]), "a key of more than 64 parts", ""
    return text


def _failure(text: str, message: str) -> Failure:
    found = _AT.fullmatch(message)
    what = found[1] if found else message
    line, column = (int(found[2]), int(found[3])) if found and found[2] else _place(text.rstrip("\n"))
    if declared := re.fullmatch(r"Cannot declare \((.*?),?\) twice", what):
        name = ".".join(re.findall(r"'((?:[^'\\]|\\.)*)'", declared[1]))[:80]
        return line, column, f"the table [{name}] is there a second time", "put all its keys into one table"
    known = next((words for start, words in _IN_WORDS.items() if what.startswith(start)), None)
    if known is None and what.startswith("Illegal character"):
        known = "a control character in the text"
    return line, column, f"not TOML: {known or what[:1].lower() + what[1:][:200]}", ""


def _first(pattern: re.Pattern[str], text: str) -> tuple[int, int]:
    found = pattern.search(text)
    return _place(text[: found.start()]) if found else (1, 1)


def _place(before: str) -> tuple[int, int]:
    """The position right after some text."""
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
