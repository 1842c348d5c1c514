"""Asks whoever serves DHCP on a bridge for an offer, and takes none: a packet socket on the bridge (packet(7)).

What the host sends on a bridge goes out by its ports and is not its own to hear, so its own server is not asked.

`python -m agent.host.dhcp_probe BRIDGE ...` asks on all of them at once, because the agent may open no packet socket:
one line of JSON each, an `Answer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from agent.core.doctor.dhcp import discover, parse_offer
from agent.core.doctor.scene import Offer
from agent.core.errors import ObservationError

LISTEN_S = 3.5
"""dnsmasq tries for up to three seconds whether an address is free before it offers it."""

ETH_P_IP = 0x0800
SO_ATTACH_FILTER = 26
MAX_FRAME_BYTES = 2048
MAX_OFFERS = 64

# Classic BPF (linux/filter.h): unfragmented UDP to port 68, so that a busy bridge costs nothing.
_FILTER = (
    (0x30, 0, 0, 23),  # ldb [23]
    (0x15, 0, 6, 17),  # jeq UDP
    (0x28, 0, 0, 20),  # ldh [20]
    (0x45, 4, 0, 0x1FFF),  # jset offset
    (0xB1, 0, 0, 14),  # ldxb 4*([14]&15)
    (0x48, 0, 0, 16),  # ldh [x+16]
    (0x15, 0, 1, 68),  # jeq 68
    (0x06, 0, 0, MAX_FRAME_BYTES),
    (0x06, 0, 0, 0),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was offered on a bridge, or why nobody there could be asked."""

    bridge: str
    offers: tuple[Offer, ...] = ()
    problem: str = ""


async def find_offers(bridge: str, listen_s: float = LISTEN_S) -> tuple[Offer, ...]:
    """All offers that come within `listen_s` seconds of asking. Raises ObservationError.

    It asks once more in the middle, for a datagram may be lost. The MAC that it asks for is new each time.
    """
    mac = bytes([0x02, *os.urandom(5)])
    xid = int.from_bytes(os.urandom(4), "big")
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    try:
        with socket.socket(socket.AF_PACKET, kind, 0) as asking:
            _only_offers(asking)
            asking.bind((bridge, ETH_P_IP))
            frame = discover(mac, asking.getsockname()[4][:6], xid)
            found: dict[Offer, None] = {}
            for _ in range(2):
                asking.send(frame)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(_listen(asking, mac, xid, found), listen_s / 2)
            return tuple(found)
    except PermissionError as e:
        raise ObservationError("dhcp", f"no packet socket on {bridge}: {e.strerror}; it needs CAP_NET_RAW") from e
    except OSError as e:
        raise ObservationError("dhcp", f"{bridge} cannot be asked: {e.strerror}") from e


def _only_offers(asking: socket.socket) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in _FILTER))
    asking.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(_FILTER), ctypes.addressof(code)))


async def _listen(asking: socket.socket, mac: bytes, xid: int, found: dict[Offer, None]) -> None:
    """Collect offers, until there are so many that they are no longer meant well."""
    loop = asyncio.get_running_loop()
    while len(found) < MAX_OFFERS:
        await asyncio.sleep(0)  # what never stops coming must not keep the time from passing
        offer = parse_offer(await loop.sock_recv(asking, MAX_FRAME_BYTES), mac, xid)
        if offer is not None:
            found[offer] = None


def probe_command(bridges: Sequence[str]) -> Sequence[str]:
    """The command line that asks on these bridges; it needs CAP_NET_RAW, and takes `LISTEN_S` and a start of Python."""
    return [sys.executable, "-I", "-m", "agent.host.dhcp_probe", *bridges]


def read_answers(output: str) -> Sequence[Answer]:
    """The answers, from the output of that command. Raises ObservationError."""
    try:
        found = [json.loads(line) for line in output.splitlines()]
        return [Answer(one["bridge"], tuple(Offer(**each) for each in one["offers"]), one["problem"]) for one in found]
    except (ValueError, KeyError, TypeError) as e:
        raise ObservationError("dhcp", f"what the probe says cannot be read: {e!r}") from e


async def _ask(bridge: str) -> Answer:
    try:
        return Answer(bridge, await find_offers(bridge))
    except ObservationError as error:
        return Answer(bridge, problem=str(error))


async def _ask_all(bridges: Sequence[str]) -> None:
    for answer in await asyncio.gather(*map(_ask, bridges)):
        sys.stdout.write(json.dumps(asdict(answer)) + "\n")


if __name__ == "__main__":
    asyncio.run(_ask_all(sys.argv[1:]))
