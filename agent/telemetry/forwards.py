"""Which published ports lead to their guest by now."""

from __future__ import annotations

from dataclasses import dataclass

from agent.core.planner.firewall import publishing_guests
from agent.core.planner.proxy import carried_now, is_there
from agent.core.routing.firewall_wanted import Forward, wish_of
from agent.core.routing.publications import publication
from agent.core.services.haproxy import carries
from agent.core.tell.status import StatusInputs, present_bridges


@dataclass(frozen=True, slots=True)
class ForwardSample:
    """A published port, or a range, of a guest; `up`: whatever it wants of the host leads there."""

    vm: str
    port: str
    proto: str
    up: bool


def forward_samples(inputs: StatusInputs) -> tuple[ForwardSample, ...]:
    """All that guests publish. The same port on several addresses is up where it is on each of them."""
    guests = {name: one for name, one in publishing_guests(inputs.desired, inputs.observed).items() if one.publish}
    if not guests:
        return ()
    wish = wish_of(present_bridges(inputs.desired, inputs.observed), guests)
    found: dict[tuple[str, str], list[Forward]] = {}
    for one in (*wish.forwards, *wish.carried):
        found.setdefault((one.vm, one.text), []).append(one)
    up: dict[tuple[str, str, str], bool] = {}
    seen = inputs.observed.routing.firewall
    elements, carried = seen.elements if seen is not None else frozenset(), carried_now(inputs.observed)
    lost = {(one.vm, one.text) for one, _ in wish.lost}
    for vm, spec in guests.items():
        for text in spec.publish:
            what = publication(text)
            port = str(what.first) if not what.is_range else f"{what.first}-{what.last}"
            wanted = found.get((vm, text), [])
            leads = bool(wanted) and (vm, text) not in lost
            for one in wanted:
                # What is not asked for in so many words is carried where the host has IPv6.
                by_proxy = carries(one) in carried and is_there(inputs.observed, one)
                leads &= one.element in elements or (one.carried and (not what.listen or by_proxy))
            key = vm, port, what.proto
            up[key] = up.get(key, True) and leads
    return tuple(ForwardSample(*key, leads) for key, leads in sorted(up.items()))
