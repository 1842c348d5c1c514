"""When an action that did not succeed is tried again; the error's type decides."""

from __future__ import annotations

import hashlib

from agent.core.actions import Action, key_of
from agent.core.errors import ActionError, PermanentError, TransientError
from agent.core.observed import Attempt
from agent.core.planner.draft import fingerprint

FIRST_DELAY_S = 0.1
MAX_DELAY_S = 30.0
PERMANENT_DELAY_S = 300.0
"""Not everything in the world rings: what looks permanent is looked at again after this long all the same."""


def after_failure(action: Action, error: ActionError, previous: Attempt | None, now_s: float) -> Attempt:
    """The attempt to remember: how often the same action failed in a row, and the earliest time of the next try."""
    print_ = fingerprint(action)
    same = previous is not None and previous.fingerprint == print_
    failures = (previous.failures if previous is not None and same else 0) + 1
    if isinstance(error, PermanentError):
        delay_s = PERMANENT_DELAY_S
    elif isinstance(error, TransientError) and error.retry_after_s is not None:
        delay_s = error.retry_after_s
    else:
        ceiling_s: float = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(failures - 1, 16))
        delay_s = ceiling_s * (0.5 + 0.5 * _jitter(key_of(action), now_s))
    return Attempt(failures, now_s + delay_s, error.reason, str(error), print_)


def _jitter(key: str, now_s: float) -> float:
    return int.from_bytes(hashlib.sha256(f"{key}\0{now_s!r}".encode()).digest()[:4], "big") / 2**32
