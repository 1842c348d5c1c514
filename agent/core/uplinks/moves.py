"""The states of a move, and what follows from each: pure, the journal on the disk is `host.statedir.moves`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from agent.core.desired import BridgeSpec
from agent.core.uplinks.carried import LinkPicture, carried_texts

MARGIN_S = 10.0
"""By how much later than the agent itself its dead man's switch puts back."""

ENDED = "the agent ended in the middle of it"
"""Why a move was put back that nothing is known against: its agent was stopped. The next one tries it again."""


class Step(StrEnum):
    """How far a move is. What is before `PROVEN` is put back by whoever finds it; what is `PROVEN` waits for a word."""

    WRITTEN = "written"
    MOVED = "moved"
    PROVEN = "proven"
    KEPT = "kept"
    PUT_BACK = "put-back"


ACTIVE = frozenset({Step.WRITTEN, Step.MOVED, Step.PROVEN, Step.KEPT})
"""While one of these holds, the bridge may carry what is the port's."""


@dataclass(frozen=True, slots=True)
class Move:
    """What a journal says of a move before anything was changed. `digest` is that of the unit's bridge at the time.

    `source` is what is brought to the bridge: what the port carried, which is `port` itself, unless it lost it with a
    boot of the host. `began_s` is CLOCK_BOOTTIME of the boot `boot_id`. `entry` is what the unit calls the port; a
    journal of an earlier agent has none. `remade`: it was kept before, and lost with a boot of the host or its bridge.
    """

    bridge: str
    digest: str
    boot_id: str
    began_s: float
    probe_timeout_s: float
    confirm_s: float
    port: LinkPicture
    bridge_was: LinkPicture
    entry: str = ""
    remade: bool = False

    @property
    def latest_s(self) -> float:
        """When the dead man's switch puts back at the earliest: nobody may wait for it after both deadlines."""
        return self.began_s + self.probe_timeout_s + self.confirm_s + MARGIN_S


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is, since when (wall clock, ISO 8601), until when a word is awaited (CLOCK_BOOTTIME), and why."""

    step: Step
    since: str
    deadline_s: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class MoveState:
    """A move as the planner sees it. `carried` is for people; `mac` is the bridge's while it is active.

    `port` is the name that the port had, `ifindex` its number in the boot `boot_id`, `entry` what the unit calls it.
    """

    bridge: str
    port: str
    step: Step
    since: str = ""
    deadline_s: float | None = None
    why: str = ""
    digest: str = ""
    boot_id: str = ""
    mac: str = ""
    bridge_mac: str = ""
    carried: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    ifindex: int = 0
    entry: str = ""
    remade: bool = False


@dataclass(frozen=True, slots=True)
class UplinkState:
    """What a port that is to be adopted carries; `rules` are policy rules that name it, which stay as they are."""

    carried: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    refusal: str = ""
    refusal_reason: str = ""
    rules: tuple[str, ...] = ()


def move_digest(spec: BridgeSpec) -> str:
    """What a bridge's unit says, so that a move that was put back is tried again only once that changed."""
    wanted = (spec.name, spec.ports, spec.adopt_addresses, spec.probe, spec.probe_timeout_s, spec.confirm_s)
    rest = (spec.addresses, spec.mtu, spec.stp, spec.port_mtu)
    return hashlib.sha256(repr((wanted, rest)).encode()).hexdigest()[:16]


def move_state(move: Move, progress: Progress) -> MoveState:
    """What the planner and people are told of a move."""
    texts = carried_texts(move.port)
    return MoveState(
        move.bridge,
        move.port.name,
        progress.step,
        progress.since,
        progress.deadline_s,
        progress.why,
        move.digest,
        move.boot_id,
        move.port.mac.hex(":"),
        move.bridge_was.mac.hex(":"),
        texts,
        tuple(text for text in texts if "/" in text and " " not in text),
        move.port.ifindex,
        move.entry,
        move.remade,
    )
