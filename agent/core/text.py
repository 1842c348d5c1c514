"""Words for people: what comes from outside is shown so that it can neither break a line nor drive a terminal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def printable(text: str) -> str:
    """The text on one line: control and other unprintable characters are written as escapes (`\\n`, `\\x1b`)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def counted(number: int, what: str) -> str:
    """`1 guest`, `2 guests`: so many of a thing whose plural takes an s."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """`did you mean "web"?` where one of the known names is close, else an empty text."""
    close = difflib.get_close_matches(wrong, sorted(known), n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else ""
