"""The doctor: from what was looked at to what will break guests though our own state is right. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from agent.core.doctor.dhcp import second_servers
from agent.core.doctor.findings import KINDS, Finding
from agent.core.doctor.firewall import bridge_filtered, foreign_drops
from agent.core.doctor.kernel import forwarding_off, rp_filter
from agent.core.doctor.links import addressed_ports, mtu_paths
from agent.core.doctor.packets import Steps, TooManyRulesError
from agent.core.doctor.scene import Scene

UNREADABLE = "a rule is not of a form that it knows"
_ODD = (AttributeError, KeyError, TypeError, ValueError, IndexError)
TOO_MANY = "there are more firewall rules than it looks at in one go"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, and which kinds could not be looked for, with the reason."""

    findings: tuple[Finding, ...] = ()
    unexamined: tuple[tuple[str, str], ...] = ()

    def as_json(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "findings": [one.as_json() for one in self.findings],
            "unexamined": [{"finding": name, "why": why} for name, why in self.unexamined],
        }


@dataclass(slots=True)
class _Notes:
    found: list[Finding] = field(default_factory=list)
    unexamined: dict[str, str] = field(default_factory=dict)

    def take(self, name: str, findings: Callable[[], Iterator[Finding]]) -> None:
        """Take what is found of a kind, or note that there was too much to look at."""
        try:
            self.found += findings()
        except TooManyRulesError:
            self.unexamined[name] = TOO_MANY
        except _ODD as error:
            self.unexamined[name] = f"{UNREADABLE}: {error!r}"


def diagnose(scene: Scene) -> Diagnosis:
    """What is found, in the order of `KINDS`, then by resource. Never raises; the same scene gives the same answer."""
    notes = _Notes(unexamined=dict(scene.unexamined))
    notes.take("ForeignDrop", lambda: foreign_drops(scene, Steps()))
    notes.take("BridgeFiltered", lambda: bridge_filtered(scene, Steps()))
    notes.take("ForwardingOff", lambda: forwarding_off(scene))
    notes.take("RpFilter", lambda: rp_filter(scene))
    notes.take("SecondDhcpServer", lambda: second_servers(scene))
    notes.take("MtuPath", lambda: mtu_paths(scene, Steps()))
    notes.take("PortAddressed", lambda: addressed_ports(scene))
    order = list(KINDS)
    found = sorted(dict.fromkeys(notes.found), key=lambda one: (order.index(one.name), one.resource, one.what))
    return Diagnosis(tuple(found), tuple(sorted(notes.unexamined.items())))
