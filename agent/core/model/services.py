"""What the actions on services make of the model host (`core/model/host.py`)."""

from __future__ import annotations

from dataclasses import replace

from agent.core.marks import is_own_bridge
from agent.core.observed import Observed, ServiceState
from agent.core.preconditions import require
from agent.core.services.actions import ReloadService, StartService, StopService
from agent.core.services.spec import needs_restart


def with_services(observed: Observed, action: StartService | ReloadService | StopService) -> Observed:
    """The world after one of them."""
    match action:
        case StartService(spec=spec):
            former = observed.services.get(spec.name)
            pid = former.pid if former is not None and former.alive else None
            require(action.replaces == pid, f"{spec.name} is not started twice")
            require(spec.program not in observed.host.absent, f"{spec.program} is there")
            link = observed.links.get(spec.link)
            seen = {one.address for one in link.addresses} if link is not None else set()
            ready = link is not None and link.up and is_own_bridge(link) and {*spec.addresses} <= seen
            require(not spec.link or ready, f"{spec.name} has an address to serve")
            state = former or ServiceState(spec, alive=False)
            restarts = state.restarts + (not state.alive and state.ended > 0)
            pid = 5000 + len(spec.name)
            started = replace(state, spec=spec, alive=True, pid=pid, restarts=restarts, began_s=None)
            return replace(observed, services={**observed.services, spec.name: started})
        case ReloadService(spec=spec):
            state = observed.services[spec.name]
            require(state.alive and state.pid == action.pid, f"{spec.name} runs as {action.pid}")
            require(not needs_restart(state.spec, spec), f"{spec.name} can take that over while it runs")
            return replace(observed, services={**observed.services, spec.name: replace(state, spec=spec)})
        case StopService(service=name):
            require(name in observed.services, f"{name} was started")
            return replace(observed, services={n: s for n, s in observed.services.items() if n != name})
