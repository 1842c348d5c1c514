"""What a box does (tests.internet): it is in a namespace of its own, and does what it is told, a line each.

Run by its path and with nothing but the standard library, because a test starts several.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

CLONE_NEWNET = 0x40000000


def ip(commands: list[str]) -> None:
    """Run `ip` commands, one a line of a batch."""
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True, timeout=20)


def sysctl(name: str, value: str) -> None:
    """Set a parameter below /proc/sys/net."""
    with open(f"/proc/sys/net/{name}", "w", encoding="ascii") as file:
        file.write(value)


def serve_tcp(port: int, name: str) -> None:
    """See Box.serve."""
    listening = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)

    def talk(taker: socket.socket, who: str) -> None:
        with contextlib.suppress(OSError), taker:
            taker.sendall(f"{name} {who.removeprefix('::ffff:')}".encode())
            while taker.recv(65536):
                pass

    def answer() -> None:
        while True:
            taker, who = listening.accept()
            threading.Thread(target=talk, args=(taker, who[0]), daemon=True).start()

    threading.Thread(target=answer, daemon=True).start()


def serve_udp(port: int, name: str) -> None:
    """See Box.serve."""
    listening = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listening.bind(("::", port))

    def answer() -> None:
        while True:
            _, who = listening.recvfrom(65536)
            listening.sendto(f"{name} {who[0].removeprefix('::ffff:')}".encode(), who)

    threading.Thread(target=answer, daemon=True).start()


def hear_tcp(host: str, port: int, timeout_s: float) -> str | None:
    """See Box.hear."""
    try:
        with socket.create_connection((host, port), timeout_s) as asking:
            asking.shutdown(socket.SHUT_WR)
            return asking.recv(200).decode() or None
    except OSError:
        return None


def greet(host: str, port: int, timeout_s: float) -> str | None:
    """As `hear_tcp`, without an end of what is asked before the answer: a proxy may take that for a farewell."""
    try:
        with socket.create_connection((host, port), timeout_s) as asking:
            return asking.recv(200).decode() or None
    except OSError:
        return None


def page(host: str, port: int, timeout_s: float) -> str | None:
    """What a web server there has under `/`, None for nothing."""
    try:
        with socket.create_connection((host, port), timeout_s) as asking:
            asking.sendall(b"GET / HTTP/1.0\r\n\r\n")
            heard = b""
            while part := asking.recv(4096):
                heard += part
    except OSError:
        return None
    return heard.decode().partition("\r\n\r\n")[2].strip() or None


_PULLS: list[list[int]] = []
PULL_BYTES, PULL_EVERY_S = 1 << 15, 0.05
"""Some 600 kB in a second: a transfer is to last, also on a machine on which all else takes longer."""


def pull(host: str, port: int, path: str) -> None:
    """Begin to read a page, slowly; `pulled` tells how much of each came, -1 where it was cut."""
    pulling = socket.create_connection((host, port), 30.0)
    pulling.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    number = [0]
    _PULLS.append(number)

    def read() -> None:
        with pulling:
            while number[0] >= 0:
                try:
                    part = pulling.recv(PULL_BYTES)
                except OSError:
                    part = b""
                number[0] = number[0] + len(part) if part and number[0] >= 0 else -1
                threading.Event().wait(PULL_EVERY_S)

    threading.Thread(target=read, daemon=True).start()


def pulled() -> list[int]:
    """See `pull`."""
    return [number[0] for number in _PULLS]


def end_pulls() -> None:
    """End all that `pull` began."""
    for number in _PULLS:
        number[0] = -1
    _PULLS.clear()


_LOADS: list[list[int]] = []


def load(host: str, port: int, pause_s: float) -> None:
    """Begin to send 64 KiB after each pause, on a connection that stays; `loaded` tells how much of each, -1 if cut."""
    sending = socket.create_connection((host, port), 30.0)
    number = [0]
    _LOADS.append(number)

    def send() -> None:
        with sending:
            while number[0] >= 0:
                try:
                    number[0] += sending.send(b"x" * (1 << 16))
                    time.sleep(pause_s)
                except OSError:
                    number[0] = -1

    threading.Thread(target=send, daemon=True).start()


def loaded() -> list[int]:
    """See `load`."""
    return [number[0] for number in _LOADS]


def hear_again(host: str, port: int, timeout_s: float, patience_s: float = 0.05) -> float:
    """Seconds until somebody answers a new connection; one without an answer by then is given up for another."""
    began = time.perf_counter()
    while hear_tcp(host, port, patience_s) is None:
        if time.perf_counter() - began > timeout_s:
            raise TimeoutError(f"{host}:{port} is silent")
        patience_s = max(patience_s, min(1.1 * patience_s, 2.0))  # on a busy machine nobody may be so quick
        time.sleep(0.002)
    return time.perf_counter() - began


_FLOWS: dict[tuple[str, int], socket.socket] = {}


def hear_udp(host: str, port: int, timeout_s: float) -> str | None:
    """See Box.hear; always from the same port, as one flow."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    asking = _FLOWS.setdefault((host, port), socket.socket(family, socket.SOCK_DGRAM))
    asking.settimeout(timeout_s)
    try:
        asking.sendto(b"who", (host, port))
        return asking.recv(200).decode()
    except OSError:
        return None


_STREAMS: dict[int, socket.socket] = {}


def open_stream(host: str, port: int) -> str:
    """Connect, and stay connected; what was said first."""
    _STREAMS[port] = socket.create_connection((host, port), 30.0)
    return _STREAMS[port].recv(200).decode()


def stream_lives(port: int) -> bool:
    """Whether what is sent on a connection that stays is acknowledged within ten seconds."""
    stream = _STREAMS[port]
    try:
        stream.sendall(b"x" * 1000)
        for _ in range(1000):
            # tcpi_state, tcpi_unacked (linux/tcp.h)
            told = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            if told[0] != 1:
                return False
            if not int.from_bytes(told[24:28], sys.byteorder):
                return True
            threading.Event().wait(0.01)
    except OSError:
        pass
    return False


def pings(host: str, timeout_s: float) -> bool:
    """Whether there is an answer to a ping (of no data, with this number, whose checksum is its complement)."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as asking:
        asking.settimeout(timeout_s)
        asking.sendto(bytes([8, 0, 0xF7, 0xF1, 0, 7, 0, 7]), (host, 0))
        with contextlib.suppress(TimeoutError):
            while True:
                answer = asking.recv(200)
                if answer[20] == 0 and socket.inet_ntoa(answer[12:16]) == host:
                    return True
    return False


_HEARING: dict[str, socket.socket] = {}


def send_frames(frames: list[str]) -> None:
    """See Box.send."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sending:
        sending.bind(("eth0", 0))
        for frame in frames:
            sending.send(bytes.fromhex(frame))


def hear_frames() -> None:
    """Keep every frame that comes from now on."""
    hearing = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    hearing.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    hearing.bind(("eth0", 0))
    _HEARING["eth0"] = hearing


def heard_frames(until: str, timeout_s: float) -> list[str]:
    """The frames that came, up to this one."""
    hearing = _HEARING["eth0"]
    hearing.settimeout(timeout_s)
    heard: list[str] = []
    while until not in heard:
        frame, (_, _, kind, *_) = hearing.recvfrom(65536)
        if kind != socket.PACKET_OUTGOING:
            heard.append(frame.hex())
    return heard


def _options(data: bytes) -> dict[int, bytes]:
    """The options of a DHCPv6 message, by code."""
    found, start = {}, 0
    while start + 4 <= len(data):
        code, length = struct.unpack_from("!HH", data, start)
        found[code] = data[start + 4 : start + 4 + length]
        start += 4 + length
    return found


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("!HH", code, len(value)) + value


def _answer6(asking: socket.socket, message: bytes, link: int, until_s: float) -> bytes:
    """The options of the answer to a DHCPv6 message, which is sent again each second as by any client."""
    asking.settimeout(1.0)
    while True:
        asking.sendto(message, ("ff02::1:2", 547, 0, link))
        try:
            answer = asking.recv(2000)
            while answer[1:4] != message[1:4]:  # of what was asked before
                answer = asking.recv(2000)
            return answer[4:]
        except TimeoutError:
            if time.monotonic() > until_s:
                raise


def lease6(link: str, mac: str, timeout_s: float) -> dict[str, object]:
    """Ask for an address by DHCPv6 (RFC 8415: solicit, request), and take it; the address and the name servers."""
    client = _option(1, struct.pack("!HHI", 1, 1, 1) + bytes.fromhex(mac.replace(":", "")))
    ia = _option(3, struct.pack("!III", 1, 0, 0))
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as asking:
        asking.bind(("::", 546))
        server, told = b"", {3: b""}
        until_s = time.monotonic() + timeout_s
        for kind in (1, 3):
            message = bytes([kind, 0, 0, kind]) + client + server + ia + _option(8, b"\0\0") + _option(6, b"\0\x17")
            told = _options(_answer6(asking, message, socket.if_nametoindex(link), until_s))
            ia, server = _option(3, told[3]), _option(2, told[2])
    address = socket.inet_ntop(socket.AF_INET6, _options(told[3][12:])[5][:16])
    ip([f"addr replace {address}/128 dev {link} nodad"])
    servers = told.get(23, b"")
    return {
        "address": address,
        "dns": [socket.inet_ntop(socket.AF_INET6, servers[at : at + 16]) for at in range(0, len(servers), 16)],
    }


def advertise(link: str, lifetime_s: int) -> None:
    """Advertise oneself as a router to everybody there, once (RFC 4861)."""
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as telling:
        telling.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        message = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, lifetime_s, 0, 0)
        telling.sendto(message, ("ff02::1", 0, 0, socket.if_nametoindex(link)))


def shown(command: str) -> str:
    """What an `ip` command prints."""
    return subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=True, timeout=20).stdout


def _answers() -> Iterator[str]:
    for line in sys.stdin:
        what, arguments = json.loads(line)
        try:
            yield json.dumps({"is": globals()[what](*arguments)})
        except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
            yield json.dumps({"error": repr(error)})


def main() -> None:
    """A box: a fresh namespace, then one command a line until its input ends."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "no network namespace")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for answer in _answers():
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
