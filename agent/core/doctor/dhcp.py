"""The question for a second DHCP server, and what an offer says (RFC 2131, RFC 2132)."""

from __future__ import annotations

import shlex
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address

from agent.core.doctor.findings import Finding
from agent.core.doctor.scene import Offer, Scene
from agent.core.marks import bridge_resource

COOKIE = bytes((99, 130, 83, 99))
DISCOVER, OFFER = 1, 2
BROADCAST = 0x8000
"""The flag by which the answer is sent to everybody: who asks has no address yet."""

_BOOTP = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")
GUARD = "dhcp-guard"


def discover(mac: bytes, source: bytes, xid: int) -> bytes:
    """A whole Ethernet frame that asks every server for an offer for `mac`; it comes from the link's own `source`.

    Nothing that is offered is ever requested, so no lease follows from it.
    """
    bootp = _BOOTP.pack(1, 1, 6, 0, xid, 0, BROADCAST, *[bytes(4)] * 4, mac.ljust(16, b"\0"), bytes(64), bytes(128))
    options = bytes((53, 1, DISCOVER, 55, 2, 1, 54, 255))
    payload = (bootp + COOKIE + options).ljust(300, b"\0")
    udp = struct.pack("!HHHH", 68, 67, 8 + len(payload), 0)  # no checksum, which IPv4 allows
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0x10, 20 + 8 + len(payload), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
    head = head[:10] + struct.pack("!H", _checksum(head)) + head[12:]
    return b"\xff" * 6 + source + b"\x08\x00" + head + udp + payload


def _checksum(head: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(head) // 2}H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def parse_offer(frame: bytes, mac: bytes, xid: int) -> Offer | None:
    """The offer that answers a question, None for any other frame."""
    if len(frame) < 34 or frame[12:14] != b"\x08\x00" or frame[14] >> 4 != 4 or frame[23] != 17:
        return None
    udp = 14 + (frame[14] & 15) * 4
    bootp = udp + 8
    options = bootp + _BOOTP.size + len(COOKIE)
    if len(frame) < options or frame[udp : udp + 4] != struct.pack("!HH", 67, 68):
        return None
    fields = _BOOTP.unpack_from(frame, bootp)
    if fields[0] != 2 or fields[4] != xid or fields[11][:6] != mac or frame[options - 4 : options] != COOKIE:
        return None
    told = _options(frame[options:])
    if told.get(53) != bytes((OFFER,)):
        return None
    server = told.get(54, frame[26:30])
    return Offer(str(IPv4Address(server[:4].rjust(4, b"\0"))), frame[6:12].hex(":"), str(IPv4Address(fields[8])))


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    place = 0
    while place + 1 < len(data) and data[place] != 255:
        if data[place] == 0:
            place += 1
            continue
        found[data[place]] = data[place + 2 : place + 2 + data[place + 1]]
        place += 2 + data[place + 1]
    return found


def second_servers(scene: Scene) -> Iterator[Finding]:
    """Offers that are not of our own server, each server once."""
    for name, offers in scene.offers.items():
        bridge = scene.bridges.get(name)
        if bridge is None or bridge.dhcp is None:
            continue
        own = {one.partition("/")[0] for one in bridge.addresses}
        # Who offers in the name of our own server, from another MAC, is none of it.
        mac = bridge.mac.lower()
        others = [one for one in offers if one.server not in own or (mac and one.mac != mac)]
        for server, offer in {one.server: one for one in others}.items():
            where = f" behind {offer.port}" if offer.port else ""
            whose = next((f", of guest {vm}" for vm, nic in scene.nics_on(name) if nic.tap == offer.port), "")
            yield Finding(
                "SecondDhcpServer",
                bridge_resource(name),
                f"{server} ({offer.mac}{where}{whose}) serves DHCP on {name}, too",
                "guests get addresses, a router and name servers from whoever answers first",
                _guard(offer),
            )


def _guard(offer: Offer) -> tuple[str, ...]:
    hook = "{ type filter hook prerouting priority -300 ; }"
    which = f'iifname "{offer.port}"' if offer.port else f"ether saddr {offer.mac}"
    rule = f"{which} udp sport 67 udp dport 68 counter drop"
    return (
        f"nft add table bridge {GUARD}",
        f"nft add chain bridge {GUARD} offers {shlex.quote(hook)}",
        f"nft add rule bridge {GUARD} offers {shlex.quote(rule)}",
    )
