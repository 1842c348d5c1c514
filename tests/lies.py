"""Who is who on a bridge of tests, what one of them may say falsely, and what it may say."""

from __future__ import annotations

from agent.core.routing.filters_wanted import link_local
from tests.frames import ICMPV6, TCP, UDP, arp, dhcp, icmpv6, ipv4, ipv6, neighbour, router, udp

BRIDGE_MAC = "de:ad:be:ef:00:0a"
MAC, OTHER = "de:ad:be:ef:01:00", "de:ad:be:ef:01:01"
WEB, WEB6, DB, DB6 = "192.168.0.100", "fd00:a::100", "192.168.0.101", "fd00:a::101"
HOST, HOST6 = "192.168.0.1", "fd00:a::1"
STRANGER = "198.51.100.9"
LOCAL = link_local(MAC)

LIES = {
    "mac": {
        "frame": ipv4(OTHER, WEB, DB, UDP, udp(9, 9, b"lie")),
        "arp": arp(MAC, OTHER, WEB, DB),
        "ipv6": ipv6(OTHER, WEB6, DB6, UDP, udp(9, 9, b"lie")),
        "dhcp": ipv4(MAC, "0.0.0.0", "255.255.255.255", UDP, udp(68, 67, dhcp(OTHER))),
    },
    "ipv4": {
        "arp": arp(MAC, MAC, HOST, DB),
        "gratuitous arp": arp(MAC, MAC, DB, DB, 2),
        "arp probe": arp(MAC, MAC, "0.0.0.0", DB),
        "packet": ipv4(MAC, DB, HOST, UDP, udp(9, 9, b"lie")),
        "no address": ipv4(MAC, "0.0.0.0", DB, UDP, udp(9, 9, b"lie")),
        "no address, tcp": ipv4(MAC, "0.0.0.0", DB, TCP, bytes(20)),
    },
    "ipv6": {
        "packet": ipv6(MAC, DB6, HOST6, UDP, udp(9, 9, b"lie")),
        "behind": ipv6(MAC, DB6, HOST6, UDP, udp(9, 9, b"lie"), behind=True),
        "advertisement": neighbour(MAC, WEB6, 136, HOST6),
        "advertisement behind": neighbour(MAC, WEB6, 136, HOST6, behind=True),
        "advertisement of the gateway": neighbour(MAC, LOCAL, 136, "fe80::1"),
        "advertisement of the bridge": neighbour(MAC, LOCAL, 136, link_local(BRIDGE_MAC)),
        "detection": neighbour(MAC, "::", 135, DB6),
        "from the gateway": ipv6(MAC, "fe80::1", DB6, UDP, udp(9, 9, b"lie")),
        "from the neighbour": ipv6(MAC, link_local(OTHER), DB6, UDP, udp(9, 9, b"lie")),
    },
    "ra": {
        "advertisement": router(MAC, LOCAL),
        "behind": router(MAC, LOCAL, behind=True),
        "redirect": router(MAC, LOCAL, 137),
    },
    "dhcp": {
        "offer": ipv4(MAC, WEB, "255.255.255.255", UDP, udp(67, 68, b"lie")),
        "offer from elsewhere": ipv4(MAC, WEB, "255.255.255.255", UDP, udp(1067, 68, b"lie")),
        "v6": ipv6(MAC, LOCAL, "ff02::1", UDP, udp(547, 546, b"lie")),
    },
}
TRUTHS = {
    "packet": ipv4(MAC, WEB, DB, UDP, udp(9, 9, b"truth")),
    "arp": arp(MAC, MAC, WEB, DB),
    "probe": arp(MAC, MAC, "0.0.0.0", WEB),
    "discover": ipv4(MAC, "0.0.0.0", "255.255.255.255", UDP, udp(68, 67, dhcp(MAC))),
    "packet6": ipv6(MAC, WEB6, DB6, UDP, udp(9, 9, b"truth")),
    "autoconfigured": ipv6(MAC, "fd00:a::dcad:beff:feef:100", DB6, UDP, udp(9, 9, b"truth")),
    "link-local": ipv6(MAC, LOCAL, DB6, UDP, udp(9, 9, b"truth")),
    "private link-local": ipv6(MAC, "fe80::abcd", DB6, UDP, udp(9, 9, b"truth")),
    "advertisement": neighbour(MAC, WEB6, 136, WEB6),
    "own link-local": neighbour(MAC, LOCAL, 136, LOCAL),
    "private": neighbour(MAC, "fe80::abcd", 136, "fe80::abcd"),
    "detection": neighbour(MAC, "::", 135, WEB6),
    "question": neighbour(MAC, WEB6, 135, DB6),
    "router wanted": ipv6(MAC, LOCAL, "ff02::2", ICMPV6, icmpv6(LOCAL, "ff02::2", 133, bytes(4))),
    "solicit": ipv6(MAC, LOCAL, "ff02::1:2", UDP, udp(546, 547, b"truth")),
}
END = ipv4(MAC, WEB, DB, UDP, udp(9, 9, b"the end"))
