"""Asks a guest over the network, the way its users would notice that it is gone."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from itertools import pairwise

KNOCK_EVERY_S = 0.002
KNOCKS_AT_ONCE = 64

NOT_YET = {errno.ECONNREFUSED, errno.EHOSTUNREACH}
"""The guest's kernel is there, its listener not yet; and nobody answered ARP for three seconds."""

UPTIME_PORT = 7777
SHELL_PORT = 7778
ETHERTYPE_ARP = 0x0806

PATIENCE_S = 30.0
"""What a guest whose CPU is emulated gets to answer, on a machine that has more to do."""


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
    neighbour = _Neighbour(host, via)
    try:
        while (spent := time.perf_counter() - began) < timeout_s:
            knocking.append(_knock(host, port))
            neighbour.ask()
            _, opened, _ = select.select([], knocking, [], KNOCK_EVERY_S)
            for knock in opened:
                if knock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    return time.perf_counter() - began
                knocking.remove(knock)
                knock.close()
            while len(knocking) > KNOCKS_AT_ONCE:
                knocking.pop(0).close()
    finally:
        neighbour.close()
        for knock in knocking:
            knock.close()
    raise TimeoutError(f"{host}:{port} took no connection within {spent:.1f} s")


class Outage:
    """How long a guest was unreachable, as its neighbours see it: asks for its MAC every millisecond in a thread.

    with Outage(host, via) as outage: …; then `outage.longest_s()` is the longest time between two answers.
    """

    def __init__(self, host: str, via: str) -> None:
        self._neighbour = _Neighbour(host, via)
        self._answers_s: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="outage")

    def __enter__(self) -> Outage:
        self._thread.start()
        while not self._answers_s:
            time.sleep(0.001)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def longest_s(self) -> float:
        """The longest time without an answer, until now."""
        times = [*self._answers_s, time.perf_counter()]
        return max(later - earlier for earlier, later in pairwise(times))

    def _ask(self) -> None:
        while not self._over.is_set():
            self._neighbour.ask()
            if self._neighbour.answers(0.001):
                self._answers_s.append(time.perf_counter())
        self._neighbour.close()


class _Neighbour:
    """Broadcasts ARP requests (RFC 826) in this host's name; an answer completes the kernel's own question too.

    One socket, and nothing else that asks the kernel about links: to close a packet socket, and to ask for an address,
    takes as long as the deletion of a link that is under way (RCU, rtnl_lock), which would be measured as an outage.
    """

    def __init__(self, host: str, via: str) -> None:
        self._host, self._via = host, via
        self._raw: socket.socket | None = None
        self._question = b""

    def ask(self) -> None:
        """Ask once; where there is no such link, or no more, nothing is asked."""
        try:
            if self._raw is None:
                self._open()
            if self._raw is not None:
                self._raw.send(self._question)
        except OSError:  # the bridge was deleted beneath the socket
            self.close()

    def answers(self, within_s: float) -> bool:
        """Whether an answer came meanwhile; it is waited for no longer than this."""
        if self._raw is None:
            time.sleep(within_s)
            return False
        heard = False
        with contextlib.suppress(OSError):
            while select.select([self._raw], [], [], 0 if heard else within_s)[0]:
                heard = self._raw.recv(64)[28:32] == socket.inet_aton(self._host) or heard
        return heard

    def close(self) -> None:
        """Let go of the socket; the next question opens another."""
        if self._raw is not None:
            self._raw.close()
            self._raw = None

    def _open(self) -> None:
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        try:
            raw.bind((self._via, ETHERTYPE_ARP))
            mac: bytes = raw.getsockname()[4]
            own = _source_address(self._host)
        except OSError:
            raw.close()
            raise
        header = b"\xff" * 6 + mac + struct.pack("!H", ETHERTYPE_ARP)
        sender = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + own
        self._raw, self._question = raw, header + sender + bytes(6) + socket.inet_aton(self._host)


def _source_address(host: str) -> bytes:
    """The address that this host speaks to another one from, by its routes; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as routed:
        routed.connect((host, UPTIME_PORT))
        address: str = routed.getsockname()[0]
    return socket.inet_aton(address)


def _knock(host: str, port: int) -> socket.socket:
    knock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    knock.setblocking(False)
    result = knock.connect_ex((host, port))
    if result not in (0, errno.EINPROGRESS):
        time.sleep(KNOCK_EVERY_S)  # no route while the bridge is away: nothing would wake a select
    return knock


def uptime(host: str, timeout_s: float = PATIENCE_S) -> Uptime:
    """The guest's uptime and boot id."""
    fields = dict(field.split("=", 1) for field in _talk(host, UPTIME_PORT, b"", timeout_s).split())
    return Uptime(float(fields["uptime"]), fields["boot"])


def run_in_guest(host: str, command: str, timeout_s: float = PATIENCE_S) -> str:
    """Run a command line in the guest; its output. A guest that ends meanwhile gives what came before."""
    return _talk(host, SHELL_PORT, command.encode() + b"\n", timeout_s)


def tell_guest(host: str, command: str) -> None:
    """Have the guest run a command line that it will not live to answer; returns once its shell has begun."""
    with _connection(host, SHELL_PORT, PATIENCE_S) as connection:
        connection.sendall(b"echo told; " + command.encode() + b"\n")
        if connection.recv(5) != b"told\n":
            raise ConnectionError(f"{host} did not hear: {command}")


def _talk(host: str, port: int, said: bytes, timeout_s: float) -> str:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return _exchange(host, port, said, deadline - time.monotonic())
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)  # it was taken by a listener that was about to end


def _connection(host: str, port: int, timeout_s: float) -> socket.socket:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return socket.create_connection((host, port), max(deadline - time.monotonic(), 0.1))
        except OSError as error:
            if time.monotonic() > deadline or error.errno not in NOT_YET:
                raise
            time.sleep(0.02)


def _exchange(host: str, port: int, said: bytes, timeout_s: float) -> str:
    heard = b""
    with _connection(host, port, timeout_s) as connection:
        connection.sendall(said)
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while part := connection.recv(4096):
                heard += part
    if not heard and not said:
        raise ConnectionError(f"{host}:{port} said nothing")
    return heard.decode(errors="replace")
