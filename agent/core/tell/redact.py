"""Takes secrets out of texts that are shown to strangers.

It goes by what things are called and by what they look like, so it may miss a secret that looks like a word. It takes
rather too much than too little: what is left is to find a fault by, not to run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

MARK = "<redacted>"
"""What stands in the place of a secret."""

_NAMED = (
    r"(?:passw(?:or)?d|passwd|passphrase|rootpw|secret|token|credential|api[_-]?key|access[_-]?key"
    r"|private[_-]?key|auth[_-]?key|encryption[_-]?key|psk)[\w-]{0,20}"
)
_QUOTED = r'"{3}.*?"{3}|\'{3}.*?\'{3}|\\"[^"\\\n]*\\"|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\''
_PATTERNS = (
    # A PEM block, whole or cut off.
    re.compile(r"(?P<keep>-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----).*?(?=-----END|\Z)", re.DOTALL),
    # name = "value", "name": "value", name=value; in a command line the value ends at a space or comma.
    re.compile(
        rf"(?P<keep>{_NAMED}\\?[\"']?\s{{0,8}}[=:]\s{{0,8}})(?!<redacted>)(?:{_QUOTED}|[^\s\"'\\,;&]+)",
        re.IGNORECASE | re.DOTALL,
    ),
    # QEMU's secret object, as extra-args may hold one (qemu(1), -object secret).
    re.compile(r"(?P<keep>\bsecret,(?:[^\s\"',]{1,80},){0,8}data=)(?!<redacted>)[^\s\"',]+"),
    re.compile(r"(?P<keep>\b(?:Bearer|Basic)\s{1,8})[A-Za-z0-9+/=._~-]{8,}"),
    # scheme://user:password@host
    re.compile(r"(?P<keep>\b[a-z][a-z0-9+.-]{0,20}://[^\s/:@\"']{0,200}:)[^\s/@\"']+(?=@)", re.IGNORECASE),
    # crypt(5): $6$salt$hash
    re.compile(r"(?P<keep>)\$(?:[1-9]\w?|y|gy)\$[^\s\"',;]{8,}"),
    # What is neither a path, a word nor a uuid: long runs of base64 that mix digits, small and capital letters.
    re.compile(r"(?P<keep>)(?<![\w+/=.-])(?=[\w+]{0,200}\d)(?=[\w+]{0,200}[a-z])(?=[\w+]{0,200}[A-Z])[\w+]{32,}=*"),
)


def redacted(text: str) -> tuple[str, int]:
    """The text without what looks like a secret, and how many were taken out."""
    count = 0
    for pattern in _PATTERNS:
        text, taken = pattern.subn(lambda match: f"{match['keep']}{MARK}", text)
        count += taken
    return text, count


def redacted_json(value: object) -> tuple[object, int]:
    """A value as json.loads gives it, without what looks like a secret in any text of it."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        pairs = {key: _redacted_member(key, member) for key, member in value.items()}
        return {key: member for key, (member, _) in pairs.items()}, sum(count for _, count in pairs.values())
    if isinstance(value, Sequence):
        members = [redacted_json(member) for member in value]
        return [member for member, _ in members], sum(count for _, count in members)
    return value, 0


def _redacted_member(key: object, member: object) -> tuple[object, int]:
    if isinstance(member, str) and re.search(_NAMED, str(key), re.IGNORECASE):
        return MARK, 1
    return redacted_json(member)
