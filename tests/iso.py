"""A CD-ROM image that firmware boots: the least that ISO 9660 and El Torito 1.0 ask for, and a program on it."""

from __future__ import annotations

import struct

SECTOR_BYTES = 2048
CATALOG, PROGRAM, SECTORS = 19, 20, 64
_DESCRIPTOR = b"CD001\x01"


def bootable_iso(text: bytes) -> bytes:
    """An image whose program writes a text to the first serial port, over and over."""
    sectors = {
        16: b"\x01" + _DESCRIPTOR,
        17: (b"\x00" + _DESCRIPTOR + b"EL TORITO SPECIFICATION").ljust(71, b"\0") + struct.pack("<I", CATALOG),
        18: b"\xff" + _DESCRIPTOR,
        CATALOG: _catalog(),
        PROGRAM: _program(text),
    }
    return b"".join(sectors.get(number, b"").ljust(SECTOR_BYTES, b"\0") for number in range(SECTORS))


def _catalog() -> bytes:
    """The validation entry, whose words add up to nothing, and one entry that boots four 512-byte sectors."""
    entry = struct.pack("<BB2x24sHBB", 1, 0, b"vmhost", 0, 0x55, 0xAA)
    checksum = -sum(struct.unpack("<16H", entry)) & 0xFFFF
    entry = entry[:28] + struct.pack("<H", checksum) + entry[30:]
    return entry + struct.pack("<BBHBxHI", 0x88, 0, 0, 0, 4, PROGRAM)


def _program(text: bytes) -> bytes:
    """16-bit code, loaded at 0x7c00: send each byte of the text when the port is ready, then begin again."""
    code = bytes.fromhex("31c0 8ed8 fc be1f7c ac 84c0 74f8 88c4 bafd03 ec a820 74fb baf803 88e0 ee ebe9")
    return code + text + b"\0"
