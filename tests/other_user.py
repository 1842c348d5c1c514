"""Runs `vmhost` as another user of the host, in a child of this process: that user cannot always read the code."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.cli import console, history, initial, report, vnc
from agent.cli.main import main

LAZY = (console, history, initial, report, vnc)
"""What the command imports when it is needed, which that user may not be able to."""

NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Said:
    """How the command ended."""

    code: int
    out: str
    err: str


def vmhost_as(words: Sequence[str], uid: int = NOBODY, groups: Sequence[int] = ()) -> Said:
    """Run `vmhost` as this user, whose first group is nobody's, with these supplementary groups."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os._exit(_in_child(words, uid, groups, (out.fileno(), err.fileno())))
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return Said(os.waitstatus_to_exitcode(status), *texts)


def _in_child(words: Sequence[str], uid: int, groups: Sequence[int], outputs: tuple[int, int]) -> int:
    try:
        for number, output in enumerate(outputs, 1):
            os.dup2(output, number)
        import sys

        sys.stdin = open(os.devnull)  # noqa: SIM115 - the child ends with it
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 - as above
        os.setgroups(groups)
        os.setgid(NOBODY)
        os.setuid(uid)
        code = main(words)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the child must not return into the test
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        return 70
    return code


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user may pass; pytest's are their owner's only."""
    with tempfile.TemporaryDirectory(prefix="vmhost-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)
