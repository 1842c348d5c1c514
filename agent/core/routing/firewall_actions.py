"""The actions on the firewall and on what the kernel forwards."""

from __future__ import annotations

from dataclasses import dataclass

from agent.core.reasons import Disruption, Reason
from agent.core.routing.firewall import Opening
from agent.core.routing.ruleset import Element, ElementChange

FIREWALL, FORWARDING, CONNECTIONS = "firewall", "forwarding", "connections"
"""The resources: each is one for the whole host."""


@dataclass(frozen=True, slots=True)
class ChangeFirewall:
    """Change elements of the table `inet vmhost` in one transaction: `remove` first, then `add`.

    `whole`: the table is made anew, whatever it was, and holds `add` then. `gone`: it is deleted.
    """

    resource: str
    reason: Reason
    add: tuple[Element, ...] = ()
    remove: tuple[Element, ...] = ()
    whole: bool = False
    gone: bool = False
    disruption: Disruption = Disruption.NONE

    @property
    def elements(self) -> ElementChange:
        """What it is in nftables."""
        return ElementChange(self.add, self.remove, self.whole, self.gone)


@dataclass(frozen=True, slots=True)
class EndConnections:
    """End the connections that forwards carried which are no more, and forget that they were (`ended` elements)."""

    resource: str
    reason: Reason
    ended: tuple[Element, ...]
    disruption: Disruption = Disruption.NONE


@dataclass(frozen=True, slots=True)
class ChangeForwarding:
    """Set parameters of the kernel in this order, as pairs of a name below `net` and a value (ip-sysctl.rst).

    What `opens` and what `closes` is remembered, the former before it is done: only that is ever switched off again.
    """

    resource: str
    reason: Reason
    settings: tuple[tuple[str, str], ...]
    opens: frozenset[Opening] = frozenset()
    closes: frozenset[Opening] = frozenset()
    disruption: Disruption = Disruption.NONE
