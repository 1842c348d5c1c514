"""The frontier for supervised programs: start, reload, stop, and what follows an end."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agent.core.desired import BridgeSpec, Desired
from agent.core.marks import bridge_resource, is_own_bridge
from agent.core.observed import ServiceState
from agent.core.planner.draft import Draft
from agent.core.planner.policy import in_crash_loop, next_start_s
from agent.core.planner.proxy import plan_proxy
from agent.core.reasons import Reason
from agent.core.services.actions import ReloadService, StartService, StopService
from agent.core.services.dnsmasq import served_bridges
from agent.core.services.spec import (
    PACKAGES,
    ServiceSpec,
    needs_reload,
    needs_restart,
    service_resource,
)

ADVERTISES_FOR_S = 10.0
"""So soon after its start dnsmasq advertises by itself; nor is it started more often by whoever switches to and fro."""


def plan_services(
    draft: Draft, desired: Desired, bridges: Mapping[str, BridgeSpec], held: Collection[str] = ()
) -> None:
    """Plan the services of these bridges, what carries published ports, and the end of those that nobody wants."""
    served = served_bridges(desired, draft.observed, bridges)
    for bridge, found in served.items():
        plan_service(draft, found.spec)
        _advertise_again(draft, bridge, found.spec)
        for address, holder, loser in found.taken:
            message = f"{address} is the address of {holder} and of {loser}, which is not given it; change one of them"
            draft.tell(bridge_resource(bridge), "AddressTaken", message, deviates=False)
    proxy = plan_proxy(draft, desired, bridges, held)
    if proxy.spec is not None:
        plan_service(draft, proxy.spec)
    if desired.complete:
        wanted = {found.spec.name for found in served.values()} | proxy.kept
        for name in sorted(draft.observed.services.keys() - wanted):
            draft.propose(StopService(service_resource(name), Reason.UNWANTED, name))


def plan_service(draft: Draft, spec: ServiceSpec) -> None:
    """Plan what makes a service as its spec says. One that runs is left alone while a better one cannot be had."""
    resource, host = service_resource(spec.name), draft.observed.host
    state = draft.observed.services.get(spec.name)
    alive = state is not None and state.alive
    if state is not None and state.alive and state.pid is not None and not needs_restart(state.spec, spec):
        if needs_reload(state.spec, spec):
            draft.propose(ReloadService(resource, Reason.WANTED, spec, state.pid))
        return
    if spec.program in host.absent:
        package = PACKAGES[spec.program]
        message = f"{spec.program} is not installed (Debian: apt install {package}); looked for again every 30 s"
        draft.tell(resource, "ProgramMissing", message)
    elif not _has_its_link(draft, spec):
        draft.tell_deviating(resource)  # the link has actions or conditions of its own
    elif alive or _may_start_now(draft, spec.name, state):
        reason = Reason.EXITED if state is not None and not alive else Reason.WANTED
        replaces, ended = (state.pid if alive else None, state.ended) if state is not None else (None, 0)
        draft.propose(StartService(resource, reason, spec, replaces, ended))


def _advertise_again(draft: Draft, bridge: str, spec: ServiceSpec) -> None:
    """Start a server of router advertisements anew whose link did not forward for a while.

    Guests that heard meanwhile that their router is none have no default route before they are told again (RFC 4861,
    7.3.3), and dnsmasq tells unasked within seconds of its start only, later every ten minutes.
    """
    state, ipv6 = draft.observed.services.get(spec.name), draft.observed.ipv6
    if state is None or not state.alive or state.began_s is None or ipv6 is None or needs_restart(state.spec, spec):
        return
    if spec.program in draft.observed.host.absent or not _has_its_link(draft, spec):
        return
    if ipv6.forwards_since_s.get(bridge, 0.0) > state.began_s + ADVERTISES_FOR_S:
        resource = service_resource(spec.name)
        draft.propose(StartService(resource, Reason.SETTINGS, spec, state.pid, state.ended))


def _has_its_link(draft: Draft, spec: ServiceSpec) -> bool:
    """Whether the link that it serves is ours and up with all its addresses: programs bind to those at their start."""
    if not spec.link:
        return True
    link = draft.observed.links.get(spec.link)
    if link is None or not link.up or not is_own_bridge(link):
        return False
    return {*spec.addresses} <= {one.address for one in link.addresses}


def _may_start_now(draft: Draft, name: str, state: ServiceState | None) -> bool:
    if state is None:
        return True
    resource, boot_id = service_resource(name), draft.observed.host.boot_id
    draft.tell_deviating(resource)
    if in_crash_loop(state.ends, boot_id, draft.now_s):
        reason, count = state.ends[-1].reason, len(state.ends)
        message = f"ended {count} times, last by {reason}; see the file log in its run directory"
        draft.tell(resource, "CrashLoop", message, reason=reason)
    at_s = next_start_s(name, state.ends, boot_id)
    if at_s <= draft.now_s:
        return True
    draft.tell(resource, "Backoff", f"next start in {at_s - draft.now_s:.0f} s after {state.ends[-1].reason}")
    draft.wake_at(at_s)
    return False
