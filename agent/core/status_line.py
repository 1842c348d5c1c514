"""The whole host in one line, for `systemctl status`."""

from __future__ import annotations

from collections.abc import Iterator

from agent.core.status import StatusInputs


def status_line(inputs: StatusInputs) -> str:
    """How many guests run, and what keeps the host from being as its units say."""
    return "; ".join(_parts(inputs))


def _parts(inputs: StatusInputs) -> Iterator[str]:
    running = sum(state.alive for state in inputs.observed.vms.values())
    guests = len(inputs.desired.vms.keys() | inputs.observed.vms.keys())
    yield f"{running} of {_count(guests, 'guest')} running, {_count(len(inputs.desired.bridges), 'bridge')}"
    wrong = sum(file.state != "valid" for file in inputs.files)
    if wrong:
        yield f"{_count(wrong, 'unit file')} with mistakes (vmhost check)"
    if inputs.conditions:
        yield f"{_count(len(inputs.conditions), 'condition')} (vmhost status)"
    yield "settled" if inputs.agent.settled else "at work"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
