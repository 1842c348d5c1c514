"""Whose doing a line of the log is: the pass that it comes from, and the resource that it is about.

A task that an action leaves behind goes on after it, with the context that it was begun in. What it writes then is no
line of that pass: so a scope ends, which a variable of a context cannot do in those who have copied it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import structlog

AGENT = "agent"
"""The resource of lines that are about none of the units'."""

_NAMED_BY = {"vm": "vm", "bridge": "bridge", "service": "service"}
"""Fields that name a resource of that kind."""


@dataclass(slots=True)
class _Scope:
    pass_id: int
    resource: str
    over: bool = False


_scope: ContextVar[_Scope | None] = ContextVar("scope", default=None)


@contextlib.contextmanager
def scope(pass_id: int, resource: str = AGENT) -> Iterator[None]:
    """What is logged within, also by tasks and threads begun there, is of this pass and of this resource."""
    here = _Scope(pass_id, resource)
    token = _scope.set(here)
    try:
        yield
    finally:
        here.over = True
        _scope.reset(token)


def add_scope(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A processor of structlog: gives each line its `resource`, and its `pass_id` if it comes from a pass."""
    here = _scope.get()
    if here is not None and here.over:
        here = None
    if here is not None:
        event.setdefault("pass_id", here.pass_id)
    if not event.get("resource"):
        event["resource"] = _named(event) or (here.resource if here is not None else AGENT)
    return event


def _named(event: structlog.typing.EventDict) -> str:
    return next((f"{kind}/{event[field]}" for field, kind in _NAMED_BY.items() if event.get(field)), "")
