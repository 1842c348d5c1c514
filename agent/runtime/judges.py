"""Whether a move works: gateways and hosts that must answer over the bridge, each asked until it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import structlog

from agent.core.errors import ActionError, ObservationError
from agent.host.echo import echo_command, read_answered
from agent.host.netlink.gateways import Asked, is_on_link
from agent.runtime.beside import Beside, Task, run_beside

log = structlog.get_logger("vmhost.uplinks")

EVERY_S = 0.05
START_S = 10.0
"""For a command to begin and to end; a host may be busy."""


async def prove(
    link: str, ifindex: int, gateways: Sequence[str], hosts: Sequence[str], timeout_s: float, way: Beside
) -> str:
    """Ask all at once; empty when all have answered within `timeout_s`, else who has not, for people."""
    silent: list[str] = []
    async with asyncio.TaskGroup() as group:
        near = [one for one in hosts if one in gateways or _is_on_link(one, ifindex)]
        neighbours = list(dict.fromkeys((*gateways, *near)))
        asking = {one: group.create_task(_answers(ifindex, one, timeout_s)) for one in neighbours}
        far = [one for one in hosts if one not in near]
        echo = group.create_task(_echo(link, far, timeout_s, way)) if far else None
    for one, answer in asking.items():
        why = answer.result()
        if why:
            silent.append(f"{'gateway ' if one in gateways else ''}{one} {why}")
    if echo is not None:
        silent += [f"{one} answers no echo" for one in far if one not in echo.result()]
    return ", ".join(silent)


def _is_on_link(host: str, ifindex: int) -> bool:
    try:
        return is_on_link(host, ifindex)
    except ObservationError:
        return False


async def _answers(ifindex: int, address: str, timeout_s: float) -> str:
    """Ask a neighbour by ARP or ND; why it counts as silent, empty where it answered, or was set by hand."""
    asked, until_s, why = Asked(ifindex, address), time.monotonic() + timeout_s, ""
    try:
        if asked.is_set_by_hand:
            return ""
        asked.forget()
    except ObservationError as error:
        why = str(error)
    while time.monotonic() < until_s:
        try:
            if asked.has_answered():
                return ""
        except ObservationError as error:
            why = str(error)
        await asyncio.sleep(EVERY_S)
    return why or f"does not answer {'ND' if ':' in address else 'ARP'}"


async def _echo(link: str, hosts: Sequence[str], timeout_s: float, way: Beside) -> frozenset[str]:
    task = Task(f"echo-{link}", echo_command(link, timeout_s, hosts), ["net_raw"], timeout_s + START_S)
    try:
        ran = await run_beside(way, task)
    except ActionError as error:
        log.warning("nobody can be asked by ICMP", why=str(error))
        return frozenset()
    if ran.code != 0:
        log.warning("nobody can be asked by ICMP", why=ran.errors.strip()[-300:])
    return read_answered(ran.output)
