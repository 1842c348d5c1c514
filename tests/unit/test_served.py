"""Mistakes in a bridge's `dhcp` and `dns`: each at its place, word for word."""

from __future__ import annotations

import pytest

from agent.core.desired import DhcpSpec, DnsSpec
from agent.unitfile.parse import parse_unit
from agent.unitfile.specs import bridge_spec

ADDRESSES = '[bridge.br0]\naddresses = ["192.168.0.1/24", "10.0.0.1/24"]\n'
RANGE = 'range = ["192.168.0.100", "192.168.0.150"]'


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            'dhcp = { range = ["192.168.0.150", "192.168.0.100"] }',
            (
                "3:10: error: range is reversed: 192.168.0.150 is after 192.168.0.100 "
                '(range = ["192.168.0.100", "192.168.0.150"])'
            ),
        ),
        (
            'dhcp = { range = ["172.16.0.1", "172.16.0.9"] }',
            (
                "3:19: error: range begins with 172.16.0.1, outside of the bridge's addresses "
                "(192.168.0.0/24, 10.0.0.0/24)"
            ),
        ),
        (
            'dhcp = { range = ["10.0.0.100", "192.168.0.150"] }',
            "3:33: error: range ends with 192.168.0.150, outside of 10.0.0.0/24, where it begins",
        ),
        (
            'dhcp = { range = ["192.168.0.1", "192.168.0.50"] }',
            "3:10: error: range holds the bridge's own address 192.168.0.1",
        ),
        (
            'dhcp = { range = ["192.168.0.100", "192.168.0.255"] }',
            "3:36: error: range holds the broadcast address 192.168.0.255",
        ),
        (
            'dhcp = { range = ["fd00::1", "fd00::9"] }',
            (
                "3:10: error: range must be the first and the last IPv4 address, "
                '["192.168.0.100", "192.168.0.150"], not an array'
            ),
        ),
        (f'dhcp = {{ {RANGE}, lease = "60s" }}', '3:54: error: lease must be "2m" to "365d", not "60s"'),
        (
            f"dhcp = {{ {RANGE}, lease = 3600 }}",
            '3:54: error: lease must be a duration such as "12h" or "3d", not 3600',
        ),
        ('dhcp = { lease = "1h" }', "3:1: error: [bridge.br0.dhcp] needs range"),
        (
            f"dhcp = {{ {RANGE}, leese = 1 }}",
            '3:54: error: unknown key "leese" in [bridge.br0.dhcp] (did you mean "lease"?)',
        ),
        ("dhcp = true", "3:1: error: dhcp must be a table, not true"),
        ('dns = "yes"', '3:1: error: dns must be true, false or a table, not "yes"'),
        ('dns = { domain = ".LAN." }', '3:9: error: domain must be a domain such as "lan" or "home.arpa", not ".LAN."'),
        (
            'dns = { upstream = ["dns.quad9.net"] }',
            '3:21: error: upstream must be the address of a DNS server such as "9.9.9.9", not "dns.quad9.net"',
        ),
        (
            'dns = { upstream = ["9.9.9.9", "10.0.0.1"] }',
            "3:32: error: upstream names the bridge's own address: questions would go round in circles",
        ),
    ],
)
def test_each_mistake_is_told_at_its_place(text: str, error: str) -> None:
    errors = [str(one) for one in parse_unit("u.toml", f"{ADDRESSES}{text}\n".encode()).errors]
    assert len(errors) == 1
    assert errors[0].startswith(f"u.toml:{error}")


def test_what_serves_needs_an_address_and_a_name_that_dnsmasq_can_write() -> None:
    text = f'[bridge.br0]\ndhcp = {{ {RANGE} }}\ndns = true\n[bridge."br,1"]\naddresses = ["10.0.0.1/24"]\ndns = true\n'
    assert [str(one) for one in parse_unit("u.toml", text.encode()).errors] == [
        'u.toml:2:1: error: dhcp needs an IPv4 address of the host on this bridge (add addresses = ["192.168.0.1/24"])',
        'u.toml:3:1: error: dns needs an address of the host on this bridge (add addresses = ["192.168.0.1/24"])',
        "u.toml:6:1: error: dns needs a bridge whose name has letters, digits, -, _ and . only",
    ]


def test_an_address_with_a_mistake_is_told_once() -> None:
    text = f'[bridge.br0]\naddresses = ["192.168.0.0/24"]\ndhcp = {{ {RANGE} }}\ndns = true\n'
    assert len(parse_unit("u.toml", text.encode()).errors) == 1


@pytest.mark.parametrize(
    ("text", "dhcp", "dns"),
    [
        (f"dhcp = {{ {RANGE} }}", DhcpSpec("192.168.0.100", "192.168.0.150", 43200), None),
        (f'dhcp = {{ {RANGE}, lease = "3d" }}', DhcpSpec("192.168.0.100", "192.168.0.150", 259200), None),
        ("dns = true", None, DnsSpec()),
        ("dns = false", None, None),
        ("dns = {}", None, DnsSpec()),
        ("dns = { upstream = [] }", None, DnsSpec(())),
        ('[bridge.br0.dns]\nupstream = ["2620:FE::9"]\ndomain = "a.lan"', None, DnsSpec(("2620:fe::9",), "a.lan")),
    ],
)
def test_what_it_means(text: str, dhcp: DhcpSpec | None, dns: DnsSpec | None) -> None:
    unit = parse_unit("u.toml", f"{ADDRESSES}{text}\n".encode())
    assert unit.errors == ()
    spec = bridge_spec("br0", unit.bridges["br0"], "u.toml", "machine")
    assert (spec.dhcp, spec.dns) == (dhcp, dns)
