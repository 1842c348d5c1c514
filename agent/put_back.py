"""`python -m agent.put_back JOURNAL`: put a move back that nobody finished. The dead man's switch runs this.

It looks how far the move is, under the journal's lock, and does nothing where it is over. Exit 0 when everything is as
it was, or there was nothing to do; 1, with one line that says why, otherwise.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from agent.core.errors import AgentError
from agent.core.uplinks.moves import Move, Progress, Step
from agent.host.netlink.moving import put_all_back
from agent.host.statedir.moves import Journal

UNFINISHED = frozenset({Step.WRITTEN, Step.MOVED, Step.PROVEN})
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def now_iso() -> str:
    """The wall clock, as journals say it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def put_back_locked(journal: Journal, move: Move, why: str) -> str:
    """Put everything back and say so; the caller holds the lock. What was not put back, empty for nothing.

    A journal that cannot be written to (a full disk, a bad one) keeps nothing from being put back: that comes first.
    Raises ActionError where the kernel refuses, OSError once all is back and only the journal does not say so.
    """
    left = ""
    if move.boot_id == BOOT_ID.read_text().strip():  # with another boot of the host, all that was changed is gone
        left = put_all_back(move)
    journal.note(Progress(Step.PUT_BACK, now_iso(), None, f"{why}; {left}" if left else why))
    return left


def main(arguments: list[str]) -> int:
    """The command."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m agent.put_back JOURNAL\n")
        return 2
    journal = Journal(Path(arguments[0]))
    try:
        with journal.lock():
            found = journal.read()
            if found is None or found[1].step not in UNFINISHED:
                return 0
            move, progress = found
            why = f"nobody confirmed it within {move.confirm_s:g} s" if progress.step is Step.PROVEN else WHY_LOST
            left = put_back_locked(journal, move, why)
    except (AgentError, OSError) as error:
        sys.stderr.write(f"vmhost: {error}\n")
        return 1
    sys.stderr.write(f"vmhost: {move.port.name} is as it was, {move.bridge} gave everything back: {left or why}\n")
    return 0


WHY_LOST = "the agent was lost in the middle of it"

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
