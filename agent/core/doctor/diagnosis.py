"""The doctor: from what was looked at to what will break guests though our own state is right. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from agent.core.doctor.dhcp import second_servers
from agent.core.doctor.findings import KINDS, Finding
from agent.core.doctor.firewall import bridge_filtered, foreign_drops
from agent.core.doctor.kernel import forwarding_off, rp_filter
from agent.core.doctor.links import addressed_ports, mtu_paths
from agent.core.doctor.packets import KnownSets, Steps, TooManyRulesError
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


UNREAD = Diagnosis(unexamined=tuple((name, "the units were not read yet") for name in KINDS))
"""Before anything is known of what is wanted."""

Told = Mapping[tuple[str, str, str], tuple[Finding, str]]
"""By its key, each finding that was told, and since when."""


def told_after(before: Told, found: Diagnosis, now: str) -> Told:
    """What is told from now on. What could not be looked at is not over: it stays told until it can be."""
    unexamined = dict(found.unexamined)
    kept = {key: one for key, one in before.items() if one[0].name in unexamined}
    return kept | {one.key: (one, before.get(one.key, (one, now))[1]) for one in found.findings}


def diagnose(scene: Scene) -> Diagnosis:
    """What is found, in the order of `KINDS`, then by resource. Never raises; the same scene gives the same answer."""
    notes = _Notes(unexamined=dict(scene.unexamined))
    sets: KnownSets = {}
    notes.take("ForeignDrop", lambda: foreign_drops(scene, Steps(sets=sets)))
    notes.take("BridgeFiltered", lambda: bridge_filtered(scene, Steps(sets=sets)))
    notes.take("ForwardingOff", lambda: forwarding_off(scene))
    notes.take("RpFilter", lambda: rp_filter(scene))
    notes.take("SecondDhcpServer", lambda: second_servers(scene))
    notes.take("MtuPath", lambda: mtu_paths(scene, Steps(sets=sets)))
    notes.take("PortAddressed", lambda: addressed_ports(scene))
    order = list(KINDS)
    found = sorted(dict.fromkeys(notes.found), key=lambda one: (order.index(one.name), one.resource, one.what))
    return Diagnosis(tuple(found), tuple(sorted(notes.unexamined.items())))


class Judged:
    """The last two scenes, and what was found: mostly nothing has changed, and thousands of rules take a second."""

    def __init__(self) -> None:
        self._known: deque[tuple[Scene, Diagnosis]] = deque(maxlen=2)

    def diagnose(self, scene: Scene) -> Diagnosis:
        """As `diagnose`."""
        for known, found in self._known:
            if known == scene:
                return found
        found = diagnose(scene)
        self._known.append((scene, found))
        return found
