"""What `publish` takes and refuses, word for word, and which forwards come of it."""

from __future__ import annotations

import pytest

from agent.core.desired import BridgeSpec, DhcpSpec, DnsSpec, NicSpec, VmSpec
from agent.core.routing.firewall_wanted import Wish, wish_of
from agent.unitfile.publish import parse_publish
from agent.unitfile.values import BadValueError


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("80", "80/tcp"),
        ("080", "80/tcp"),
        ("80:80/udp", "80/udp"),
        ("1234:22", "1234:22/tcp"),
        ("1-65535/udp", "1-65535/udp"),
        ("7-7:8", "7:8/tcp"),
        ("192.0.2.1:80:8080", "192.0.2.1:80:8080/tcp"),
        ("[2001:DB8::0:1]:80/udp", "[2001:db8::1]:80/udp"),
        ("[::]:80", "[::]:80/tcp"),
    ],
)
def test_a_publication_is_read(text: str, canonical: str) -> None:
    assert parse_publish(text) == canonical


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (80, "must be a port"),
        ("0", "must have ports of 1 to 65535"),
        ("65536", "must have ports of 1 to 65535"),
        ("80:0", "must have ports of 1 to 65535"),
        ("5010-5000", "lower port first"),
        ("5000-5010:6000", "a range leads to the same ports"),
        ("5000:6000-6010", "a range leads to the same ports"),
        ("80/sctp", "with /tcp or /udp"),
        ("80/tcp/udp", "with /tcp or /udp"),
        ("80\n", "must be a port"),
        ("80 : 10.0.0.1 . 80 }", "must be a port"),
        ("٨٠", "must be a port"),
        ("-1", "must be a port"),
        ("", "must be a port"),
        ("localhost:80", "must be a port"),
        ("192.0.2.1", "must be a port"),
        ("192.0.2.1:80 }\nflush ruleset #:1", "must be a port"),
        ("2001:db8::1:80", "IPv6 address in brackets"),
        ("[2001:db8::1]80", "must be a port"),
        ("[2001:db8::1%eth0]:80", "others can reach"),
        ("[fe80::1]:80", "others can reach"),
        ("127.0.0.1:80", "loopback"),
        ("[::1]:80", "loopback"),
        ("224.0.0.1:80", "others can reach"),
        ("[::ffff:192.0.2.1]:80", "an IPv4 address in the form of IPv6"),
    ],
)
def test_anything_else_is_refused(value: object, problem: str) -> None:
    with pytest.raises(BadValueError, match=problem):
        parse_publish(value)


DHCP = DhcpSpec("10.0.0.100", "10.0.0.150", 3600)


def wish(*publish: str, dns: bool = True, addresses: tuple[str, ...] = ("10.0.0.1/24", "fd00::1/64")) -> Wish:
    bridge = BridgeSpec("br0", "02::1", addresses=addresses, dhcp=DHCP, dns=DnsSpec((), "lan") if dns else None)
    nic = NicSpec("lan", "br0", "02::2", "db-lan", 0, address=("10.0.0.10", "fd00::10"))
    return wish_of({"br0": bridge}, {"db": VmSpec("db", "uuid", 1, nics=(nic,), publish=publish)})


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("53/udp", "br0's dns"),
        ("53:5353/tcp", "br0's dns"),
        ("1-1000/udp", "br0's dns"),
        ("10.0.0.1:53/udp", "br0's dns"),
        ("[::]:53/udp", "br0's dns"),
        ("0.0.0.0:67/udp", "br0's dhcp"),
    ],
)
def test_what_a_bridge_answers_itself_is_not_led_to_a_guest(text: str, server: str) -> None:
    found = wish(text)
    assert {whose for _, whose in found.served} == {server}
    assert not found.forwards


@pytest.mark.parametrize("text", ["192.0.2.1:53/udp", "67/tcp", "[::]:67/udp", "54/udp"])
def test_other_ports_and_addresses_are_published_beside_it(text: str) -> None:
    found = wish(text)
    assert not found.served
    assert found.forwards


def test_a_bridge_serves_where_it_has_addresses_only() -> None:
    assert not wish("53/udp", dns=False).served
    found = wish("53/udp", addresses=("10.0.0.1/24",))
    assert [forward.version for forward, _ in found.served] == [4]
    assert [forward.version for forward in found.forwards] == [6]
