"""The values of `publish`: as in `agent.unitfile.values`, each in its canonical form or a BadValueError; and what must
hold between it, `nat` and other keys of the same table."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping

from agent.core.routing.firewall import is_plain_name
from agent.core.routing.publications import EVERY_ADDRESS, MOST_CARRIED, Publication, publication
from agent.unitfile.machines import Mistake
from agent.unitfile.values import BadValueError, quoted, shown

MAX_PORT = 65535
PROTOCOLS = ("tcp", "udp")

_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)
_WANTED = 'must be a port such as "80", "1234:22/tcp", "5000-5010/udp" or "192.0.2.1:80:8080"'
_LOOPBACK_HINT = "what listens on loopback is this host's own; leave the address away, or name another one"


_NOT_CARRIED = {4: "", 6: f"; to an IPv4 one only TCP can be carried, of a range at most {MOST_CARRIED} ports"}


def parse_publish(value: object) -> str:
    """A port of the host, or a range, that leads to the guest (`agent.core.routing.publications`)."""
    if not isinstance(value, str):
        number = value if isinstance(value, int) and not isinstance(value, bool) else 0
        raise BadValueError(f"{_WANTED}, not {shown(value)}", f'did you mean "{number}"?' if _is_port(number) else "")
    rest, slash, proto = value.partition("/")
    if slash and proto not in PROTOCOLS:
        hint = f'did you mean "{rest}/{proto.lower()}"?' if proto.lower() in PROTOCOLS else ""
        raise BadValueError(f"{_WANTED}, with /tcp or /udp, not {shown(value)}", hint)
    listen, ports = _split(rest, value)
    outer, colon, inner = ports.partition(":")
    first, last = _ports(outer, value)
    if colon and "-" in inner:
        raise BadValueError(
            f"{_WANTED}, not {shown(value)}: a range leads to the same ports of the guest", f'did you mean "{outer}"?'
        )
    guest = _ports(inner, value)[0] if colon else first
    if colon and first not in (last, guest):
        raise BadValueError(f"{_WANTED}, not {shown(value)}: a range leads to the same ports of the guest")
    return str(Publication(proto or "tcp", first, last, guest, _listen(listen, value)))


def _split(text: str, value: str) -> tuple[str, str]:
    """The address that is listened on, empty for none, and the ports behind it."""
    if text.startswith("["):
        address, closed, ports = text[1:].partition("]:")
        if not closed:
            raise BadValueError(f"{_WANTED}, not {shown(value)}")
        return address, ports
    address, colon, ports = text.partition(":")
    if "." in address and colon:
        return address, ports
    if text.count(":") > 1:
        head, _, tail = text.rpartition(":")
        hint = f'did you mean "[{head}]:{tail}"?' if _is_address(head) else ""
        raise BadValueError(f"{_WANTED}, with an IPv6 address in brackets, not {shown(value)}", hint)
    return "", text


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_port(number: int) -> bool:
    return 0 < number <= MAX_PORT


def _ports(text: str, value: str) -> tuple[int, int]:
    found = _PORTS.fullmatch(text)
    if found is None:
        raise BadValueError(f"{_WANTED}, not {shown(value)}")
    first, last = int(found[1]), int(found[2] or found[1])
    if not (_is_port(first) and _is_port(last)):
        raise BadValueError(f"must have ports of 1 to {MAX_PORT}, not {shown(value)}")
    if last < first:
        raise BadValueError(f"must have its lower port first, not {shown(value)}", f'did you mean "{last}-{first}"?')
    return first, last


def _listen(text: str, value: str) -> str:
    if not text or text in EVERY_ADDRESS:
        return text
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise BadValueError(f"{_WANTED}, not {shown(value)}", "names are not looked up") from None
    if address.is_loopback:
        raise BadValueError(f"must not listen on a loopback address, {shown(value)}", _LOOPBACK_HINT)
    if address.version == 6 and address.ipv4_mapped is not None:
        hint = f"did you mean the IPv4 address {address.ipv4_mapped}, without brackets?"
        raise BadValueError(f"must not listen on an IPv4 address in the form of IPv6, {shown(value)}", hint)
    if address.is_multicast or address.is_link_local or address.is_unspecified or "%" in text:
        raise BadValueError(f"must listen on an address of this host that others can reach, not {shown(value)}")
    return str(address)


def publish_mistakes(table: Mapping[str, object]) -> Iterator[Mistake]:
    """Ports lead to a guest's own address: it needs one, of the IP version of the address that is listened on.

    From IPv6 to IPv4 TCP can be carried.
    """
    ports = table.get("publish")
    if not isinstance(ports, list) or not ports:
        return
    nics = table.get("nic")
    addresses = [
        address
        for nic in (nics.values() if isinstance(nics, dict) else ())
        if isinstance(nic, dict)
        for address in _listed(nic.get("address"))
    ]
    if not addresses:
        hint = 'add address = "192.168.0.100", the one that the guest has'
        yield ("publish",), "publish needs a NIC with an address for ports to lead to", hint
        return
    versions = {6 if ":" in address else 4 for address in addresses}
    for place, text in enumerate(ports):
        try:
            what = publication(parse_publish(text))
        except BadValueError:
            continue
        if not what.versions & versions and not (what.versions == {6} and what.can_be_carried):
            version = 6 if 6 in what.versions else 4
            problem = f"publish listens on {quoted(what.listen)}, and no NIC has an IPv{version} address"
            yield ("publish", place), problem, f"add an IPv{version} address to address{_NOT_CARRIED[version]}"


def _listed(address: object) -> list[str]:
    items = address if isinstance(address, list) else [address]
    return [item for item in items if isinstance(item, str)]


def nat_mistakes(name: str, table: Mapping[str, object]) -> Iterator[Mistake]:
    """NAT is for what comes from a bridge's own IPv4 subnets, and its rules name the bridge."""
    if table.get("nat") is not True:
        return
    addresses = table.get("addresses")
    items = addresses if isinstance(addresses, list) else []
    if not any(isinstance(item, str) and ":" not in item for item in items):
        hint = 'add addresses = ["192.168.0.1/24"], the guests\' gateway'
        yield ("nat",), "nat needs an IPv4 address in addresses: it is for packets from that subnet", hint
    if not is_plain_name(name):
        problem = f"nat needs a bridge whose name is letters, digits, and . _ @ = + # ~ - within, not {quoted(name)}"
        yield ("nat",), problem, ""
