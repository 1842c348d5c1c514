"""What a bridge's `gateway` and `routes` may be, and what must hold between them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping

from agent.core.routing.routes import DEFAULT4, DEFAULT6
from agent.unitfile.machines import Mistake
from agent.unitfile.values import BadValueError, shown


def parse_gateway(value: object) -> str:
    """The address of a gateway, without prefix, in canonical form."""
    wrong = f'must be an address such as "192.0.2.1", not {shown(value)}'
    text = value if isinstance(value, str) else ""
    host, slash, _ = text.partition("/")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise BadValueError(wrong) from None
    if slash:
        raise BadValueError(wrong, f'did you mean "{address}"?')
    if "%" in text or address.is_unspecified or address.is_multicast or address.is_loopback:
        raise BadValueError(f"must be an address of a gateway, not {shown(value)}")
    return str(address)


def parse_network(value: object) -> str:
    """A network with its prefix length, in canonical form; `default` says too little: of which IP version."""
    wrong = f'must be a network such as "10.0.0.0/8", not {shown(value)}'
    if value == "default":
        raise BadValueError(wrong, f'write "{DEFAULT4}" or "{DEFAULT6}", or use gateway')
    if not isinstance(value, str) or "/" not in value or "%" in value:
        raise BadValueError(wrong)
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise BadValueError(wrong) from None
    if str(network.network_address) != str(ipaddress.ip_address(value.partition("/")[0])):
        raise BadValueError(wrong, f'did you mean "{network}"?')
    if network.is_multicast or network.is_loopback or network.is_link_local:
        raise BadValueError(f"must be a network that a gateway leads to, not {shown(value)}")
    return str(network)


def listed(value: object) -> object:
    """TOML's array of tables, as a tuple."""
    if not isinstance(value, list):
        hint = "write [{ to = …, via = … }]" if isinstance(value, dict) else ""
        raise BadValueError(f"must be an array of tables, not {shown(value)}", hint)
    return tuple(value)


def one_of_each_version(gateways: tuple[str, ...]) -> tuple[str, ...]:
    """At most one gateway of each IP version: the kernel would take one, and nobody could say which."""
    for version, found in ((4, [g for g in gateways if ":" not in g]), (6, [g for g in gateways if ":" in g])):
        if len(found) > 1:
            hint = f'other ones go into routes, with a metric: {{ to = "{DEFAULT6 if version == 6 else DEFAULT4}", … }}'
            raise BadValueError(f"names {found[0]} and {found[1]}, and takes one of IPv{version}", hint)
    return gateways


def route_mistakes(table: Mapping[str, object]) -> Iterator[Mistake]:
    """Routes whose gateway is of another IP version, and those of one destination and metric."""
    gateway = table.get("gateway")
    seen: dict[tuple[str, int], str] = {}
    for one in [gateway] if isinstance(gateway, str) else gateway if isinstance(gateway, list) else []:
        if isinstance(one, str):
            seen[DEFAULT6 if ":" in one else DEFAULT4, 0] = "gateway"
    items = table.get("routes")
    for place, item in enumerate(items if isinstance(items, list) else ()):
        if not isinstance(item, dict):
            continue
        to, via, metric = item.get("to"), item.get("via"), item.get("metric", 0)
        if not isinstance(to, str) or not isinstance(via, str) or not isinstance(metric, int):
            continue
        if (":" in to) is not (":" in via):
            yield ("routes", place, "via"), f"via {via} is not of the IP version of {to}", ""
        before = seen.setdefault((to, metric), f"item {place + 1}")
        if before != f"item {place + 1}":
            problem = f"routes has {to} with metric {metric} twice, see {before}"
            yield ("routes", place, "to"), problem, "give one of them another metric"
