"""A host whose only way out is the card `up0`, a provider behind it, and how the agent's moves of it stand."""

from __future__ import annotations

import json
from typing import Any

from tests.agent_process import AgentProcess
from tests.integration.waiting import wait_for
from tests.netns import ip_output

UNIT = '[bridge.br0]\nports = ["up0"]\nadopt-addresses = true\n'
OWN = ("192.0.2.5/24", "2001:db8::5/64")
GATEWAYS = ("192.0.2.1", "2001:db8::1")
CARRIED = (
    "addr add 192.0.2.5/24 brd + dev up0",
    "addr add 192.0.2.6/24 dev up0 label up0:more",
    "addr add 198.51.100.7 peer 198.51.100.8/32 dev up0",
    "addr add 203.0.113.9/24 dev up0 metric 77 noprefixroute",
    "addr add 10.8.0.1/24 dev up0 scope link",
    "addr add 2001:db8::5/64 dev up0",
    "addr add 2001:db8::6/64 dev up0 nodad",
    "addr add 2001:db8:1::5/64 dev up0 noprefixroute",
    "route add default via 192.0.2.1 metric 5",
    "route add default via 192.0.2.1 metric 6 proto static",
    "route add 10.0.0.0/8 via 192.0.2.1 table 100 proto static",
    "route add 10.9.0.0/16 dev up0 mtu lock 1400",
    "route add default via 2001:db8::1 pref high",
    "route add 2001:db8:9::/48 via fe80::1 dev up0 metric 10",
    "neigh add 192.0.2.77 lladdr 02:00:00:00:00:77 dev up0 nud permanent",
    "neigh add proxy 192.0.2.99 dev up0",
)
LEG = "route add 10.10.0.0/16 nexthop via 192.0.2.1 dev up0 nexthop via 172.16.0.2 dev other"
TABLES = (
    *("-j addr", "-j -4 route show table all", "-j -6 route show table all"),
    *("-j neigh show nud permanent", "-j neigh show proxy"),
)


def quiet() -> None:
    """Wait until every IPv6 address is valid."""
    wait_for(lambda: "tentative" not in ip_output("-6 addr"))


def tables(*but: str) -> list[Any]:
    """All that `ip -j` says of addresses, routes and neighbours, but of some links."""
    found = [json.loads(ip_output(command) or "[]") for command in TABLES]
    return [[row for row in table if not {row.get("dev"), row.get("ifname")} & {*but}] for table in found]


def are_again(before: list[Any], *but: str) -> None:
    """Wait until all is as `tables` told it before; the kernel takes its time for IPv6 addresses, and checks them."""
    wait_for(lambda: tables(*but) == before, says=lambda: f"{tables(*but)} {before}")


def moves(agent: AgentProcess) -> dict[str, Any]:
    """`vmhost move --json`, by bridge."""
    return {one["bridge"]: one for one in json.loads(agent.vmhost("move", "--json"))["moves"]}


def state(agent: AgentProcess) -> str:
    """How far the move of br0 is; empty while there is none, or no agent answers yet."""
    said = agent.command("move", "--json")
    found = [one["state"] for one in json.loads(said.stdout or '{"moves": []}')["moves"] if one["bridge"] == "br0"]
    return str(found[0]) if found else ""


def conditions(agent: AgentProcess) -> dict[str, str]:
    """The conditions of br0 with its ports, type and message."""
    status = agent.status()
    return {c["type"]: c["message"] for bridge in status["bridges"] for c in bridge["conditions"]}


def settled(agent: AgentProcess) -> None:
    agent.vmhost("wait", "settled", "--timeout", "60")


def shown(link: str) -> str:
    """The addresses of a link; empty where there is none of this name."""
    found: list[str] = [line for line in ip_output("-o addr").splitlines() if f": {link} " in line]
    return "\n".join(found)


def adopted() -> bool:
    return all(one in shown("br0") and one not in shown("up0") for one in OWN)


def at_home() -> bool:
    """Whether the port has everything again, and is no port."""
    card = shown("up0")
    routes = ip_output("route") + ip_output("-6 route")
    return (
        all(one in card for one in OWN)
        and "master" not in ip_output("link show up0")
        and all(f"via {g} dev up0" in routes for g in GATEWAYS)
    )
