"""Asks a guest over the network, the way its users would notice that it is gone."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import select
import socket
import struct
import time
from dataclasses import dataclass

KNOCK_EVERY_S = 0.002
KNOCKS_AT_ONCE = 64

UPTIME_PORT = 7777
SHELL_PORT = 7778
SIOCGIFADDR = 0x8915


@dataclass(frozen=True, slots=True)
class Uptime:
    """What the test guest says of itself: a boot id that each boot makes anew."""

    seconds: float
    boot: str


def answers_within(host: str, timeout_s: float, via: str, port: int = UPTIME_PORT) -> float:
    """Seconds until a guest behind the link `via` takes a TCP connection; TimeoutError if none is taken in time.

    A new connection is begun every 2 ms, and the guest's MAC is asked for: left to itself, the kernel of whoever asks
    sends a lost SYN or ARP request again only after a second, which is none of the guest's doing.
    """
    began = time.perf_counter()
    knocking: list[socket.socket] = []
    try:
        while (spent := time.perf_counter() - began) < timeout_s:
            knocking.append(_knock(host, port))
            _ask_for_mac(host, via)
            _, opened, _ = select.select([], knocking, [], KNOCK_EVERY_S)
            for knock in opened:
                if knock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    return time.perf_counter() - began
                knocking.remove(knock)
                knock.close()
            while len(knocking) > KNOCKS_AT_ONCE:
                knocking.pop(0).close()
    finally:
        for knock in knocking:
            knock.close()
    raise TimeoutError(f"{host}:{port} took no connection within {spent:.1f} s")


def _ask_for_mac(host: str, via: str) -> None:
    """Broadcast an ARP request (RFC 826) in this host's name; its answer completes the kernel's own question too."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((via, 0))
        mac = raw.getsockname()[4]
        request = struct.pack("16s24x", via.encode())
        own = fcntl.ioctl(raw, SIOCGIFADDR, request)[20:24]
        question = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + own + bytes(6) + socket.inet_aton(host)
        raw.send(b"\xff" * 6 + mac + b"\x08\x06" + question)


def _knock(host: str, port: int) -> socket.socket:
    knock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    knock.setblocking(False)
    result = knock.connect_ex((host, port))
    if result not in (0, errno.EINPROGRESS):
        time.sleep(KNOCK_EVERY_S)  # no route while the bridge is away: nothing would wake a select
    return knock


def uptime(host: str, timeout_s: float = 10.0) -> Uptime:
    """The guest's uptime and boot id."""
    fields = dict(field.split("=", 1) for field in _talk(host, UPTIME_PORT, b"", timeout_s).split())
    return Uptime(float(fields["uptime"]), fields["boot"])


def run_in_guest(host: str, command: str, timeout_s: float = 10.0) -> str:
    """Run a command line in the guest; its output. A guest that ends meanwhile gives what came before."""
    return _talk(host, SHELL_PORT, command.encode() + b"\n", timeout_s)


def _talk(host: str, port: int, said: bytes, timeout_s: float) -> str:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return _exchange(host, port, said, deadline - time.monotonic())
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)  # the guest's kernel is there, its listener not yet


def _exchange(host: str, port: int, said: bytes, timeout_s: float) -> str:
    heard = b""
    with socket.create_connection((host, port), max(timeout_s, 0.1)) as connection:
        connection.sendall(said)
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while part := connection.recv(4096):
                heard += part
    if not heard and not said:
        raise ConnectionError(f"{host}:{port} said nothing")
    return heard.decode(errors="replace")
