"""The values of `allow` and `deny`: as in `agent.unitfile.values`, each in its canonical form or a BadValueError."""

from __future__ import annotations

import ipaddress
import re

from agent.core.routing.filter_entries import Entry
from agent.unitfile.values import BadValueError, shown

MAX_PORT = 65535
DIRECTIONS = ("from", "to")
PROTOCOLS = ("tcp", "udp")

_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)
_WANTED = 'must be such as "22/tcp", "5000-5010/udp", "icmp", "from 10.0.0.0/8", "22/tcp from 10.0.0.0/8" or "to ::/0"'


def parse_entry(value: object) -> str:
    """What may, or may not, be begun towards a guest or by it (`agent.core.routing.filter_entries`)."""
    if not isinstance(value, str):
        is_port = isinstance(value, int) and not isinstance(value, bool)
        raise BadValueError(f"{_WANTED}, not {shown(value)}", f'did you mean "{value}/tcp"?' if is_port else "")
    words = value.split()
    if not words:
        raise BadValueError(f"{_WANTED}, not {shown(value)}")
    what = "" if words[0] in DIRECTIONS else words.pop(0)
    direction, network = "from", ""
    if words:
        direction, network = _target(words, value)
    if not what:
        return str(Entry(direction, network=network))
    if what == "icmp":
        return str(Entry(direction, what, network=network))
    proto, first, last = _ports(what, value)
    return str(Entry(direction, proto, first, last, network))


def _target(words: list[str], value: str) -> tuple[str, str]:
    """The direction, and the network in its canonical form."""
    if words[0] not in DIRECTIONS:
        raise BadValueError(f'{_WANTED}, not {shown(value)}: behind what is asked for comes "from" or "to"')
    if len(words) != 2:
        hint = f"{words[0]} 0.0.0.0/0 and {words[0]} ::/0 are everybody" if len(words) == 1 else "one network an entry"
        raise BadValueError(f"{_WANTED}, not {shown(value)}: {words[0]} needs one network", hint)
    text = words[1]
    try:
        return words[0], _network(text)
    except ValueError:
        pass
    try:
        network = ipaddress.ip_interface(text.replace("%", "no")).network  # a scope is none of a network
    except ValueError:
        hint = "names are not looked up"
        raise BadValueError(f"{_WANTED}, not {shown(value)}: {shown(text)} is no network", hint) from None
    raise BadValueError(
        f"{_WANTED}, not {shown(value)}: {text} has bits beyond its length", f'did you mean "{words[0]} {network}"?'
    )


def _network(text: str) -> str:
    """A network; one of a single address without its length. ValueError for anything else."""
    if "%" in text:
        raise ValueError(text)
    network = ipaddress.ip_network(text)
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _ports(what: str, value: str) -> tuple[str, int, int]:
    """The protocol, and the first and the last port."""
    ports, _, proto = what.partition("/")
    found = _PORTS.fullmatch(ports)
    if found is None:
        hint = 'did you mean "icmp"?' if what.lower() in {"ping", "icmp", "icmpv6"} else ""
        raise BadValueError(f"{_WANTED}, not {shown(value)}", hint)
    if proto not in PROTOCOLS:
        rest = value[len(what) :].strip()
        guess = " ".join(
            part for part in (f"{ports}/{proto.lower() if proto.lower() in PROTOCOLS else 'tcp'}", rest) if part
        )
        raise BadValueError(f"{_WANTED}, not {shown(value)}: a port needs /tcp or /udp", f'did you mean "{guess}"?')
    first, last = int(found[1]), int(found[2] or found[1])
    if not (0 < first <= MAX_PORT and 0 < last <= MAX_PORT):
        raise BadValueError(f"must have ports of 1 to {MAX_PORT}, not {shown(value)}")
    if last < first:
        raise BadValueError(
            f"must have its lower port first, not {shown(value)}", f'did you mean "{last}-{first}/{proto}"?'
        )
    return proto, first, last
