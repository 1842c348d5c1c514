"""The whole host in one line, for `systemctl status`."""

from __future__ import annotations

from collections.abc import Iterator

from agent.core.tell.status import StatusInputs
from agent.core.text import counted


def status_line(inputs: StatusInputs) -> str:
    """How many guests run, and what keeps the host from being as its units say."""
    return "; ".join(_parts(inputs))


def _parts(inputs: StatusInputs) -> Iterator[str]:
    running = sum(state.alive for state in inputs.observed.vms.values())
    guests = len(inputs.desired.vms.keys() | inputs.observed.vms.keys())
    yield f"{running} of {counted(guests, 'guest')} running, {counted(len(inputs.desired.bridges), 'bridge')}"
    wrong = sum(file.state != "valid" for file in inputs.files)
    if wrong:
        yield f"{counted(wrong, 'unit file')} with mistakes (vmhost check)"
    if inputs.conditions:
        yield f"{counted(len(inputs.conditions), 'condition')} (vmhost status)"
    yield "settled" if inputs.agent.settled else "at work"
