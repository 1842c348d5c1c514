"""What can go wrong, sorted by what follows from it.

The retry policy lives in the type: adapters translate foreign exceptions into these, the runtime reads the type only.
"""

from __future__ import annotations

from dataclasses import dataclass


class AgentError(Exception):
    """The root of every error that this project raises on purpose."""


class ObservationError(AgentError):
    """A source could not be read; the pass is abandoned, because nothing may be planned on half a view."""

    def __init__(self, source: str, why: str) -> None:
        super().__init__(f"{source}: {why}")
        self.source = source


class ActionError(AgentError):
    """An action did not succeed. `reason` is the CamelCase reason that its condition carries."""

    def __init__(self, message: str, *, reason: str = "ActionFailed") -> None:
        super().__init__(message)
        self.reason = reason


class TransientError(ActionError):
    """Worth trying again by itself: after `retry_after_s`, or with the common backoff where that is None."""

    def __init__(self, message: str, *, reason: str = "ActionFailed", retry_after_s: float | None = None) -> None:
        super().__init__(message, reason=reason)
        self.retry_after_s = retry_after_s


class PermanentError(ActionError):
    """Trying again changes nothing until the spec or the world does."""


class OutcomeUnknownError(ActionError):
    """The connection broke in the middle: look at the world before acting again."""


class HookError(AgentError):
    """A notification did not reach whom the operator named; the text says whom and why, and holds no secret."""


@dataclass(frozen=True, slots=True)
class UnitError:
    """One mistake in one unit file; lines and columns count from 1, `hint` says what to do (may be empty)."""

    path: str
    line: int
    column: int
    problem: str
    hint: str = ""

    def __str__(self) -> str:
        tail = f" ({self.hint})" if self.hint else ""
        return f"{self.path}:{self.line}:{self.column}: error: {self.problem}{tail}"
