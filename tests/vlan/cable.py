"""The far end of a cable that is plugged into a bridge: raw frames, with or without a VLAN tag (IEEE 802.1Q)."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Self

ETH_P_ALL, ETH_P_8021Q = 0x0003, 0x8100
SOL_PACKET, PACKET_AUXDATA = 263, 8
TP_STATUS_VLAN_VALID = 1 << 4
_AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata (linux/if_packet.h)
PACKET_OUTGOING = 4


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as it was on the cable; `vlan` is None where it had no tag."""

    target: str
    source: str
    vlan: int | None
    kind: int
    body: bytes


class Cable:
    """A raw socket on a link of the caller's namespace, most often the end of a veth whose other end is a port.

    The kernel takes the tag off before a socket sees the frame and tells it beside it (packet(7), PACKET_AUXDATA).
    """

    def __init__(self, link: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self._socket.bind((link, ETH_P_ALL))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """For select(2)."""
        return self._socket.fileno()

    def send(self, source: str, target: str, kind: int, body: bytes, vlan: int | None = None) -> None:
        """Send one frame, tagged if a VLAN is given."""
        tag = b"" if vlan is None else struct.pack("!HH", ETH_P_8021Q, vlan)
        head = _packed(target) + _packed(source) + tag + struct.pack("!H", kind)
        self._socket.send((head + body).ljust(60, b"\0"))

    def receive(self, kind: int, timeout_s: float) -> Frame | None:
        """The next frame of a kind that came in; None if there is none in time. 0 looks only at what is there."""
        self._socket.settimeout(timeout_s)
        while True:
            try:
                data, auxiliary, _, address = self._socket.recvmsg(65536, 128)
            except (TimeoutError, BlockingIOError):
                return None
            if address[2] != PACKET_OUTGOING and (frame := _parse(data, auxiliary)).kind == kind:
                return frame


def _parse(data: bytes, auxiliary: list[tuple[int, int, bytes]]) -> Frame:
    (kind,) = struct.unpack_from("!H", data, 12)
    vlan = None
    for level, name, value in auxiliary:
        if (level, name) == (SOL_PACKET, PACKET_AUXDATA):
            status, _, _, _, _, tci, _ = _AUXDATA.unpack_from(value)
            vlan = tci & 0xFFF if status & TP_STATUS_VLAN_VALID else None
    return Frame(_text(data[:6]), _text(data[6:12]), vlan, kind, data[14:])


def _packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _text(mac: bytes) -> str:
    return mac.hex(":")
