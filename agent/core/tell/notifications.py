"""Which conditions a person is told of, and when: pure rules over what stands now and what was told before.

Level-triggered as all else: nothing is queued here. What may not be told yet is simply found again at the next look, so
a limit delays and sums up, and loses nothing that still stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from agent.core.conditions import Condition
from agent.core.errors import UnitError
from agent.core.planner.approval import Approval
from agent.core.text import printable

COOLDOWN_S = 600.0
"""A problem of one resource and type is told once in this time, however often it comes and goes."""

MINUTE_S = 60.0

Key = str
"""Resource and type, `vm/web CrashLoop`: what is told once."""


@dataclass(frozen=True, slots=True)
class Watched:
    """How long a type must stand before it is told, and be gone before it counts as over.

    `by_reason`: another reason is another problem, because another answer is wanted.
    """

    stands_s: float
    gone_s: float
    by_reason: bool = False


WATCHED: Mapping[str, Watched] = {
    "ApprovalNeeded": Watched(1, 5, by_reason=True),
    "Conflict": Watched(5, 10),
    "UplinkMissing": Watched(30, 10),
    # Absent while the next start is tried: over is what ran stably (policy.STABLE_S).
    # What a service's program refuses runs on as it was: nobody would notice.
    "ConfigRefused": Watched(0, 10),
    "CrashLoop": Watched(0, 120),
    "DiskMissing": Watched(5, 10),
    "FellBack": Watched(0, 10),
    # Each agent holds all guests until it has read the units.
    "Held": Watched(5, 10, by_reason=True),
    "InternalError": Watched(0, 120),
    # An edit was not done, and the host's way out is what it was.
    "MovePutBack": Watched(0, 10),
    # Put back in its time unless somebody says a word.
    "MoveUnconfirmed": Watched(1, 5),
    "MoveUnreadable": Watched(5, 10),
    "NotReady": Watched(0, 10),
    # A card may take its time to be found after a boot.
    "PortMissing": Watched(30, 10),
    # Missing while its package is upgraded.
    "ProgramMissing": Watched(30, 10),
    # Tried again every ten seconds where a quota tells of room that it does not give.
    "PausedOnIoError": Watched(0, 60),
    "StateNotSaved": Watched(5, 30),
    # Who writes a unit sees that at once, and mends it.
    "UnitInvalid": Watched(30, 5),
    "UnitsUnavailable": Watched(5, 10),
    "Unresponsive": Watched(30, 30),
    # Somebody made it beside us, and guests hear nothing of that VLAN since.
    "VlanLinkOnPort": Watched(5, 10),
    # Unknown until QEMU answers an agent that has just begun.
    "WatchdogFired": Watched(0, 60),
}
"""What wants a person. Everything else heals by itself, or is what somebody just asked for."""

_UNKNOWN = Watched(0, 10)
"""For what an agent of another version told: that it is over is told all the same."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What stands now of one resource and type."""

    resource: str
    type: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Told:
    """What was told last of one key. `at_s` is CLOCK_BOOTTIME, None in an earlier boot; `stands`: not told as over."""

    reason: str
    stands: bool
    at_s: float | None = None


@dataclass(frozen=True, slots=True)
class News:
    """One thing to tell: a problem, or that it `is_over`."""

    resource: str
    type: str
    reason: str
    message: str
    is_over: bool = False

    @property
    def key(self) -> Key:
        """What it is about."""
        return key_of(self.resource, self.type)


@dataclass(frozen=True, slots=True)
class Notification:
    """What goes out as one: news, with `more` that the limit let no message of their own have.

    `passed` is how many problems came and went untold since the last notification.
    """

    news: News
    more: tuple[News, ...] = ()
    passed: int = 0

    @property
    def keys(self) -> frozenset[Key]:
        """All that it tells of."""
        return frozenset(news.key for news in (self.news, *self.more))


@dataclass(frozen=True, slots=True)
class Watch:
    """What is remembered between two looks. Only `told` outlives the agent.

    `since`: from when on what is not told stands; `gone`: from when on what is told is missing; `sent_s`: when the
    latest notifications went out; `passed` as in `Notification`. Times are CLOCK_BOOTTIME in seconds.
    """

    told: Mapping[Key, Told] = field(default_factory=dict)
    since: Mapping[Key, float] = field(default_factory=dict)
    gone: Mapping[Key, float] = field(default_factory=dict)
    sent_s: tuple[float, ...] = ()
    passed: int = 0

    @property
    def is_waiting(self) -> bool:
        """Whether time alone may bring news."""
        return bool(self.since or self.gone)


@dataclass(frozen=True, slots=True)
class Limits:
    """What may go out: so many `per_minute`, no more than there is `room` for now, and nothing about `busy` keys.

    `complete` False: not everything could be looked at, so that something is missing means nothing.
    """

    per_minute: int
    room: int = 1 << 30
    busy: frozenset[Key] = frozenset()
    complete: bool = True


class FileLike(Protocol):
    """What became of one unit file (`agent.unitfile.resolve.FileStatus`)."""

    @property
    def path(self) -> str:
        """The file."""

    @property
    def state(self) -> str:
        """`valid`, `invalid` or `held`."""

    @property
    def errors(self) -> tuple[UnitError, ...]:
        """Its mistakes."""


def key_of(resource: str, type_: str) -> Key:
    """The key of a resource and a type; types have no spaces."""
    return f"{resource} {type_}"


def troubles_of(
    conditions: Sequence[Condition], approval: Approval | None, files: Sequence[FileLike]
) -> Mapping[Key, Trouble]:
    """What is worth telling, by key; of several of one key the first. One approval is one question, not many holds."""
    found: dict[Key, Trouble] = {}
    for each in _troubles(conditions, approval, files):
        found.setdefault(key_of(each.resource, each.type), each)
    return found


def _troubles(
    conditions: Sequence[Condition], approval: Approval | None, files: Sequence[FileLike]
) -> Iterator[Trouble]:
    for condition in conditions:
        if condition.type in WATCHED and condition.reason != "ApprovalNeeded":
            yield Trouble(condition.resource, condition.type, condition.reason, condition.message)
    if approval is not None:
        guests = ", ".join(approval.guests)
        message = f"units want these guests stopped, more at once than is allowed unasked: {guests}"
        yield Trouble("agent", "ApprovalNeeded", approval.id, f"{message}; `vmhost approve {approval.id}` allows it")
    for file in files:
        if file.state != "valid":
            message = str(file.errors[0]) if file.errors else f"{file.path}: no valid version"
            yield Trouble(f"unit/{printable(file.path.rpartition('/')[2])}", "UnitInvalid", file.state, message)


def without_times(told: Mapping[Key, Told]) -> Mapping[Key, Told]:
    """What was told, in another boot of the host: the times of the former one say nothing in this one."""
    return {key: replace(one, at_s=None) for key, one in told.items()}


def look(
    watch: Watch, troubles: Mapping[Key, Trouble], now_s: float, limits: Limits
) -> tuple[Watch, tuple[Notification, ...]]:
    """What to tell now, and what to remember; never more than the limits allow.

    When there is more than may go out, the last that may sums up all the rest, so nothing waits for longer than a
    minute. Pure: the same arguments give the same answer.
    """
    watch = _noticed(watch, troubles, now_s, complete=limits.complete)
    free = min(limits.room, limits.per_minute - len(watch.sent_s))
    due = list(_due(watch, troubles, now_s, limits.busy)) if free > 0 else []
    if not due:
        return watch, ()
    alone, rest = (due, []) if len(due) <= free else (due[: free - 1], due[free - 1 :])
    found = [Notification(news) for news in alone]
    if rest:
        found.append(Notification(rest[0], tuple(rest[1:])))
    found[0] = replace(found[0], passed=watch.passed)
    return _after(watch, due, now_s, len(found)), tuple(found)


def _noticed(watch: Watch, troubles: Mapping[Key, Trouble], now_s: float, *, complete: bool) -> Watch:
    since = {
        key: watch.since.get(key, now_s)
        for key, trouble in troubles.items()
        if not _is_told(watch.told.get(key), trouble)
    }
    missing = {key: at_s for key, at_s in watch.since.items() if key not in troubles}
    passed = 0
    if complete:
        passed = sum(now_s - at_s >= _rule(key).stands_s for key, at_s in missing.items())
    else:
        since |= missing
    gone = {
        key: watch.gone.get(key, now_s)
        for key, told in watch.told.items()
        if complete and told.stands and key not in troubles
    }
    told = {key: one for key, one in watch.told.items() if one.stands or now_s < _free_again_s(one, now_s)}
    recent = tuple(at_s for at_s in watch.sent_s if at_s > now_s - MINUTE_S)
    return Watch(told, since, gone, recent, watch.passed + passed)


def _is_told(told: Told | None, trouble: Trouble) -> bool:
    if told is None or not told.stands:
        return False
    return told.reason == trouble.reason or not _rule(key_of(trouble.resource, trouble.type)).by_reason


def _due(watch: Watch, troubles: Mapping[Key, Trouble], now_s: float, busy: frozenset[Key]) -> Iterator[News]:
    """Problems first, each kind of news in a fixed order."""
    for key, at_s in sorted(watch.since.items()):
        trouble, told = troubles.get(key), watch.told.get(key)
        if trouble is None or key in busy or now_s < at_s + _rule(key).stands_s:
            continue
        if told is None or now_s >= _free_again_s(told, now_s):
            yield News(trouble.resource, trouble.type, trouble.reason, trouble.message)
    for key, at_s in sorted(watch.gone.items()):
        if key not in busy and now_s >= at_s + _rule(key).gone_s:
            resource, _, type_ = key.rpartition(" ")
            yield News(resource, type_, watch.told[key].reason, f"{type_} is over", is_over=True)


def _after(watch: Watch, due: Sequence[News], now_s: float, count: int) -> Watch:
    told = dict(watch.told)
    for news in due:
        before = told.get(news.key)
        at_s = before.at_s if news.is_over and before is not None else now_s
        told[news.key] = Told(news.reason, not news.is_over, at_s)
    keys = {news.key for news in due}
    return Watch(
        told,
        {key: at_s for key, at_s in watch.since.items() if key not in keys},
        {key: at_s for key, at_s in watch.gone.items() if key not in keys},
        (*watch.sent_s, *(now_s for _ in range(count))),
    )


def _free_again_s(told: Told, now_s: float) -> float:
    """When a key may be told as a problem again. A time in the future is none of this boot."""
    return now_s if told.at_s is None or told.at_s > now_s else told.at_s + COOLDOWN_S


def _rule(key: Key) -> Watched:
    return WATCHED.get(key.rpartition(" ")[2], _UNKNOWN)
