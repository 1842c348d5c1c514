"""What the model host asserts of each action."""

from __future__ import annotations


class PreconditionError(AssertionError):
    """An action was planned whose precondition does not hold in the model."""


def require(condition: object, what: str) -> None:
    """`PreconditionError` unless it holds; `what` says it in words."""
    if not condition:
        raise PreconditionError(what)
