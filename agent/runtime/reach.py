"""Says who can reach the metrics, where that is not what the operator may think: strangers, or nobody."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

from agent.core.errors import ActionError
from agent.host.processes import service_of
from agent.host.systemd import ServiceManager, runs_as_service
from agent.runtime.listener import Sources
from agent.telemetry.guard import Protection
from agent.telemetry.listen import Listen

LOOK_EVERY_S = 60.0
"""`systemctl set-property` changes a running service."""


async def tell_reach(listen: Listen, protection: Protection, sources: Sources, environment: Mapping[str, str]) -> None:
    """Show it in the status and, when it is new, in the journal; a service, where it may change, for ever."""
    if listen.loopback:
        return
    service = service_of(os.getpid()) if runs_as_service(environment) else ""
    manager, told = ServiceManager(), ""
    try:
        while True:
            closed = await _is_closed(manager, service, listen) if service else False
            filtered = _filtered(listen, service) if closed else ""
            exposed = "" if closed else _exposed(listen, protection)
            sources.note_problem("MetricsFiltered", filtered)
            sources.note_problem("MetricsExposed", exposed)
            if (problem := filtered or exposed) != told and problem:
                sources.journal.record("agent", "metrics", problem, level="warning")
            told = problem
            if not service:
                return
            await asyncio.sleep(LOOK_EVERY_S)
    finally:
        manager.close()


async def _is_closed(manager: ServiceManager, service: str, listen: Listen) -> bool:
    """Whether systemd keeps everybody else out; where it does not answer that is not known, and not claimed."""
    try:
        return (await manager.address_filter(service)).admits_only_this_host(listen.host)
    except ActionError:
        return False


def _filtered(listen: Listen, service: str) -> str:
    cause = f"IPAddressDeny= of {service} lets only this host in"
    return f"metrics on {listen} are not to be reached from elsewhere: {cause}; {_way_in(service)}"


def _way_in(service: str) -> str:
    name = service.removesuffix(".service")
    return f"`systemctl edit {name}`, [Service], IPAddressAllow=NETWORK/BITS, and `systemctl restart {name}` open it"


def _exposed(listen: Listen, protection: Protection) -> str:
    if not protection.missing:
        return ""
    lacking = " and not ".join(protection.missing)
    return f"metrics and status page on {listen} can be reached from the network, and are not {lacking}"
