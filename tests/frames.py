"""Ethernet frames by hand, as a guest may send that lies about who it is."""

from __future__ import annotations

import ipaddress
import struct

BROADCAST = "ff:ff:ff:ff:ff:ff"
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
ICMPV6, UDP, TCP, HOP_BY_HOP = 58, 17, 6, 0
ALL_NODES = "ff02::1"


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def ethernet(source: str, kind: int, body: bytes, target: str = BROADCAST) -> bytes:
    return mac(target) + mac(source) + struct.pack("!H", kind) + body


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF ^ total


def arp(source: str, sender_mac: str, sender: str, target: str, operation: int = 1) -> bytes:
    body = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    return ethernet(source, ARP, body + mac(sender_mac) + packed(sender) + bytes(6) + packed(target))


def ipv4(source: str, sender: str, target: str, proto: int, body: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, proto, 0) + packed(sender) + packed(target)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return ethernet(source, IPV4, head + body)


def ipv6(source: str, sender: str, target: str, proto: int, body: bytes, *, behind: bool = False) -> bytes:
    """`behind`: an extension header, which does nothing, comes first."""
    if behind:
        body, proto = bytes([proto, 0, 1, 4, 0, 0, 0, 0]) + body, HOP_BY_HOP
    head = struct.pack("!IHBB", 6 << 28, len(body), proto, 255) + packed(sender) + packed(target)
    return ethernet(source, IPV6, head + body)


def udp(from_port: int, to_port: int, text: bytes) -> bytes:
    return struct.pack("!HHHH", from_port, to_port, 8 + len(text), 0) + text


def dhcp(client: str) -> bytes:
    """A client's question without options: whose it is goes by `chaddr`, not by the frame (RFC 2131)."""
    return struct.pack("!BBBB24x", 1, 1, 6, 0) + mac(client) + bytes(202)


def icmpv6(sender: str, target: str, kind: int, body: bytes) -> bytes:
    pseudo = packed(sender) + packed(target) + struct.pack("!II", 4 + len(body), ICMPV6)
    plain = struct.pack("!BBH", kind, 0, 0) + body
    return struct.pack("!BBH", kind, 0, checksum(pseudo + plain)) + body


def neighbour(source: str, sender: str, kind: int, about: str, *, behind: bool = False) -> bytes:
    """A solicitation (135) or an advertisement (136) of who has an address."""
    target = ALL_NODES
    option = bytes([2 if kind == 136 else 1, 1]) + mac(source) if sender != "::" else b""
    body = icmpv6(sender, target, kind, bytes([0x20, 0, 0, 0]) + packed(about) + option)
    return ipv6(source, sender, target, ICMPV6, body, behind=behind)


def router(source: str, sender: str, kind: int = 134, *, behind: bool = False) -> bytes:
    """A router's advertisement (134) or redirect (137)."""
    rest = struct.pack("!BBHII", 64, 0, 1800, 0, 0) if kind == 134 else bytes(4) + packed(sender) * 2
    return ipv6(source, sender, ALL_NODES, ICMPV6, icmpv6(sender, ALL_NODES, kind, rest), behind=behind)
