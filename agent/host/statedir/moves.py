"""The journals of moves: `STATE/moves/BRIDGE.move`, one for each bridge, and beside each its lock.

A journal begins with a line of fixed length that says how far the move is, and is written to in place: that takes no
room on a disk that has become full. All else in it is written once, durably, before the first change. Two processes
may want to put a move back, the agent and its dead man's switch: each holds the lock (flock(2)) while it looks how far
the move is, changes anything, and says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from agent.core.errors import AgentError
from agent.core.uplinks.carried import LinkPicture
from agent.core.uplinks.moves import Move, Progress, Step
from agent.host.statedir.durable import write_durably

HEAD_BYTES = 512
SUFFIX = ".move"
MAX_WHY = 200
VERSION = 1


class JournalError(AgentError):
    """A journal that cannot be read, or is none."""


class Journal:
    """One journal. `lock` is to be held around each look that something follows from."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Wait for whoever else has it; no more than the moment of a put back.

        On a disk that went bad or is full the lock that was made with the journal will do, and where there is none, to
        put back matters more. Raises nothing.
        """
        path = self.path.with_suffix(".lock")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                yield
                return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def write(self, move: Move, progress: Progress) -> None:
        """Begin a journal, in place of one that is over. Raises OSError, with the former one in place."""
        plain = {"version": VERSION, "move": asdict(move)}
        write_durably(self.path, _head(progress) + json.dumps(plain, default=bytes.hex).encode() + b"\n")

    def note(self, progress: Progress) -> None:
        """Say how far it is. Raises OSError."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(descriptor, _head(progress), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self) -> tuple[Move, Progress] | None:
        """The move and how far it is; None if there is no journal. Raises JournalError, which names the file."""
        try:
            data = self.path.read_bytes()
            plain = json.loads(data[HEAD_BYTES:])
            if plain["version"] != VERSION:
                raise JournalError(
                    f"{self.path}: written by another version of vmhost; remove it once the move is over"
                )
            move = _move(plain["move"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0][:MAX_WHY]
            message = f"{self.path} cannot be read ({why}); see whether addresses are where they belong, and remove it"
            raise JournalError(message) from error
        try:
            head = json.loads(data[:HEAD_BYTES])
            progress = Progress(Step(head["step"]), head["since"], head["deadline_s"], head["why"])
        except (ValueError, KeyError, TypeError):
            progress = Progress(Step.WRITTEN, "")  # torn while it was written: then it is put back
        return move, progress

    def forget(self) -> None:
        """Remove it; its lock stays, somebody may wait for it. Raises OSError."""
        self.path.unlink(missing_ok=True)


def _head(progress: Progress) -> bytes:
    line = json.dumps(asdict(replace(progress, why=progress.why[:MAX_WHY]))).encode()
    if len(line) >= HEAD_BYTES:
        line = json.dumps(asdict(replace(progress, why=""))).encode()
    return line.ljust(HEAD_BYTES - 1) + b"\n"


def _move(plain: dict[str, object]) -> Move:
    move = Move(**{**plain, "port": _picture(plain["port"]), "bridge_was": _picture(plain["bridge_was"])})  # type: ignore[arg-type]
    return replace(move, began_s=float(move.began_s), confirm_s=float(move.confirm_s), bridge=str(move.bridge))


def _picture(plain: object) -> LinkPicture:
    if not isinstance(plain, dict):
        raise TypeError("a link is a table")
    tables = {key: tuple(bytes.fromhex(one) for one in plain[key]) for key in ("addresses", "routes", "neighbours")}
    return LinkPicture(**{**plain, **tables, "mac": bytes.fromhex(plain["mac"])})


class Journals:
    """The journals of a state directory."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "moves"

    def of(self, bridge: str) -> Journal:
        """The journal of a bridge, whether there is one or not. A bridge's name is a file's (no slash in it)."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Journal(self._folder / f"{bridge}{SUFFIX}")

    def all(self) -> list[Journal]:
        """All that there are, by name."""
        return [Journal(path) for path in sorted(self._folder.glob(f"*{SUFFIX}"))]
