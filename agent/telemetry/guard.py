"""What stands before the metrics listener: a certificate and its key, and users with passwords, each by choice.

The files are read again when they change, so a renewed certificate needs no restart. What was read last and was good
stays in force while a file is missing or torn.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import os
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.telemetry.listen import ListenError
from agent.telemetry.passwords import PasswordHash, UsersError, hash_password, parse_users

CHALLENGE = {"WWW-Authenticate": 'Basic realm="vmhost", charset="UTF-8"'}

Stamps = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Protection:
    """The files to protect the listener with; certificate and key are given both or none of them."""

    certificate: Path | None = None
    key: Path | None = None
    users: Path | None = None

    @property
    def missing(self) -> tuple[str, ...]:
        """What is not asked for, in words."""
        tls = () if self.certificate else ("encrypted (--listen-tls-cert, --listen-tls-key)",)
        return (*tls, *(() if self.users else ("kept for users (--listen-users)",)))

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are named."""
        return tuple(path for path in (self.certificate, self.key, self.users) if path is not None)


class Guard:
    """Holds what the files say. Made by reading them, which raises ListenError with the file and what is wrong."""

    def __init__(self, protection: Protection) -> None:
        self._protection = protection
        self._key = secrets.token_bytes(32)
        self._one_at_a_time = asyncio.Lock()
        self._stamps = _stamps(protection.files)
        self._users: Mapping[str, PasswordHash] = {}
        self._admitted: set[bytes] = set()
        self._nobody = hash_password(self._key)
        self._latest = self._context()
        self._read_users()
        self.problem = ""
        """Why the files as they are now are not in force; empty if they are."""
        self.tls = self._latest
        """For the listener, None for plain HTTP; each handshake takes the latest certificate."""
        if self.tls is not None:
            self.tls.sni_callback = self._take_latest

    @property
    def wants_users(self) -> bool:
        """Whether only users who are named may read."""
        return self._protection.users is not None

    def look(self) -> None:
        """Read the files again if any has changed. Never raises: what is wrong is `problem`, and nothing changes."""
        stamps = _stamps(self._protection.files)
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            latest = self._context()
            self._read_users()
        except ListenError as error:
            self.problem = f"{error}; what was read before stays in force"
            return
        self._latest, self.problem = latest, ""

    async def admits(self, authorization: str | None) -> bool:
        """Whether a request with this header may read; hashing is done in a thread, one at a time.

        Who was admitted is known again by a keyed digest until the files change, so that a scrape costs no hashing.
        """
        if self._protection.users is None:
            return True
        credentials = _basic(authorization)
        if credentials is None:
            return False
        seen = hmac.digest(self._key, b"\0".join(credentials), "sha256")
        if seen in self._admitted:
            return True  # at once: whoever guesses passwords would else have every scrape wait in his queue
        async with self._one_at_a_time:
            users, admitted = self._users, self._admitted
            if seen in admitted:
                return True
            name, password = credentials
            # A name that there is not takes as long as one that there is.
            found = users.get(name.decode(errors="replace"), self._nobody)
            if not await asyncio.to_thread(found.matches, password) or found is self._nobody:
                return False
            admitted.add(seen)
            return True

    def _context(self) -> ssl.SSLContext | None:
        certificate, key = self._protection.certificate, self._protection.key
        if certificate is None or key is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        for option, path in (("--listen-tls-cert", certificate), ("--listen-tls-key", key)):
            _read(option, path)
        try:
            context.load_cert_chain(certificate, key, password=b"")  # without one OpenSSL asks on the terminal
        except (ssl.SSLError, OSError) as error:
            mismatch = isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH"
            why = "do not belong together" if mismatch else "are no certificate and unencrypted key in PEM format"
            raise ListenError(f"--listen-tls-cert {certificate} and --listen-tls-key {key} {why}") from error
        return context

    def _read_users(self) -> None:
        if (path := self._protection.users) is None:
            return
        try:
            users = parse_users(_read("--listen-users", path).decode())
        except (UsersError, UnicodeDecodeError) as error:
            why = str(error) if isinstance(error, UsersError) else "no text in UTF-8"
            raise ListenError(f"--listen-users {path}: {why}") from error
        self._users, self._admitted = users, set()

    def _take_latest(self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _old: ssl.SSLContext) -> None:
        if self._latest is not None:
            connection.context = self._latest


def _read(option: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ListenError(f"{option} {path}: {(error.strerror or str(error)).lower()}; put it there") from error


def _stamps(paths: tuple[Path, ...]) -> Stamps:
    """What tells a file's versions apart; None for one that cannot be seen."""
    return tuple(_stamp(path) for path in paths)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _basic(authorization: str | None) -> tuple[bytes, bytes] | None:
    """Name and password of a header of basic authentication (RFC 7617), None if it is none."""
    scheme, _, encoded = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except (ValueError, binascii.Error):
        return None
    return (name, password) if colon else None
