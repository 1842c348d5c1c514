"""Users of the metrics listener: a file of names and hashed passwords.

A line is `NAME:scrypt$N$R$P$SALT$HASH`, salt and hash in base64 (RFC 7914); empty lines and those that begin with `#`
count for nothing. `vmhost hash-password NAME` writes such a line.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

COST, BLOCK, LANES = 1 << 14, 8, 1
"""16 MiB and some 40 ms for each password that is tried (RFC 7914, 2: N, r and p)."""

MAX_MEMORY_BYTES = 64 << 20
"""What a line of the file may make a try cost; N, r and p come from that line."""

NAME = re.compile(r"[^\s:#][^:\x00-\x1f\x7f]{0,63}")
"""A user's name: HTTP's basic authentication parts it from the password by a colon (RFC 7617)."""

_HASH = re.compile(r"scrypt\$(\d{1,7})\$(\d{1,3})\$(\d{1,3})\$([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+)", re.ASCII)


class UsersError(ValueError):
    """A line that is none of a file of users; the text says which, and what it should be."""


@dataclass(frozen=True, slots=True)
class PasswordHash:
    """What is kept of a password, from which nobody gets it back."""

    cost: int
    block: int
    lanes: int
    salt: bytes
    digest: bytes

    def matches(self, password: bytes) -> bool:
        """Whether it is this password; takes some ten milliseconds, in which other threads go on."""
        return hmac.compare_digest(_scrypt(password, self.salt, self.cost, self.block, self.lanes), self.digest)

    def __str__(self) -> str:
        salt, digest = (base64.b64encode(value).decode() for value in (self.salt, self.digest))
        return f"scrypt${self.cost}${self.block}${self.lanes}${salt}${digest}"


def hash_password(password: bytes) -> PasswordHash:
    """A new hash of a password, with a salt of its own."""
    salt = secrets.token_bytes(16)
    return PasswordHash(COST, BLOCK, LANES, salt, _scrypt(password, salt, COST, BLOCK, LANES))


def parse_users(text: str) -> Mapping[str, PasswordHash]:
    """The users of a file by name. Raises UsersError for the first line that is none, or if there is no user."""
    users: dict[str, PasswordHash] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, written = line.strip().partition(":")
        found = _parse_hash(written) if NAME.fullmatch(name) else None
        if found is None:
            raise UsersError(f"line {number} is no NAME:scrypt$…; `vmhost hash-password NAME` writes one")
        if name in users:
            raise UsersError(f"line {number} names {name} a second time; leave one of the two")
        users[name] = found
    if not users:
        raise UsersError("no user is in it; `vmhost hash-password NAME` writes a line for one")
    return users


def _parse_hash(text: str) -> PasswordHash | None:
    match = _HASH.fullmatch(text)
    if match is None:
        return None
    cost, block, lanes = int(match[1]), int(match[2]), int(match[3])
    try:
        found = PasswordHash(cost, block, lanes, base64.b64decode(match[4]), base64.b64decode(match[5]))
        found.matches(b"")  # parameters that OpenSSL refuses are found here, and not at the first scrape
    except (ValueError, binascii.Error):
        return None
    return found


def _scrypt(password: bytes, salt: bytes, cost: int, block: int, lanes: int) -> bytes:
    return hashlib.scrypt(password, salt=salt, n=cost, r=block, p=lanes, maxmem=MAX_MEMORY_BYTES, dklen=32)
