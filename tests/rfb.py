"""Looks at a guest's screen as a VNC viewer does (RFC 6143): handshake without password, then one whole picture."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

TIMEOUT_S = 30.0
RAW = 0


@dataclass(frozen=True, slots=True)
class Picture:
    """What a screen showed: its size, and each pixel as four bytes."""

    version: bytes
    name: str
    width: int
    height: int
    pixels: bytes

    def colours(self) -> int:
        """How many different colours there are."""
        return len(set(struct.unpack(f"<{len(self.pixels) // 4}I", self.pixels)))


def look(address: str | tuple[str, int]) -> Picture:
    """One picture from a Unix socket's path, or a TCP host and port."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as line:
        line.settimeout(TIMEOUT_S)
        line.connect(address)
        version = _read(line, 12)
        line.sendall(version)
        assert 1 in _read(line, _read(line, 1)[0])  # security type None
        line.sendall(b"\x01")
        assert _read(line, 4) == bytes(4)
        line.sendall(b"\x01")  # shared: other viewers stay
        width, height, _, length = struct.unpack("!HH16sI", _read(line, 24))
        name = _read(line, length).decode()
        # 32 bits for a pixel, little endian; raw is the only encoding that we know; all of it, not what changed.
        line.sendall(struct.pack("!B3xBBBBHHHBBB3x", 0, 32, 24, 0, 1, 255, 255, 255, 16, 8, 0))
        line.sendall(struct.pack("!BxHi", 2, 1, RAW))
        line.sendall(struct.pack("!BBHHHH", 3, 0, 0, 0, width, height))
        return Picture(version, name, width, height, _picture(line, width, height))


def _picture(line: socket.socket, width: int, height: int) -> bytes:
    kind, count = struct.unpack("!BxH", _read(line, 4))
    assert kind == 0
    rows = [bytearray(4 * width) for _ in range(height)]
    for _ in range(count):
        left, top, wide, high, encoding = struct.unpack("!HHHHi", _read(line, 12))
        assert encoding == RAW
        for row in range(top, top + high):
            rows[row][4 * left : 4 * (left + wide)] = _read(line, 4 * wide)
    return b"".join(rows)


def _read(line: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = line.recv(count - len(found))
        assert part, "the server ended the connection"
        found += part
    return found
